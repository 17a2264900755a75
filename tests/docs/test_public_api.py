"""The public API is what it was: docs/public-api.txt. A change that is meant renews it by ``make api-snapshot``."""

from __future__ import annotations

import difflib
import re

from necrocode.agent_runner import LLMConfig, RunnerConfig, __all__
from tests.docs.markdown import Document, unquoted
from tests.docs.public_api import SNAPSHOT, public_api
from tests.support.shared import ROOT


def test_the_public_api_is_that_of_the_snapshot() -> None:
    was, now = SNAPSHOT.read_text(encoding="utf-8"), public_api()
    changes = "\n".join(difflib.unified_diff(was.splitlines(), now.splitlines(), "snapshot", "code", lineterm="", n=0))
    assert not changes, (
        f"the public API changed; if that is meant (docs/compatibility.md): make api-snapshot\n{changes}"
    )


def test_the_snapshot_holds_every_name_setting_and_command_and_nothing_of_this_machine() -> None:
    text = public_api()
    lines = text.splitlines()
    assert {re.split(r"\W", line)[0] for line in lines if line[0].isupper()} == set(__all__)
    for model in (RunnerConfig, LLMConfig):
        for name in model.model_fields:
            assert any(line.startswith(f"{model.__name__}.{name}") for line in lines), name
    assert {"necrocode run", "necrocode registry import", "necrocode serve", "necrocode migrate config"} <= set(lines)
    assert "necrocode run | --json" in lines
    assert "0x" not in text
    assert str(ROOT) not in text


def test_the_document_names_the_snapshot_and_how_to_renew_it() -> None:
    document = Document(ROOT / "docs" / "compatibility.md")
    assert "public-api.txt" in document.links
    assert any(block.commands == ["make api-snapshot"] for block in document.blocks_of("bash"))
    promised = [unquoted(row[0]) or row[0] for row in document.table("names of `necrocode.agent_runner`")]
    assert len(promised) == 8
