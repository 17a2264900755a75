"""Secrets are masked at every place where text leaves a run."""

from __future__ import annotations

import base64
import json
import re
import shlex
from bisect import bisect_right
from collections import Counter
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, quote_plus, unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

MASK = "***"
_SHORTEST_SECRET = 6  # masking shorter ones would eat ordinary words
_SHORTEST_ENCODED = 8  # likewise for what encodings make of them
_SHORTEST_WRAPPED = 16  # likewise for a secret as it is, when blanks within it do not count
_CHUNK = 4096
_SECRET_NAME = re.compile(
    r"token|secret|passw|passphrase|credential|cookie|api_?key|(?<![a-z0-9])(?:key|auth|pass|pwd|pat)(?![a-z0-9])",
    re.IGNORECASE,
)
_NAME_OF_A_PLACE = re.compile(r"(?:file|path|dir|folder)$", re.IGNORECASE)

# Shapes of well-known keys, each from its issuer's documentation: OpenAI and Anthropic, GitHub, GitLab, AWS, Slack,
# Google, Stripe, npm, PyPI, Hugging Face, SendGrid. None looks further than its own length before it has a hit.
_KEY_SHAPES = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{36,}"
    r"|\bgithub_pat_[A-Za-z0-9_]{22,}"
    r"|\bglpat-[A-Za-z0-9_-]{20,}"
    r"|\bA[KS]IA[0-9A-Z]{16}\b"
    r"|\bxox[abprs]-[A-Za-z0-9-]{10,}"
    r"|\bAIza[0-9A-Za-z_-]{35}"
    r"|\b[rs]k_live_[0-9A-Za-z]{16,}"
    r"|\bnpm_[A-Za-z0-9]{36}"
    r"|\bpypi-[A-Za-z0-9_-]{50,}"
    r"|\bhf_[A-Za-z0-9]{30,}"
    r"|\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}"
)
# A signed JSON web token (RFC 7519): for RE2, as a token may begin at every dash of what is none.
_WEB_TOKEN = rb"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{16,}"
# What each of them begins with, and the other rules' marks: one pass over a text says whether any rule can have a hit.
_MARKS = (
    r"sk-|gh[pousr]_|github_pat_|glpat-|AKIA|ASIA|xox[abprs]-|AIza|[rs]k_live_|npm_|pypi-|hf_|SG\.|\.eyJ"
    r"|PRIVATE KEY(?: BLOCK)?-----|(?i:authorization)|:\\{0,8}/\\{0,8}/[^\s\"<>]*@"
)
# One edge at a time: a pattern for the whole block would look for an end anew from each of a million beginnings. The
# dashes behind are only looked at, for the next edge may share them.
_KEY_BLOCK_EDGE = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?(?=-----)")
_DASHES = len("-----")
_LONGEST_KEY_BLOCK = 16_384  # an RSA key of 16384 bits takes up 12 700 characters
# What may follow a BEGIN line whose END is missing: headers, then base64, with line ends as they are or escaped. No
# part of it gives back what it has.
_KEY_BODY = re.compile(
    r"(?:\s|\\[nrt]){0,64}+(?:[A-Z][A-Za-z-]{1,20}+: [^\r\n\\]{1,200}+(?:[\r\n]|\\[nr]){1,8}+){0,8}+"
    rf"[A-Za-z0-9+/=\s\\]{{16,{_LONGEST_KEY_BLOCK}}}+"
)
_KEY_LINE = re.compile(r"[A-Za-z0-9+/]{16}")
# A URL up to where it must end; the slashes may be escaped, as JSON may have them.
_URL = re.compile(r':\\{0,8}/(?:\\{0,8}/){1,2}([^\s"<>:]*(?::(?!\\{0,8}/\\{0,8}/)[^\s"<>:]*)*)')
_AUTHORITY = re.compile(r"[^/?#\\]*")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.%]*\]|[^@:]*)(?::[0-9]{0,5})?")
_TOKEN_AS_USER = re.compile(r"(?=[A-Za-z_-]*[0-9])[A-Za-z0-9_-]{20,}")
_BEARER = re.compile(
    r"""(?i)(authorization\\{0,8}["']?[ \t]*[:,=][ \t]*(?:\\{0,8}b?["'])?"""
    r"""(?:bearer|basic|token|oauth|digest|negotiate|ntlm|dpop|bot|api-?key|ssws)[ \t]+)([^\s"'\\]+)"""
)
# What wrapping, and tools that write bytes apart, put between the characters of an encoding.
_BLANKS = b" \t\r\n\x0b\x0c:"
_BLANK = re.compile(rb"(?:[ \t\r\n\x0b\x0c:]|\\[nrt])+")


