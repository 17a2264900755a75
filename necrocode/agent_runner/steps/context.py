"""What the model is shown of the repository for a task: from git's objects, and from what was chosen before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from necrocode.agent_runner.errors import RunnerError
from necrocode.agent_runner.generation.context import select_context
from necrocode.agent_runner.generation.context_cache import ContextCache, context_key

if TYPE_CHECKING:
    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader, Repository
    from necrocode.agent_runner.generation.pieces import Context
    from necrocode.agent_runner.models import TaskContext

_SHARE_OF_TIME = 0.1
_MOST_SECONDS = 10.0


def choose_context(
    task: TaskContext,
    repository: Repository,
    objects: ObjectReader,
    base: str,
    *,
    budget_tokens: int,
    deadline: Deadline,
    cache: ContextCache | None = None,
) -> Context:
    """The part of the base commit's tree that the model is shown; no file of a checkout is read.

    It takes at most 10 seconds or a tenth of the time that the run has left: then what was found so far is used, and
    the context's notes say so.
    """
    try:
        return _choose(task, repository, objects, base, budget_tokens=budget_tokens, deadline=deadline, cache=cache)
    except RunnerError as error:
        error.step = error.step or "generate"  # it is done for that step, before its time is taken
        raise


def _choose(
    task: TaskContext,
    repository: Repository,
    objects: ObjectReader,
    base: str,
    *,
    budget_tokens: int,
    deadline: Deadline,
    cache: ContextCache | None,
) -> Context:
    tree = objects.tree_of(base)
    key = context_key(task, tree, budget_tokens)
    known = cache.get(key) if cache is not None else None
    if known is not None:
        return known
    context = select_context(
        task,
        repository,
        objects,
        tree,
        budget_tokens=budget_tokens,
        seconds=min(_MOST_SECONDS, _SHARE_OF_TIME * deadline.check("choose what to show")),
        clock=deadline.clock,
        deadline=deadline,
    )
    if cache is not None:
        cache.put(key, context)
    return context
