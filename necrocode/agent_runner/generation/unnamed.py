"""Blocks of code that name no file: which file's whole new text one surely is.

Small models, asked to mend their answer, often say what is wrong and then write the file without its name. Asking again
is cheap, so in every doubt such a block is none.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import filterfalse
from typing import TYPE_CHECKING

from necrocode.agent_runner.generation.grammars import ending_of, parser_for
from necrocode.agent_runner.generation.outline import outline
from necrocode.agent_runner.generation.ranking import is_test
from necrocode.agent_runner.generation.told_paths import is_turn_of_prose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tree_sitter import Node

    from necrocode.agent_runner.generation.answer_reader import Reading
    from necrocode.agent_runner.generation.blocks import Block
    from necrocode.agent_runner.generation.outline import Symbol

MAX_CHARACTERS = 100_000
"""Longer blocks and files are not looked at."""
_MOST_BLOCKS = 20
_HEAD_LINES = 2
"""On the first lines of a block a remark may name its file."""
_LEAST_KEPT = 0.5
"""So much of what each function does, in tokens, must be in the block that is to be its file's new text."""
_MOST_TOKENS = 400
"""Longer functions are compared by their lines."""
_OUTPUT = {"text", "txt", "console", "output", "plaintext", "log", "traceback", "diff", "json", "markdown", "md"}
_SHELL = {"bash", "sh", "shell", "zsh"}
_PYTHON = {"py", "pyi"}
# The line over a block that shows something else than the new text: how it is used, what it was, what else there is.
_OTHER = re.compile(
    r"(?i)\b(?:usage|us(?:e|ed|ing) (?:it|like|the|an?|your)|examples?|samples?|demo|program|mock|stub|outline|sketch"
    r"|current(?:ly)?|original|old|before|was|were|now is|wrong|not|\w+n't|never|options?|alternatives?|another|other"
    r"|output|prints?|instead|new (?:file|module|script|package|class|component))\b"
)
_LABEL = re.compile(r".*[:：*_]\Z|#|\*\*|\S+(?:\s+\S+){0,3}(?<![.!?])\Z")
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=\S)")
_FILE_NAME = re.compile(r"(?!(?:self|this|cls)\.)(?<![\w./\\-])[\w.-]*(?:[/\\][\w.-]+)*\.\w{1,8}\b(?![(\w])")
_OTHER_ENDINGS = {"md", "rst", "txt", "ipynb", "vue", "svelte", "sql", "ini", "cfg", "xml", "scss", "less", "proto"}
_REMARK = re.compile(r"\s*(?:#(?! *(?:include|import|define|if|else|endif|pragma)\b)|//|/\*|\*|--|;)")
_LOOSE_STRING = re.compile(r'"""(?:[^"]|"(?!""))*"""|\'\'\'(?:[^\']|\'(?!\'\'))*\'\'\'')
_STUB = re.compile(
    r"(?i)(?:\.\.\.|pass|return(?: (?:none|null|nil))?|raise notimplementederror.*|todo!.*|unimplemented!.*|panic!?\(.*"
    r"|throw new .*)?"
)
_IS_CALLABLE = re.compile(r"[()]|^\s*def\b|^\s*\{\s*$|=>")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_DOES_SOMETHING = {
    "if_statement", "for_statement", "while_statement", "with_statement", "call", "command", "pipeline",
    "call_expression",
}  # fmt: skip
_CALLS = {"call", "call_expression", "await", "await_expression"}


def file_without_name(reading: Reading, files: Mapping[str, str]) -> tuple[str, str] | None:
    """(path, text) of the one block that is the whole new text of one of these files; None for none, or several.

    ``files`` are those that the model has seen whole. The block must parse as the file, keep every line of it that is
    not inside of a function, keep half of what each function does, and do nothing besides at its top level. The answer
    must hold no other code, and speak of no other file but tests.
    """
    blocks = [*{block.content: block for block in reading.loose_blocks}.values()]
    if not 0 < len(blocks) <= _MOST_BLOCKS:
        return None
    known = {path: text for path, text in files.items() if len(text) <= MAX_CHARACTERS and parser_for(path) is not None}
    has_scripts = any(ending_of(path) in _SHELL for path in known)
    code = [block for block in blocks if not _only_runs_or_shows(block, has_scripts=has_scripts)]
    old_texts = {text.strip() for text in known.values()}
    code = [block for block in code if block.content.strip() not in old_texts] or code  # or it copies the file
    if len(code) != 1 or len(code[0].content) > MAX_CHARACTERS or _shows_something_else(code[0].lead):
        return None
    owners = [path for path, text in known.items() if _is_whole(path, text, code[0])]
    if len(owners) != 1 or any(not is_test(name) for name in _others_named_in(reading.prose, owners[0])):
        return None
    heads = filter(_REMARK.match, code[0].content.split("\n", _HEAD_LINES)[:_HEAD_LINES])
    return None if any(_others_named_in(heads, owners[0])) else (owners[0], code[0].content)


