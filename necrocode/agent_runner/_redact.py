"""Secrets are masked at every place where text leaves a run."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, quote_plus

if TYPE_CHECKING:
    from collections.abc import Callable

MASK = "***"
_SHORTEST_SECRET = 6  # masking shorter ones would eat ordinary words

# Shapes of well-known keys, each from its issuer's documentation: OpenAI, GitHub, GitLab, AWS, Slack, a bearer header,
# a private key block, a password inside a URL.
_KEY_SHAPES = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{22,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bAKIA[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
)
# One edge at a time: a pattern for the whole block would look for an end anew from each of a million beginnings. The
# dashes behind are only looked at, for the next edge may share them.
_KEY_BLOCK_EDGE = re.compile(r"-----(BEGIN|END) [A-Z ]*PRIVATE KEY(?=-----)")
_DASHES = len("-----")
# What each of them begins with: looking for these first is a hundred times faster than trying the patterns everywhere.
_KEY_BEGINNINGS = (
    "sk-", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "AKIA", "xox",
)  # fmt: skip
_URL_PASSWORD = re.compile(r'(?<=://)([^/\s:@"]{0,256}):([^/\s@"]{1,256})@')
_BEARER = re.compile(r"""(?i)(authorization\\?["']?\s*:\s*\\?["']?(?:bearer|basic)\s+)([^\s"'\\]+)""")


class Redactor:
    """Masks the given secrets, in the forms in which they usually leak, and anything shaped like a well-known key."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= _SHORTEST_SECRET:
                forms |= {secret, quote(secret, safe=""), quote_plus(secret), json.dumps(secret)[1:-1]}
        longest_first = sorted(forms, key=len, reverse=True)
        self._secrets = re.compile("|".join(map(re.escape, longest_first))) if forms else None

    def text(self, text: str) -> str:
        """The text with every secret replaced by ``***``."""
        return self.replaced(text, lambda _secret: MASK)

    def replaced(self, text: str, stand_in: Callable[[str], str]) -> str:
        """The text with every secret replaced by what ``stand_in`` gives for it.

        The rules look one after the other, so ``stand_in`` may be asked about what it has given itself.
        """
        if self._secrets is not None:
            text = self._secrets.sub(lambda found: stand_in(found[0]), text)
        if any(beginning in text for beginning in _KEY_BEGINNINGS):
            text = _KEY_SHAPES.sub(lambda found: stand_in(found[0]), text)
        if "PRIVATE KEY-----" in text:
            text = _without_key_blocks(text, stand_in)
        if "authorization" in text.lower():
            text = _BEARER.sub(lambda found: found[1] + stand_in(found[2]), text)
        if "://" in text and "@" in text:
            text = _URL_PASSWORD.sub(lambda found: f"{found[1]}:{stand_in(found[2])}@", text)
        return text

    def data(self, value: Any) -> Any:  # noqa: ANN401  whatever JSON can hold
        """The same for every text inside lists and mappings, names included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.data(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.data(item) for key, item in value.items()}
        return value

    def holds_secret(self, text: str) -> bool:
        """Whether the text holds one of the given secrets; key shapes do not count, for test data is full of them."""
        return self._secrets is not None and self._secrets.search(text) is not None


def _without_key_blocks(text: str, stand_in: Callable[[str], str]) -> str:
    """The text with every private key replaced, from its BEGIN line to the next END line."""
    kept: list[str] = []
    position = 0
    beginning: int | None = None
    for edge in _KEY_BLOCK_EDGE.finditer(text):
        if edge[1] == "BEGIN":
            beginning = edge.start() if beginning is None else beginning
        elif beginning is not None:
            end = edge.end() + _DASHES
            kept += [text[position:beginning], stand_in(text[beginning:end])]
            position, beginning = end, None
    return "".join([*kept, text[position:]])
