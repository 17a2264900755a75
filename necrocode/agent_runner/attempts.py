"""The answers of one run's model, which of them is the best, and whether to ask again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from necrocode.agent_runner.errors import NothingChangedError
from necrocode.agent_runner.generation.repair import LoopWatch, turned
from necrocode.agent_runner.results import RoundResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from necrocode.agent_runner._git import FileChange
    from necrocode.agent_runner.generation.conversation import Conversation
    from necrocode.agent_runner.generation.fresh_start import LeftOut
    from necrocode.agent_runner.models import LLMResponse
    from necrocode.agent_runner.results import ImplementationResult
    from necrocode.agent_runner.test_results import TestResult

Outcome = Literal["accepted", "tests-failed", "unparsable", "unusable", "unanswered"]
"""As in :class:`RoundResult`."""


@dataclass
class Attempt:
    """One answer, and how far it came."""

    number: int
    """From 1, over all rounds and candidates of the run."""
    round: int
    candidate: int
    conversation: Conversation
    """What the model was asked with."""
    is_varied: bool = False
    """Whether it was asked for warmly, because what came before led nowhere."""
    before: tuple[FileChange, ...] = ()
    """What earlier answers had changed, relative to the base, when this one was asked for."""
    answer_text: str = ""
    response: LLMResponse | None = None
    changes: tuple[FileChange, ...] = ()
    """What the base would have to become, this answer included."""
    keeps_secrets: tuple[str, ...] = ()
    """The files that still hold a secret of the runner, as the base has it."""
    implementation: ImplementationResult | None = None
    diff: bytes = b""
    tests: TestResult | None = None
    outcome: Outcome = "unanswered"
    has_same_lines: bool = False
    """Whether the files are as they were but for blank lines and blanks at the ends of lines."""
    fails_as_before: bool = False
    """Whether the tests fail with it just as they did before any change."""
    repeats: bool = False
    """Whether it says what an earlier one said."""
    is_broken: bool = False
    """Whether code that parsed before no longer does."""
    error: Exception | None = None
    """Why it was not accepted, where that was an error and not a result."""
    message: str = ""
    reply: str = ""
    """What the model is to be told of it; empty where another answer would be no better."""

    @property
    def is_copy(self) -> bool:
        """Whether it left every file as it was."""
        return self.has_same_lines or isinstance(self.error, NothingChangedError)

    @property
    def unseen(self) -> LeftOut | None:
        """The function that the model was to write anew and has not written yet."""
        left_out = self.conversation.left_out
        return None if left_out is None or any(one.path == left_out.path for one in self.before) else left_out

    @property
    def written_anew(self) -> tuple[FileChange, ...]:
        """The changed file whose function the model was to write anew; empty where it has not changed it."""
        left_out = self.conversation.left_out
        return tuple(change for change in self.changes if left_out is not None and change.path == left_out.path)

    @property
    def mends(self) -> bool:
        """Whether a test passes with it that did not before."""
        verdict = None if self.tests is None else self.tests.verdict
        return verdict is not None and verdict.fixed.count > 0

    @property
    def rank(self) -> tuple[int, ...]:
        """What is better compares as larger: accepted, then by its tests, then applied at all, then the latest.

        Among those that brought no answer at all it is the first.
        """
        tests, verdict = self.tests, None if self.tests is None else self.tests.verdict
        return (
            self.outcome == "accepted",
            self.implementation is not None,
            self.outcome == "tests-failed",
            0 if tests is None else sum(command.passed for command in tests.commands),
            0 if verdict is None else -verdict.newly_broken.count - verdict.missing.count,
            0 if verdict is None else verdict.fixed.count,
            bool(self.answer_text),
            self.number if self.answer_text else -self.number,
        )

    def summary(self, shown: Callable[[str], str]) -> RoundResult:
        """The attempt for the result; ``shown`` makes a text fit to be seen."""
        made, response = self.implementation, self.response
        return RoundResult(
            round=self.round,
            candidate=self.candidate,
            outcome=self.outcome,
            message=shown(self.message),
            edit_format="" if response is None else response.edit_format,
            tokens_used=0 if response is None else response.tokens_used,
            commit=None if made is None else made.commit,
            ref=None if made is None else made.ref,
        )


@dataclass
class Attempts:
    """All attempts of a run so far, and the next one."""

    max_repair_rounds: int
    candidates: int
    made: list[Attempt] = field(default_factory=list)
    _watch: LoopWatch = field(default_factory=LoopWatch)
    _is_stuck: bool = False
    _turned_at: Attempt | None = None

    @property
    def current(self) -> Attempt:
        """The attempt under way, or the last one."""
        return self.made[-1]

    @property
    def best(self) -> Attempt:
        """The attempt that the run is judged by."""
        return max(self.made, key=lambda attempt: attempt.rank)

    @property
    def has_another(self) -> bool:
        """Whether there is to be another attempt."""
        if not self.made or self.has_pending:
            return True
        if self.best.outcome == "accepted":
            return False
        last = self._leading
        return not self._is_stuck and bool(last.reply) and last.round < self.max_repair_rounds

    def summaries(self, shown: Callable[[str], str]) -> tuple[RoundResult, ...]:
        """All attempts for the result; ``shown`` makes a text fit to be seen."""
        return tuple(attempt.summary(shown) for attempt in self.made)

    @property
    def has_pending(self) -> bool:
        """Whether an answer to the first question is at hand that has not been tried yet."""
        return all(attempt.outcome != "accepted" for attempt in self.made) and (
            self.made[-1].round == 0 and self.made[-1].candidate < self.candidates
        )

    @property
    def has_others(self) -> bool:
        """Whether there are other answers to the same question: still to be tried, or tried and to be mended."""
        current = self.current
        return self.has_pending or (current.round == 0 and any(attempt.reply for attempt in self.made))

    @property
    def _leading(self) -> Attempt:
        """The attempt that the next one goes on from: the last one; after several candidates, the best of them."""
        last = self.made[-1]
        return last if last.round else max(self.made, key=lambda attempt: (bool(attempt.reply), attempt.rank))

    def begin(self, opening: Callable[[int], Conversation], anew: Callable[[Attempt], Conversation | None]) -> Attempt:
        """The next attempt, with the conversation to ask it with.

        ``opening`` is the question for each candidate, ``anew`` the one to begin once more with after an attempt.
        """
        number = len(self.made) + 1
        if not self.made or self.has_pending:
            attempt = Attempt(number, round=0, candidate=number, conversation=opening(number))
        else:
            last = self._leading
            if self._leads_nowhere(last) and (fresh := anew(last)) is not None:
                attempt = Attempt(number, last.round + 1, 1, fresh)
                self._watch = LoopWatch()  # what was said before is no part of the new conversation
                self.made.append(attempt)
                return attempt
            conversation = self._next_conversation(last)
            is_varied = last is self._turned_at or last.fails_as_before or last.is_copy
            before = last.changes if last.outcome == "tests-failed" else last.before
            attempt = Attempt(number, last.round + 1, 1, conversation, is_varied=is_varied, before=before)
        self.made.append(attempt)
        return attempt

    def _leads_nowhere(self, last: Attempt) -> bool:
        """Whether to begin anew, in one round: after a copy of the files, or at last, where nothing has been mended."""
        if any(attempt.mends or (attempt.round and attempt.conversation.left_out) for attempt in self.made):
            return False
        is_last_turn = 0 < last.round == self.max_repair_rounds - 1
        return last.is_copy or (is_last_turn and last.outcome == "tests-failed")

    def _next_conversation(self, last: Attempt) -> Conversation:
        """What the model is asked with after ``last``. A repetition is not shown to it: it would be repeated again."""
        if last is self._turned_at and last.repeats:
            reply = turned(last.conversation.last_reply, "answer")
            if (other := last.conversation.with_another_reply(reply)) is not None:
                return other
        return last.conversation.continued(last.answer_text, last.reply)

    def reject(
        self,
        attempt: Attempt,
        outcome: Outcome,
        message: str,
        reply: str,
        *,
        signature: str,
    ) -> None:
        """The attempt will not do; ``reply`` is for the model, ``signature`` is equal for the same failure."""
        attempt.outcome, attempt.message, attempt.reply = outcome, message, reply
        if not reply or (attempt.round == 0 and self.candidates > 1):  # candidates may well be alike
            return
        what: Literal["answer", "failure"] = "answer"
        state: Literal["new", "again", "stuck"] = "new"
        if attempt.round and attempt.is_copy:
            state = self._watch.notice_repetition()
        elif attempt.answer_text:
            state = self._watch.notice(what, attempt.answer_text)
        attempt.repeats = state != "new"
        if state == "new":  # the same answer fails in the same way: that is one repetition, not two
            what = "failure"
            state = self._watch.notice(what, signature)
        self._is_stuck = state == "stuck"
        if state == "again":
            attempt.reply = turned(reply, what)
            self._turned_at = attempt
