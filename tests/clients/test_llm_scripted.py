from __future__ import annotations

import pytest

from necrocode.agent_runner import MalformedAnswerError, Message, ModelAnswer, ScriptedLLM

ASKED = (Message(role="user", content="q"),)


def test_answers_come_in_order_whatever_their_kind() -> None:
    answer = ModelAnswer(text="whole", model="m")
    llm = ScriptedLLM(["text", answer, lambda messages: messages[0].content.upper()], model="demo")
    first = llm.complete(ASKED)
    assert (first.text, first.model) == ("text", "demo")
    assert llm.complete(ASKED) is answer
    assert llm.complete(ASKED).text == "Q"
    assert llm.calls == [ASKED] * 3


def test_tokens_are_estimated() -> None:
    answer = ScriptedLLM(["four" * 10]).complete([Message(role="user", content="1234" * 25)])
    assert (answer.prompt_tokens, answer.completion_tokens, answer.usage_is_estimated) == (29, 10, True)


def test_an_exception_in_the_script_is_raised() -> None:
    with pytest.raises(KeyboardInterrupt):
        ScriptedLLM([KeyboardInterrupt()]).complete(ASKED)


def test_a_question_too_many_is_an_error() -> None:
    with pytest.raises(MalformedAnswerError, match="holds 0 answers"):
        ScriptedLLM([]).complete(ASKED)


def test_generate_code_reads_the_scripted_answer() -> None:
    response = ScriptedLLM(["a.py\n```\nx\n```\n"]).generate_code("P")
    assert response.code_changes[0].file_path == "a.py"
