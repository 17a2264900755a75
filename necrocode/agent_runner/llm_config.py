"""The settings of a model and its endpoint, and what every URL, key and token must be like."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator

from necrocode.agent_runner._redact import secret_values
from necrocode.agent_runner._strict import StrictModel
from necrocode.agent_runner.spending import ModelPrice

_HEADER_NAME = r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"  # RFC 9110, section 5.6.2
_SCHEME = re.compile(r"^(?:Bearer|Basic) +", re.IGNORECASE)
_SECRET_HEADER = re.compile(r"auth|key|token|secret|password|cookie", re.IGNORECASE)


class LLMConfig(StrictModel):
    """Which model to ask, and how."""

    what: ClassVar[str] = "LLM configuration"
    secret_fields: ClassVar[frozenset[str]] = frozenset({"api_key", "headers"})

    api_key: SecretStr | None = None
    """The endpoint's key. None: read from the variable that ``RunnerConfig.llm_api_key_env_var`` names, when needed."""
    model: str = Field(default="gpt-4.1", min_length=1)
    """The model's name, as the endpoint knows it."""
    endpoint: str | None = None
    """Base URL of an OpenAI-compatible API: ``http://localhost:8080/v1``. None: ``OPENAI_BASE_URL``, or OpenAI.

    A query is sent with every question: ``https://NAME.openai.azure.com/openai/deployments/NAME?api-version=2024-10-21``.
    """
    api_key_header: str | None = Field(default=None, pattern=_HEADER_NAME)
    """Which header carries the key: ``Authorization`` as a bearer token, any other (``api-key``) as it is.

    None: ``api-key`` where the endpoint's query has an ``api-version``, as Azure's has; else ``Authorization``.
    """
    headers: dict[str, SecretStr] = Field(default_factory=dict)
    """Sent with every question besides. Values of headers named like a key, token, secret or cookie are masked."""
    timeout_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Wall time for one answer, retries not counted."""
    stream: bool = True
    """Whether answers are asked for as a stream, where the endpoint can do it; False: in one piece."""
    idle_timeout_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """How long a stream that has begun may pause; keep-alives count. 0: as long as ``timeout_seconds`` allows."""
    max_tokens: int = Field(default=8192, gt=0)
    """The most tokens one answer may have."""
    context_tokens: int = Field(default=16_000, gt=0)
    """About how many tokens of repository text the prompt may hold."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """None: the endpoint's default (some models accept no other)."""
    edit_format: Literal["auto", "json", "files", "search_replace", "unified_diff", "patch"] = "auto"
    """How the model is asked to write its changes: ``json`` (structured output), ``files`` (a fenced block per file),
    ``search_replace`` (blocks), ``unified_diff``, ``patch`` (``*** Begin Patch``) or ``auto``: in runs ``files`` where
    all shown files fit twice into ``max_tokens``, else ``search_replace``; in ``generate_code`` ``json``. The answer is
    understood in any of them."""
    retry_count: int = Field(default=3, ge=0, le=20)
    """Further tries after a connection error, 408, 409, 429 or 5xx. 0: none."""
    prices: dict[str, ModelPrice] = Field(default_factory=dict)
    """What models cost, by name or pattern (``gpt-4.1*``): the very name first, else the first pattern that fits."""
    candidates: int = Field(default=1, ge=1, le=16)
    """How many answers the first question of a run asks for, at once; the first whose tests pass is taken."""

    if TYPE_CHECKING:  # for type checkers: the key may be plain text, or None, as os.getenv gives it

        def __init__(
            self,
            *,
            api_key: SecretStr | str | None = ...,
            model: str = ...,
            endpoint: str | None = ...,
            api_key_header: str | None = ...,
            headers: Mapping[str, SecretStr | str] = ...,
            timeout_seconds: float = ...,
            stream: bool = ...,
            idle_timeout_seconds: float = ...,
            max_tokens: int = ...,
            context_tokens: int = ...,
            temperature: float | None = ...,
            edit_format: Literal["auto", "json", "files", "search_replace", "unified_diff", "patch"] = ...,
            retry_count: int = ...,
            prices: Mapping[str, ModelPrice | Mapping[str, Any]] = ...,
            candidates: int = ...,
        ) -> None: ...

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else checked_http_url(value)

    @field_validator("api_key")
    @classmethod
    def _check_api_key(cls, value: SecretStr | None) -> SecretStr | None:
        return checked_token(value)

    @classmethod
    def _given_secrets(cls, data: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(text for name in ("api_key", "headers") for text in secrets_of(data.get(name)))

    @field_validator("headers")
    @classmethod
    def _check_headers(cls, headers: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, value in headers.items():
            text = value.get_secret_value()
            if not re.fullmatch(_HEADER_NAME, name) or not text.isascii() or not text.isprintable():
                raise ValueError("must be names of HTTP headers and values of printable ASCII")
        return headers

    def secrets(self) -> tuple[str, ...]:
        """What must be masked: the key, and the values of headers that are named like one."""
        key = [self.api_key] if self.api_key is not None else []
        named = [value for name, value in self.headers.items() if _SECRET_HEADER.search(name)]
        return tuple(_SCHEME.sub("", value.get_secret_value()) for value in [*key, *named])


def secrets_of(value: object) -> tuple[str, ...]:
    """Of something that stands where a secret should, or named secrets: what is not to be told of it."""
    if isinstance(value, SecretStr):
        return (value.get_secret_value(),)
    if isinstance(value, Mapping):
        texts = {str(name): text for name, one in value.items() for text in secrets_of(one)}
        return secret_values(texts)
    return (value.strip(),) if isinstance(value, str) else ()


def checked_token(value: SecretStr | str | None) -> SecretStr | None:
    """A key or token that an HTTP header can hold; None for an empty one, as ``os.getenv(name, "")`` gives."""
    text = (value.get_secret_value() if isinstance(value, SecretStr) else value or "").strip()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be one word of printable ASCII")
    return SecretStr(text) if text else None


def checked_http_url(value: str) -> str:
    """An ``http`` or ``https`` URL without user and password, and without a slash at its end."""
    parts = urlsplit(value)
    try:
        port_is_valid = parts.port is None or parts.port > 0
    except ValueError:
        port_is_valid = False
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_valid:
        raise ValueError("must be a URL such as http://localhost:8001")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password; use the token settings instead")
    return value.rstrip("/")
