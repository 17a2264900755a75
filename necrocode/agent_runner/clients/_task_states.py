"""The states of a task, the names they also go by, and which may follow which."""

from __future__ import annotations

from necrocode.agent_runner.errors import IllegalTransitionError, ServiceError

ALIASES = {"pending": "ready", "in_progress": "running", "completed": "done"}
FOLLOWS = {
    "blocked": {"ready", "cancelled"},
    "ready": {"blocked", "running", "failed", "cancelled"},
    "running": {"ready", "done", "failed", "cancelled"},
    "done": set[str](),
    "failed": {"ready", "running"},
    "cancelled": {"ready", "running"},
}
FINISHED = {"done", "failed", "cancelled"}


def canonical_status(status: str) -> str:
    """The state's own name; ``ServiceError`` (status 400) for a name that is none."""
    name = ALIASES.get(status, status)
    if name not in FOLLOWS:
        known = ", ".join([*FOLLOWS, *ALIASES])
        raise ServiceError(f"{status!r} is not a task status (known: {known}).", status_code=400)
    return name


def check_transition(task_id: str, old: str, new: str) -> None:
    """Raise :class:`IllegalTransitionError` unless ``new`` may follow ``old``, or is the same."""
    if new != old and new not in FOLLOWS[old]:
        allowed = ", ".join(sorted(FOLLOWS[old])) or "nothing: register the task again to run it anew"
        raise IllegalTransitionError(
            f"Task {task_id} is {old} and cannot become {new} (from {old} it can become: {allowed}).", status_code=409
        )
