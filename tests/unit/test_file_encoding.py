"""Files that are not UTF-8: what tells their encoding, and what is written into them."""

from __future__ import annotations

import pytest

from necrocode.agent_runner import ChangeRejectedError, TextEdit
from necrocode.agent_runner.generation.edited_bytes import edited_bytes
from necrocode.agent_runner.generation.file_encoding import known_encodings
from necrocode.agent_runner.generation.file_lines import Effort
from necrocode.agent_runner.generation.refusals import Refusal

JAPANESE = "# この関数は合計を返す。\nx = 1\n"
KATAKANA = "# エラー処理、データベース\nx = 1\n"


def edited(old: bytes, search: str, replace: str) -> tuple[bytes, tuple[Refusal, ...]]:
    edits = [TextEdit(search=search, replace=replace)]
    return edited_bytes(old, edits, in_order=False, effort=Effort(), path="a.py")


@pytest.mark.parametrize("encoding", ["cp932", "euc_jp"])
@pytest.mark.parametrize("text", [JAPANESE, KATAKANA])
def test_japanese_tells_its_encoding_so_that_it_can_be_written_beside_ascii(encoding: str, text: str) -> None:
    old = text.encode(encoding)
    assert known_encodings(old) == (encoding,)
    new, refusals = edited(old, "x = 1\n", "x = 2  # 合計\n")
    assert (new, refusals) == (text.replace("x = 1", "x = 2  # 合計").encode(encoding), ())


@pytest.mark.parametrize(
    ("encoding", "declaration"),
    [
        ("cp932", "# -*- coding: cp932 -*-"),
        ("shift_jis", "#!/usr/bin/env python\n# vim: set fileencoding=Shift_JIS :"),
        ("cp932", "// -*- mode: c; coding: sjis-dos -*-"),
        ("euc_jp", '<?xml version="1.0" encoding="EUC-JP"?>'),
        ("cp932", '<html><head>\n<META http-equiv="Content-Type" content="text/html; charset=x-sjis">'),
        ("cp932", '<?xml version="1.0" encoding="Windows-31J"?>'),
        ("euc_jp", '@charset "euc-jp";'),
        ("gbk", "# coding=gbk"),
    ],
)
def test_a_declaration_tells_the_encoding(encoding: str, declaration: str) -> None:
    old = f"{declaration}\n版\nx = 1\n".encode(encoding)
    new, refusals = edited(old, "x = 1\n", "x = '字'\n")
    assert (new, refusals) == (f"{declaration}\n版\nx = '字'\n".encode(encoding), ())


def test_a_character_of_either_kind_of_shift_jis_is_written_where_the_file_allows_it() -> None:
    declaration = "# coding: shift_jis\n"
    for there, new in (("名", "〜"), ("①", "②")):
        encoding = "shift_jis" if new == "〜" else "cp932"
        old = f"{declaration}{there}\nx\n".encode(encoding)
        assert edited(old, "x\n", f"{new}\n") == (f"{declaration}{there}\n{new}\n".encode(encoding), ())


@pytest.mark.parametrize(
    "old",
    [
        "名前\n".encode("cp932"),
        "été à la mâme âme\n".encode("cp850"),
        "œuvre été\n".encode("cp1252"),
        "добавить\n".encode("cp1251"),
        "добавить\n".encode("koi8-r"),
        "这个函数返回总和。这个函数返回总和。日本語の「ありがとう」\n".encode("gb18030"),
        "這個函數返回總和。\n".encode("big5"),
        "이 함수는 합계를 반환합니다.\n".encode("euc_kr"),
        b"# coding: rot13\n\xe9\n",
        b"# coding: no-such\n\xe9\n",
        b"# coding: utf-8\n\xe9\n",
        b'open("x", encoding="cp932")\n\xe9\n',
        bytes(range(256)),
    ],
)
def test_nothing_is_taken_for_the_encoding_that_may_be_another(old: bytes) -> None:
    assert known_encodings(old) == ()
    if b"x\n" not in old:
        old += b"x\n"
    with pytest.raises(ChangeRejectedError, match="nothing in it tells how other characters than ASCII"):
        edited(old, "x\n", "日\n")


def test_what_the_encoding_cannot_hold_is_refused_by_its_name() -> None:
    with pytest.raises(ChangeRejectedError, match="is in cp932, which has not all the characters"):
        edited(JAPANESE.encode("cp932"), "x = 1\n", "x = '🙂'\n")


def test_a_search_that_misses_in_a_known_encoding_is_told_with_the_nearest_lines() -> None:
    old = JAPANESE.encode("cp932")
    new, refusals = edited(old, "# この関数は平均を返す。\n", "x\n")
    assert new == old
    assert "この関数は合計を返す。" in refusals[0].explained()


@pytest.mark.parametrize(
    ("file", "encoding", "search", "replace"),
    [
        ('y = "中文"\nx = "　"\n', "gbk", 'x = "　"\n', 'x = "中　"\n'),
        ('x = "é"\n', "iso-8859-2", 'x = "é"\n', 'x = "ąé"\n'),
        ('x = "é"\n', "iso-8859-15", 'x = "é"\n', 'x = "é €"\n'),
    ],
)
def test_characters_that_several_encodings_write_differently_are_refused(
    file: str, encoding: str, search: str, replace: str
) -> None:
    edits = [TextEdit(search=search, replace=replace)]
    with pytest.raises(ChangeRejectedError, match="one of several encodings"):
        edited_bytes(file.encode(encoding), edits, in_order=False, effort=Effort(), path="a.py")


def test_half_a_character_is_no_place() -> None:
    edits = [TextEdit(search="\\n", replace="\\t", whole_lines=False)]
    old = 'msg = "表n"\n'.encode("cp932")
    new, refusals = edited_bytes(old, edits, in_order=False, effort=Effort(), path="a.py")
    assert (new, [refusal.reason for refusal in refusals]) == (old, ["cut"])
