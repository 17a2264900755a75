"""What the tests read in a Markdown document: headings, fenced blocks, inline code, links and tables."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.support.shared import ROOT

DOCUMENTS = sorted(path for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern))
_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>\w*)\s*$")
_HEADING = re.compile(r"^(#{1,6}) +(.+?)\s*$")
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block, its indentation removed. ``label`` is the nearest heading and the line of text before it."""

    document: str
    line: int
    language: str
    text: str
    label: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    @property
    def is_marked_old(self) -> bool:
        return self.text.startswith("# old\n")

    @property
    def code(self) -> str:
        """The lines without whole-line and trailing ``#`` comments, and without empty ones."""
        lines = (re.sub(r"(^|\s+)#(\s.*)?$", "", line) for line in self.text.splitlines())
        return "\n".join(line for line in lines if line.strip())

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block; a line that ends with a backslash goes on in the next."""
        return re.sub(r"\s*\\\n\s*", " ", self.code).splitlines()


class Document:
    """One Markdown file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        self.blocks: list[Block] = []
        self.headings: list[tuple[int, str]] = []
        self._prose: list[str] = []
        self._read(path.read_text(encoding="utf-8").splitlines())

    def _read(self, lines: list[str]) -> None:
        heading, before, start = "", "", 0
        fence: re.Match[str] | None = None
        for number, line in enumerate(lines, 1):
            found = _FENCE.match(line)
            if fence is not None:
                if found and not found["language"] and found["fence"].startswith(fence["fence"]):
                    body = [text.removeprefix(fence["indent"]) for text in lines[start : number - 1]]
                    text = "".join(f"{each}\n" for each in body)
                    self.blocks.append(Block(self.name, start, fence["language"], text, f"{heading}\n{before}"))
                    fence = None
            elif found:
                fence, start = found, number
            else:
                self._prose.append(line)
                if title := _HEADING.match(line):
                    self.headings.append((len(title[1]), title[2]))
                    heading, before = title[2], ""
                before = line.strip() or before
        assert fence is None, f"{self.name}: the fence at line {start} is not closed"

    @cached_property
    def prose(self) -> str:
        """All that is not in a fence."""
        return "\n".join(self._prose)

    @property
    def inline_code(self) -> list[str]:
        return _INLINE.findall(self.prose)

    @property
    def links(self) -> list[str]:
        return _LINK.findall(_INLINE.sub("", self.prose))

    @property
    def anchors(self) -> set[str]:
        """The fragments that GitHub gives the headings."""
        slugs: list[str] = []
        for _, title in self.headings:
            slug = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
            slugs.append(f"{slug}-{slugs.count(slug)}" if slug in slugs else slug)
        return set(slugs)

    def table(self, *first_cells: str) -> list[list[str]]:
        """The rows of the one table whose first body row begins with a cell like one of these."""
        tables = re.findall(r"(?:^\|.*\|$\n?)+", self.prose, re.MULTILINE)
        rows = [[[cell.strip() for cell in line.strip("|").split("|")] for line in t.splitlines()] for t in tables]
        found = [body for _, _, *body in rows if body[0][0] in first_cells]
        assert len(found) == 1, f"{self.name}: {len(found)} tables begin with {first_cells}"
        return found[0]

    def blocks_of(self, language: str) -> list[Block]:
        return [block for block in self.blocks if block.language == language]

    def python(self) -> list[Block]:
        """The Python blocks of the new side."""
        return [block for block in self.blocks_of("python") if not block.is_marked_old]


def unquoted(cell: str) -> str | None:
    """The text of a cell that is one piece of inline code; None for words."""
    match = _INLINE.fullmatch(cell)
    return match[1] if match else None
