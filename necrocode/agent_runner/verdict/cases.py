"""Test cases as reports tell them, brought into bounds: names that stay the same from run to run, texts that are short.

Reports are written by code that nobody vouches for; whatever a reader here is given, it returns or raises
:class:`UnreadableReport`.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import plain, shown
from necrocode.agent_runner.test_results import TestCase

if TYPE_CHECKING:
    from necrocode.agent_runner.test_results import CaseStatus

MAX_CASES = 50_000
"""How many cases of one command are taken in; a report with more is not used."""
MAX_NAME_CHARACTERS = 300
MAX_MESSAGE_CHARACTERS = 1_000
MAX_DETAILS_CHARACTERS = 4_000
MAX_TOLD_CASES = 200
"""How many failing cases of one command keep their message and details; of the others the name is known."""
_LONGEST_SCANNED = 200_000
_LONGEST_GROUP = 500
_WORST_FIRST: tuple[CaseStatus, ...] = ("failed", "error", "passed", "skipped")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,16}\b")


class UnreadableReport(Exception):  # noqa: N818  it ends the reading of one report, and is no error of a run
    """The report cannot be relied on; the text says why, to follow "the report"."""


class CaseBook:
    """The cases of one command, each name once: of several runs of one name the worst counts.

    Their texts are as long as the report has them, for a secret must be masked before it can be cut in two;
    :func:`shortened` is for afterwards.
    """

    def __init__(self) -> None:
        self._cases: dict[str, TestCase] = {}
        self._told = 0

    def add(
        self,
        name: str,
        status: CaseStatus,
        *,
        message: str = "",
        details: str = "",
        duration_seconds: float | None = None,
        ran: bool = True,
    ) -> None:
        """Take in a case, or what stands for a file of which none was ``ran``.

        :class:`UnreadableReport` when there are too many.
        """
        name = case_name(name)
        known = self._cases.get(name)
        if known is not None and _WORST_FIRST.index(known.status) <= _WORST_FIRST.index(status):
            return
        if known is None and len(self._cases) >= MAX_CASES:
            raise UnreadableReport(f"holds more than {MAX_CASES} test cases")
        is_told = status in {"failed", "error"} and self._told < MAX_TOLD_CASES
        self._told += is_told
        self._cases[name] = TestCase(
            name=name,
            status=status,
            message=plain(message[:_LONGEST_SCANNED]) if is_told else "",
            details=plain(details[-_LONGEST_SCANNED:]) if is_told else "",
            duration_seconds=duration_seconds,
            ran=ran,
        )

    def __len__(self) -> int:
        return len(self._cases)

    def cases(self) -> tuple[TestCase, ...]:
        """All of them, in order of names."""
        return tuple(self._cases[name] for name in sorted(self._cases))


def case_name(text: str) -> str:
    """A name on one line that is the same in every run: an object's address in it is not."""
    return _ADDRESS.sub("0x…", shown(" ".join(plain(text[:_LONGEST_SCANNED]).split()), _LONGEST_SCANNED))


def group_name(text: str) -> str:
    """What many cases have at the beginning of their names, such as a file or the suites around them.

    For one beyond all measure a digest stands, as a part could be half of a secret.
    """
    if len(text) <= _LONGEST_GROUP:
        return text
    return f"…{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:12]}"


def shortened(case: TestCase) -> TestCase:
    """The case with texts that are short; different names stay different."""
    name = case.name
    if len(name) > MAX_NAME_CHARACTERS:
        mark = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:12]
        name = f"{name[: MAX_NAME_CHARACTERS - len(mark) - 1]}…{mark}"
    elif not case.message and not case.details:
        return case
    return case.model_copy(
        update={
            "name": name,
            "message": bounded_head(case.message, MAX_MESSAGE_CHARACTERS),
            "details": bounded_tail(case.details, MAX_DETAILS_CHARACTERS),
        }
    )


def bounded_head(text: str, limit: int) -> str:
    """The beginning of the text, without colours."""
    text = plain(text[:_LONGEST_SCANNED]).strip()
    return text if len(text) <= limit else f"{text[:limit]} …"


def bounded_tail(text: str, limit: int) -> str:
    """The end of the text, without colours, from the beginning of a line where there is one."""
    text = plain(text[-_LONGEST_SCANNED:]).rstrip()
    if len(text) <= limit:
        return text
    cut = text[-limit:]
    head, newline, rest = cut.partition("\n")
    return f"…\n{rest if newline and len(head) < limit // 2 else cut}"


def seconds_of(text: object) -> float | None:
    """A duration as a report spells it; None for what is no sensible one."""
    if not isinstance(text, (str, int, float)):
        return None
    try:
        seconds = float(text[:40].replace(",", "") if isinstance(text, str) else text)
    except (ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < 1e9 else None  # noqa: PLR2004  thirty years; NaN and infinity fail too