def secret_values(variables: Mapping[str, str]) -> tuple[str, ...]:
    """What of these variables must be masked.

    The values of those named like a key, token, secret or password, and user or password of the URLs in any other.
    """
    found: list[str] = []
    for name, value in variables.items():
        if _SECRET_NAME.search(name) and not _NAME_OF_A_PLACE.search(name):
            found.append(value)
        found += filter(None, map(_password_of, value.split()))
    return tuple(dict.fromkeys(found))


def _password_of(word: str) -> str | None:
    try:
        parts = urlsplit(word) if "@" in word else None
    except ValueError:
        return None
    secret = None if parts is None else parts.password or parts.username  # a token may stand alone before the @
    return unquote(secret) if secret else None


class _Pattern(Protocol):
    """A pattern of RE2's, over bytes: time is linear in the text, however many alternatives there are."""

    def search(self, text: bytes) -> object | None:
        """The first match."""

    def finditer(self, text: bytes) -> Iterator[re.Match[bytes]]:
        """All matches."""


class Redactor:
    """Masks the given secrets, in the forms in which they usually leak, and anything shaped like a well-known key.

    The forms: as it is; escaped for URLs, JSON, shells and XML; in hexadecimal; in base64, wherever in an encoded text
    it stands. Secrets of fewer than 6 characters are not masked.
    """

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self.forms = tuple(sorted({form for one in secrets for form in _forms(one)}, key=len, reverse=True))
        """Every form of every secret, the longest first."""
        self._unwrapped = tuple(sorted({form for one in secrets for form in _wrappable(one)}, key=len, reverse=True))
        self.longest_form = max([0, *map(len, self.forms[:1]), *(2 * len(form) for form in self._unwrapped[:1])])
        """How many characters of a text one of them takes up at the most, wrapped or in pairs."""
        self._keeps_to_lines = not any("\n" in form for form in self.forms)

    def text(self, text: str) -> str:
        """The text with every secret replaced by ``***``."""
        return self.replaced(text, lambda _secret: MASK)

    def replaced(self, text: str, stand_in: Callable[[str], str]) -> str:
        """The text with every secret replaced by what ``stand_in`` gives for it.

        The rules look one after the other, so ``stand_in`` may be asked about what it has given itself.
        """
        text = self._without_wrapped(text, stand_in)
        if not self._may_have_hit(text):
            return text
        if len(text) <= _CHUNK or not self._keeps_to_lines or "PRIVATE KEY" in text:
            return self._masked(text, stand_in)
        return "".join(self._masked(chunk, stand_in) if self._may_have_hit(chunk) else chunk for chunk in _chunks(text))

    def _without_wrapped(self, text: str, stand_in: Callable[[str], str]) -> str:
        """The text without the forms that line breaks and blanks go through; the others are left to the next rule."""
        if not self._unwrapped:
            return text
        data = text.encode(errors="surrogatepass")
        pattern = _pattern(self._unwrapped, with_marks=False)
        closed = data.translate(None, _BLANKS).replace(b"\\n", b"").replace(b"\\r", b"").replace(b"\\t", b"")
        if len(closed) == len(data) or pattern.search(closed) is None:
            return text
        return _substituted_across_blanks(pattern, data, stand_in)

    def _may_have_hit(self, text: str) -> bool:
        return _pattern(self.forms, with_marks=True).search(text.encode(errors="surrogatepass")) is not None

    def _masked(self, text: str, stand_in: Callable[[str], str]) -> str:
        data = text.encode(errors="surrogatepass")
        if self.forms and (pattern := _pattern(self.forms, with_marks=False)).search(data) is not None:
            text = _substituted(pattern, data, stand_in)
        if ".eyJ" in text:
            text = _substituted(_compiled(_WEB_TOKEN), text.encode(errors="surrogatepass"), stand_in)
        text = _KEY_SHAPES.sub(lambda found: stand_in(found[0]), text)
        if "PRIVATE KEY" in text:
            text = _without_key_blocks(text, stand_in)
        text = _BEARER.sub(lambda found: found[1] + stand_in(found[2]), text)
        return _URL.sub(lambda found: _without_password(found, stand_in), text) if "@" in text else text

    def data(self, value: Any) -> Any:  # noqa: ANN401  whatever JSON can hold
        """The same for every text inside lists and mappings, names included."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.data(item) for item in value]
        if isinstance(value, dict):
            return {self.text(key): self.data(item) for key, item in value.items()}
        return value

    def secrets_in(self, text: str) -> Counter[str]:
        """How often each form of the given secrets is in the text; key shapes do not count."""
        if not self.forms:
            return Counter()
        data = text.encode(errors="surrogatepass")
        found = _pattern(self.forms, with_marks=False).finditer(data)
        return Counter(one[0].decode(errors="surrogatepass") for one in found)


def _forms(secret: str) -> set[str]:
    """What to look for: the secret as it is, and as encodings would write it."""
    if len(secret) < _SHORTEST_SECRET:
        return set()
    percent = quote(secret, safe="")
    forms = {
        secret,
        percent,
        percent.replace("%2F", "/"),
        re.sub("%[0-9A-F]{2}", lambda found: found[0].lower(), percent),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(secret)[1:-1].replace("/", "\\/"),
        json.dumps(json.dumps(secret)[1:-1])[1:-1],
        shlex.quote(secret).strip("'") if "'" in secret else secret,
        re.sub(r"([^A-Za-z0-9_./-])", r"\\\1", secret),
        repr(secret)[1:-1],
        ascii(secret)[1:-1],
        repr(secret.encode(errors="surrogatepass"))[2:-1],
        escape(secret),
        escape(secret, quote=False),
        escape(secret).replace("&#x27;", "&apos;"),
        escape(secret).replace("&#x27;", "&#39;"),
    }
    data = secret.encode(errors="surrogatepass")
    return forms | {form for form in _encoded(data) if len(form) >= _SHORTEST_ENCODED}


def _wrappable(secret: str) -> set[str]:
    """What to look for where blanks do not count."""
    if len(secret) < _SHORTEST_SECRET:
        return set()
    data = secret.encode(errors="surrogatepass")
    encoded = {form for form in _encoded(data) if len(form) >= _SHORTEST_ENCODED}
    bare = _BLANK.sub(b"", data).decode(errors="surrogatepass")
    return encoded | ({bare} if len(bare) >= _SHORTEST_WRAPPED else set())


def _encoded(data: bytes) -> Iterator[str]:
    """Hexadecimal; and of base64 (RFC 4648) the part that these bytes alone decide, at each of the three places."""
    yield data.hex()
    yield data.hex().upper()
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + data).decode()
        sure = text[-(-8 * shift // 6) : 8 * (shift + len(data)) // 6]
        yield sure
        yield sure.replace("+", "-").replace("/", "_")


@lru_cache(maxsize=64)
def _pattern(forms: tuple[str, ...], *, with_marks: bool) -> _Pattern:
    """The forms as one pattern, the longest first; with the marks of the other rules where they are wanted."""
    parts: Iterable[bytes] = (_escaped(form) for form in forms)
    marks = [_MARKS.encode()] if with_marks else []
    return _compiled(b"|".join([*parts, *marks]))


@lru_cache(maxsize=64)
def _compiled(expression: bytes) -> _Pattern:
    import re2  # noqa: PLC0415  loaded when there is something to mask

    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1  # bytes are bytes: lone surrogates are text here
    options.max_mem = 64 << 20
    options.log_errors = False
    pattern: _Pattern = re2.compile(expression, options)
    return pattern


def _escaped(form: str) -> bytes:
    return b"".join(
        bytes([byte]) if byte < 128 and chr(byte).isalnum() else b"\\x%02x" % byte  # noqa: PLR2004  ASCII
        for byte in form.encode(errors="surrogatepass")
    )


def _chunks(text: str) -> Iterator[str]:
    """The text in parts of whole lines: those without a hit, nearly all of them, need no more than one look."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _CHUNK) + 1 or len(text)
        yield text[start:end]
        start = end


