"""The environment of the A2A/Kiro runner, as shell lines that make it this one's."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.removed import GUIDE, SECTION_VARIABLES
from necrocode.migration.old_settings import NEW_PORTS, OLD_SETTINGS, SECTIONS, service_urls

if TYPE_CHECKING:
    from collections.abc import Mapping

Shell = Literal["sh", "fish"]
_SET: dict[Shell, str] = {"sh": "export {name}={value}", "fish": "set -gx {name} {value}"}
_UNSET: dict[Shell, str] = {"sh": "unset {name}", "fish": "set -e {name}"}
_KEY = "OPENAI_API_KEY"
# In this order they are told; a name such as AGENT_ID could be anybody's.
_OLD = {name.upper(): old for name, old in OLD_SETTINGS.items() if name.startswith(tuple(SECTIONS))}


@dataclass(frozen=True)
class MigratedEnvironment:
    """The lines for a shell, and whether something is left for a person: a value to put in, to carry or to choose."""

    lines: tuple[str, ...]
    is_left: bool


def migrate_environment(
    environ: Mapping[str, str], *, shell: Shell = "sh", is_embedded: bool = False
) -> MigratedEnvironment:
    """Lines for a shell that set what is missing and unset what is old, each explained in a comment.

    Of the environment's values the host of an old URL is shown, and nothing else. ``is_embedded``: no service URLs.
    """
    work = _Migration(environ, shell, is_embedded=is_embedded)
    for name in (name for name in _OLD if name in environ):
        work.move(name)
    if not work.lines:
        return MigratedEnvironment(("# Nothing to change: no variable of the A2A/Kiro runner is set.",), is_left=False)
    kept = ["# GIT_TOKEN stays as it is."] if environ.get("GIT_TOKEN") else []
    lines = [*dict.fromkeys(work.lines), *kept, f'# See "{SECTION_VARIABLES}" in {GUIDE}.']
    return MigratedEnvironment(tuple(lines), work.is_left)


class _Migration:
    def __init__(self, environ: Mapping[str, str], shell: Shell, *, is_embedded: bool) -> None:
        self.lines: list[str] = []
        self.is_left = False
        self._environ = environ
        self._shell = shell
        self._is_embedded = is_embedded
        self._has_urls = any(environ.get(setting.upper()) for setting in NEW_PORTS)
        self._found: tuple[str, dict[str, str]] | None = None  # which variable gave the URLs

    def move(self, name: str) -> None:
        """Add the lines for one old variable that is set."""
        old, is_set = _OLD[name], bool(self._environ[name].strip())
        self.lines.append(f"# {name}: {old.why}")
        if old.becomes == "services" and not self._is_embedded:
            self._move_bus(name, is_set=is_set)
        elif old.becomes == "model":
            self._move_model()
        elif old.target:
            self.lines.append(f"# It is {old.target} in the configuration file now: write its value there.")
            self.is_left |= is_set
        elif old.needs:
            self.is_left |= is_set and not self._environ.get(old.needs)
        self.lines.append(_UNSET[self._shell].format(name=name))

    def _move_bus(self, name: str, *, is_set: bool) -> None:
        if self._has_urls:
            self.lines.append(
                "# The services' URLs are set already, and stay; a service without one is embedded in the runner."
            )
            return
        urls = service_urls(self._environ[name])
        if urls is None:
            names = ", ".join(map(str.upper, NEW_PORTS))
            self.lines.append(f"# No host can be read from it: set {names} yourself, or leave them out.")
            self.is_left |= is_set
        elif self._found is None:
            self._found = name, urls
            self.lines.append("# Check the ports; a URL that is left out has its service embedded in the runner.")
            set_line = _SET[self._shell]
            self.lines += [set_line.format(name=key.upper(), value=shlex.quote(url)) for key, url in urls.items()]
        elif self._found[1] == urls:
            self.lines.append(f"# It names the host of {self._found[0]}.")
        else:
            self.lines.append(
                f"# It names another scheme or host than {self._found[0]}, which gave the URLs: choose, and set them."
            )
            self.is_left = True

    def _move_model(self) -> None:
        if self._environ.get(_KEY):
            self.lines.append(f"# {_KEY} is set already, and stays.")
            return
        line = _SET[self._shell].format(name=_KEY, value="your-api-key")
        self.lines.append(f"# Put your key in, and run: {line}")
        self.is_left = True
