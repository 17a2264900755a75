"""What the three service clients share: one session, its retries, and the way from an answer to an error.

Retries live here and nowhere above. A call is tried again after a connection error or one of 408, 425, 429, 500, 502,
503 and 504, with jittered exponential backoff (AWS Architecture Blog, "Exponential Backoff And Jitter": full jitter) or
the wait that ``Retry-After`` asks for; never after any other 4xx, and not where the run's time is over before that.
Every write carries one ``Idempotency-Key`` over all its tries, so that a write whose answer was lost is not done twice.
"""

from __future__ import annotations

import json
import logging
import random
import uuid
from typing import TYPE_CHECKING, Any, Self

import requests
import tenacity

from necrocode.agent_runner._bounded import current_deadline, in_time
from necrocode.agent_runner._cancellation import Cancellation
from necrocode.agent_runner._clock import SYSTEM_CLOCK, Clock, pause
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner._text import shown
from necrocode.agent_runner.clients._exchange import AnswerTooLargeError, Exchange
from necrocode.agent_runner.clients._retry_after import retry_after_seconds
from necrocode.agent_runner.clients._service_answers import LONGEST_DETAIL, beginning, read_problem, read_whole
from necrocode.agent_runner.clients._service_session import ServiceSession
from necrocode.agent_runner.clients._upload_body import RewoundFile, UploadBody
from necrocode.agent_runner.errors import (
    AmbiguousTaskError,
    ArtifactDamagedError,
    AuthenticationError,
    ConfigurationError,
    IdempotencyKeyReusedError,
    IllegalTransitionError,
    PoolExistsError,
    PoolInUseError,
    PoolNotFoundError,
    RateLimitError,
    RepositoryNotFoundError,
    RunnerError,
    ServiceConnectionError,
    ServiceError,
    SlotAllocationError,
    StaleLeaseError,
    StorageFullError,
    TaskContextValidationError,
    TaskLeasedError,
    WorkspacePreparationError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
DEFAULT_RETRY_COUNT = 3
DEFAULT_TIMEOUT_SECONDS = 30.0
MAX_RETRY_AFTER_SECONDS = 60.0
"""The longest that a ``Retry-After`` is waited for; a service that asks for more is tried again after this."""
_FIRST_BACKOFF_SECONDS = 0.2
_LONGEST_BACKOFF_SECONDS = 10.0
_HTTP_1_1 = 11  # as http.client tells it
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
MAX_ANSWER_BYTES = 64_000_000
"""The largest answer that is read into memory, inflated."""
_CHUNK_BYTES = 1 << 20
_JSON = json.JSONEncoder(allow_nan=False)
_ERROR_BY_SLUG: dict[str, type[RunnerError]] = {
    "stale-lease": StaleLeaseError,
    "task-leased": TaskLeasedError,
    "store-unavailable": ServiceConnectionError,
    "artifact-damaged": ArtifactDamagedError,
    "pool-not-found": PoolNotFoundError,
    "pool-exists": PoolExistsError,
    "pool-in-use": PoolInUseError,
    "ambiguous-task": AmbiguousTaskError,
    "no-available-slots": SlotAllocationError,
    "illegal-transition": IllegalTransitionError,
    "idempotency-key-reused": IdempotencyKeyReusedError,
    "invalid-task": TaskContextValidationError,
    "repository-not-found": RepositoryNotFoundError,
    "repository-refused": AuthenticationError,
    "workspace-preparation-failed": WorkspacePreparationError,
    "storage-full": StorageFullError,
}


class _RetryLaterError(Exception):
    """An answer or failure after which the call may be tried again; carries what to raise when it is not."""

    def __init__(self, error: RunnerError, wait_seconds: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_seconds = wait_seconds


class ServiceHttp:
    """Calls to one service. Safe for several threads; ``not_found`` is the error that a 404 becomes."""

    def __init__(
        self,
        base_url: str,
        service: str,
        *,
        not_found: type[ServiceError],
        token: str | None = None,
        network_retry_count: int = DEFAULT_RETRY_COUNT,
        timeout_seconds: float = DEFAULT_TIMEOUT_SECONDS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        if not base_url.startswith(("http://", "https://")):
            raise ConfigurationError(f"The {service} URL {base_url!r} must start with http:// or https://.")
        self.base_url = base_url.rstrip("/")
        self._service = service
        self._not_found = not_found
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._redactor = Redactor((token,) if token else ())
        self._session = ServiceSession(self.base_url, token)
        self._retrying = tenacity.Retrying(
            stop=lambda state: state.attempt_number > network_retry_count or _is_too_late(state),
            wait=self._wait,
            sleep=self._pause,
            retry=tenacity.retry_if_exception_type(_RetryLaterError),
            reraise=True,
        )
        self._capabilities: frozenset[str] | None = None
        self._said: set[str] = set()

    def close(self) -> None:
        """Close the pooled connections; a later call opens new ones."""
        self._session.close()

    def get(self, path: str, *, params: Mapping[str, Any] | None = None, timeout_seconds: float | None = None) -> Any:  # noqa: ANN401  JSON
        """The JSON that a GET answers."""
        return self._json(self._call("GET", path, params=params, timeout_seconds=timeout_seconds))

    def get_into(self, path: str, target: RewoundFile, *, params: Mapping[str, Any] | None = None) -> Mapping[str, str]:
        """Write the body that a GET answers to a file, piece by piece; the answer's headers.

        A body that breaks off is asked for again, from its start.
        """
        return self._call("GET", path, params=params, target=target, is_streamed=True).headers

    def lines(self, path: str, *, params: Mapping[str, Any] | None, headers: Mapping[str, str]) -> Iterator[str]:
        """The lines of an endless answer, until the service ends it or the connection breaks."""
        answer = self._call("GET", path, params=params, headers=headers, is_streamed=True)
        with answer:
            try:
                for line in answer.iter_lines(chunk_size=None):
                    yield line.decode()
            except requests.RequestException:
                return  # the caller knows where it was, and asks again

    def write(
        self,
        method: str,
        path: str,
        *,
        json_body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        form: UploadBody | None = None,
        epoch: int | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:  # noqa: ANN401  JSON
        """The JSON that a write answers (None for an empty body); the same idempotency key over all its tries."""
        headers = {**(headers or {}), "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if epoch is not None:
            headers["X-Lease-Epoch"] = str(epoch)
        if json_body is not None:
            headers["Content-Type"] = "application/json"
        headers |= form.headers if form is not None else {}
        answer = self._call(
            method,
            path,
            headers=headers,
            params=params,
            data=self._encoded(json_body, path) if json_body is not None else form.data() if form is not None else None,
            timeout_seconds=timeout_seconds,
        )
        return self._json(answer) if answer.content else None

    def health(self) -> dict[str, Any]:
        """What ``GET /health`` answers."""
        answer = self.get("/health")
        return answer if isinstance(answer, dict) else {}

    def has(self, capability: str) -> bool:
        """Whether the service lists an optional ability; asked once, and where it does not, said once in the log."""
        if self._capabilities is None:
            try:
                listed = self.health().get("capabilities")
            except self._not_found:
                listed = None
            self._capabilities = frozenset(map(str, listed)) if isinstance(listed, list) else frozenset()
        if capability not in self._capabilities:
            self.say_once(f"The {self._service} at {self.base_url} cannot {capability!r}; going on without it.")
            return False
        return True

    def say_once(self, text: str) -> None:
        """Log a line, the first time only."""
        if text not in self._said:
            self._said.add(text)
            logger.warning("%s", text)

    def _call(
        self,
        method: str,
        path: str,
        *,
        timeout_seconds: float | None = None,
        target: RewoundFile | None = None,
        is_streamed: bool = False,
        **options: Any,  # noqa: ANN401  what ServiceSession.ask takes
    ) -> requests.Response:
        wait_seconds = timeout_seconds or self._timeout_seconds
        # urllib3 sends under the connect timeout too, and a service may let a large body wait for its disk.
        connect_seconds = wait_seconds if isinstance(options.get("data"), UploadBody) else CONNECT_TIMEOUT_SECONDS
        timeout = (connect_seconds, wait_seconds)

        def ask() -> requests.Response:
            try:
                answer: requests.Response = self._retrying(
                    self._try, method, path, timeout=timeout, target=target, is_streamed=is_streamed, options=options
                )
            except _RetryLaterError as later:
                raise later.error from later.__cause__
            return answer

        return in_time(ask, doing=f"ask the {self._service}")

    def _pause(self, seconds: float) -> None:
        deadline = current_deadline()
        pause(self._clock, seconds, Cancellation() if deadline is None else deadline.cancellation)

    @staticmethod
    def _wait(state: tenacity.RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        asked = failure.wait_seconds if isinstance(failure, _RetryLaterError) else None
        if asked is not None:
            return min(asked, MAX_RETRY_AFTER_SECONDS)
        ceiling = min(_LONGEST_BACKOFF_SECONDS, _FIRST_BACKOFF_SECONDS * 2**state.attempt_number)
        return random.uniform(0, ceiling)  # noqa: S311  jitter, no secret

    def _try(
        self,
        method: str,
        path: str,
        *,
        timeout: tuple[float, float],
        target: RewoundFile | None,
        is_streamed: bool,
        options: dict[str, Any],
    ) -> requests.Response:
        limit_seconds, cancellation = timeout[1], None
        if (deadline := current_deadline()) is not None:
            limit_seconds, cancellation = (
                min(deadline.check(f"ask the {self._service}"), timeout[1]),
                deadline.cancellation,
            )
        exchange = Exchange(limit_seconds, cancellation=cancellation)
        try:
            with exchange:
                answer = self._session.ask(method, path, timeout=timeout, **options)
                if not (is_streamed and answer.ok):
                    answer = read_whole(answer, limit_bytes=MAX_ANSWER_BYTES)
            if target is not None and answer.ok:  # as long as bytes keep coming: a large artifact takes its time
                with answer:
                    target.take(answer.iter_content(_CHUNK_BYTES))
        except AnswerTooLargeError as error:
            raise ServiceError(f"{self._named()} sent too large an answer to {method} {path}: {error}.") from error
        except requests.RequestException as error:  # a refused connection, a cut answer, or no HTTP at all
            raise _RetryLaterError(self._broken(error, method, path, limit_seconds, exchange)) from error
        if exchange.is_over:  # a body without a length looks whole when it is cut
            raise _RetryLaterError(self._late(method, path, limit_seconds))
        if target is None and not is_streamed and _lost_its_head(answer):
            raise _RetryLaterError(ServiceConnectionError(f"{self._named()} broke off its answer to {method} {path}."))
        if answer.status_code < requests.codes.multiple_choices:
            return answer
        raise self._refusal(answer, method, path)

    def _broken(
        self, error: requests.RequestException, method: str, path: str, limit_seconds: float, exchange: Exchange
    ) -> ServiceConnectionError:
        if exchange.is_over or isinstance(error, requests.ReadTimeout):
            return self._late(method, path, limit_seconds)
        if isinstance(error, (requests.ConnectionError, requests.Timeout)):
            return self._unreachable()
        text = f"{self._named()} broke off its answer to {method} {path}: {type(error).__name__}."
        return ServiceConnectionError(text)

    def _late(self, method: str, path: str, limit_seconds: float) -> ServiceConnectionError:
        text = f"{self._named()} did not answer {method} {path} within {limit_seconds:g} seconds."
        return ServiceConnectionError(text)

    def _refusal(self, answer: requests.Response, method: str, path: str) -> Exception:
        problem = read_problem(answer)
        error = self._error(answer, problem, method, path)
        if answer.status_code not in _RETRIED_STATUSES or isinstance(error, SlotAllocationError):
            return error  # the pool has waited for a slot itself: asking again at once would only wait twice
        error.retryable = True
        return _RetryLaterError(error, retry_after_seconds(answer.headers.get("Retry-After", ""), self._clock))

    def _error(self, answer: requests.Response, problem: dict[str, Any], method: str, path: str) -> RunnerError:
        status = answer.status_code
        detail = self._redactor.text(str(problem.get("detail") or problem.get("title") or answer.reason or ""))
        said = shown(" ".join(detail.split()), LONGEST_DETAIL)
        text = f"{self._named()} answered {status} to {method} {path}: {said or 'no reason given'}"
        if status in {requests.codes.unauthorized, requests.codes.forbidden}:
            hint = "Check the service token (service_token, or NECROCODE_SERVICE_TOKEN)."
            return AuthenticationError(text, hint=hint, status_code=status)
        slug = str(problem.get("type") or "").rstrip("/").rsplit("/", 1)[-1]
        kind = _ERROR_BY_SLUG.get(slug)
        if kind is SlotAllocationError:
            said = said if said.startswith("No available slots") else f"No available slots: {said}"
            return SlotAllocationError(said, hint=f"(from {self.base_url})", status_code=status)
        if kind is None and status == requests.codes.not_found:
            kind = self._not_found
        if kind is None and status == requests.codes.conflict and path.endswith("/status"):
            kind = IllegalTransitionError
        if kind is None and status == requests.codes.too_many_requests:
            kind = RateLimitError
        if answer.is_redirect:
            return ServiceError(f"{text}; redirects are not followed.", hint="Set the final URL.", status_code=status)
        return (kind or ServiceError)(text, status_code=status)

    def _unreachable(self) -> ServiceConnectionError:
        return ServiceConnectionError(
            f"Failed to connect to {self.base_url} ({self._service}): is it running?",
            hint=f"try: curl {self.base_url}/health",
        )

    def _named(self) -> str:
        return f"The {self._service} at {self.base_url}"

    def _encoded(self, body: Mapping[str, Any], path: str) -> bytes:
        """The body as JSON; what cannot be sent at all is not tried."""
        try:
            return _JSON.encode(body).encode()
        except (TypeError, ValueError) as error:
            raise ServiceError(
                f"{path} of the {self._service} cannot be sent something that is no JSON: {error}."
            ) from error

    def _json(self, answer: requests.Response) -> Any:  # noqa: ANN401  JSON
        try:
            return json.loads(answer.content)
        except (ValueError, RecursionError) as error:
            raise ServiceError(
                f"{self._named()} answered {answer.status_code} with something else than JSON:"
                f" {beginning(answer, 80)!r}. Is this the right URL?",
                status_code=answer.status_code,
            ) from error


def _is_too_late(state: tenacity.RetryCallState) -> bool:
    """Whether the run's time is over before the next try would begin."""
    deadline = current_deadline()
    return deadline is not None and state.upcoming_sleep >= deadline.remaining_seconds()


def _lost_its_head(answer: requests.Response) -> bool:
    """Whether the answer was cut within its headers: nothing tells where it ends, and nothing came."""
    has_end = not {"content-length", "transfer-encoding"}.isdisjoint(name.lower() for name in answer.headers)
    may_be_empty = answer.status_code == requests.codes.no_content
    return answer.raw.version == _HTTP_1_1 and not (has_end or may_be_empty or answer.content)


class ServiceClient:
    """The part that is the same in all three clients: opening, closing, health."""

    _http: ServiceHttp

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the pooled connections; a later call opens new ones."""
        self._http.close()

    def health(self) -> dict[str, Any]:
        """What the service says of itself: ``status``, ``service``, ``version``, ``capabilities``."""
        return self._http.health()
