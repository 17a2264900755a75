"""Paths of files in the prose of an answer."""

from __future__ import annotations

import re

_SHELL_FENCES = {"bash", "sh", "shell", "console", "zsh", "text", "txt", "output", "powershell"}
_MOST_WORDS_AROUND_PATH = 8
_LABEL = re.compile(
    r"(?i)^(?:(?:create|modify|update|edit|new|add|replace|delete)(?: file| the file)?[:：]?\s+"
    r"|(?:file|path|filename|file path|ファイル)(?:\s*[:：]\s*|\s+))(?=\S+$)"
)
_TOLD = re.compile(r"(?i)^(?:file|path|ファイル)(?:\*\*)?\s*[:：]\s*(.+)$")
_PATH_WITH_SPACES = re.compile(r"^[^\s`*<>|\"'()（）]+(?: [^\s`*<>|\"'()（）]+)+\.\w{1,12}$")
_TAG = re.compile(r"^<[\w-]+ +(?:file_path|path|filename|file|name)=[\"']([^\"'<>]+)[\"'] */?>$")
_PATH_SHAPE = re.compile(r"^[^\s`*<>|\"'()（）]+$")
_BARE_NAMES = {
    "Makefile",
    "Dockerfile",
    "LICENSE",
    "README",
    "Rakefile",
    "Gemfile",
    "Procfile",
    "Justfile",
    "CHANGELOG",
}


def path_before_block(line: str, language: str) -> str:
    """The path that the line before a block names; a shell session under a sentence about a file is not that file."""
    path = path_on_line(line)
    if path is None or (language in _SHELL_FENCES and line.strip() != path and not path.endswith((".sh", ".txt"))):
        return ""
    return path


def path_on_line(line: str) -> str | None:
    """The path that a line names, such as ``src/a.py``, ``**src/a.py**`` or ``### File: `src/a.py`:`` does."""
    if tag := _TAG.match(line.strip()):
        return tag[1]
    text = line.strip().lstrip("#>-*").strip()
    told = _TOLD.match(text.strip("*_ "))
    if told and may_be_path(named := told[1].strip("*`\"' ").rstrip(":：")):
        return named
    quoted = re.search(r"`([^`\s]+)`", text)
    if quoted and looks_like_path(quoted[1]) and len(text.split()) <= _MOST_WORDS_AROUND_PATH:
        return quoted[1]
    text = text.strip("*_ ").rstrip(":：").strip("*`\"' ")
    text = re.sub(r"^(?:\d+[.)]|//|#|--)\s+", "", text)
    text = _LABEL.sub("", text).strip("*`\"' ").rstrip(":：")
    return text if looks_like_path(text) else None


def path_alone_on_line(line: str) -> str | None:
    """The path that a line names, or is: where a path belongs, it may have blanks in it behind its first folder."""
    if (path := path_on_line(line)) is not None:
        return path
    text = line.strip().strip("*`\"'").rstrip(":：").strip("*`\"'")
    first, *rest = text.split(" ")
    is_one_path = "/" in first and bool(rest) and "." not in first.rsplit("/", 1)[-1]
    return text if is_one_path and may_be_path(text) else None


def looks_like_path(text: str) -> bool:
    """Whether a text reads as one file path and not as a word of prose."""
    if not text or not _PATH_SHAPE.match(text) or text.endswith(("/", ".", ",", ";")):
        return False
    name = text.rsplit("/", 1)[-1]
    return "/" in text or "." in name or name in _BARE_NAMES


def may_be_path(text: str) -> bool:
    """Whether a text reads as a file path where it is called one: spaces and bare names may be in it."""
    if _PATH_SHAPE.match(text):
        return not text.endswith(("/", ".", ",", ";"))
    return _PATH_WITH_SPACES.match(text) is not None
