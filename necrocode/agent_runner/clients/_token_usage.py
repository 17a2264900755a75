"""What a question and its answer cost in tokens: as the endpoint tells it, else as it is estimated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from necrocode.agent_runner.generation.pieces import estimate_tokens

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_BELIEVED = 1_000_000_000
_TOKENS_PER_MESSAGE = 4
"""What a message costs besides its text (OpenAI cookbook, "How to count tokens with tiktoken": 3, its role 1)."""


def token_usage(told: object, *, prompt: Iterable[str], answer: str) -> dict[str, Any]:
    """The fields of a ``ModelAnswer`` about tokens, from the ``usage`` object of a chat completion.

    A count that is missing, odd or 0 is none: something was asked, and something was answered. It is estimated from
    ``prompt``, the texts of the messages, and ``answer``, everything that the model wrote.
    """
    usage = told if isinstance(told, dict) else {}
    prompt_tokens, completion_tokens = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    is_estimated = not (prompt_tokens and completion_tokens)
    prompt_tokens = prompt_tokens or sum(estimate_tokens(text) + _TOKENS_PER_MESSAGE for text in prompt)
    completion_tokens = completion_tokens or estimate_tokens(answer)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cached_prompt_tokens": min(_cached(usage), prompt_tokens),
        "reasoning_tokens": min(_count(usage.get("completion_tokens_details"), "reasoning_tokens"), completion_tokens),
        "usage_is_estimated": is_estimated,
    }


def told_usage(told: object) -> dict[str, Any]:
    """The fields of an ``ImplementationError`` about tokens: what the endpoint says of an answer that will not do."""
    usage = told if isinstance(told, dict) else {}
    prompt_tokens = _count(usage, "prompt_tokens") or None
    is_told = prompt_tokens is not None and "completion_tokens" in usage  # 0 is believed: an empty answer has none
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": _count(usage, "completion_tokens") if is_told else None,
        "cached_prompt_tokens": min(_cached(usage), prompt_tokens or 0),
    }


def _cached(usage: dict[str, Any]) -> int:
    return (
        _count(usage.get("prompt_tokens_details"), "cached_tokens")  # OpenAI, vLLM, llama.cpp
        or _count(usage, "prompt_cache_hit_tokens")  # DeepSeek
        or _count(usage, "cache_read_input_tokens")  # Anthropic's, as LiteLLM passes it on
    )


def _count(usage: object, key: str) -> int:
    value = usage.get(key) if isinstance(usage, dict) else None
    if not isinstance(value, int) or isinstance(value, bool):
        return 0
    return value if 0 <= value <= _MOST_BELIEVED else 0
