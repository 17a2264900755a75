"""Hostile paths, answers and leaks, made at random: a few in CI, as many as one likes by ``make fuzz-security``."""

from __future__ import annotations

import base64
import html
import json
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import ModelAnswer, RunnerError
from necrocode.agent_runner._git import MODE_EXECUTABLE, MODE_FILE, Git, ObjectReader, Repository
from necrocode.agent_runner._names import check_change_path, remote_of
from necrocode.agent_runner._redact import Redactor
from necrocode.agent_runner.generation.edit_formats import read_answer
from necrocode.agent_runner.steps.apply import Limits, plan_changes
from tests.support.repositories import git, make_repository

EXAMPLES = int(os.environ.get("NECROCODE_FUZZ_EXAMPLES", "60"))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
LIMITS = Limits(max_changed_files=20, max_file_bytes=10_000, max_total_bytes=20_000)

PARTS = st.sampled_from([
    ".git", ".GIT", "git~1", ".gitmodules", "gitmod~1", "GI7EBA~1", ".gitattributes", "..", ".", "", " ", "a", "A", "é",
    "e\u0301", "\u200c", "\u202e", "\ufeff", ":", "$INDEX_ALLOCATION", "\\", "/", "//", "\0", "\n", "\x1b", "\x7f",
    "C:", "con", "aux.txt", "x" * 255, "日本", "\ud800", "\U0001f600", "~", "-", "*", "calc.py", "dir", "link", "hooks",
    "config", "．", "／", "ｇ", "\u2024", "\u3002", "\xad", "\u180e", "\u2060",
])  # fmt: skip
PATHS = st.lists(PARTS | st.characters(), max_size=8).map("".join)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ObjectReader, str, Path]]:
    """A base tree to plan against."""
    folder = tmp_path_factory.mktemp("fuzz")
    path = make_repository(
        folder / "r", {"calc.py": "a = 1\nb = 2\n", "dir/x": "x\n", "é": "x\n", "crlf": b"1\r\n2\r\n"}
    )
    (path / "link").symlink_to("dir")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "link")
    door = Git(folder / "home")
    door.prepare()
    with Repository(door, path).objects() as objects:
        yield objects, git(path, "rev-parse", "HEAD^{tree}"), path


@FUZZ
@given(st.lists(PATHS, max_size=20))
def test_git_itself_takes_every_path_that_is_accepted(base: tuple[ObjectReader, str, Path], paths: list[str]) -> None:
    accepted = []
    for path in paths:
        try:
            accepted.append(check_change_path(path))
        except ValueError as error:
            assert len(str(error)) < 1000  # noqa: PT017  which rule it is does not matter here
    oid = git(base[2], "rev-parse", "HEAD:calc.py")
    protecting = ["-c", "core.protectHFS=true", "-c", "core.protectNTFS=true"]
    listing = "".join(f"100644 {oid}\t{path}\0" for path in accepted).encode()
    index = base[2].parent / "index"
    index.unlink(missing_ok=True)
    told = subprocess.run(
        ["git", "-C", base[2], *protecting, "update-index", "-z", "--index-info"],
        input=listing, capture_output=True, check=False, env={**os.environ, "GIT_INDEX_FILE": str(index)},
    )  # fmt: skip
    assert told.returncode == 0, (accepted, told.stderr)
    root = Path("/r")
    for path in accepted:
        assert Path(os.path.normpath(root / path)) == root / path
        assert not any(part.casefold().rstrip(" .") == ".git" for part in path.split("/"))


