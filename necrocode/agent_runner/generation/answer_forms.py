"""The forms in which a model can be asked to answer: what it is told of each, and which one suits a task.

Whatever is asked for, :mod:`~necrocode.agent_runner.generation.edit_formats` understands all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from necrocode.agent_runner.generation.ranking import is_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from necrocode.agent_runner.models import Message

EditFormat = Literal["json", "files", "search_replace", "unified_diff", "patch"]
EDIT_FORMATS: tuple[EditFormat, ...] = ("json", "files", "search_replace", "unified_diff", "patch")

_ROLE = (
    "You are a careful software engineer. You get files of a git repository and a task. Do the whole task, and nothing"
    " besides: keep all text that the task does not ask to change. Write complete, working code."
)
_JSON = """Answer with one JSON object and nothing else:
{"explanation": "what you did, in one sentence",
 "changes": [{"operation": "modify", "file_path": "src/hello.py",
              "content": "def hello(name):\\n    return f\\"hello {name}\\"\\n"}]}
operation is create or modify. content is the whole text of the file from its first line to its last: no parts, no
diffs, no fences around it. Leave out files that do not change.
To change a few lines of a long file, operation is edit, and instead of content, edits lists the changes:
"edits": [{"search": "lines of the file, copied exactly", "replace": "the lines that take their place"}]
Each search must be in the file exactly once."""
_JSON_REMOVALS = """
If the task asks to delete a file, operation is delete, without content. If it asks to rename or move a file,
operation is rename, new_path is the new path, and content is null unless the text changes too."""
_FILES = """Write every file that must change in full, each with its path on the line before, like this:

File: src/hello.py
```python
def hello():
    return "hello"
```

Write the file from its first line to its last: no parts, no diffs, no "...". A new file is written in the same way.
Leave out files that do not change. If a file's text has three backticks in a row, fence it with four."""
_LINE_REMOVALS = """
To delete a file, write only the line: DELETE src/old.py
To rename or move a file, write only the line: RENAME src/old.py -> src/new.py"""
_SEARCH_REPLACE = """Write every change as a block like this, with the file's path on the line before it:

File: src/hello.py
<<<<<<< SEARCH
def hello():
    return "hello"
=======
def hello(name):
    return f"hello {name}"
>>>>>>> REPLACE

Between SEARCH and ======= stand lines of the file, copied exactly, with their indentation. They must be in the file
just once: add the lines around them until they are. Between ======= and REPLACE stand the lines that take their place.
Keep blocks short, write one for each place, and never leave lines out with "...".
For a new file, leave the SEARCH part empty and write the whole text in the REPLACE part."""
_UNIFIED_DIFF = """Write the changes as one unified diff in a fence, like this:

```diff
--- a/src/hello.py
+++ b/src/hello.py
@@ -1,4 +1,4 @@
 import os
 import sys
-def hello():
-    return "hello"
+def hello(name):
+    return f"hello {name}"
```

Every line begins with a blank (it stays), - (it goes) or + (it is new). Copy the lines that stay or go exactly from the
file. Show three lines that stay before and after each change, so that its place is clear. A new file has the header
--- /dev/null, and all its lines begin with +."""
_PATCH = """Write the changes as one patch, like this:

*** Begin Patch
*** Update File: src/hello.py
@@ class Greeter:
     name = "greeter"
-    def hello(self):
-        return "hello"
+    def hello(self, name):
+        return f"hello {name}"
*** Add File: src/new.py
+print("new")
*** End Patch

Every line of an update begins with a blank (it stays), - (it goes) or + (it is new). Copy the lines that stay or go
exactly from the file. Show three lines that stay before and after each change. Where that is not clear enough, write
the line of the class or function after @@. A file that is added has a + before every line."""
_PATCH_REMOVALS = """
To delete a file, write in the patch only the line: *** Delete File: src/old.py
To rename or move a file, write the line *** Move to: src/new.py right after its *** Update File line."""
_TEXTS: dict[EditFormat, tuple[str, str]] = {
    "json": (_JSON, _JSON_REMOVALS),
    "files": (_FILES, _LINE_REMOVALS),
    "search_replace": (_SEARCH_REPLACE, _LINE_REMOVALS),
    "unified_diff": (_UNIFIED_DIFF, _LINE_REMOVALS),
    "patch": (_PATCH, _PATCH_REMOVALS),
}


