from __future__ import annotations

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner._text import inert, inert_json, is_writable, shown, writable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\tline\n日本 é 🎉", "plain\tline\n日本 é 🎉"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\r\nb\rc", "a\nb\\x0dc"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066a\u2069\u200f\u061c", "\\u2066a\\u2069\\u200f\\u061c"),
        ("\ud800", "\\ud800"),
        ("\0", "\\x00"),
        ("ad\u200cmin\u200d \U0001bca0\U0001d173\u3164", "ad\\u200cmin\\u200d \\U0001bca0\\U0001d173\\u3164"),
        ("می\u200cخواهم 👩\u200d💻", "می\u200cخواهم 👩\u200d💻"),
    ],
)
def test_what_steers_a_terminal_is_written_out(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_the_middle_of_a_long_text_is_left_out() -> None:
    text = "begin" + "x" * 1_000_000 + "end"
    cut = shown(text, 20)
    assert cut == "beginxxxxx [... 999988 characters left out ...] xxxxxxxend"
    assert shown("x" * 20, 20) == "x" * 20
    assert shown("abc", 1) == "a [... 2 characters left out ...] "


@given(st.text(st.characters(), max_size=50))
def test_what_is_shown_can_be_written_and_holds_no_control_character(text: str) -> None:
    told = shown(text)
    told.encode()
    assert not any(unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} for char in told if char not in "\t\n")
    assert not any(unicodedata.bidirectional(char) in {"RLO", "LRO", "RLE", "LRE", "PDF", "RLI"} for char in told)


@given(st.text(st.characters(), max_size=50))
def test_writable_text_stays_and_other_text_becomes_so(text: str) -> None:
    made = writable(text)
    made.encode()
    assert is_writable(made)
    assert len(made) == len(text)
    assert not is_writable(text) or made == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("::set-output name=a::b", ": :set-output name=a::b"),
        ("ok\n  ::add-path::/x\r\n::stop-commands::t", "ok\n  : :add-path::/x\r\n: :stop-commands::t"),
        ("x ##vso[task.setvariable]y ##[error]", "x # #vso[task.setvariable]y # #[error]"),
        ("a::b ::1 # ## heading [x]", "a::b ::1 # ## heading [x]"),
    ],
)
def test_what_a_ci_system_takes_for_a_command_is_none_in_our_output(text: str, expected: str) -> None:
    assert inert(text) == expected


def test_json_keeps_its_meaning_without_such_commands() -> None:
    data = {"a": "##vso[x]\n##[y]", "b": "## z"}
    assert json.loads(inert_json(json.dumps(data))) == data
    assert "##vso" not in inert_json(json.dumps(data))
    assert "##[" not in inert_json(json.dumps(data))
