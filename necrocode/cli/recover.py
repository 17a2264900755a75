"""``necrocode recover``: what models have produced, found again and put where it is wanted."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown
from necrocode.cli import _parsers
from necrocode.cli.run import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    code_of_error,
    config_of,
    print_json,
    print_refusal,
    print_text,
    tell,
)

if TYPE_CHECKING:
    import argparse

    from necrocode.agent_runner import RunnerConfig
    from necrocode.agent_runner._git import Git
    from necrocode.agent_runner.recovery import KeptWork

_EXIT_CODES = """exit codes:
  0    done
  1    git failed
  2    bad input: a run that is not kept, a branch or file that exists, the configuration or the command line
  130  interrupted by Ctrl-C
"""


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    parser = _parsers.add_parser(
        commands,
        "recover",
        told="list what models have produced, and restore it",
        description="List the commits that runs have made, delivered or not, and restore one as a branch or a patch."
        " Looks in the mirrors of the embedded pool, and in --repository. Overwrites nothing: see docs/outbox.md.",
        epilog=_EXIT_CODES,
    )
    parser.add_argument("run_id", metavar="RUN_ID", nargs="?", help="the run; without one, all are listed")
    parser.add_argument("--answer", metavar="N", type=int, help="which of the run's commits; without it, the last")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--branch", metavar="NAME", help="make this branch, in --repository, else in the current folder")
    where.add_argument("--patch", metavar="FILE", type=Path, help="write a patch, which git apply takes")
    where.add_argument("--prune-older-than", metavar="DAYS", type=float, help="forget the commits that are older")
    where.add_argument("--reconcile", action="store_true", help="clean up after runs of this machine that died")
    parser.add_argument("--repository", metavar="PATH", type=Path, help="a repository to look in, and to restore to")
    parser.add_argument("--json", action="store_true", help="print the list as one JSON object")
    _parsers.add_config(parser)
    parser.set_defaults(handler=recover, model=None)


def recover(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner import RunnerError  # noqa: PLC0415

    try:
        _recover(arguments, config_of(arguments))
    except RunnerError as error:
        if arguments.json:
            print_refusal(type(error).__name__, str(error), hint=error.hint)
        tell(sys.stderr, f"necrocode: {shown(str(error))}\n")
        return code_of_error(type(error).__name__)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _recover(arguments: argparse.Namespace, config: RunnerConfig) -> None:
    from necrocode.agent_runner import recovery  # noqa: PLC0415
    from necrocode.agent_runner._git import Git  # noqa: PLC0415

    if arguments.reconcile:
        _print_lines(_reconciled(config), nothing="nothing was left")
        return
    git = Git(config.state_dir / "git")
    works = recovery.kept_work(git, _repositories(arguments, config))
    if arguments.prune_older_than is not None:
        before = datetime.now(UTC) - timedelta(days=_checked_days(arguments.prune_older_than))
        print_text(f"{recovery.prune(git, works, before)} commits are kept no longer")
    elif arguments.branch is not None or arguments.patch is not None:
        _restore(arguments, git, works, hint=_hint(config))
    else:
        if arguments.run_id is not None:
            recovery.chosen_work(works, arguments.run_id, hint=_hint(config))
        works = tuple(work for work in works if arguments.run_id in {None, work.run_id})
        _show(works, as_json=arguments.json, nothing=_nothing(config))


def _hint(config: RunnerConfig) -> str:
    from necrocode.agent_runner.wiring import pool_folder  # noqa: PLC0415

    if pool_folder(config) is not None:
        return "necrocode recover lists what is; --repository looks elsewhere too."
    return "The pool is a service (repo_pool_url): name the mirror in its data folder by --repository PATH."


def _nothing(config: RunnerConfig) -> str:
    """What is told where there is none."""
    from necrocode.agent_runner.wiring import pool_folder  # noqa: PLC0415

    return "no work is kept here" if pool_folder(config) is not None else f"no work is known here. {_hint(config)}"


def _repositories(arguments: argparse.Namespace, config: RunnerConfig) -> list[Path]:
    from necrocode.agent_runner.recovery import mirrors  # noqa: PLC0415
    from necrocode.agent_runner.wiring import pool_folder  # noqa: PLC0415

    pool = pool_folder(config)
    named = [] if arguments.repository is None else [arguments.repository.expanduser().absolute()]
    return [*(mirrors(pool) if pool is not None else []), *named]


def _checked_days(days: float) -> float:
    from necrocode.agent_runner import ConfigurationError  # noqa: PLC0415

    if not 1 <= days <= 36_500:  # noqa: PLR2004  a hundred years; under a day a run may still be at work
        raise ConfigurationError(f"--prune-older-than must be from 1 to 36500 days, not {days:g}.")
    return days


def _restore(arguments: argparse.Namespace, git: Git, works: tuple[KeptWork, ...], *, hint: str) -> None:
    from necrocode.agent_runner import ConfigurationError, recovery  # noqa: PLC0415

    if arguments.run_id is None:
        raise ConfigurationError("--branch and --patch need RUN_ID.", hint="necrocode recover lists the runs.")
    work = recovery.chosen_work(works, arguments.run_id, arguments.answer, hint=hint)
    if arguments.patch is not None:
        recovery.save_patch(git, work, arguments.patch)
        print_text(f"{work.commit} is in {arguments.patch}")
        return
    target = (arguments.repository or Path()).expanduser().absolute()
    recovery.restore_branch(git, work, target, arguments.branch)
    print_text(f"{work.commit} is the branch {arguments.branch} in {target}")


def _reconciled(config: RunnerConfig) -> list[str]:
    from necrocode.agent_runner._clock import SYSTEM_CLOCK  # noqa: PLC0415
    from necrocode.agent_runner.reconcile import reconcile  # noqa: PLC0415
    from necrocode.agent_runner.wiring import build_services  # noqa: PLC0415

    services = build_services(config, SYSTEM_CLOCK)
    try:
        return reconcile(services.outbox, services.repo_pool, config.state_dir / "layers", is_thorough=True)
    finally:
        services.close()


def _show(works: tuple[KeptWork, ...], *, as_json: bool, nothing: str) -> None:
    if as_json:
        data = {"schema_version": 1, "work": [work.model_dump(mode="json") for work in works]}
        print_json(data)
        return
    _print_lines([_line(work) for work in works], nothing=nothing)


def _line(work: KeptWork) -> str:
    delivered = f"  on {', '.join(work.branches)}" if work.branches else ""
    when = f"{work.committed_at.astimezone(UTC):%Y-%m-%d %H:%M}"
    first = f"{work.run_id}  {work.answer}  {when}  {work.commit}  {work.subject}{delivered}"
    return f"{first}\n  {work.ref} in {work.repository}"


def _print_lines(lines: list[str], *, nothing: str) -> None:
    print_text("\n".join(map(shown, lines)) or nothing)
