"""Upload: what there is to store of the run, whether it went well or not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from necrocode.agent_runner._text import shown_json

if TYPE_CHECKING:
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.run_record import RunRecord
    from necrocode.agent_runner.steps.generate import Transcript


def outputs_of(record: RunRecord, transcript: Transcript, redactor: Redactor) -> list[tuple[str, bytes]]:
    """The (type, content) of each artifact: patch, test results, what was said to the model and by it, log."""
    outputs: list[tuple[str, bytes]] = []
    if record.diff:
        outputs.append(("diff", record.diff))
    if record.tests is not None:
        outputs.append(("test", _encoded(shown_json(record.tests.model_dump_json(indent=1)))))
    if transcript.calls:
        said = redactor.data(transcript.to_data())
        outputs.append(("transcript", _encoded(shown_json(json.dumps(said, ensure_ascii=False, indent=1)))))
    return [*outputs, ("log", _encoded(record.log_text()))]


def _encoded(text: str) -> bytes:
    """UTF-8, whatever a file name or a model has put into the text."""
    return text.encode(errors="backslashreplace")
