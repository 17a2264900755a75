"""The client of a Repo Pool Manager service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock
from necrocode.agent_runner.clients._http import (
    DEFAULT_RETRY_COUNT,
    DEFAULT_TIMEOUT_SECONDS,
    ServiceClient,
    ServiceHttp,
)
from necrocode.agent_runner.errors import ServiceError, SlotNotFoundError
from necrocode.agent_runner.records import PoolRecord, SlotAllocation, SlotRecord

if TYPE_CHECKING:
    from necrocode.agent_runner._strict import Value

Record = TypeVar("Record", bound="Value")
_LONG_SECONDS = 900.0  # a service that fetches, or makes slots ready, before it answers
_DEFAULT_POOL_SIZE = 5


class RepoPoolClient(ServiceClient):
    """Slots over HTTP; the Protocol is ``RepoPool``. Safe for several threads.

    The service hands out paths, so it runs on this machine or shares a file system with it. The client remembers the
    lease tokens of the slots it was given, so that ``release_slot(allocation.slot_id)`` is enough.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._http = ServiceHttp(
            base_url,
            "repo pool",
            not_found=SlotNotFoundError,
            token=token,
            network_retry_count=network_retry_count,
            timeout_seconds=timeout_seconds,
            clock=clock,
        )
        self._timeout_seconds = timeout_seconds
        self._tokens: dict[str, str] = {}

    def allocate_slot(
        self,
        repo_url: str,
        required_by: str,
        *,
        base_ref: str | None = None,
        timeout_seconds: float | None = None,
        lease_seconds: float | None = None,
    ) -> SlotAllocation:
        """A clean checkout; ``SlotAllocationError`` when none is free in time."""
        wishes = {"base_ref": base_ref, "timeout_seconds": timeout_seconds, "lease_seconds": lease_seconds}
        body = {"repo_url": repo_url, "required_by": required_by}
        answer = self._http.write(
            "POST",
            "/slots/allocate",
            json_body=body | {key: value for key, value in wishes.items() if value is not None},
            timeout_seconds=self._timeout_seconds + (timeout_seconds or 0.0),
        )
        try:
            allocation = SlotAllocation.model_validate(answer)
        except ValueError as error:
            raise ServiceError("The repo pool answered an allocation without slot_id and slot_path.") from error
        if allocation.lease_token is not None:
            self._tokens[allocation.slot_id] = allocation.lease_token
        return allocation

    def renew_lease(self, slot_id: str, lease_token: str, *, lease_seconds: float | None = None) -> None:
        """Keep the slot; ``StaleLeaseError`` when it has been given to another. Nothing where there are no leases."""
        if not self._http.has("slot-leases"):
            return
        body: dict[str, Any] = {"lease_token": lease_token}
        if lease_seconds is not None:
            body["lease_seconds"] = lease_seconds
        self._http.write("POST", f"/slots/{quote(slot_id, safe='')}/lease", json_body=body)

    def release_slot(self, slot_id: str, *, lease_token: str | None = None) -> None:
        """Give the slot back; without a token, and for a slot of another client, an operator's forced release."""
        token = lease_token or self._tokens.get(slot_id)
        body = {"lease_token": token} if token is not None else {}
        self._http.write("POST", f"/slots/{quote(slot_id, safe='')}/release", json_body=body)
        self._tokens.pop(slot_id, None)

    def get_slot(self, slot_id: str) -> SlotRecord:
        """The slot's state, holder and lease; ``SlotNotFoundError``."""
        return _read(SlotRecord, self._http.get(f"/slots/{quote(slot_id, safe='')}"))

    def pools_status(self) -> tuple[PoolRecord, ...]:
        """All pools with their slots and their use, by name."""
        answer = self._http.get("/pools/status")
        pools = answer.get("pools") if isinstance(answer, dict) else None
        if not isinstance(pools, list):
            raise ServiceError("The repo pool answered GET /pools/status without a list of pools.")
        return tuple(_read(PoolRecord, pool) for pool in pools)

    def create_pool(self, repo_url: str, *, name: str | None = None, pool_size: int = _DEFAULT_POOL_SIZE) -> PoolRecord:
        """The pool of a repository, made now; the one that is there, if it is just that, else ``PoolExistsError``."""
        body: dict[str, Any] = {"repo_url": repo_url, "pool_size": pool_size}
        if name is not None:
            body["name"] = name
        return _read(PoolRecord, self._http.write("POST", "/pools", json_body=body))

    def resize_pool(self, name: str, pool_size: int) -> PoolRecord:
        """The pool with another size; slots in use that are too many go when they are released."""
        return _read(PoolRecord, self._http.write("PATCH", _pool(name), json_body={"pool_size": pool_size}))

    def remove_pool(self, name: str) -> None:
        """Delete a pool, with mirror and slots; ``PoolInUseError`` when somebody holds one of them."""
        self._http.write("DELETE", _pool(name))

    def warm(self, name: str) -> PoolRecord:
        """The pool, with all its slots made ready."""
        return _read(PoolRecord, self._http.write("POST", f"{_pool(name)}/warm", timeout_seconds=_LONG_SECONDS))

    def reconcile(self) -> list[str]:
        """Put right what dead processes have left; a line for each thing done."""
        answer = self._http.write("POST", "/pools/reconcile", timeout_seconds=_LONG_SECONDS)
        return [str(line) for line in answer.get("done", [])] if isinstance(answer, dict) else []


def _pool(name: str) -> str:
    return f"/pools/{quote(name, safe='')}"


def _read(kind: type[Record], value: object) -> Record:
    try:
        return kind.model_validate(value)
    except ValueError as error:
        raise ServiceError(f"The repo pool answered something else than a {kind.__name__}.") from error