PIECES = [
    "<<<<<<< SEARCH\n", "=======\n", ">>>>>>> REPLACE\n", "```\n", "```diff\n", "```python\n", "--- a/calc.py\n",
    "+++ b/calc.py\n", "--- /dev/null\n", "+++ /dev/null\n", "@@ -1 +1 @@\n", "@@ -1,2 +1,9 @@\n", "+a\n", "-a = 1\n",
    " a = 1\n", "calc.py\n", "../x\n", ".git/config\n", "link/x\n", "*** Begin Patch\n", "*** End Patch\n",
    "*** Update File: calc.py\n", "*** Add File: /etc/x\n", "*** Delete File: dir/x\n", "*** Move to: .git/x\n",
    "diff --git a/calc.py b/link\n", "rename from calc.py\n", "rename to ../x\n", "new file mode 120000\n",
    "new file mode 160000\n", "old mode 100644\nnew mode 100755\n", "deleted file mode 100644\n", "GIT binary patch\n",
    "literal 5\n", "DELETE calc.py\n", "a = 1\n", "\0", "\ud800", "\n",
]  # fmt: skip
OPERATIONS = st.sampled_from(["create", "modify", "edit", "delete", "rename", "nonsense"])
JSON_CHANGES = st.fixed_dictionaries(
    {"operation": OPERATIONS, "file_path": PATHS | st.sampled_from(["calc.py", "dir/x", "crlf", "link", "new/file"])},
    optional={
        "content": st.text(max_size=40) | st.none() | st.integers(),
        "new_path": PATHS,
        "edits": st.lists(
            st.fixed_dictionaries({"search": st.text(max_size=8), "replace": st.text(max_size=8)}), max_size=3
        ),
        "executable": st.booleans() | st.none(),
    },
)
ANSWERS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    st.lists(JSON_CHANGES, max_size=4).map(lambda changes: json.dumps({"explanation": "", "code_changes": changes})),
    st.text(max_size=200),
)


@FUZZ
@given(ANSWERS)
@example(
    json.dumps({"explanation": "", "code_changes": [{"operation": "create", "file_path": "a", "content": "\ud800"}]})
)
def test_an_answer_becomes_files_inside_the_repository_or_one_of_our_errors(
    base: tuple[ObjectReader, str, Path], text: str
) -> None:
    objects, tree, _ = base
    try:
        response = read_answer(ModelAnswer(text=text.encode(errors="replace").decode(), model="m"))
        planned = plan_changes(response.code_changes, objects, tree, LIMITS)
    except RunnerError as error:
        assert str(error)  # noqa: PT017  which one it is does not matter here
        return
    there = {"calc.py", "dir/x", "é", "crlf"}
    for change in planned:
        assert change.path in there or check_change_path(change.path) == change.path
        assert change.mode in {MODE_FILE, MODE_EXECUTABLE}
        assert not change.path.startswith("link/")
    assert sum(len(change.content or b"") for change in planned) <= LIMITS.max_total_bytes


SECRETS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)
FORMS = {
    "plain": lambda secret: secret,
    "url": lambda secret: quote(secret, safe=""),
    "json": lambda secret: json.dumps(secret)[1:-1],
    "shell": shlex.quote,
    "xml": html.escape,
    "hex": lambda secret: secret.encode().hex(),
    "base64": lambda secret: base64.b64encode(secret.encode()).decode(),
    "base64, shifted": lambda secret: base64.b64encode(b"x" + secret.encode() + b"yz").decode(),
    "base64, shifted twice": lambda secret: base64.urlsafe_b64encode(b"xx" + secret.encode() + b"y").decode(),
}


@FUZZ
@given(SECRETS, st.sampled_from(sorted(FORMS)), st.text(max_size=30), st.text(max_size=30))
def test_a_secret_in_any_form_does_not_come_out(secret: str, form: str, before: str, after: str) -> None:
    leaked = FORMS[form](secret)
    told = Redactor((secret,)).text(f"{before} {leaked} {after}")
    inside = leaked[4:-4] if form.startswith("base64") else leaked
    assert inside not in told.replace("***", "\0") or inside in f"{before} {after}"


URL_PIECES = [
    "https", "ssh", "git", "file", "ext", ":", "::", "//", "/", "@", "[", "]", "-o", "%2f", "\\", "host", "::1", "22",
    "99999", " ", "\n", "é", "。",
]  # fmt: skip


@FUZZ
@given(st.lists(st.sampled_from(URL_PIECES) | st.characters(), max_size=9).map("".join))
def test_any_url_is_read_or_refused(url: str) -> None:
    try:
        remote = remote_of(url)
    except ValueError:
        return
    assert remote.protocol in {"https", "http", "ssh", "git", "file"}
    assert not remote.host.startswith("-")
    assert (remote.protocol == "file") == (remote.host == "")