def _only_runs_or_shows(block: Block, *, has_scripts: bool) -> bool:
    """Whether a block is an output, or a command that writes no file."""
    is_command = block.language in _SHELL and not has_scripts and ">" not in block.content
    return is_command or block.language in _OUTPUT


def _shows_something_else(lead: str) -> bool:
    """Whether the line over a block is a label, as against a sentence, and says that it is not the new text."""
    last = _SENTENCE.split(lead.strip())[-1]
    return _LABEL.match(last) is not None and _OTHER.search(last) is not None


def _others_named_in(lines: Iterable[str], owner: str) -> Iterator[str]:
    named = (name for line in lines for name in _files_named_in(line))
    return (name for name in named if not f"/{owner}".endswith(f"/{name}"))


def _files_named_in(line: str) -> Iterator[str]:
    for found in _FILE_NAME.finditer(line):
        name = found[0].replace("\\", "/").removeprefix("./")
        is_known = parser_for(name) is not None or ending_of(name) in _OTHER_ENDINGS
        if is_known and not is_turn_of_prose(found[0]):
            yield name


@dataclass(frozen=True)
class _Parts:
    """A source file, taken apart."""

    fixed: Counter[str]
    """Its lines that are not inside of a function, without the blanks around them."""
    bodies: dict[tuple[object, ...], str]
    """What is inside of each function."""
    statements: tuple[str, ...]
    """What it does at its top level, besides defining and importing."""

    @classmethod
    def of(cls, path: str, text: str) -> _Parts | None:
        """None for a text that does not parse, or defines nothing."""
        content = text.encode(errors="replace")
        parser = parser_for(path)
        symbols = outline(path, content)
        if parser is None or not symbols:
            return None
        root = parser.parse(content).root_node
        if root.has_error:
            return None
        lines = text.split("\n")
        free = _loose_string_lines(root) if ending_of(path) in _PYTHON else set()
        bodies = {}
        for key, head, numbers in _bodies(path, symbols):
            end_of_head = next(filterfalse(_REMARK.match, reversed(lines[:head])), "")
            if not _IS_CALLABLE.search(end_of_head):  # a struct: each of its lines counts
                continue
            bodies[key] = "\n".join(lines[number - 1] for number in numbers if number <= len(lines))
            free.update(numbers)
        fixed = (line.strip() for number, line in enumerate(lines, 1) if number not in free)
        return cls(Counter(filter(None, fixed)), bodies, tuple(_statements(root)))


def _is_whole(path: str, old_text: str, block: Block) -> bool:
    if (block.language in _SHELL) != (ending_of(path) in _SHELL) and block.language:
        return False
    old = _Parts.of(path, old_text)
    new = _Parts.of(path, block.content) if old is not None else None
    return (
        old is not None
        and new is not None
        and not old.fixed - new.fixed
        and all(statement in old.statements for statement in new.statements)
        and all(_does_the_same(body, new.bodies.get(key, "")) for key, body in old.bodies.items())
    )


def _bodies(path: str, symbols: Iterable[Symbol]) -> Iterator[tuple[tuple[object, ...], int, range]]:
    """(name, last line of its head, lines inside) of what holds no other definitions; a name's second is another."""
    count: Counter[tuple[str, ...]] = Counter()
    for symbol in symbols:
        if symbol.holds_others:
            continue
        name = (*symbol.holders, symbol.name)
        count[name] += 1
        is_below = ending_of(path) in _PYTHON and symbol.body > symbol.start
        head = symbol.body - is_below
        yield (*name, count[name]), head, range(head + 1, symbol.end + 1)


def _loose_string_lines(root: Node) -> set[int]:
    """The lines of the texts that stand alone at the top level, such as a module's docstring."""
    return {
        number
        for node in root.named_children
        if node.type == "expression_statement" and [child.type for child in node.named_children] == ["string"]
        for number in range(node.start_point[0] + 1, node.end_point[0] + 2)
    }


def _statements(root: Node) -> Iterator[str]:
    for node in root.named_children:
        is_call = node.type == "expression_statement" and any(child.type in _CALLS for child in node.named_children[:1])
        if node.type in _DOES_SOMETHING or is_call:
            yield b" ".join((node.text or b"").split()).decode(errors="replace")


def _does_the_same(old: str, new: str) -> bool:
    """Whether most of what a function does is still in it; one that does nothing yet may do anything."""
    before, after = _doing(old), _doing(new)
    if _STUB.fullmatch(before.strip("{}(); \t\n").removesuffix("end").strip()):
        return True
    had, has = _TOKEN.findall(before), _TOKEN.findall(after)
    if len(had) > _MOST_TOKENS:
        had, has = before.split("\n"), after.split("\n")
        return (Counter(had) & Counter(has)).total() >= _LEAST_KEPT * len(had)
    same = SequenceMatcher(None, had, has[:_MOST_TOKENS], autojunk=False).get_matching_blocks()
    return sum(match.size for match in same) >= _LEAST_KEPT * len(had)


def _doing(body: str) -> str:
    """A function's inside without remarks and docstrings."""
    lines = (line.strip() for line in _LOOSE_STRING.sub("", body).split("\n"))
    return "\n".join(line for line in lines if line and not _REMARK.match(line))
