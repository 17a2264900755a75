"""``necrocode serve``: the three services, one alone or all in one process."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from necrocode.cli.run import EXIT_BAD_INPUT, EXIT_DONE, EXIT_UNAVAILABLE

if TYPE_CHECKING:
    from necrocode.services.wiring import ServeSettings, ServiceName

_PORTS: dict[ServiceName, int] = {"task-registry": 8001, "repo-pool": 8002, "artifact-store": 8003}
_DESCRIPTION = """\
Serve the Task Registry, the Repo Pool Manager, the Artifact Store, or all three in one process. Ctrl-C or SIGTERM ends
it in order: requests under way are finished. See docs/services.md.

environment:
  NECROCODE_SERVICE_TOKEN    the bearer token that callers must send; without one only this machine can call
  NECROCODE_STATE_DIR        as --data-dir          NECROCODE_DATABASE_URL     as --database-url
  NECROCODE_STORE_URL        as --store-url         NECROCODE_ALLOW_ANONYMOUS  1: as --allow-anonymous
  GIT_TOKEN                  the repo pool's token for https repositories
  AWS_…                      the usual variables of S3: keys, region, AWS_ENDPOINT_URL
"""
_EXIT_CODES = """exit codes:
  0    ended in order, by Ctrl-C or SIGTERM
  2    bad input: a setting or the command line
  3    an address, the database or the store was not available
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "serve",
        help="serve the task registry, repo pool and artifact store over HTTP",
        description=_DESCRIPTION,
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("service", choices=[*_PORTS, "all"], help="which service")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen; default 127.0.0.1")
    parser.add_argument(
        "--port",
        type=_port,
        metavar="N",
        help="default 8001, 8002 and 8003; with 'all' the first of three; 0: any free ones",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="where data is kept; default ~/.necrocode")
    parser.add_argument(
        "--database-url", metavar="URL", help="the registry's database: sqlite:///path or postgresql://…"
    )
    parser.add_argument("--store-url", metavar="URL", help="where artifacts go: file:///folder or s3://bucket/prefix")
    parser.add_argument("--public-url", metavar="URL", help="the artifact store's URL in the URIs it gives out")
    parser.add_argument("--quota-bytes", type=_positive, metavar="N", help="the most that the artifact store keeps")
    parser.add_argument("--pool-size", type=_positive, default=5, metavar="N", help="slots per repository; default 5")
    parser.add_argument("--pools", metavar="FILE", help="YAML: pools to keep warm (see docs/services.md)")
    parser.add_argument(
        "--allow-source",
        action="append",
        default=[],
        metavar="PLACE",
        help="a host or folder that the pool may have repositories from; may be repeated; default: any",
    )
    parser.add_argument(
        "--git-token-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host that the pool may send GIT_TOKEN to; may be repeated; default: github.com and other public ones",
    )
    parser.add_argument("--token-file", metavar="FILE", help="a file that holds the bearer token")
    parser.add_argument(
        "--allow-anonymous", action="store_true", help="without a token, let everybody who reaches the port call"
    )
    parser.add_argument(
        "--rate-limit", type=_rate, default=0.0, metavar="N", help="requests per second and client; default 0: no limit"
    )
    parser.add_argument("--no-access-log", action="store_true", help="do not log each request")
    parser.set_defaults(handler=run)


def run(arguments: argparse.Namespace) -> int:
    """The subcommand."""
    from necrocode.agent_runner.errors import ConfigurationError, RunnerError  # noqa: PLC0415

    try:
        from necrocode.services import _serving, wiring  # noqa: PLC0415
    except ModuleNotFoundError as error:
        print(f"necrocode: {error}. Install it with: pip install 'necrocode[services]'", file=sys.stderr)
        return EXIT_BAD_INPUT
    try:
        settings = _settings(arguments)
        token = None if settings.token is None else settings.token.get_secret_value()
        _serving.refuse_open_door(arguments.host, token, allow_anonymous=_is_anonymous(arguments))
        servings = [
            _serving.Serving(wiring.build_service(name, settings), arguments.host, port)
            for name, port in _ports(arguments).items()
        ]
        with _serving.logging_to_stderr(access_log=not arguments.no_access_log, secrets=settings.secrets()):
            _serving.serve(
                servings,
                token=token,
                rate_limit_per_second=arguments.rate_limit,
                on_ready=lambda service, url: print(f"{service.name} {url}", flush=True),
            )
    except ConfigurationError as error:
        print(f"necrocode: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except RunnerError as error:
        print(f"necrocode: {error}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return EXIT_DONE


def _settings(arguments: argparse.Namespace) -> ServeSettings:
    from necrocode.services.wiring import ServeSettings  # noqa: PLC0415

    given: dict[str, Any] = {
        "data_dir": arguments.data_dir or os.environ.get("NECROCODE_STATE_DIR"),
        "database_url": arguments.database_url or os.environ.get("NECROCODE_DATABASE_URL"),
        "store_url": arguments.store_url or os.environ.get("NECROCODE_STORE_URL"),
        "public_url": arguments.public_url,
        "quota_bytes": arguments.quota_bytes,
        "pool_size": arguments.pool_size,
        "pools_file": arguments.pools,
        "token": _token(arguments),
        "git_token": os.environ.get("GIT_TOKEN"),
        "git_token_hosts": tuple(arguments.git_token_host) or None,
        "allowed_sources": tuple(arguments.allow_source) or None,
    }
    return ServeSettings(**{name: value for name, value in given.items() if value not in {None, ""}})


def _token(arguments: argparse.Namespace) -> str | None:
    from necrocode.agent_runner.errors import ConfigurationError  # noqa: PLC0415

    if arguments.token_file is None:
        return os.environ.get("NECROCODE_SERVICE_TOKEN")
    try:
        token = Path(arguments.token_file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"Cannot read the token file {arguments.token_file}: {error}.") from error
    if not token:
        raise ConfigurationError(f"The token file {arguments.token_file} is empty.")
    return token


def _is_anonymous(arguments: argparse.Namespace) -> bool:
    return arguments.allow_anonymous or os.environ.get("NECROCODE_ALLOW_ANONYMOUS") == "1"


def _ports(arguments: argparse.Namespace) -> dict[ServiceName, int]:
    if arguments.service != "all":
        return {arguments.service: _PORTS[arguments.service] if arguments.port is None else arguments.port}
    if arguments.port is None:
        return _PORTS
    return {name: arguments.port + number if arguments.port else 0 for number, name in enumerate(_PORTS)}


def _port(text: str) -> int:
    return _number(text, 0, 65_535)


def _positive(text: str) -> int:
    return _number(text, 1, 2**62)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = -1
    if not 0 <= rate <= 1e6:  # noqa: PLR2004  the bounds are in the message
        raise argparse.ArgumentTypeError("must be from 0 to 1000000")
    return rate


def _number(text: str, least: int, most: int) -> int:
    if not re.fullmatch(r"[0-9]{1,20}", text) or not least <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, not {text!r}")
    return int(text)
