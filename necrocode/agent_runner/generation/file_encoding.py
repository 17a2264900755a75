"""The encoding of a file that is not UTF-8, where its own bytes tell it without doubt."""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

_UTF_16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
LEGACY = ("utf-8", "euc_jp", "cp932", "gb18030", "euc_kr", "big5", "cp1252", "latin-1", "iso8859-15", "iso8859-2",
          "cp1250", "cp1251", "koi8-r")  # fmt: skip
"""All are tried. Many read any bytes at all, so that a text could be read proves little."""
_DECLARABLE = {
    *("shift_jis", "cp932", "euc_jp", "gb2312", "gbk", "gb18030", "euc_kr", "cp949", "big5", "cp950"),
    *("koi8-r", "koi8-u", *(f"iso8859-{part}" for part in range(1, 17)), *(f"cp{page}" for page in range(1250, 1259))),
}
# PEP 263 and the modelines of Emacs and Vim in the first two lines; XML, HTML and CSS at the beginning.
_COMMENT_DECLARATION = re.compile(rb"^[ \t\f]*(?:#|//|/\*|--|;|%|<!--).{0,200}?coding[:=][ \t]*([-\w.]{2,40})")
_MARKUP_DECLARATION = re.compile(
    rb"<\?xml[^>]{0,200}?\bencoding=[\"']([-\w.]{2,40})"
    rb"|<meta[^>]{0,200}?\bcharset=[\"']?([-\w.]{2,40})"
    rb"|^@charset \"([-\w.]{2,40})\"",
    re.IGNORECASE,
)
_DECLARED_WITHIN = 1024
_JAPANESE = ("euc_jp", "cp932")
# Kana, kanji, their punctuation, full-width forms. Half-width kana are left out: other encodings' letters read so.
_JAPANESE_TEXT = re.compile("[\0-\x7f\u3000-\u303f\u3041-\u30ff\u4e00-\u9fff\uff01-\uff5e\uffe5]*")
_WORD_IN_KANA = re.compile("[\u3041-\u3093]{2}|[\u30a1-\u30f6\u30fc]{3}")
_KANA = re.compile("[\u3041-\u30ff]")
_LEAST_KANA = 0.25
"""Less of kana among the characters beyond ASCII is a word of Japanese in a text of another language."""


class Decoded(NamedTuple):
    """A text, and how it is written as bytes again."""

    text: str
    encoding: str
    errors: str

    def encoded(self, text: str) -> bytes:
        """Another text in this encoding; ``UnicodeEncodeError`` where it cannot hold it."""
        return text.encode(self.encoding, self.errors)


def decoded(content: bytes, encoding: str) -> Decoded | None:
    """The text under an encoding, if that gives these very bytes back; bytes that are not UTF-8 are escaped there."""
    errors = "surrogateescape" if encoding == "utf-8" else "strict"
    try:
        text = content.decode(encoding, errors)
        return Decoded(text, encoding, errors) if text.encode(encoding, errors) == content else None
    except UnicodeError:
        return None


def known_encodings(content: bytes) -> tuple[str, ...]:
    """The encoding that a file is surely in, and the same with a vendor's additions; empty where nothing tells it.

    What tells it: that it is UTF-8, a mark of UTF-16, a declaration at its beginning, and Japanese in whole words of
    kana, which nothing else is when read as EUC-JP or Shift_JIS.
    """
    if (utf_16 := _UTF_16.get(content[:2])) is not None and not len(content) % 2:
        return (utf_16,)
    if _is_utf_8(content):
        return ("utf-8",)
    if (declared := _declared(content)) is not None:
        found = ("shift_jis", "cp932") if declared == "shift_jis" else (declared,)
        if any(decoded(content, encoding) for encoding in found):
            return found
    japanese = [encoding for encoding in _JAPANESE if _is_japanese(decoded(content, encoding))]
    return tuple(japanese) if len(japanese) == 1 else ()


def _is_utf_8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _declared(content: bytes) -> str | None:
    beginning = content[:_DECLARED_WITHIN]
    for line in beginning.split(b"\n", 2)[:2]:
        if found := _COMMENT_DECLARATION.match(line):
            return _codec(found[1].decode(errors="replace"))
    markup = _MARKUP_DECLARATION.search(beginning)
    return None if markup is None else _codec(next(filter(None, markup.groups())).decode(errors="replace"))


def _codec(label: str) -> str | None:
    """Python's name of a declared encoding, if it is one of those that a file may be edited in."""
    plain = re.sub(r"^x-|-(?:unix|dos|mac)$", "", label.casefold())
    try:
        name = codecs.lookup("cp932" if plain == "windows-31j" else plain).name
    except LookupError:
        return None
    return name if name in _DECLARABLE else None


def _is_japanese(file: Decoded | None) -> bool:
    if file is None or not _WORD_IN_KANA.search(file.text) or not _JAPANESE_TEXT.fullmatch(file.text):
        return False
    beyond_ascii = sum(char > "\x7f" for char in file.text)
    return len(_KANA.findall(file.text)) >= beyond_ascii * _LEAST_KANA
