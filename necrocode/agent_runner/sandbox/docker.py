"""Test commands in containers of a Docker Engine on this machine, each command in one of its own.

What they see is the image; only the layer's folders are mounted, from a plain copy, for the engine does not see mounts
that others make. Output comes through a FIFO among them, so the engine keeps none.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Self

from necrocode.agent_runner._process import ProcessResult, supervise
from necrocode.agent_runner.errors import ConfigurationError, TestExecutionError
from necrocode.agent_runner.sandbox.confined import give_away, hand_over, own_files
from necrocode.agent_runner.sandbox.layer import Layer, open_layer
from necrocode.agent_runner.sandbox.layered import LayeredSandbox
from necrocode.agent_runner.sandbox.limits import LimitWatch
from necrocode.agent_runner.sandbox.plain import command_environment
from necrocode.agent_runner.sandbox.visible import HOST_NAME
from necrocode.agent_runner.sandbox.walls import code_without_shell

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner.sandbox.confined import Policy

_ENGINE_SECONDS = 60
_REASON_CHARACTERS = 500
# A shell stays the first process: signals without a handler do not reach that one, and the command is to get them.
_MAIN = 'exec >"$1" 2>&1; sh -c "$2"; exit $?'


class DockerSandbox(LayeredSandbox):
    """The :class:`~necrocode.agent_runner.Sandbox` on a Docker Engine; ``image`` must be there, and is never pulled."""

    name = "docker"

    def __init__(self, root: Path, image: str, policy: Policy) -> None:
        self._root = root
        self._image = image
        self._policy = policy
        self._engine: Any = None

    def ensure_available(self) -> None:
        """Return when the engine answers and has the image; else ``ConfigurationError``."""
        try:
            import docker  # noqa: PLC0415  only who configures it needs it
        except ImportError as error:
            raise ConfigurationError("docker is not installed.", hint="pip install 'necrocode[docker]'") from error
        if self._engine is not None:
            return
        engine = None
        try:
            engine = docker.from_env(timeout=_ENGINE_SECONDS)
            engine.images.get(self._image)
            self._engine = engine
        except docker.errors.ImageNotFound as error:
            raise ConfigurationError(
                f"The Docker Engine has no image {self._image!r}.", hint="Build, load or pull it beforehand."
            ) from error
        except (docker.errors.DockerException, OSError) as error:
            raise ConfigurationError(
                f"The Docker Engine does not answer: {_reason(error)}.",
                hint="Start it, or name its address in DOCKER_HOST.",
            ) from error
        finally:
            if self._engine is None and engine is not None:
                engine.close()

    def close(self) -> None:
        """Close the connections to the engine; a later use opens new ones."""
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    @property
    def identity(self) -> str:
        """What of it a result depends on."""
        self.ensure_available()
        return f"{self.name} {self._engine.images.get(self._image).id} {self._root} {self._policy!r}"

    @contextmanager
    def _open(
        self, checkout: Path, below: Path | None, *, has_network: bool | None, deadline: Deadline
    ) -> Iterator[Layer]:
        has_network = self._policy.has_network if has_network is None else has_network
        self.ensure_available()
        with open_layer(
            checkout,
            self._root,
            kind="copy",
            below=below,
            shows_copies=True,
            has_network=has_network,
            deadline=deadline,
        ) as layer:
            if os.getuid() == 0:
                give_away(layer, checkout)
            yield layer

    def _execute(
        self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str], deadline: Deadline
    ) -> ProcessResult:
        limits, started, seconds = self._policy.limits, time.monotonic(), deadline.remaining_seconds()
        hand_over(reports, layer)
        watch = LimitWatch(limits, layer.written_folders, reports.stat().st_mtime_ns)
        with self._start(command, layer, reports, environment) as running:
            done = supervise(
                running,
                started=started,
                timeout_seconds=seconds,
                max_output_bytes=limits.kept_output_bytes,
                cancellation=deadline.cancellation,
                watch=watch,
            )
            if running.is_out_of_memory and done.exit_code:
                return replace(done, exit_code=None, stopped_by="oom")
        return done

    @contextmanager
    def _start(self, command: str, layer: Layer, reports: Path, environment: Mapping[str, str]) -> Iterator[_Container]:
        import docker  # noqa: PLC0415  as above

        pipe = layer.folder / "etc" / reports.name
        os.mkfifo(pipe, 0o600)
        os.chown(pipe, layer.home.stat().st_uid, layer.home.stat().st_gid)
        output = os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)  # as a writer too: so it never seems to end
        with open(output, "rb", buffering=0) as stream:
            try:
                container = self._engine.containers.create(**self._options(command, layer, reports, pipe, environment))
                try:
                    container.start()
                    with _Container(container, stream) as running:
                        yield running
                finally:
                    container.remove(force=True, v=True)
            except docker.errors.DockerException as error:
                raise TestExecutionError(f"The Docker Engine cannot run the test command: {_reason(error)}.") from error

    def _options(
        self, command: str, layer: Layer, reports: Path, pipe: Path, environment: Mapping[str, str]
    ) -> dict[str, Any]:
        limits, owner = self._policy.limits, layer.home.stat()
        writable = {str(path): str(path) for path in (reports, pipe)}
        writable |= {str(layer.start_folder): str(layer.top), str(layer.seen_home): str(layer.home)}
        temporary = {"/tmp": str(layer.temporary), "/var/tmp": str(layer.temporary)}  # noqa: S108  the command's own
        binds = [f"{source}:{target}:rw" for target, source in (temporary | writable).items()]
        own = own_files(layer, (owner.st_uid, owner.st_gid), has_network=layer.has_network)
        # With a network the engine makes the other two.
        names = ("passwd", "group") if layer.has_network else ("passwd", "group", "hosts")
        binds += [f"{own[path]}:{path}:ro" for path in (f"/etc/{name}" for name in names)]
        binds += [f"{path}:{path}:ro" for path in self._policy.read_paths]
        return {
            "image": self._image,
            "entrypoint": ["sh", "-c", _MAIN, "sh", str(pipe), command],
            "working_dir": str(layer.start_folder),
            "environment": command_environment(layer, {"TMPDIR": "/tmp"} | dict(environment)),  # noqa: S108
            "user": f"{owner.st_uid}:{owner.st_gid}",
            "volumes": binds,
            "read_only": True,
            "network_mode": "bridge" if layer.has_network else "none",
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,
            "pids_limit": limits.processes,
            "shm_size": limits.shared_memory_bytes,
            "ulimits": [
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "fsize", "Soft": limits.file_bytes, "Hard": limits.file_bytes},
            ],
            "log_config": {"Type": "none"},
            "hostname": HOST_NAME,
        }


def _reason(error: BaseException) -> str:
    """What the system says of a call that did not get through, below what the client libraries wrap around it."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return " ".join(str(error).split())[:_REASON_CHARACTERS].removesuffix(".")


class _Container:
    """A container that has been started."""

    def __init__(self, container: Any, output: IO[bytes]) -> None:  # noqa: ANN401  the client library has no types
        self._container = container
        self.output = output
        container.reload()
        self.pid: int = container.attrs["State"]["Pid"]
        self.ended: int | None = None
        with suppress(ProcessLookupError, OSError):  # it has ended already; or the engine is behind a wall of its own
            self.ended = os.pidfd_open(self.pid) if self.pid else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.ended is not None:
            os.close(self.ended)

    def has_ended(self) -> bool:
        if self.ended is not None:
            return bool(select.select([self.ended], [], [], 0)[0])
        self._container.reload()
        return bool(self._container.attrs["State"]["Status"] in {"exited", "dead"})

    def stop(self) -> None:
        self.kill()
        self._container.wait(timeout=_ENGINE_SECONDS)
        self._container.reload()

    def kill(self) -> None:
        with suppress(Exception):  # it has ended: what is left is removed by force
            self._container.kill()

    @property
    def exit_code(self) -> int | None:
        return code_without_shell(self._container.attrs["State"]["ExitCode"])

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the kernel ended a process of it for want of memory."""
        return bool(self._container.attrs["State"]["OOMKilled"])
