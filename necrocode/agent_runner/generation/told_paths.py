"""Paths of files in the prose of an answer."""

from __future__ import annotations

import re
from typing import NamedTuple

_SHELL_FENCES = {"bash", "sh", "shell", "console", "zsh", "text", "txt", "output", "powershell"}
_MOST_WORDS_AROUND_PATH = 8
_MOST_NAMING_WORDS = 14
_LONGEST_LINE = 500
_LABEL = re.compile(
    r"(?i)^(?:(?:create|modify|update|edit|new|add|replace|delete)(?: file| the file)?[:：]?\s+"
    r"|(?:file|path|filename|file path|ファイル)(?:\s*[:：]\s*|\s+))(?=\S+$)"
)
_TOLD = re.compile(r"(?i)^(?:file|path|filename|ファイル)(?:\*\*)?\s*[:：]\s*(.+)$")
_REMARK = re.compile(r"(?i)\s+[(（](?:new|updated?|modified|changed|created?|edited)[^()（）]{0,40}[)）]$")
_PATH_WITH_SPACES = re.compile(r"^[^\s`*<>|\"'()（）]+(?: [^\s`*<>|\"'()（）]+)+\.\w{1,12}$")
_TAG = re.compile(r"^<[\w-]+ +(?:file_path|path|filename|file|name)=[\"']([^\"'<>]+)[\"'] */?>$")
_PATH_SHAPE = re.compile(r"^[^\s`*<>|\"'()（）]+$")
_ROUTE_GROUP = re.compile(r"(?<![^/])\((?:\.{1,3}|[\w@-]+)\)")
"""A folder in parentheses, as web frameworks name groups of routes."""
_TOLD_SHAPE = re.compile(r"^[^\s`*<>|\"]+$")
_QUOTED = re.compile(r"`([^`\s]+)`")
_UNQUOTED = re.compile(r"(?<!\S)[\w.@+-]*(?:/[\w.@+-]+)*\.\w{1,8}(?=[:：.]?(?:\s|$))")
_BARE_NAMES = {
    "Makefile", "Dockerfile", "LICENSE", "README", "Rakefile", "Gemfile", "Procfile", "Justfile", "CHANGELOG",
    "Vagrantfile", "Jenkinsfile", "Brewfile", "Podfile", "Fastfile", "Appfile", "Pipfile", "Guardfile", "Berksfile",
    "Capfile", "Containerfile", "Caddyfile", "Tiltfile", "Earthfile", "Snakefile", "SConstruct", "SConscript",
    "GNUmakefile", "Kconfig", "CODEOWNERS", "AUTHORS", "COPYING", "WORKSPACE", "makefile", "justfile",
}  # fmt: skip
_PROSE = {
    "and/or", "either/or", "input/output", "client/server", "yes/no", "true/false", "read/write", "request/response",
    "before/after", "tcp/ip", "i/o", "n/a", "w/o", "on/off", "start/stop", "get/set", "e.g", "i.e", "he/she",
}  # fmt: skip
_PRODUCTS = {
    "Node.js", "Vue.js", "Next.js", "Nuxt.js", "Express.js", "React.js", "Three.js", "D3.js", "Chart.js", "Angular.js",
    "AngularJS", "Ember.js", "Backbone.js", "Moment.js", "Nest.js", "Alpine.js", "Socket.io", "Socket.IO", "ASP.NET",
    "VB.NET", "ADO.NET", "Discord.js", "Electron.js", "Bun.js", "Solid.js", "Preact.js",
}  # fmt: skip
# What a sentence may say of a file whose whole text follows.
_NAMING = frozenset(
    """
    a an and are as at be below code complete contents content corrected create created creating edit edited entire
    file files final finally first fix fixed fixes following follows for full fully here heres improved implementation
    in is it its like look looks modified modify module new next now of our package please rebuilt refactored replace
    resulting revised rewrite rewritten save script second should source step test tests the then third this update
    updated updates version whole with write after add added adding config configuration class component header
    template model view stylesheet page lets let us well will sure certainly ok okay requested required
    necessary changes i ill ive have has we change changed
    """.split()  # noqa: SIM905  words are read more easily so
)
# What a sentence says of a block that is no file's new text.
_OTHER = frozenset(
    """
    before call calling calls can command console could currently current e.g error example examples execute executed
    executing expected fails gives instead old original output outputs previous previously print prints produces
    result results return returns run running runs session shell snippet terminal traceback usage use used using was
    yields you
    """.split()  # noqa: SIM905  as above
)
_OTHER_SCRIPTS = re.compile(r"実行|出力|使い方|変更前|修正前|以前|运行|输出|示例|用法|修改前")
_ABOUT = re.compile(
    r"(?i)\b(?:tests?|docs?|documentation|fixtures?|patch|diff|stubs?|mocks?|types?|helpers?|config\w*|changes?|fix(?:es)?|add(?:ed|ing)?)\b"
    r"[^`]*\b(?:for|of|to|in|from)\s*(?:the )?(?:file )?$"
)
_PART = re.compile(r"(?i)\b(?:in|to|into|from|inside|within)\s+(?:the )?(?:file )?$")
_NUMBERING = re.compile(r"\s*(?:(?:\d+|[Ss]tep \d+)[:.)]?)?[\s*]*")


