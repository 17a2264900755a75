"""One run of test commands over a checkout: asked for reports, read, masked, bound to a tree."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Protocol

from necrocode.agent_runner._redact import without_cut_key_blocks
from necrocode.agent_runner._text import plain
from necrocode.agent_runner.verdict.asking import Project
from necrocode.agent_runner.verdict.cases import shortened
from necrocode.agent_runner.verdict.reading import with_cases

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import ObjectReader
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.protocols import Sandbox
    from necrocode.agent_runner.test_results import CommandResult, TestCase, TestResult


_GAP = re.compile(r"(\n\[\.\.\. \d{1,19} bytes left out \.\.\.\]\n)")  # as HeadAndTail writes it
_WORD = re.compile(r"\S{1,4096}")


class Prepared(Protocol):
    """What tests need besides the checkout."""

    def key(self, tree: str) -> str:
        """The same for trees of which it is the same."""

    def folder(self, tree: str) -> Path | None:
        """What :meth:`Sandbox.run_setup` kept for the tree; None: nothing is needed."""


@dataclass(frozen=True)
class TestRunner:
    """What every run of a task's tests has in common."""

    __test__ = False  # pytest: the name starts with "Test", but this is no test

    sandbox: Sandbox
    objects: ObjectReader
    environment: Mapping[str, str]
    redactor: Redactor
    deadline: Deadline
    is_by_cases: bool = False
    """Whether single cases decide: then all of them are to be run, whatever fails."""
    prepared: Prepared | None = None

    def run(
        self,
        commands: Sequence[str],
        checkout: Path,
        tree: str,
        *,
        fail_fast: bool,
        deadline: Deadline | None = None,
    ) -> TestResult:
        """The commands over the checkout, which holds the files of ``tree``; every text in the result is masked.

        ``TestExecutionError`` when they cannot be run at all.
        """
        folder = None if self.prepared is None else self.prepared.folder(tree)
        below: dict[str, Path] = {} if folder is None else {"below": folder}
        project = self.project(tree)
        asked = [project.asked(command) for command in commands]
        result = self.sandbox.run_tests(
            [one.run for one in asked],
            checkout,
            tree=tree,
            environment=project.environment(commands, self.environment, is_by_cases=self.is_by_cases),
            fail_fast=fail_fast,
            deadline=deadline or self.deadline,
            collect=project.collected(),
            **below,
        )
        shown = [one.model_copy(update={"output": masked_output(one.output, self.redactor)}) for one in result.commands]
        read = [with_cases(*each) for each in zip(shown, asked, commands, strict=False)]
        return result.model_copy(update={"commands": tuple(map(self._told, read))})

    def _told(self, command: CommandResult) -> CommandResult:
        """The result as people may read it; what is too long is cut last, or parts of secrets would be left."""
        if command.report == "go":  # its output was made anew from its events
            command = command.model_copy(update={"output": masked_output(command.output, self.redactor)})
        command = masked(command, self.redactor.text)
        return command.model_copy(update={"cases": tuple(map(shortened, command.cases))})

    def project(self, tree: str) -> Project:
        """The files at the top of a tree."""
        entries = self.objects.entries(tree)

        def read(name: str) -> bytes | None:
            entry = entries.get(name)
            return self.objects.blob(entry.oid) if entry is not None and entry.is_file else None

        return Project(frozenset(entries), read)


def masked(command: CommandResult, redact: Callable[[str], str]) -> CommandResult:
    """The result without the secrets that its texts may hold."""
    return command.model_copy(
        update={
            "command": redact(command.command),
            "output": _masked_text(command.output, redact),
            "report_note": redact(command.report_note),
            "cases": tuple(_masked_case(case, redact) for case in command.cases),
            "rerun": None if command.rerun is None else masked(command.rerun, redact),
        }
    )


def masked_output(output: str, redactor: Redactor) -> str:
    """The same for output, of which a sandbox may have left out the middle: a secret may have been cut in two there.

    So on both sides of the gap as much is dropped as a secret may be long, at least a word (and of what has no spaces
    four thousand characters), and a private key that begins before it, or ends behind.
    """
    *parts, last = _GAP.split(output)
    if not parts:
        return _masked_text(output, redactor.text)
    texts = [_masked_text(part, redactor.text) for part in (*parts[::2], last)]
    for number, text in enumerate(texts):
        if number < len(texts) - 1:
            text = without_cut_key_blocks(text, is_cut_after=True)  # noqa: PLW2901  cut at both its ends
            text = text[: -_cut_length(text[::-1], redactor)]  # noqa: PLW2901
        if number:
            text = without_cut_key_blocks(text, is_cut_after=False)  # noqa: PLW2901
            text = text[_cut_length(text, redactor) :]  # noqa: PLW2901
        texts[number] = text
    return "".join(chain.from_iterable(zip_longest(texts, parts[1::2], fillvalue="")))


def _cut_length(text: str, redactor: Redactor) -> int:
    return max(1, _word_length(text), redactor.longest_form)


def _word_length(text: str) -> int:
    found = _WORD.match(text)
    return 0 if found is None else found.end()


def _masked_text(text: str, redact: Callable[[str], str]) -> str:
    """The text without secrets; without colours too, where these stand within a secret."""
    shown = redact(text)
    bare = plain(shown)
    return shown if bare is shown or (hidden := redact(bare)) == bare else hidden


def _masked_case(case: TestCase, redact: Callable[[str], str]) -> TestCase:
    texts = {name: getattr(case, name) for name in ("name", "message", "details")}
    shown = {name: redact(text) for name, text in texts.items() if text}
    changed = {name: text for name, text in shown.items() if text != texts[name]}
    return case.model_copy(update=changed) if changed else case