_REMINDERS: dict[EditFormat, str] = {
    "json": "write one JSON object and nothing else, with the keys explanation (a sentence) and changes (a list). A"
    ' change has "operation": "modify", "file_path": "{path}" and "content": the whole corrected text of that file.',
    "files": "write the whole corrected {path} in one fenced block, with the line `File: {path}` before it, and so"
    " every other file that must change.",
    "search_replace": "write each change of {path} as a block, with the line `File: {path}` before it: first the line"
    " <<<<<<< SEARCH, then lines of the file, copied exactly, then the line =======, then the lines that take their"
    " place, then the line >>>>>>> REPLACE. And so every other file that must change.",
    "unified_diff": "write the corrections as one unified diff in a fence, with the lines --- a/{path} and"
    " +++ b/{path} before the hunks of that file. In a hunk every line begins with a blank (it stays), - (it goes) or"
    " + (it is new).",
    "patch": "write the corrections as one patch, from the line *** Begin Patch to the line *** End Patch, with the"
    " line *** Update File: {path} before the changed places of that file. There @@ stands before each place, and every"
    " line begins with a blank (it stays), - (it goes) or + (it is new).",
}
"""How to answer, to go on from "Then"."""


class ShownFile(NamedTuple):
    """A file that the model is shown."""

    path: str
    tokens: int
    """About how many tokens its whole text has."""
    is_whole: bool
    """Whether it is shown from its first line to its last."""
    is_meant: bool = False
    """Whether the task itself points at it."""


def choose_format(wanted: Literal["auto"] | EditFormat, *, shown: Sequence[ShownFile], max_tokens: int) -> EditFormat:
    """The format to ask for: the one that is wanted, or for ``auto`` the one that suits the files that are shown.

    ``files`` where all of them are shown whole, each has at most half of ``max_tokens``, the most tokens that the
    answer may have, and so have together those that the task points at, or all where it points at none: they could be
    written anew. Else ``search_replace``. A test that the task names beside other files is not counted with them.
    """
    if wanted != "auto":
        return wanted
    meant = [file for file in shown if file.is_meant]
    likely = [file for file in meant if not is_test(file.path)] or meant or shown
    most = max_tokens // 2
    is_small = sum(file.tokens for file in likely) <= most and all(file.tokens <= most for file in shown)
    return "files" if is_small and all(file.is_whole for file in shown) else "search_replace"


def answer_format_of(edit_format: EditFormat) -> Literal["json", "text"]:
    """What to ask the endpoint for: structured output for ``json``, plain text for all others."""
    return "json" if edit_format == "json" else "text"


def system_prompt(edit_format: EditFormat, *, with_removals: bool = False) -> str:
    """The standing instruction: the role, and the form of the answer; how to delete and rename only where asked for."""
    wanted, removals = _TEXTS[edit_format]
    return f"{_ROLE}\n\n{wanted}{removals if with_removals else ''}"


def reminder(edit_format: EditFormat, path: str) -> str:
    """How to answer, said again after an answer that did not do: to go on from "Then".

    It has no example, for small models repeat that instead. ``path`` is the file that most likely must change.
    """
    return _REMINDERS[edit_format].replace("{path}", path)


def as_text_request(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The same conversation for an endpoint without structured output: it asks for fenced files instead of JSON."""
    text_for = {system_prompt("json", with_removals=w): system_prompt("files", with_removals=w) for w in (False, True)}
    return tuple(
        message.model_copy(update={"content": text_for[message.content]}) if message.content in text_for else message
        for message in messages
    )