class Told(NamedTuple):
    """What the line before a block says of the file that the block is."""

    path: str
    """Empty where it names none."""
    doubt: str = ""
    """A path that it mentions, where the block may be that file, or a part of it, or none."""


def told_before_block(line: str, language: str) -> Told:
    """The file that the line before a block says the block is.

    A line that is a path, with a label or markup, names it. A sentence names a path that it quotes only where it says
    nothing besides, as "Here is the updated `src/a.py`:" does: "Output of `src/a.py`:" is about something else.
    """
    if len(line) > _LONGEST_LINE:
        return Told("")
    if (path := _labelled(line)) is not None:
        return Told(path)
    if (path := _alone(line)) is not None:
        if is_turn_of_prose(path):
            return Told("")
        is_plain = line.strip() == path or path.endswith((".sh", ".txt"))
        return Told(path) if is_plain or language not in _SHELL_FENCES else Told("", path)
    told = _told_by_sentence(line)
    if language in _SHELL_FENCES and not told.path.endswith((".sh", ".txt")):
        return Told("")
    return told


def path_on_line(line: str) -> str | None:
    """The path that a line names, such as ``src/a.py``, ``**src/a.py**`` or ``### File: `src/a.py`:`` does.

    A short sentence that quotes a path counts: for what is looked for in that file, and is refused if not there.
    """
    if (named := _labelled(line)) is not None:
        return named
    text = _unmarked(line)
    quoted = _QUOTED.search(text)
    if quoted and _is_quoted_path(quoted[1]) and len(text.split()) <= _MOST_WORDS_AROUND_PATH:
        return quoted[1]
    return _alone(line)


def path_alone_on_line(line: str) -> str | None:
    """The path that a line names, or is: where a path belongs, it may have blanks in it behind its first folder."""
    if (path := path_on_line(line)) is not None:
        return path
    text = line.strip().strip("*`\"'").rstrip(":：").strip("*`\"'")
    first, *rest = text.split(" ")
    is_one_path = "/" in first and bool(rest) and "." not in first.rsplit("/", 1)[-1]
    return text if is_one_path and may_be_path(text) else None


def is_marked_path(line: str) -> bool:
    """Whether a line names a path and says so: by a label, a heading, quotes or emphasis."""
    return path_on_line(line) not in {None, line.strip(), line.strip().rstrip(":：")}


def _unmarked(line: str) -> str:
    return line.strip().lstrip("#>-*").strip()


def _labelled(line: str) -> str | None:
    """The path on a line that calls it one."""
    if tag := _TAG.match(line.strip()):
        return tag[1]
    told = _TOLD.match(_without_emphasis(_unmarked(line)))
    if told is None:
        return None
    for text in (told[1], _REMARK.sub("", told[1].strip()[-_LONGEST_LINE:])):
        named = _without_emphasis(text.rstrip(":：")).strip("`\"' ").rstrip(":：")
        if may_be_path(named) or (_TOLD_SHAPE.match(named) and not named.endswith(("/", ".", ",", ";"))):
            return named
    return None


