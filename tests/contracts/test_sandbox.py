from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from necrocode.agent_runner import Sandbox
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner.sandbox.confined import ConfinedSandbox, Confinement, Policy
from necrocode.agent_runner.sandbox.docker import DockerSandbox
from necrocode.agent_runner.sandbox.ladder import confinements, layers_root
from necrocode.agent_runner.sandbox.limits import Limits
from necrocode.agent_runner.sandbox.plain import PlainSandbox
from tests.contracts.sandbox_contract import OpenSandbox, SandboxContract, run
from tests.support.sandboxes import skip_unless_confined


class TestPlainSandbox(SandboxContract):
    """Over whichever layer this machine has."""

    @pytest.fixture
    def open_sandbox(self, tmp_path: Path) -> Iterator[OpenSandbox]:
        root = tmp_path / "layers"
        yield lambda limits: PlainSandbox(root, limits)
        assert list(root.glob("*")) == []


@pytest.mark.soak
class TestPlainSandboxOnCopies(TestPlainSandbox):
    """As on a machine without overlays."""

    has_fixed_place = False

    @pytest.fixture(autouse=True)
    def _no_overlay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("necrocode.agent_runner.sandbox.layer.overlay_works", lambda _root: False)


class ConfinedContract(SandboxContract):
    """Behind sandlock or bwrap, set up in one of the ways that there are."""

    confinement: Confinement

    @pytest.fixture
    def open_sandbox(self, tmp_path: Path) -> Iterator[OpenSandbox]:
        root = layers_root(tmp_path / "layers", self.confinement)
        skip_unless_confined(self.confinement)
        policy = Policy(tmp_path / "state", Limits())
        yield lambda limits: ConfinedSandbox(root, self.confinement, replace(policy, limits=limits))
        if root.is_relative_to(tmp_path):
            assert list(root.glob("*")) == []

    @pytest.mark.parametrize("has_network", [True, False])
    def test_a_set_up_has_network_if_told_so_and_its_tests_have_none(
        self, sandbox: Sandbox, repository: Path, tmp_path: Path, has_network: bool
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            call = (
                f"python3 -c 'import socket; socket.create_connection((\"127.0.0.1\", {server.getsockname()[1]}), 5)'"
            )
            made = sandbox.run_setup(
                [call], repository, tmp_path / "kept", tree="", environment={}, has_network=has_network,
                deadline=Deadline(60),
            )  # fmt: skip
            assert made.success is has_network, made.commands[0].output
            assert not run(sandbox, repository, call).success

    @pytest.mark.parametrize("has_network", [True, False])
    def test_the_machine_has_a_name_that_can_be_looked_up(
        self, repository: Path, tmp_path: Path, has_network: bool
    ) -> None:
        skip_unless_confined(self.confinement)
        if self.confinement == confinements("sandlock")[2]:
            pytest.skip("without namespaces the machine has its own name, and nobody to ask for it")
        policy = Policy(tmp_path / "state", Limits(), has_network=has_network)
        root = layers_root(tmp_path / "layers", self.confinement)
        look = "python3 -c 'import socket; n = socket.gethostname(); print(n, socket.gethostbyname(n))'"
        done = run(ConfinedSandbox(root, self.confinement, policy), repository, look)
        assert done.commands[0].output == "sandbox 127.0.0.1\n"


class TestSandlock(ConfinedContract):
    confinement = confinements("sandlock")[0]


@pytest.mark.soak  # each side of it is tested by itself
class TestSandlockOnCopies(ConfinedContract):
    confinement = confinements("sandlock")[1]


@pytest.mark.soak  # each side of it is tested by itself
class TestSandlockWithoutNamespaces(ConfinedContract):
    confinement = confinements("sandlock")[2]
    has_fixed_place = False


class TestBwrap(ConfinedContract):
    confinement = confinements("bwrap")[0]


@pytest.mark.soak  # each side of it is tested by itself
class TestBwrapOnCopies(ConfinedContract):
    confinement = confinements("bwrap")[1]


@pytest.mark.docker_engine
class TestDocker(SandboxContract):
    """On the engine of DOCKER_HOST, in the image of NECROCODE_TEST_IMAGE."""

    @pytest.fixture
    def open_sandbox(self, tmp_path: Path) -> Iterator[OpenSandbox]:
        root = tmp_path / "layers"
        policy = Policy(tmp_path / "state", Limits())
        image = os.environ["NECROCODE_TEST_IMAGE"]
        yield lambda limits: DockerSandbox(root, image, replace(policy, limits=limits))
        assert list(root.glob("*")) == []


@pytest.mark.soak  # each side of it is tested by itself
class TestBwrapAlone(ConfinedContract):
    confinement = Confinement("bwrap", "copy", has_own_root=False)
