"""Which sandbox this machine has: tried out by running something in it, from the best one down, once a process."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.errors import ConfigurationError, RunnerError, TestExecutionError
from necrocode.agent_runner.sandbox.confined import ConfinedSandbox, Confinement, Policy
from necrocode.agent_runner.sandbox.limits import Limits

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from necrocode.agent_runner.sandbox.docker import DockerSandbox
    from necrocode.agent_runner.sandbox.layered import LayeredSandbox
    from necrocode.agent_runner.sandbox.request import Wall
    from necrocode.agent_runner.test_results import TestResult

_PROBE_SECONDS = 30.0  # of a machine under load; it takes a tenth of one
_PROBE = 'cat below && echo x >above && rm below && ! cat "$OUTSIDE" 2>/dev/null && ! touch "$OUTSIDE" 2>/dev/null'
_INSTALL: dict[Wall, str] = {
    "sandlock": "pip install 'necrocode[sandbox]' (Linux 6.7 or later, with Landlock)",
    "bwrap": "apt-get install bubblewrap",
}
_FOUND: dict[tuple[Wall, int, int], Confinement | str] = {}
_FOUND_LOCK = threading.Lock()


class LadderSandbox:
    """The :class:`~necrocode.agent_runner.Sandbox` that the setting names, or for ``auto`` the first that works here.

    It is chosen at the first use and never exchanged: when it fails later on, that is an error.
    """

    def __init__(self, walls: Sequence[Wall], root: Path, policy: Policy, *, last: DockerSandbox | None = None) -> None:
        self._walls = tuple(walls)
        self._root = root
        self._policy = policy
        self._last = last
        self._lock = threading.Lock()
        self._chosen: LayeredSandbox | None = None

    def ensure_available(self) -> None:
        """Return when there is one; ``ConfigurationError`` says why none of them works, and what to install."""
        self._choice().ensure_available()

    def close(self) -> None:
        """Close connections to a Docker Engine, where there are any."""
        if self._last is not None:
            self._last.close()

    @property
    def identity(self) -> str:
        """What of it a result depends on."""
        return self._choice().identity

    def run_tests(
        self,
        commands: Sequence[str],
        checkout: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        fail_fast: bool,
        deadline: Deadline,
        collect: Sequence[str] = (),
        below: Path | None = None,
    ) -> TestResult:
        """As the chosen one does it."""
        return self._choice().run_tests(
            commands, checkout, tree=tree, environment=environment, fail_fast=fail_fast, deadline=deadline,
            collect=collect, below=below,
        )  # fmt: skip

    def run_setup(
        self,
        commands: Sequence[str],
        checkout: Path,
        kept: Path,
        *,
        tree: str,
        environment: Mapping[str, str],
        has_network: bool,
        deadline: Deadline,
    ) -> TestResult:
        """As the chosen one does it."""
        return self._choice().run_setup(
            commands, checkout, kept, tree=tree, environment=environment, has_network=has_network, deadline=deadline
        )

    def _choice(self) -> LayeredSandbox:
        with self._lock:
            if self._chosen is None:
                self._chosen = self._choose()
            return self._chosen

    def warnings(self) -> tuple[str, ...]:
        """What the operator asked for, and the chosen one does without."""
        chosen = self._choice()
        if self._last is None or chosen is self._last:
            return ()
        try:
            self._last.ensure_available()
        except ConfigurationError as error:
            return (f"sandbox_image is not used, tests run in {chosen.name}: {error}",)
        return ()

    def _choose(self) -> LayeredSandbox:
        if self._last is not None and not self._walls:
            self._last.ensure_available()
            return self._last
        reasons = []
        for wall in self._walls:
            found = working_confinement(wall, self._root)
            if isinstance(found, Confinement):
                return ConfinedSandbox(layers_root(self._root, found), found, self._policy)
            reasons.append(f"{wall}: {found}")
        if self._last is not None:
            try:
                self._last.ensure_available()
            except ConfigurationError as error:
                reasons.append(f"{self._last.name}: {str(error).removesuffix('.')}")
            else:
                return self._last
        raise ConfigurationError(
            f"There is nothing to confine test commands with. {'; '.join(reasons)}.",
            hint=f"Install one ({'; or '.join(_INSTALL[wall] for wall in self._walls)}); or, only where"
            " all code that is tested can be trusted, say sandbox: none.",
        )


def confinements(wall: Wall) -> list[Confinement]:
    """Ways to set it up, the best first."""
    ways = [Confinement(wall, "overlay", has_own_root=True), Confinement(wall, "copy", has_own_root=True)]
    if wall == "bwrap" and os.getuid() == 0:  # where root may make no namespaces, the user that it becomes cannot
        return ways
    return [*ways, Confinement(wall, "copy", has_own_root=False)]


def layers_root(root: Path, confinement: Confinement) -> Path:
    """Where to make layers: where the user that root becomes can reach them, if there is no root folder of its own."""
    if os.getuid() != 0 or confinement.has_own_root:
        return root
    return Path(tempfile.gettempdir(), "necrocode-layers")


def working_confinement(wall: Wall, root: Path) -> Confinement | str:
    """The best way that works on this machine for layers below ``root``, or why there is none.

    It is found out once a process for all folders of a file system.
    """
    root.mkdir(parents=True, exist_ok=True)
    key = (wall, root.stat().st_dev, os.getuid())
    with _FOUND_LOCK:
        if key not in _FOUND:
            _FOUND[key] = _find_confinement(wall, root)
        return _FOUND[key]


def _find_confinement(wall: Wall, root: Path) -> Confinement | str:
    if platform.system() != "Linux":
        return "works on Linux only"
    if (find_spec("sandlock") if wall == "sandlock" else shutil.which("bwrap")) is None:
        return "is not installed"
    reasons: dict[str, None] = {}
    for confinement in confinements(wall):
        reason = why_not(confinement, layers_root(root, confinement))
        if not reason:
            return confinement
        reasons[reason] = None
    return "; ".join(reasons)


def why_not(confinement: Confinement, root: Path) -> str:
    """Why commands cannot be confined in this way, found out by doing it; empty: they can."""
    with tempfile.TemporaryDirectory(prefix="necrocode-probe-") as folder:
        checkout, outside = Path(folder, "checkout"), Path(folder, "outside")
        checkout.mkdir()
        (checkout / "below").write_text("below\n")
        outside.write_text("outside\n")
        sandbox = ConfinedSandbox(root, confinement, Policy(root, Limits()))
        try:
            result = sandbox.run_tests(
                [_PROBE], checkout, tree="", environment={"OUTSIDE": str(outside)}, fail_fast=True,
                deadline=Deadline(_PROBE_SECONDS),
            )  # fmt: skip
        except TestExecutionError as error:
            return str(error).removesuffix(".")
        except RunnerError as error:
            return str(error)
        kept = sorted(path.name for path in checkout.iterdir()) == ["below"]
        if result.success and result.commands[0].output == "below\n" and kept:
            return ""
        said = result.commands[0].output.strip() if result.commands else ""
        return f"it does not hold what it should ({said or 'nothing said'})"