def _substituted(pattern: _Pattern, data: bytes, stand_in: Callable[[str], str]) -> str:
    kept: list[str] = []
    position = 0
    for found in pattern.finditer(data):
        kept.append(data[position : found.start()].decode(errors="surrogatepass"))
        kept.append(stand_in(found[0].decode(errors="surrogatepass")))
        position = found.end()
    return "".join([*kept, data[position:].decode(errors="surrogatepass")])


def _substituted_across_blanks(pattern: _Pattern, data: bytes, stand_in: Callable[[str], str]) -> str:
    """The same where the pattern's matches may have blanks within."""
    parts, starts, ends = [], [0], [0]  # of what is between blanks: where it begins here, where it ends without them
    for blank in _BLANK.finditer(data):
        parts.append(data[starts[-1] : blank.start()])
        ends.append(ends[-1] + len(parts[-1]))
        starts.append(blank.end())
    closed = b"".join([*parts, data[starts[-1] :]])
    kept: list[str] = []
    position = 0
    for found in pattern.finditer(closed):
        first, last = (bisect_right(ends, place) - 1 for place in (found.start(), found.end() - 1))
        if first == last:
            continue
        start, end = starts[first] + found.start() - ends[first], starts[last] + found.end() - ends[last]
        kept.append(data[position:start].decode(errors="surrogatepass"))
        kept.append(stand_in(data[start:end].decode(errors="surrogatepass")))
        position = end
    return "".join([*kept, data[position:].decode(errors="surrogatepass")])


