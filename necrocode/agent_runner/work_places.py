"""Where a run works: in a checkout that its task brings, or in a slot of the pool."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from necrocode.agent_runner._names import slot_holder
from necrocode.agent_runner.errors import RepositoryNotFoundError
from necrocode.agent_runner.reconcile import give_back
from necrocode.agent_runner.steps.allocate import brought_workspace, leased_workspace
from necrocode.agent_runner.workspace import StartPoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager, ExitStack

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.journal import Journal
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.wiring import Services
    from necrocode.agent_runner.workspace import Workspace


def first_or_same_workspace(
    journal: Journal,
    task: TaskContext,
    services: Services,
    config: RunnerConfig,
    *,
    record: RunRecord,
    deadline: Deadline,
    stack: ExitStack,
) -> Workspace:
    """A workspace until the stack is closed: at the base of the interrupted run, where that can still be had.

    Else at the base that the task names today; then what the journal has holds no more.
    """
    start = StartPoint.of(journal.recorded("workspace"))
    holder = slot_holder(record.runner_id, record.run_id)
    if journal.is_resumed:
        give_back(services.repo_pool, holder)  # the journal is ours, so the process that held a slot is dead
    workspace = partial(
        workspace_for,
        task,
        services,
        config,
        holder=holder,
        deadline=deadline,
        on_trouble=record.warn,
    )
    try:
        made = stack.enter_context(workspace(start=start))
    except RepositoryNotFoundError as error:
        if start is None:
            raise
        journal.forget_all(f"its base commit {start.base_commit[:12]} is gone ({error})")
        made = stack.enter_context(workspace())
    if start is not None and made.base_commit != start.base_commit:
        journal.forget_all(f"the workspace is at {made.base_commit[:12]} instead of its base commit")
    journal.record("workspace", base_commit=made.base_commit, head=made.head)
    return made


def workspace_for(
    task: TaskContext,
    services: Services,
    config: RunnerConfig,
    *,
    holder: str,
    deadline: Deadline,
    on_trouble: Callable[[str], None],
    only_reads: bool = False,
    start: StartPoint | None = None,
) -> AbstractContextManager[Workspace]:
    """The checkout that the task brings, or else a slot of the pool, for as long as the context lasts.

    ``only_reads``: nothing will be done in it, so that a checkout with uncommitted changes does too. ``start`` None: it
    starts from where the task says.
    """
    if task.slot_path is not None:
        return brought_workspace(
            task,
            services.git,
            deadline=deadline,
            on_trouble=on_trouble,
            only_reads=only_reads,
            start=start,
            pushes=config.push and not only_reads,
        )
    return leased_workspace(
        task,
        services.repo_pool,
        services.git,
        holder=holder,
        lease_seconds=config.lease_seconds,
        slot_timeout_seconds=config.slot_timeout_seconds,
        deadline=deadline,
        on_trouble=on_trouble,
        start=start,
    )
