"""The environment of the A2A/Kiro runner, as shell lines that make it this one's."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.removed import GUIDE, SECTION_VARIABLES
from necrocode.migration.old_settings import NEW_PORTS, OLD_SETTINGS, SECTIONS, service_urls

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Shell = Literal["sh", "fish"]
_SET: dict[Shell, str] = {"sh": "export {name}={value}", "fish": "set -gx {name} {value}"}
_UNSET: dict[Shell, str] = {"sh": "unset {name}", "fish": "set -e {name}"}
_KEY = "OPENAI_API_KEY"
# In this order they are told; a name such as AGENT_ID could be anybody's.
_OLD = {name.upper(): old for name, old in OLD_SETTINGS.items() if name.startswith(tuple(SECTIONS))}


def environment_lines(environ: Mapping[str, str], *, shell: Shell = "sh", is_embedded: bool = False) -> list[str]:
    """Lines for a shell that set what is missing and unset what is old, each explained in a comment.

    Of the environment's values the host of an old URL is shown, and nothing else. ``is_embedded``: no service URLs.
    """
    lines: list[str] = []
    given = {setting.upper() for setting in NEW_PORTS if environ.get(setting.upper())}
    for name in (name for name in _OLD if name in environ):
        lines += [f"# {name}: {_OLD[name].why}"]
        if _OLD[name].becomes == "services" and not is_embedded:
            lines += _service_lines(environ[name], given, shell)
            given |= {setting.upper() for setting in NEW_PORTS}
        elif _OLD[name].becomes == "model":
            lines += [_key_line(environ, shell)]
        elif _OLD[name].target:
            lines += [f"# It is {_OLD[name].target} in the configuration file now."]
        lines += [_UNSET[shell].format(name=name)]
    if not lines:
        return ["# Nothing to change: no variable of the A2A/Kiro runner is set."]
    kept = ["# GIT_TOKEN stays as it is."] if environ.get("GIT_TOKEN") else []
    return [*dict.fromkeys(lines), *kept, f'# See "{SECTION_VARIABLES}" in {GUIDE}.']


def _service_lines(old_url: str, given: set[str], shell: Shell) -> Iterator[str]:
    if given:
        yield "# The services' URLs are set already, and stay; a service without one is embedded in the runner."
        return
    urls = service_urls(old_url)
    if urls is None:
        yield f"# No host can be read from it: set {', '.join(map(str.upper, NEW_PORTS))} yourself, or leave them out."
        return
    yield "# Check the ports; a URL that is left out has its service embedded in the runner."
    for setting, url in urls.items():
        yield _SET[shell].format(name=setting.upper(), value=shlex.quote(url))


def _key_line(environ: Mapping[str, str], shell: Shell) -> str:
    if environ.get(_KEY):
        return f"# {_KEY} is set already, and stays."
    return f"# Put your key in, and run: {_SET[shell].format(name=_KEY, value='your-api-key')}"
