"""From where a repo pool service may take repositories: its operator's allow-list."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from necrocode.agent_runner._names import check_host, remote_of
from necrocode.agent_runner.errors import ConfigurationError, RepositoryNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence


class AllowedSources:
    """Hosts (``github.com``, ``git.example.com:8443``) and folders (``/srv/git``) that repositories may come from.

    None: whatever the embedded pool takes. A host without a port stands for it at any port, not for its subdomains; a
    folder for all that is in it when links are followed. ``ConfigurationError`` for an entry that is neither.
    """

    def __init__(self, entries: Sequence[str] | None) -> None:
        self._hosts: frozenset[str] | None = None
        self._folders: tuple[str, ...] = ()
        if entries is not None:
            self._folders = tuple(os.path.realpath(entry) for entry in entries if entry.startswith("/"))
            try:
                self._hosts = frozenset(check_host(entry) for entry in entries if not entry.startswith("/"))
            except ValueError as error:
                raise ConfigurationError(
                    f"An allowed source is neither a host nor an absolute folder: {error}.",
                    hint="Name hosts as in github.com, and folders as in /srv/git.",
                ) from error

    def check(self, repo_url: str) -> None:
        """``RepositoryNotFoundError`` for a repository that is not allowed."""
        if self._hosts is None:
            return
        host, folder = _place_of(repo_url)
        if host is not None and (host in self._hosts or host.rpartition(":")[0] in self._hosts):
            return
        if folder is not None and any(os.path.commonpath([folder, allowed]) == allowed for allowed in self._folders):
            return
        raise RepositoryNotFoundError(
            "The operator of this repo pool does not allow repositories from there.",
            hint="Its list of allowed sources says from where.",
        )


def _place_of(repo_url: str) -> tuple[str | None, str | None]:
    """The host with a port (0: none given), or the folder, that git would take the repository from."""
    try:
        remote = remote_of(repo_url)
        if remote.protocol != "file":
            host = f"[{remote.host}]" if ":" in remote.host else remote.host
            return f"{host}:{remote.port}", None
        path = Path(remote.path)
        return None, os.path.realpath(path if "://" in repo_url else path.expanduser())
    except (ValueError, RuntimeError):  # what is no URL, no path, or a home of nobody is not allowed either
        return None, None