def _without_password(found: re.Match[str], stand_in: Callable[[str], str]) -> str:
    """The URL without its password, and without a user name that must be a token.

    A password may hold what it should not: then it ends at the last @ there is.
    """
    url, rest = found[0][: found.start(1) - found.start()], found[1]
    authority = _authority(rest)
    end = authority.rfind("@")
    if end < 0 and ":" in authority and not _HOST.fullmatch(authority):
        end = rest.rfind("@")
    elif end >= 0 and not set(".:") & set(authority[end:]):  # no host: "user:p@ss/word@host"
        end = max(end, rest.rfind("@"))
    if end < 0:
        return found[0]
    user, colon, password = rest[:end].partition(":")
    if _TOKEN_AS_USER.fullmatch(user):
        user = stand_in(user)
    return f"{url}{user}{colon}{stand_in(password) if password else ''}{rest[end:]}"


def _authority(rest: str) -> str:
    found = _AUTHORITY.match(rest)
    return found[0] if found else ""


def without_cut_key_blocks(text: str, *, is_cut_after: bool) -> str:
    """The text without the private key that it ends in, or begins in, where what came after or before was cut off."""
    edges = list(_KEY_BLOCK_EDGE.finditer(text))
    if is_cut_after:
        begins = edges and edges[-1][1] == "BEGIN" and len(text) - edges[-1].start() <= _LONGEST_KEY_BLOCK
        return text[: edges[-1].start()] if begins else text
    ends = edges and edges[0][1] == "END" and edges[0].start() <= _LONGEST_KEY_BLOCK
    return text[edges[0].end() + _DASHES :] if ends else text


def _without_key_blocks(text: str, stand_in: Callable[[str], str]) -> str:
    """The text with every private key replaced, from its BEGIN line to the next END line, or as far as it goes on."""
    kept: list[str] = []
    position = 0
    open_ones: list[re.Match[str]] = []
    for edge in _KEY_BLOCK_EDGE.finditer(text):
        if edge[1] == "BEGIN":
            open_ones.append(edge)
        elif open_ones:
            end = edge.end() + _DASHES
            kept += [text[position : open_ones[0].start()], stand_in(text[open_ones[0].start() : end])]
            position, open_ones = end, []
    for edge in open_ones:
        body = _KEY_BODY.match(text, edge.end() + _DASHES) if edge.start() >= position else None
        if body and _KEY_LINE.search(body[0]):
            kept += [text[position : edge.start()], stand_in(text[edge.start() : body.end()])]
            position = body.end()
    return "".join([*kept, text[position:]])
