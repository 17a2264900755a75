"""``necrocode migrate …``: from the A2A/Kiro runner's settings, environment and code to this one's."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner import removed
from necrocode.agent_runner._text import shown
from necrocode.cli import _parsers
from necrocode.cli.run import EXIT_BAD_INPUT, EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, print_text, tell

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from necrocode.migration.old_code import Examined
    from necrocode.migration.settings_file import Finding, MigratedSettings


EXIT_LEFT = EXIT_FAILED
_EXIT_CODES = """exit codes:
  0    done, or nothing to do
  1    something is left: what --check or a diff shows, or what only a person can decide
  2    bad input, or what cannot be written: nothing was, but by "code --write", which
       rewrites the other files and names each that it left as it was
  130  interrupted by Ctrl-C
"""


def add_parser(commands: _parsers.Commands) -> None:
    """Add the subcommand."""
    migrate = commands.add_parser(
        "migrate",
        help="move from the A2A/Kiro runner: settings, environment, code",
        description=f"Move from the A2A/Kiro runner: see {removed.GUIDE}.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = migrate.add_subparsers(metavar="WHAT", required=True)
    settings = _add_action(actions, "config", _config, "rewrite a settings file")
    settings.add_argument("file", metavar="FILE", type=Path, help="the old settings; left as they are")
    settings.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write; default: standard output")
    settings.add_argument("--check", action="store_true", help="say what would change, and write nothing")
    settings.add_argument("--force", action="store_true", help="replace the output if it is there")
    variables = _add_action(actions, "env", _env, "print shell lines that change the environment")
    variables.add_argument("--shell", choices=("sh", "fish"), default="sh", help="whose lines; default: sh")
    for parser in (settings, variables):
        parser.add_argument(
            "--embedded",
            action="store_true",
            help="write no URLs: the services are embedded in the runner (URLs that are set stay)",
        )
    code = _add_action(actions, "code", _code, "find uses of the removed names in Python code, and rewrite some")
    code.add_argument("paths", metavar="PATH", type=Path, nargs="+", help="a file, or a folder to be searched")
    code.add_argument("--write", action="store_true", help="rewrite what is safe to, instead of showing it as a diff")


def _add_action(
    actions: _parsers.Commands, name: str, handler: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    parser = _parsers.add_parser(actions, name, told=text, epilog=_EXIT_CODES)
    parser.set_defaults(handler=lambda arguments: _handled(handler, arguments), tells_of_variables=False)
    return parser


def _handled(handler: Callable[[argparse.Namespace], int], arguments: argparse.Namespace) -> int:
    from necrocode.agent_runner.errors import ConfigurationError  # noqa: PLC0415

    try:
        return handler(arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"ruamel", "libcst"}:
            raise
        _tell(f"necrocode: {error}. Install it with: pip install 'necrocode[cli]'")
    except ConfigurationError as error:
        _tell(f"necrocode: {error}")
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_BAD_INPUT


def _config(arguments: argparse.Namespace) -> int:
    from necrocode.migration.files import read_bounded, write_atomically  # noqa: PLC0415
    from necrocode.migration.settings_file import MAX_FILE_BYTES, migrate_settings  # noqa: PLC0415

    data = read_bounded(arguments.file, max_bytes=MAX_FILE_BYTES)
    migrated = migrate_settings(data, name=str(arguments.file), is_embedded=arguments.embedded)
    new = migrated.text.encode()
    _tell_findings(arguments.file, migrated)
    if arguments.check:
        return EXIT_LEFT if new != data or migrated.left else EXIT_DONE
    if arguments.output is None:
        print_text(migrated.text.removesuffix("\n"))
    elif not _holds(arguments.output, new):
        mode = arguments.file.stat().st_mode
        write_atomically(arguments.output, new, replace=arguments.force, mode=mode)
        _tell(f"wrote {arguments.output}")
    return EXIT_LEFT if migrated.left else EXIT_DONE


def _holds(path: Path, data: bytes) -> bool:
    """Whether the file is there already and needs no writing."""
    try:
        return path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _tell_findings(file: Path, migrated: MigratedSettings) -> None:
    if not migrated.changes and not migrated.left:
        _tell(f"{file}: nothing to change")
    _tell_each(file, migrated.changes)
    if migrated.left:
        _tell("left for you:")
    _tell_each(file, migrated.left)


def _tell_each(file: Path, findings: Sequence[Finding]) -> None:
    for finding in findings:
        place = f"{file}:{finding.line}: {finding.key}" if finding.line else f"{file}:"
        _tell(f'{place} {finding.what}\n    {finding.why}\n    See "{removed.SECTION_SETTINGS}" in {removed.GUIDE}.')


def _env(arguments: argparse.Namespace) -> int:
    from necrocode.migration.environment import migrate_environment  # noqa: PLC0415

    migrated = migrate_environment(os.environ, shell=arguments.shell, is_embedded=arguments.embedded)
    print_text("\n".join(map(shown, migrated.lines)))
    return EXIT_LEFT if migrated.is_left else EXIT_DONE


def _tell(text: str) -> None:
    tell(sys.stderr, f"{shown(text)}\n")


def _code(arguments: argparse.Namespace) -> int:
    from necrocode.migration.old_code import examine_file  # noqa: PLC0415
    from necrocode.migration.source_tree import python_files  # noqa: PLC0415

    is_done, is_failed = True, False
    for path in python_files(arguments.paths):
        found = examine_file(path)
        is_done &= not found.uses and not found.unread
        if found.unread:
            _tell(f"{path}: skipped, for {found.unread}")
        if found.new_data != found.data:
            is_done &= arguments.write
            is_failed |= not _rewrite(path, found, is_written=arguments.write)
        for use in found.uses:
            print_text(shown(f'{path}:{use.line}: {use.what}; see "{use.section}" in {removed.GUIDE}'))
    if is_failed:
        return EXIT_BAD_INPUT
    if is_done:
        _tell("nothing is left to change")
    return EXIT_DONE if is_done else EXIT_LEFT


def _rewrite(path: Path, found: Examined, *, is_written: bool) -> bool:
    """Whether the file was rewritten, or shown as a diff; it is whole in any case, and others do not wait for it."""
    from necrocode.agent_runner.errors import ConfigurationError  # noqa: PLC0415
    from necrocode.migration.files import write_atomically  # noqa: PLC0415
    from necrocode.migration.old_code import diff_of  # noqa: PLC0415

    if is_written:
        try:
            write_atomically(path, found.new_data, replace=True, mode=0o666)
        except ConfigurationError as error:
            _tell(f"necrocode: {error}")
            return False
        _tell(f"rewrote {path}")
        return True
    diff = diff_of(found, name=path.as_posix().removeprefix("/"))
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    print_text("\n".join(shown(line) for line in diff.split("\n")) if is_terminal else diff)
    return True