def _alone(line: str) -> str | None:
    """The path that a line is, without what marks it up."""
    text = _without_emphasis(_without_emphasis(_unmarked(line)).rstrip(":："))
    text = re.sub(r"^(?:\d+[.)]|//|#|--)\s+", "", text)
    text = _LABEL.sub("", _without_emphasis(text))
    text = _without_emphasis(_without_emphasis(text).rstrip(":："))
    quoted = _QUOTED.fullmatch(text)
    if quoted and _is_quoted_path(quoted[1]):
        return quoted[1]
    text = _without_emphasis(text.strip("`\"' "))
    return text if looks_like_path(text) else None


def _without_emphasis(text: str) -> str:
    """The text without the asterisks around it, and without underscores that are no part of a name."""
    text = text.strip("* ")
    bare = text.strip("_")
    is_emphasis = (
        text.startswith("_") and text.endswith("_") and (" " in bare or re.search(r"[.`]\w{0,8}[:：]?$", bare))
    )
    return bare.strip("* ") if is_emphasis else text


def _is_quoted_path(text: str) -> bool:
    return looks_like_path(text.replace("'", "x"))


def is_turn_of_prose(text: str) -> bool:
    """Whether what looks like a path is a turn of prose, or a product's name; a label can still say otherwise."""
    return text.casefold() in _PROSE or text in _PRODUCTS


def _told_by_sentence(line: str) -> Told:
    text = _unmarked(line)
    quoted = [found for found in _QUOTED.finditer(text) if _is_quoted_path(found[1]) and not is_turn_of_prose(found[1])]
    if not quoted:
        plain = [
            found for found in _UNQUOTED.finditer(text) if looks_like_path(found[0]) and not is_turn_of_prose(found[0])
        ]
        if len(plain) != 1 or _OTHER.intersection(_words(text, plain[0])):
            return Told("")
        path = plain[0][0]
        if _is_naming(text, plain[0]):
            return Told(path)
        return Told("", path if "/" in path and text.rstrip("*_ ").endswith((":", "：")) else "")
    path = quoted[0][1]
    around = _words(text, quoted[0])
    if _OTHER.intersection(around) or _OTHER_SCRIPTS.search(text):
        return Told("")
    if len(quoted) == 1 and len(around) <= _MOST_NAMING_WORDS and _is_naming(text, quoted[0]):
        return Told(path)
    ends_sentence = text.rstrip("*_ ").endswith((".", "!", "?", "。"))
    return Told("") if ends_sentence else Told("", path)


def _is_naming(text: str, path: re.Match[str]) -> bool:
    """Whether a line says no more of the path than that its text follows: by its form, or by all of its words."""
    before, after = text[: path.start()], text[path.end() :].strip("* ")
    words = _words(text, path)
    if _OTHER.intersection(words):
        return False
    if _NUMBERING.fullmatch(before) and after[:1] in set(":：-–—(（"):  # the path, and a remark on it
        return True
    if before.rstrip("* ").endswith(("(", "（")) and not after.strip(")）:： *"):  # a heading, and the path in brackets
        return True
    if _ABOUT.search(before) or _PART.search(before):
        return False
    return all(word in _NAMING or word.isdigit() or not word.isascii() for word in words)


def _words(text: str, path: re.Match[str]) -> list[str]:
    rest = f"{text[: path.start()]} {text[path.end() :]}".casefold().replace("'", "").replace("’", "")
    return re.findall(r"[^\W_][\w.]*\w|[^\W_]", rest)


def looks_like_path(text: str) -> bool:
    """Whether a text reads as one file path and not as a word of prose."""
    if "(" in text and "/" in text:
        text = _ROUTE_GROUP.sub("x", text)
    if not text or not _PATH_SHAPE.match(text) or text.endswith(("/", ".", ",", ";")):
        return False
    name = text.rsplit("/", 1)[-1]
    return "/" in text or "." in name or name in _BARE_NAMES


def may_be_path(text: str) -> bool:
    """Whether a text reads as a file path where it is called one: spaces and bare names may be in it."""
    if _PATH_SHAPE.match(text):
        return not text.endswith(("/", ".", ",", ";"))
    return looks_like_path(text) or _PATH_WITH_SPACES.match(text) is not None
