"""Starting git: its environment, its time limit, and its end."""

from __future__ import annotations

import os
import re
import secrets
import signal
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from necrocode.agent_runner._bounded import current_deadline
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git.apart import sweep
from necrocode.agent_runner._git.failures import GitError, last_words
from necrocode.agent_runner._git.pipes import OutputTooLongError, communicate
from necrocode.agent_runner._git.remotes import RemoteRules
from necrocode.agent_runner._git.settings import (
    ASKPASS,
    CONFIG,
    GLOBAL_CONFIG,
    NETWORK_VARIABLES,
    SSH_COMMAND,
    variables,
)
from necrocode.agent_runner._names import mask_users
from necrocode.agent_runner._process import end_group, kill_group, living, signal_group
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.errors import RunnerTimeoutError, WorkspacePreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from necrocode.agent_runner._names import Remote

DEFAULT_TIMEOUT_SECONDS = 600.0
_NO_ENTRY = re.compile(r"could not read Username|Authentication failed|returned error: 403")
_BAD_CERTIFICATE = re.compile(r"SSL certificate problem|certificate verif\w+ failed|SSL: no alternative certificate")
_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Git:
    """git as this package starts it. ``home`` is a folder of our own; ``token`` is for https remotes."""

    home: Path
    token: str | None = field(default=None, repr=False)
    remotes: RemoteRules = field(default_factory=RemoteRules)

    def prepare(self) -> None:
        """Lay out the private HOME; harmless when it is there already."""
        self.home.mkdir(parents=True, exist_ok=True)
        sweep(self.home)
        for name, content, mode in (("gitconfig", GLOBAL_CONFIG, 0o600), ("askpass", ASKPASS, 0o700)):
            file = self.home / name
            if not file.exists() or file.read_text() != content or stat.S_IMODE(file.stat().st_mode) != mode:
                draft = file.with_name(f"{name}.{secrets.token_hex(8)}.tmp")  # threads and processes prepare at once
                draft.write_text(content)
                draft.chmod(mode)
                draft.replace(file)

    def environment(
        self, remote: Remote | None = None, addresses: Sequence[str] = (), config: Mapping[str, str] = _NOTHING
    ) -> dict[str, str]:
        """The whole environment of a git process that talks to ``remote``, at these addresses; None: to nobody."""
        environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CONFIG_GLOBAL": str(self.home / "gitconfig"),
            "GIT_ATTR_NOSYSTEM": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            "GIT_DEFAULT_REF_FORMAT": "files",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_NO_LAZY_FETCH": "1",
            # Before git 2.45 a partial clone asks its remote for what is missing all the same: by no protocol, then.
            "GIT_ALLOW_PROTOCOL": "none",
        }
        told = CONFIG | dict(config)
        if remote is not None:
            environment |= self._network(remote)
            if addresses and ":" not in remote.host:  # git since 2.37 asks nobody else where the host is
                told["http.curloptResolve"] = f"{remote.host}:{remote.port_or_default}:{_listed(addresses)}"
        return environment | variables(told)

    def _network(self, remote: Remote) -> dict[str, str]:
        given = {name: os.environ[name] for name in NETWORK_VARIABLES if name in os.environ}
        given |= {
            "GIT_ALLOW_PROTOCOL": ":".join(self.remotes.protocols),
            "GIT_SSH_COMMAND": SSH_COMMAND,
            "GIT_PROXY_COMMAND": "",
            "GIT_ASKPASS": str(self.home / "askpass"),
        }
        if self.token and self.remotes.takes_token(remote):
            given |= {"NECROCODE_GIT_TOKEN": self.token, "NECROCODE_GIT_TOKEN_HOST": remote.authority}
        return given

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None, *, pass_fds: Sequence[int] = ()
    ) -> subprocess.Popen[bytes]:
        """Start git with pipes on all three streams, in a session of its own, with these files left open.

        ``environment`` is one of :meth:`environment`; None: that of a command without network.
        """
        try:
            return subprocess.Popen(  # noqa: S603  the door itself
                ["git", *argv],  # noqa: S607  found by PATH, as the user's own git is
                env=self.environment() if environment is None else environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except FileNotFoundError as error:
            raise WorkspacePreparationError("git was not found.", hint="Install git and put it on the PATH.") from error

    def run(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        address: str | None = None,
        config: Mapping[str, str] = _NOTHING,
        deadline: Deadline | None = None,
        pass_fds: Sequence[int] = (),
        take: Callable[[bytes], None] | None = None,
    ) -> bytes:
        """Standard output of a git command; :class:`GitError` when it fails.

        ``address``: the URL or path that a network command talks to; :class:`RemoteRefusedError` if it may not.
        ``deadline`` None: the one that this thread works under, or ten minutes.
        ``pass_fds``: locks that shall last until git has ended, should this process die before.
        ``take``: is handed the output piece by piece, and what it raises stops git; then none is returned.
        """
        verb = next((word for word in argv if not word.startswith(("-", "/"))), "git")
        remote = None if address is None else self.remotes.check(address)
        deadline = deadline or current_deadline() or Deadline(DEFAULT_TIMEOUT_SECONDS)
        addresses = () if remote is None else self.remotes.resolved(remote, deadline)
        timeout = deadline.check(f"run git {verb}")
        process = self.start(argv, self.environment(remote, addresses, config), pass_fds=pass_fds)
        try:
            with living(partial(signal_group, process, signal.SIGKILL)):
                output, errors = communicate(process, stdin, timeout, deadline.cancellation, take)
        except TimeoutError as error:
            raise RunnerTimeoutError(f"git {verb} was stopped after {timeout:g} seconds.") from error
        except OutputTooLongError as error:
            raise GitError(f"git {verb} was stopped: {error}") from error
        finally:
            if process.returncode is None:
                end_group(process)
            end_process(process)
        if process.returncode != 0:
            text = mask_users(Redactor((self.token or "",)).text((errors + output).decode(errors="replace"))).strip()
            raise GitError(f"git {verb} failed: {last_words(text)}", output=text, hint=self._hint(remote, text))
        return output

    def _hint(self, remote: Remote | None, output: str) -> str | None:
        if remote is None:
            return None
        if "returned error: 30" in output or "unable to update url base from redirection" in output:
            return "It redirects, which is not followed: give the URL that it redirects to."
        if _BAD_CERTIFICATE.search(output):
            return "Name the file with its authority's certificate in the variable GIT_SSL_CAINFO, which git is given."
        if self.token and remote.protocol == "https" and _NO_ENTRY.search(output):
            if self.remotes.takes_token(remote):
                return f"{remote.authority} refuses the git token: is it still valid, and is it for this repository?"
            return (
                f"The git token is not sent to {remote.authority}: name it in git_token_hosts if it is meant for that."
            )
        return None


def _listed(addresses: Sequence[str]) -> str:
    return ",".join(f"[{address}]" if ":" in address else address for address in addresses)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a git process that may have ended by itself, and close its pipes."""
    if process.returncode is None:
        kill_group(process)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):  # a question that a dead git was not there to read
                stream.close()
