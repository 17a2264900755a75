"""Which remotes git may talk to, and which of them the token is for."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
import unicodedata
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING

from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git.failures import GitError, RemoteRefusedError
from necrocode.agent_runner._git.settings import NETWORK_VARIABLES
from necrocode.agent_runner._names import GIT_PROTOCOLS, TOKEN_HOSTS, GitProtocol, Remote, remote_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_OVER_HTTP = frozenset({"https", "http"})
_RESOLVING_SECONDS = 20.0
_LOOK_SECONDS = 0.1  # how often it is looked whether the run is to stop
# Where clouds tell a machine its secrets, by name and by the addresses that are not link-local.
_METADATA_NAMES = frozenset(
    {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
)
_METADATA_ADDRESSES = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "192.0.0.192", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254"))
)
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_LOCAL_NAT64 = ipaddress.ip_network("64:ff9b:1::/48")
_V4_COMPATIBLE = ipaddress.ip_network("::/96")
_IDEOGRAPHIC_DOTS = re.compile("[\u3002\uff61]")  # IDNA takes them for dots, and NFKC leaves them


def addresses_of(host: str, port: int) -> tuple[str, ...]:
    """What the system's resolver knows of a host; ``OSError`` where it knows nothing."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True)
class RemoteRules:
    """What the operator allows. Hosts are names or addresses, with a port or, for any port, without.

    ``hosts`` None: any, but never link-local addresses and those where clouds tell a machine its secrets, however they
    are written and whatever name leads there.
    """

    protocols: tuple[GitProtocol, ...] = GIT_PROTOCOLS
    hosts: tuple[str, ...] | None = None
    token_hosts: tuple[str, ...] = TOKEN_HOSTS
    resolve: Callable[[str, int], Sequence[str]] = addresses_of

    def check(self, url: str) -> Remote:
        """The remote that git makes of a URL or path; :class:`RemoteRefusedError`. No name is resolved."""
        try:
            remote = remote_of(url)
        except ValueError as error:
            raise RemoteRefusedError(f"git may not be given this remote: {error}.", hint="Check repo_url.") from error
        if remote.protocol not in self.protocols:
            allowed = ", ".join(self.protocols) or "none is allowed"
            raise RemoteRefusedError(
                f"The protocol {remote.protocol} is not among git_allowed_protocols: {allowed}.",
                hint="Use another URL, or allow it in the settings.",
            )
        if remote.protocol != "file":
            self._check_host(remote)
        return remote

    def resolved(self, remote: Remote, deadline: Deadline | None = None) -> tuple[str, ...]:
        """The addresses that git may connect to; empty where something else looks them up: a proxy, or ssh.

        :class:`RemoteRefusedError` if one of them is never allowed, :class:`GitError` if there is none. It takes 20
        seconds at most.
        """
        if remote.protocol == "file" or _proxy_for(remote):
            return ()
        port = remote.port_or_default
        try:
            addresses = self._within_time(remote.host, port, deadline or Deadline(_RESOLVING_SECONDS))
        except (OSError, UnicodeError) as error:
            if remote.protocol == "ssh":  # it may be a name of ssh's own configuration
                return ()
            told = f"Could not resolve host: {remote.host}"
            raise GitError(
                f"{told}.", output=told, hint="Is the name right, and DNS working?", retryable=True
            ) from error
        if not (self._is_named(remote) and _literal(_plain(remote.host)) is not None):
            for address in addresses:
                _refuse_forbidden(address, remote.host)
        return tuple(addresses) if remote.protocol in _OVER_HTTP else ()

    def takes_token(self, remote: Remote) -> bool:
        """Whether the token is meant for this remote, and safe on the way there."""
        return remote.protocol == "https" and _is_among(remote, self.token_hosts)

    def _check_host(self, remote: Remote) -> None:
        if self.hosts is not None:
            if not self._is_named(remote):
                allowed = ", ".join(self.hosts) or "none is allowed"
                raise RemoteRefusedError(
                    f"The host {remote.authority} is not among git_allowed_hosts: {allowed}.",
                    hint="Use another URL, or allow it in the settings.",
                )
            return
        plain = _plain(remote.host)
        if plain in _METADATA_NAMES:
            raise RemoteRefusedError(f"The host {remote.host} tells machines their secrets; it holds no repository.")
        if (address := _literal(plain)) is not None:
            _refuse_forbidden(address, remote.host)

    def _is_named(self, remote: Remote) -> bool:
        return self.hosts is not None and _is_among(remote, self.hosts)

    def _within_time(self, host: str, port: int, deadline: Deadline) -> Sequence[str]:
        """The resolver has no time limit of its own, so it works on a thread that nobody waits for longer."""
        if (address := _literal(_plain(host))) is not None:
            return (str(address),)
        answer: list[Sequence[str] | Exception] = []

        def ask() -> None:
            try:
                answer.append(self.resolve(host, port))
            except Exception as error:  # noqa: BLE001  told by the one who asked
                answer.append(error)

        thread = threading.Thread(target=ask, name="necrocode-resolver", daemon=True)
        thread.start()
        end = time.monotonic() + min(_RESOLVING_SECONDS, deadline.check(f"look up {host}"))
        while thread.is_alive() and (left := end - time.monotonic()) > 0:
            thread.join(min(left, _LOOK_SECONDS))
            deadline.cancellation.check()
        found = answer[0] if answer else TimeoutError("no answer in time")
        if isinstance(found, Exception):
            raise found
        return found


def _is_among(remote: Remote, hosts: Sequence[str]) -> bool:
    host = _plain(remote.host)
    shown = f"[{host}]" if ":" in host else host
    port = remote.port_or_default
    named = {entry.casefold() for entry in hosts}
    return bool(named & {host, shown, f"{shown}:{port}"})


def _plain(host: str) -> str:
    """The host in the form in which resolvers compare it."""
    return _IDEOGRAPHIC_DOTS.sub(".", unicodedata.normalize("NFKC", host)).casefold().rstrip(".")


def _literal(host: str) -> Address | None:
    """The address that a host is written as, in any spelling that the system takes: ``0xA9FEA9FE``, ``0251.254.1``."""
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        pass
    try:
        return ipaddress.IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeError, ValueError):
        return None


def _refuse_forbidden(address: str | Address, host: str) -> None:
    found = ipaddress.ip_address(address)
    if any(one.is_link_local or one in _METADATA_ADDRESSES for one in (found, *_inner(found))):
        raise RemoteRefusedError(
            f"The host {host} is at {found}, a link-local or metadata address; no repository is taken from there.",
            hint="An operator who means it names that very address in git_allowed_hosts.",
        )


def _inner(address: Address) -> tuple[Address, ...]:
    """IPv4 addresses that an IPv6 one stands for."""
    if address.version == 4:  # noqa: PLR2004
        return ()
    found = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in (_NAT64, _LOCAL_NAT64, _V4_COMPATIBLE)):
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return tuple(one for one in found if one is not None)


def _proxy_for(remote: Remote) -> bool:
    """Whether git will ask a proxy, by the variables that it is given."""
    if remote.protocol not in _OVER_HTTP:
        return False
    given = {name: os.environ[name] for name in NETWORK_VARIABLES if os.environ.get(name)}
    names = (f"{remote.protocol}_proxy", f"{remote.protocol.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    no_proxy = given.get("no_proxy") or given.get("NO_PROXY") or ""
    bypass: Callable[..., bool] = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined]
    is_bypassed = no_proxy and bypass(remote.host, {"no": no_proxy})
    return any(name in given for name in names) and not is_bypassed
