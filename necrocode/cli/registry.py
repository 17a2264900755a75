"""``necrocode registry …``: specs into a task registry and back, its graph, its backups."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

from necrocode.agent_runner._text import inert_json, shown
from necrocode.cli import _parsers
from necrocode.cli.run import EXIT_BAD_INPUT, EXIT_DONE, EXIT_INTERRUPTED, EXIT_UNAVAILABLE, print_text, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from necrocode.agent_runner import BudgetUsage, LocalTaskRegistry, RunnerConfig, TaskRegistryClient
    from necrocode.agent_runner.clients._backup_format import BackupSummary
    from necrocode.agent_runner.kiro_spec import KiroSpec
    from necrocode.agent_runner.spec_sync import SyncPlan


_EXIT_CODES = """exit codes:
  0    done
  2    bad input: a file, a database that is not empty, the configuration or the command line
  3    the registry was not available, or refused
  130  interrupted by Ctrl-C
"""
_GRAPH_FORMATS = ("mermaid", "dot", "json")


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    registry = commands.add_parser(
        "registry",
        help="specs into a task registry and back, its graph, its backups",
        description="Work on a task registry: see docs/specs.md.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = registry.add_subparsers(metavar="ACTION", required=True)
    _add_spec_actions(actions)
    _add_database_actions(actions)


def _add_spec_actions(actions: _parsers.Commands) -> None:
    reading = _add_action(actions, "import", _import, "put a Kiro spec into the registry; its files stay as they are")
    syncing = _add_action(actions, "sync", _sync, "bring a Kiro spec and the registry to say the same")
    for parser in (reading, syncing):
        parser.add_argument("spec", metavar="DIR", type=Path, help="the spec's folder, or its tasks.md")
        parser.add_argument("--spec", dest="name", metavar="NAME", help="the spec's name, if not the folder's")
    syncing.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    graph = _add_action(actions, "graph", _graph, "show the tasks of a spec and who waits for whom")
    graph.add_argument("spec", metavar="SPEC", help="the spec's name")
    budget = _add_action(actions, "budget", _budget, "show what the runs of a spec have spent on the model")
    budget.add_argument("spec", metavar="SPEC", help="the spec's name")
    budget.add_argument("--json", action="store_true", help="as one JSON object")
    budget.add_argument("--reset", action="store_true", help="forget it; questions under way still count")
    graph.add_argument("--format", choices=_GRAPH_FORMATS, default="mermaid", help="default: mermaid")


def _add_database_actions(actions: _parsers.Commands) -> None:
    saving = _add_action(actions, "backup", _backup, "write all of a registry's database to a file")
    restoring = _add_action(actions, "restore", _restore, "put a backup into an empty database")
    restoring.add_argument("--force", action="store_true", help="replace all that the database holds")
    verifying = _add_action(actions, "verify", _verify, "see whether a backup is whole", has_registry=False)
    for parser in (saving, restoring, verifying):
        parser.add_argument("file", metavar="FILE", type=Path, help="the backup")
    _add_action(actions, "upgrade", _upgrade, "bring a database to the schema of this release")


def _add_action(
    actions: _parsers.Commands,
    name: str,
    handler: Callable[[argparse.Namespace], None],
    text: str,
    *,
    has_registry: bool = True,
) -> argparse.ArgumentParser:
    parser = _parsers.add_parser(actions, name, told=text, epilog=_EXIT_CODES)
    if has_registry:
        parser.add_argument(
            "--registry",
            metavar="URL",
            help="http(s)://…, sqlite:///path or postgresql://…; default: the one of the settings, or the embedded one",
        )
        _parsers.add_config(parser)
    parser.set_defaults(handler=lambda arguments: _handled(handler, arguments))
    return parser


def _handled(handler: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner.errors import (  # noqa: PLC0415
        ConfigurationError,
        RunnerError,
        TaskContextValidationError,
        TaskNotFoundError,
    )

    try:
        handler(arguments)
    except (ConfigurationError, TaskContextValidationError, TaskNotFoundError) as error:
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return EXIT_BAD_INPUT
    except RunnerError as error:
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return EXIT_UNAVAILABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _import(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.kiro_spec import load_spec  # noqa: PLC0415
    from necrocode.agent_runner.spec_sync import apply_to_registry  # noqa: PLC0415

    spec = load_spec(arguments.spec, spec_name=arguments.name)
    with _Target(arguments, spec) as target:
        apply_to_registry(target.plan, target.registry, spec.task_set.spec_name)
        target.memory.write(target.plan.agreed_without_boxes(target.agreed))
        print_text("\n".join(map(shown, _told(spec, target.plan, boxes=False))))


def _sync(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.kiro_spec import load_spec  # noqa: PLC0415
    from necrocode.agent_runner.spec_sync import apply_to_registry, write_boxes  # noqa: PLC0415

    spec = load_spec(arguments.spec, spec_name=arguments.name)
    with _Target(arguments, spec) as target:
        plan = target.plan
        if not arguments.dry_run:
            apply_to_registry(plan, target.registry, spec.task_set.spec_name)
            target.memory.write({**target.agreed, **plan.agreed})  # a tick of ours is never taken for a person's
            write_boxes(target.file, spec, plan)
            target.memory.write(plan.agreed)
        print_text("\n".join(map(shown, _told(spec, plan, boxes=True, is_dry=arguments.dry_run))))


class _Target:
    """A registry, and what has to be done for a spec and it to agree."""

    def __init__(self, arguments: argparse.Namespace, spec: KiroSpec) -> None:
        from necrocode.agent_runner.errors import TaskNotFoundError  # noqa: PLC0415
        from necrocode.agent_runner.kiro_spec import tasks_file_of  # noqa: PLC0415
        from necrocode.agent_runner.spec_sync import SyncMemory, plan_sync  # noqa: PLC0415

        config = _config(arguments)
        url = _url(arguments, config)
        self.file = tasks_file_of(arguments.spec)
        self.registry = _registry(url, config)
        self.memory = SyncMemory(config.state_dir / "specs", self.file, _without_user(url))
        self.agreed = self.memory.read()
        try:
            known = self.registry.get_taskset(spec.task_set.spec_name)
        except TaskNotFoundError:
            known = None
        self.plan = plan_sync(spec, known, self.agreed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.registry.close()


def _graph(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.task_graph import TaskGraph, render_graph  # noqa: PLC0415

    config = _config(arguments)
    with _registry(_url(arguments, config), config) as registry:
        tasks = registry.get_taskset(arguments.spec).tasks
    print_text(render_graph(TaskGraph.of(arguments.spec, tasks), arguments.format).rstrip("\n"))


def _budget(arguments: argparse.Namespace) -> None:
    config = _config(arguments)
    url = _url(arguments, config)
    with _registry(url, config) as registry:
        usage = registry.budget_usage(arguments.spec)
        if usage.since is None:
            registry.get_taskset(arguments.spec)  # refuses a spec that it does not know
        if arguments.reset:
            usage = registry.reset_budget(arguments.spec)
    told = _spent(usage, _shown_url(url))
    print_text(inert_json(usage.model_dump_json(indent=2)) if arguments.json else "\n".join(map(shown, told)))


def _spent(usage: BudgetUsage, registry: str) -> Iterator[str]:
    since = "never" if usage.since is None else f"{usage.since:%Y-%m-%dT%H:%M:%SZ}, {usage.seconds:.0f} s ago"
    yield f"registry   {registry}"
    yield f"spec       {usage.spec_name}"
    yield f"since      {since}"
    for name, part in (("spent", usage.spent), ("reserved", usage.reserved), ("unsettled", usage.unsettled)):
        notes = [f"{part.unpriced_calls} without a price"] if part.unpriced_calls else []
        notes += [f"{part.estimated_calls} estimated"] if part.estimated_calls else []
        about = f" ({', '.join(notes)})" if notes else ""
        told = f"{part.calls} calls{about}"
        tokens = f"{part.prompt_tokens} + {part.completion_tokens} tokens"
        yield f"{name:<10} {told}, {tokens}, {part.cost_micro_usd / 1_000_000:.6f} USD"


def _backup(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner._clock import SYSTEM_CLOCK  # noqa: PLC0415
    from necrocode.agent_runner.clients.registry_backup import write_backup  # noqa: PLC0415

    summary = write_backup(_url(arguments, _config(arguments)), arguments.file, now=SYSTEM_CLOCK.now())
    print_text(f"wrote {arguments.file}, and read it again: {_counts(summary)}")


def _restore(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.clients.registry_backup import restore_backup  # noqa: PLC0415

    summary = restore_backup(_url(arguments, _config(arguments)), arguments.file, force=arguments.force)
    print_text(f"restored {arguments.file} of {summary.header.created_at}: {_counts(summary)}")


def _verify(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.clients.registry_backup import verify_backup  # noqa: PLC0415

    summary = verify_backup(arguments.file)
    print_text(f"{arguments.file} of {summary.header.created_at} is whole: {_counts(summary)}")


def _upgrade(arguments: argparse.Namespace) -> None:
    from necrocode.agent_runner.clients.registry_backup import upgrade_database  # noqa: PLC0415

    before, after = upgrade_database(_url(arguments, _config(arguments)))
    print_text(
        f"the schema is {after} already" if before == after else f"the schema is {after} (was {before or 'not there'})"
    )


def _config(arguments: argparse.Namespace) -> RunnerConfig:
    from necrocode.agent_runner import RunnerConfig  # noqa: PLC0415

    return RunnerConfig.from_yaml(arguments.config) if arguments.config else RunnerConfig.from_env()


def _url(arguments: argparse.Namespace, config: RunnerConfig) -> str:
    return arguments.registry or config.task_registry_url or f"sqlite:///{config.state_dir / 'registry.db'}"


def _registry(url: str, config: RunnerConfig) -> LocalTaskRegistry | TaskRegistryClient:
    if not url.startswith(("http:", "https:")):
        from necrocode.agent_runner import LocalTaskRegistry  # noqa: PLC0415

        return LocalTaskRegistry(url)
    from necrocode.agent_runner import TaskRegistryClient  # noqa: PLC0415

    return TaskRegistryClient(
        url,
        token=config.service_token.get_secret_value() if config.service_token is not None else None,
        network_retry_count=config.network_retry_count,
        timeout_seconds=config.request_timeout_seconds,
    )


def _without_user(url: str) -> str:
    """The URL without what must not be written down."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _shown_url(url: str) -> str:
    """The URL as it was written, without what nobody must see."""
    user, at, _ = urlsplit(url).netloc.rpartition("@")
    return url.partition("?")[0].replace(f"{user}{at}", "", 1)


def _counts(summary: BackupSummary) -> str:
    return ", ".join(f"{count} {table}" for table, count in summary.rows.items())


def _told(spec: KiroSpec, plan: SyncPlan, *, boxes: bool, is_dry: bool = False) -> Iterator[str]:
    """What was done, or would be: a line for each task concerned, and one that sums it up."""
    title = {task.task_id: task.title for task in spec.task_set.tasks}
    for task_id in plan.new:
        yield f"new      {task_id} {title[task_id]}"
    for task_id in plan.removed:
        yield f"removed  {task_id}"
    for task_id in plan.ticked:
        yield f"done     {task_id} {title[task_id]} (ticked by hand)"
    for task_id, mark in plan.boxes.items() if boxes else ():
        yield f"box      {task_id} [{spec.tasks[task_id].mark}] -> [{mark}] {spec.tasks[task_id].title}"
    about = f"{spec.task_set.spec_name}: {len(spec.task_set.tasks)} tasks"
    if plan.task_set is None and not plan.ticked and not (boxes and plan.boxes):
        yield f"{about}, nothing to do"
    else:
        yield f"{about}{', nothing was done: --dry-run' if is_dry else ''}"
