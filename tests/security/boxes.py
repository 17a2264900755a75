"""A host worth attacking, in a folder of its own, and the sandboxes that are to keep tests away from it."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from necrocode.agent_runner import CommandResult, Sandbox
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox.confined import ConfinedSandbox, Confinement, Policy
from necrocode.agent_runner.sandbox.docker import DockerSandbox
from necrocode.agent_runner.sandbox.ladder import confinements, layers_root
from necrocode.agent_runner.sandbox.limits import Limits
from necrocode.agent_runner.sandbox.plain import PlainSandbox
from tests.support.repositories import git
from tests.support.sandboxes import reason_against

IMAGE_VARIABLE = "NECROCODE_TEST_IMAGE"
SECRET = "s3cr3t-that-no-test-may-see"
LIMITS = Limits(
    kept_output_bytes=20_000,
    output_bytes=64 << 20,
    memory_bytes=256 << 20,
    processes=120,
    cpu_seconds=1,
    file_bytes=64 << 20,
    disk_bytes=128 << 20,
)
# The programs of the system alone: those of the runner may lie where a user that root became cannot reach them.
PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True)
class Tier:
    """One column of the table."""

    name: str
    confinement: Confinement | None
    """None: a container of Docker, or nothing at all."""

    def why_not(self) -> str:
        """Why the machine does not have it; empty: it does."""
        if self.name == "docker" and IMAGE_VARIABLE not in os.environ:
            return f"{IMAGE_VARIABLE} names no image"
        return "" if self.confinement is None else reason_against(self.confinement)

    def open(self, state_dir: Path, limits: Limits) -> Sandbox:
        """A sandbox of this tier."""
        root = state_dir / "layers"
        policy = Policy(state_dir, limits)
        if self.name == "docker":
            return DockerSandbox(root, os.environ[IMAGE_VARIABLE], policy)
        if self.confinement is None:
            return PlainSandbox(root, limits)
        return ConfinedSandbox(layers_root(root, self.confinement), self.confinement, policy)


TIERS = (
    Tier("sandlock", confinements("sandlock")[0]),
    Tier("sandlock, no namespaces", Confinement("sandlock", "copy", has_own_root=False)),
    Tier("bwrap", confinements("bwrap")[0]),
)
DOCKER = Tier("docker", None)
NO_TIER = Tier("none", None)


@dataclass
class Box:
    """A sandbox over one slot, and the rest of the host around it."""

    tier: Tier
    folder: Path
    tcp_port: int = 0
    udp: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    unix_path: Path = Path()
    abstract: str = ""

    @property
    def slot(self) -> Path:
        return self.folder / "state/pool/slot-1"

    @property
    def secrets(self) -> list[Path]:
        """Files of the host that hold the secret."""
        names = ("home/.ssh/id_ed25519", "home/.aws/credentials", "state/pool/slot-2/other.py", "state/registry.db",
                 "state/pool/mirror.git/config")  # fmt: skip
        return [self.folder / name for name in names]

    def run(self, command: str, *, seconds: float = 20, collect: tuple[str, ...] = (), **limits: Any) -> CommandResult:
        """Run a shell command as a test."""
        sandbox = self.tier.open(self.folder / "state", replace(LIMITS, **limits))
        result = sandbox.run_tests(
            [command], self.slot, tree="t" * 40, environment={"PATH": PATH}, fail_fast=True,
            deadline=Deadline(seconds), collect=collect,
        )  # fmt: skip
        return result.commands[0]

    def set_up(self, command: str) -> CommandResult:
        """Run a shell command as one that prepares tests, with the network."""
        result = self.tier.open(self.folder / "state", LIMITS).run_setup(
            [command], self.slot, self.folder / "kept", tree="t" * 40, environment={"PATH": PATH}, has_network=True,
            deadline=Deadline(20),
        )  # fmt: skip
        return result.commands[0]

    def python(self, program: str, **options: Any) -> CommandResult:
        """Run a Python program as a test."""
        (self.slot / "attack.py").write_text(program)
        return self.run("python3 attack.py", **options)


@contextmanager
def open_box(tier: Tier, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Box]:
    """A host with secrets, servers and slots in ``folder``."""
    box = Box(tier, folder)
    for path in (*box.secrets, box.slot / "test_ok.py"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"token = {SECRET}\n" if path in box.secrets else "print('ok')\n")
    git(folder, "init", "--quiet", str(box.slot))
    git(box.slot, "add", "-A")
    git(box.slot, "commit", "--quiet", "-m", "base")
    monkeypatch.setenv("HOME", str(folder / "home"))
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    with ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        box.tcp_port, box.unix_path, box.abstract = tcp.getsockname()[1], folder / "docker.sock", f"nc-{os.getpid()}"
        stack.enter_context(box.udp).bind(("127.0.0.1", 0))
        box.udp.setblocking(False)
        unix.bind(str(box.unix_path))
        box.unix_path.chmod(0o777)
        abstract.bind(f"\0{box.abstract}")
        unix.listen()
        abstract.listen()
        yield box


def snapshot(folder: Path) -> str:
    """Names, modes and contents of all below, without the layers that come and go."""
    listing = subprocess.run(  # noqa: S602  our own words
        "find . -path ./state/layers -prune -o -printf '%p %m %u %l\\n' | sort;"
        " find . -path ./state/layers -prune -o -type f -print0 | sort -z | xargs -0 sha256sum",
        shell=True, cwd=folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return listing.stdout


Attack = Callable[[Box], None]
