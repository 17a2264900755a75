"""From where a repo pool service may take repositories: its operator's allow-list."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from necrocode.agent_runner.errors import ConfigurationError, RepositoryNotFoundError

if TYPE_CHECKING:
    from collections.abc import Sequence

_HOST = re.compile(r"(?:\[[0-9a-f:]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?")


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
            self._hosts = frozenset(entry.lower() for entry in entries if not entry.startswith("/"))
            for host in sorted(self._hosts):
                if not _HOST.fullmatch(host):
                    raise ConfigurationError(
                        f"{host!r} is neither a host nor an absolute folder.",
                        hint="Name hosts as in github.com, and folders as in /srv/git.",
                    )

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
        if "://" in repo_url:
            parts = urlsplit(repo_url)
            if parts.scheme == "file":
                is_here = parts.netloc in {"", "localhost"}  # git ignores any other host
                return None, os.path.realpath(unquote(parts.path)) if is_here else None
            if set("%\\") & set(parts.netloc):
                return None, None
            host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
            return f"{host or ''}:{parts.port or 0}", None
        if ":" in repo_url.split("/", 1)[0]:
            return f"{repo_url.split(':', 1)[0].rpartition('@')[2].lower()}:0", None
        return None, os.path.realpath(Path(repo_url).expanduser())
    except (ValueError, RuntimeError):  # what is no URL, no path, or a home of nobody is not allowed either
        return None, None
