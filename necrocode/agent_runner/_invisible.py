"""Characters that people do not see and models read: taken out of what people wrote, told of where bytes must stay.

What decides how visible characters look stays where it does so: a joiner within scripts that use it or between emoji,
one variation selector after an emoji or symbol, the flags of England, Scotland and Wales, the blank within Braille,
what puts hieroglyphs together, Syriac's line above an abbreviation. All other characters of Unicode's
``Default_Ignorable_Code_Point`` go, as do controls, soft hyphens, fillers and marks of direction.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
_SUSPECTS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb\U00013430-\U00013455\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
_FLAGS = re.compile("\U0001f3f4\U000e0067\U000e0062(?:\U000e0065\U000e006e\U000e0067|\U000e0073\U000e0063\U000e0074|"
                    "\U000e0077\U000e006c\U000e0073)\U000e007f")  # fmt: skip
_BRAILLE_BLANK = "\u2800"
_SYRIAC_LINE = "\u070f"
_ZWNJ, _ZWJ, _EMOJI_SELECTORS = "\u200c", "\u200d", "\ufe0e\ufe0f"
# Blocks of the scripts whose letters join or stack, and which have both joiners in their spelling: Arabic, Syriac,
# N'Ko, Mandaic; those of India; Sinhala, Tibetan, Myanmar, Khmer, Mongolian, Balinese; Arabic's further forms.
_JOINING = ((0x600, 0x8FF), (0x900, 0xDFF), (0xF00, 0x109F), (0x1780, 0x18AF), (0x1A20, 0x1AAF), (0x1B00, 0x1C4F),
            (0xA840, 0xA8FF), (0xA930, 0xAAFF), (0xABC0, 0xABFF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC),
            (0x11000, 0x11FFF))  # fmt: skip
_MOST_TOLD = 5


def visible(text: str) -> str:
    """The text without what nobody sees; unusual line ends become newlines. Time is linear in its length."""
    if _is_plain(text):
        return text
    return "".join(_replaced(_LINE_ENDS.sub("\n", text), lambda _character: ""))


def invisible_replaced(text: str, stand_in: Callable[[str], str]) -> str:
    """The text with what ``stand_in`` gives for each character that nobody sees; unusual line ends are such."""
    return text if _is_plain(text) else "".join(_replaced(text, stand_in))


def invisible_in(texts: Iterable[str]) -> Counter[str]:
    """How often each character that :func:`visible` takes out is in the texts.

    Line ends do not count, nor does a byte order mark at a beginning.
    """
    found: Counter[str] = Counter()
    for text in texts:
        if not _is_plain(text):
            text = _LINE_ENDS.sub("\n", text.removeprefix("\ufeff"))  # noqa: PLW2901  the same text, its line ends known
            found += Counter(_SUSPECTS.findall(text))
            found -= Counter(_SUSPECTS.findall(visible(text)))
    return found


def told(found: Counter[str]) -> str:
    """The characters in one line for people: ``U+200B (3), U+202E``."""
    ordered = sorted(found.items())
    names = [f"U+{ord(one):04X}" + (f" ({count})" if count > 1 else "") for one, count in ordered[:_MOST_TOLD]]
    more = len(ordered) - _MOST_TOLD
    return ", ".join(names) + (f" and {more} others" if more > 0 else "")


def _is_plain(text: str) -> bool:
    return _SUSPECTS.search(text) is None


def _replaced(text: str, stand_in: Callable[[str], str]) -> Iterator[str]:
    position, before = 0, ""
    flags = {place for found in _FLAGS.finditer(text) for place in range(*found.span())}
    for found in _SUSPECTS.finditer(text):
        place = found.start()
        seen = text[position:place]
        before = seen[-2:] if len(seen) > 1 else (before + seen)[-2:]
        if place in flags or _shapes_what_is_seen(found[0], before, text[place + 1 : place + 2]):
            seen += found[0]
            before = (before + found[0])[-2:]
        else:
            seen += stand_in(found[0])
        yield seen
        position = place + 1
    yield text[position:]


def _shapes_what_is_seen(character: str, before: str, after: str) -> bool:
    """``before``: the last two characters that stay before it; ``after``: the one that follows."""
    last = before[-1:]
    if character == _ZWJ:
        shaped = before[:1] if last == "\ufe0f" or "\U0001f3fb" <= last <= "\U0001f3ff" else last
        return _joins(last) or (_is_symbol(shaped) and _is_symbol(after))
    if character == _BRAILLE_BLANK:
        return _is_braille(last) or (_is_braille(after) and after != _BRAILLE_BLANK)
    if character == _ZWNJ:
        return _joins(last) and _joins(after)
    if character in _EMOJI_SELECTORS:
        return _is_symbol(last) or (bool(last) and last in "0123456789#*\u203c\u2049\u2139\u3030\u303d")
    return _shapes_its_script(character, last, after)


def _shapes_its_script(character: str, last: str, after: str) -> bool:
    if character == _SYRIAC_LINE:
        return "\u0710" <= after <= "\u074f"
    if "\U00013430" <= character <= "\U00013455":  # of hieroglyphs, whose block they part
        return any("\U00013000" <= one < "\U00013430" or "\U00013455" < one <= "\U000143fa" for one in (last, after))
    return "\u180b" <= character <= "\u180f" and character != "\u180e" and "\u1820" <= last <= "\u18aa"


def _joins(character: str) -> bool:
    code = ord(character) if character else 0
    return any(first <= code <= last for first, last in _JOINING) and unicodedata.category(character)[0] in "LM"


def _is_braille(character: str) -> bool:
    return "\u2800" <= character <= "\u28ff"


def _is_symbol(character: str) -> bool:
    return bool(character) and unicodedata.category(character) in {"So", "Sm"}
