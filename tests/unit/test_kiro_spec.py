"""Reading specs as Kiro writes them, and setting their boxes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import TaskContextValidationError
from necrocode.agent_runner.kiro_spec import KiroSpec, load_spec, marked, read_spec, read_tasks
from necrocode.agent_runner.kiro_spec.lines import MAX_FILE_BYTES
from necrocode.agent_runner.kiro_spec.requirements_file import read_criteria
from necrocode.agent_runner.records import TaskDefinition
from tests.support.pace import is_within
from tests.support.shared import shared_folder


def spec_of(text: str, requirements: str | None = None) -> KiroSpec:
    criteria = None if requirements is None else read_criteria(requirements.encode())
    return read_spec(text.encode(), "spec", criteria=criteria)


def tasks_of(text: str, requirements: str | None = None) -> dict[str, TaskDefinition]:
    return {task.task_id: task for task in spec_of(text, requirements).task_set.tasks}


def dependencies_of(text: str) -> dict[str, tuple[str, ...]]:
    return {task_id: task.dependencies for task_id, task in tasks_of(text).items()}


def refused(text: str | bytes) -> str:
    with pytest.raises(TaskContextValidationError) as caught:
        read_spec(text if isinstance(text, bytes) else text.encode(), "spec")
    return str(caught.value)


# --- the shared spec


def test_the_chat_app_is_read_with_its_criteria_and_dependencies() -> None:
    spec = load_spec(shared_folder("specs/chat-app"))
    tasks = {task.task_id: task for task in spec.task_set.tasks}
    assert spec.task_set.spec_name == "chat-app"
    assert list(tasks) == ["1.1", "1.2", "2.1", "2.2", "3.1", "3.2", "4.1", "4.2"]
    assert {task_id: task.dependencies for task_id, task in tasks.items()} == {
        "1.1": (), "1.2": ("1.1",), "2.1": (), "2.2": ("2.1",), "3.1": ("1.2", "2.2"), "3.2": ("3.1",),
        "4.1": ("1.2",), "4.2": ("1.2",),
    }  # fmt: skip
    assert tasks["2.1"].acceptance_criteria == ("2.1 パスワードは平文で保存しない。",)
    assert tasks["1.1"].description.startswith("- `chatapp/models.py` にUserとMessageを作成\n- email")
    assert [task_id for task_id, task in tasks.items() if task.metadata.get("optional")] == ["4.2"]
    assert spec.parts == {"1": ["1.1", "1.2"], "2": ["2.1", "2.2"], "3": ["3.1", "3.2"], "4": ["4.1"]}


# --- tasks


ENGLISH = """\
# Implementation Plan

## Tasks

- [x] 1. Set up project structure
  - Create folders
  - _Requirements: 1.1_

- [-] 2. Implement models
  - Keep them small
  - [X] 2.1 Create interfaces
    - Write `types.py`:
      ```python
      - [ ] 9. not a task
      ```
    - _Requirements: 1.2, 2_
  - [~] 2.2 Validate
    and refuse the rest
  - [ ]* 2.3 Write property tests
    - **Validates: Requirements 2.1**

## Notes

- Tasks marked with `*` are optional
- _Depends: 7_
"""


def test_boxes_titles_and_details_are_read() -> None:
    tasks = read_tasks(ENGLISH.encode())
    assert [(task.task_id, task.title, task.mark, task.parent) for task in tasks.values()] == [
        ("1", "Set up project structure", "x", None),
        ("2", "Implement models", "-", None),
        ("2.1", "Create interfaces", "x", "2"),
        ("2.2", "Validate", "-", "2"),
        ("2.3", "Write property tests", " ", "2"),
    ]
    assert [task.status for task in tasks.values()] == ["done", "running", "done", "running", "ready"]
    assert [task_id for task_id, task in tasks.items() if task.is_optional] == ["2.3"]
    assert tasks["1"].description == "- Create folders"
    assert tasks["2.1"].description == "- Write `types.py`:\n  ```python\n  - [ ] 9. not a task\n  ```"
    assert tasks["2.2"].description == "and refuse the rest"
    assert tasks["2.1"].requirements == ["1.2", "2"]
    assert tasks["2.3"].requirements == ["2.1"]


def test_a_task_made_of_sub_tasks_speaks_through_them() -> None:
    tasks = tasks_of(ENGLISH)
    assert list(tasks) == ["1", "2.1", "2.2", "2.3"]
    assert tasks["2.2"].description == "and refuse the rest\n\nPart of 2 Implement models\n\n- Keep them small"
    assert tasks["2.3"].metadata == {"requirements": ["2.1"], "part_of": "2", "optional": True}
    assert tasks["1"].metadata == {"requirements": ["1.1"]}


@pytest.mark.parametrize(
    ("line", "task_id", "title"),
    [
        ("- [ ] 1. Title", "1", "Title"),
        ("- [ ] 1 Title", "1", "Title"),
        ("* [ ] 1) Title", "1", "Title"),
        ("+\t[ ]\t1.1. Title", "1.1", "Title"),
        ("- [ ] 1.2: Title", "1.2", "Title"),
        ("- [ ]1 Title", "1", "Title"),
        ("- [ ] １．２　題名", "1.2", "題名"),
        ("- [ ] 1.データ層", "1", "データ層"),
        ("- [ ] ３、検索", "3", "検索"),
        ("- [ ] **1.1 Title** more", "1.1", "Title more"),
        ("- [ ] **1.1** Title", "1.1", "Title"),
        ("- [ ] __2.__ Title", "2", "Title"),
        ("-  [ ]  1.  Two  spaces  ", "1", "Two  spaces"),
        ("　- [ ] 1. 全角の字下げ", "1", "全角の字下げ"),
        ("- [ ]* 1. Optional", "1", "Optional"),
        ("- [ ] * 1. Optional", "1", "Optional"),
        ("- [ ]\\* 1. Optional", "1", "Optional"),
    ],
)
def test_a_task_may_be_written_in_many_ways(line: str, task_id: str, title: str) -> None:
    ((key, task),) = read_tasks(line.encode()).items()
    assert (key, task.title) == (task_id, title)
    assert task.is_optional == ("Optional" in line)


@pytest.mark.parametrize(
    "line",
    [
        "- 1. a list item",
        "- [x](https://example.org) 1. a link",
        "- [ab] 1. a longer word",
        "> - [ ] 2. quoted",
        "text - [ ] 2. inside",
        "<!-- - [ ] 2. commented out -->",
        "<!--\n- [ ] 2. commented out\n-->",
        "~~~\n- [ ] 2. code\n```\n~~~",
        "  - ```sh\n    - [ ] 2. code\n    ```",
        "    ```` md\n    ```\n- [ ] 2. code\n    ````",
    ],
)
def test_what_only_looks_like_a_task_is_none(line: str) -> None:
    assert list(read_tasks(f"- [ ] 1. One\n{line}\n- [ ] 3. Three\n".encode())) == ["1", "3"]


def test_inline_code_on_a_line_opens_no_block() -> None:
    assert list(read_tasks(b"- [ ] 1. One\n  ```x``` is code\n- [ ] 2. Two\n")) == ["1", "2"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("last", ["", "\n"])
def test_line_ends_marks_of_order_and_a_missing_last_line_end_change_nothing(end: str, start: str, last: str) -> None:
    text = start + ENGLISH.rstrip("\n").replace("\n", end) + last
    assert spec_of(text).task_set == spec_of(ENGLISH).task_set


def test_tabs_indent_like_spaces() -> None:
    text = "- [ ] 1. A\n\t- [ ] 1.1 B\n\t\t- detail\n\t\t- _Requirements: 3_\n\t- of A\n"
    tasks = read_tasks(text.encode())
    assert tasks["1.1"].description == "- detail"
    assert tasks["1"].description == "- of A"
    assert tasks["1.1"].requirements == ["3"]


def test_a_task_below_another_is_a_part_of_it_whatever_its_number() -> None:
    tasks = read_tasks(b"- [ ] 1. A\n  - [ ] 5 B\n    - [ ] 5.1 C\n- [ ] 1.2 D\n  - [ ] 7 E\n- [ ] 8 F\n")
    assert {task_id: task.parent for task_id, task in tasks.items()} == {
        "1": None, "5": "1", "5.1": "5", "1.2": "1", "7": "1.2", "8": None,
    }  # fmt: skip


def test_text_under_a_heading_belongs_to_no_task() -> None:
    (task,) = read_tasks(b"- [ ] 1. A\n  - a\n\n## Notes\n  - b\ntext\n").values()
    assert task.description == "- a"


def test_text_that_is_not_indented_goes_on_with_the_line_above_or_belongs_to_nobody() -> None:
    (task,) = read_tasks(b"- [ ] 1. A\ncontinued\n\nnot A's\n  nor this\n").values()
    assert task.description == "continued"


# --- fields and dependencies


@pytest.mark.parametrize(
    "field",
    [
        "_Depends: 1, 2_",
        "_Depends on: 1 and 2_",
        "_Dependencies:_ 1, 2",
        "**Depends:** 1; 2",
        "*Depends: Task 1, Task 2.*",
        "_依存：１、２_",
        "_依存関係: 1，2_",
        "_依存タスク：タスク1・タスク2_",
        "_depends_ : 1 2",
    ],
)
@pytest.mark.parametrize("bullet", ["  - ", "  ", "", "\n", "- "])
def test_dependencies_may_be_written_in_many_ways(field: str, bullet: str) -> None:
    assert dependencies_of(f"- [ ] 1 A\n- [ ] 2 B\n- [ ] 3 C\n{bullet}{field}\n")["3"] == ("1", "2")


@pytest.mark.parametrize(
    "field", ["_Requirements: 1.1, 2.3_", "_要件：１．１、２．３_", "**Validates: Requirements 1.1, 2.3**",
     "_要件: 要件1.1・要件2.3_"]
)  # fmt: skip
def test_requirements_may_be_written_in_many_ways(field: str) -> None:
    assert tasks_of(f"- [ ] 1 A\n  - {field}\n")["1"].metadata["requirements"] == ["1.1", "2.3"]


@pytest.mark.parametrize("prose", ["Depends: on the weather", "_Note: 1.1_", "*emphasis* alone", "_Depends 1_"])
def test_prose_is_no_field(prose: str) -> None:
    task = tasks_of(f"- [ ] 1 A\n  - {prose}\n")["1"]
    assert task.description == f"- {prose}"
    assert task.dependencies == ()


def test_without_any_dependency_tasks_wait_in_the_order_in_which_they_are_written() -> None:
    text = "- [ ] 1 A\n- [ ] 2 B\n  - [ ] 2.1 C\n  - [ ]* 2.2 D\n  - [ ] 2.3 E\n- [ ]* 3 F\n  - [ ] 3.1 G\n- [ ] 4 H\n"
    assert dependencies_of(text) == {
        "1": (), "2.1": ("1",), "2.2": ("2.1",), "2.3": ("2.1",), "3.1": ("2.3",), "4": ("2.3",),
    }  # fmt: skip
    assert tasks_of(text)["3.1"].metadata["optional"] is True


@pytest.mark.parametrize("nothing", ["none", "なし", "", "-", "N/A"])
def test_saying_that_there_is_no_dependency_is_saying_so_for_the_whole_file(nothing: str) -> None:
    assert dependencies_of(f"- [ ] 1 A\n- [ ] 2 B\n  _Depends: {nothing}_\n- [ ] 3 C\n") == {"1": (), "2": (), "3": ()}


def test_a_dependency_on_a_task_made_of_sub_tasks_is_one_on_those_that_must_be_done() -> None:
    text = "- [ ] 1 A\n- [ ] 1.1 B\n- [ ]* 1.2 C\n- [ ] 1.3 D\n- [ ] 1.3.1 E\n"
    text += "- [ ]* 2 F\n- [ ] 2.1 G\n- [ ] 3 H\n_Depends: 1_"
    assert dependencies_of(text)["3"] == ("1.1", "1.3.1")
    assert dependencies_of(text.replace("_Depends: 1_", "_Depends: 2_"))["3"] == ("2.1",)
    assert spec_of(text).parts == {"1": ["1.1", "1.3"], "1.3": ["1.3.1"], "2": ["2.1"]}


def test_what_a_group_depends_on_and_requires_holds_for_its_parts() -> None:
    text = "- [ ] 1 A\n- [ ] 2 B\n  _Depends: 1_\n  _Requirements: 5_\n"
    text += "  - [ ] 2.1 C\n  - [ ] 2.2 D\n    _Requirements: 6_\n    _Depends: 2.1_"
    tasks = tasks_of(text)
    assert tasks["2.1"].dependencies == ("1",)
    assert tasks["2.2"].dependencies == ("2.1", "1")
    assert tasks["2.1"].metadata["requirements"] == ["5"]
    assert tasks["2.2"].metadata["requirements"] == ["6"]


def test_a_long_text_of_a_group_is_cut_for_its_parts() -> None:
    text = f"- [ ] 1 A\n  {'x' * 5000}\n  - [ ] 1.1 B\n"
    assert len(tasks_of(text)["1.1"].description) == len("Part of 1 A\n\n") + 4001


# --- requirements


REQUIREMENTS = """\
# Requirements Document

1. not a criterion

### Requirement 1: Accounts

**User Story:** As a user:
1. I come
2. I go

#### Acceptance Criteria

1. WHEN a user registers
   THEN the system SHALL answer
   - with an id
2. WHEN an email is used twice THEN it SHALL refuse

Some remark.
  indented remark

### 要件 2：検索
2.1 日本語を検索できる。
２．２　全角の番号。
- **2.3** Bold and in a list.
  1. nested
4) Parenthesis

```
5. code
```

## Non-functional
1. Fast

### Requirement 3
"""


def test_criteria_are_numbered_by_requirement_and_item() -> None:
    assert read_criteria(REQUIREMENTS.encode()).texts == {
        "1.1": "WHEN a user registers\nTHEN the system SHALL answer\n- with an id",
        "1.2": "WHEN an email is used twice THEN it SHALL refuse",
        "2.1": "日本語を検索できる。",
        "2.2": "全角の番号。",
        "2.3": "Bold and in a list.\n1. nested",
        "2.4": "Parenthesis",
    }


def test_a_model_sees_the_texts_of_the_criteria() -> None:
    tasks = tasks_of("- [ ] 1 A\n  _Requirements: 2.3, 1, 1.1, 9.9_\n", REQUIREMENTS)
    assert [text.split()[0] for text in tasks["1"].acceptance_criteria] == ["2.3", "1.1", "1.2"]
    assert tasks["1"].acceptance_criteria[0] == "2.3 Bold and in a list.\n1. nested"
    assert tasks["1"].metadata["requirements"] == ["2.3", "1", "1.1", "9.9"]


def test_without_requirements_the_numbers_alone_are_kept(tmp_path: Path) -> None:
    (tmp_path / "tasks.md").write_text("- [ ] 1 A\n  _Requirements: 1.1_\n")
    (task,) = load_spec(tmp_path, spec_name="other").task_set.tasks
    assert task.acceptance_criteria == ()
    assert task.metadata == {"requirements": ["1.1"]}


def test_a_spec_is_loaded_by_its_folder_or_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "チャット"
    folder.mkdir()
    (folder / "tasks.md").write_text(ENGLISH)
    (folder / "requirements.md").write_text(REQUIREMENTS)
    spec = load_spec(folder)
    assert spec.task_set.spec_name == "チャット"
    assert spec.data == ENGLISH.encode()
    assert load_spec(folder / "tasks.md") == spec
    assert "2.1 日本語を検索できる。" in spec.task_set.tasks[-1].acceptance_criteria


# --- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Plan\n", "tasks.md:1: there is no task in it; one is written as '- [ ] 1.1 Title'."),
        ("\n- [ ] Title\n", "tasks.md:2: the task 'Title' has no number; write '- [ ] 1.1 Title'."),
        ("- [ ]\n", "tasks.md:1: the task '' has no number"),
        ("- [ ] 3D viewer\n", "tasks.md:1: the task '3D viewer' has no number"),
        (f"- [ ] {'x' * 100}\n", f"the task '{'x' * 60}…' has no number"),
        ("- [ ] 1.\n", "tasks.md:1: task 1 has no title."),
        ("- [?] 1. A\n", "tasks.md:1: task 1: '?' in the box is none of ' ', x, - and ~."),
        (f"- [ ] {'1.' * 80}1 A\n", "tasks.md:1: the number of the task must be 1 to 128 letters"),
        ("- [ ] 1. A\n\n- [ ] 1 B\n", "tasks.md:3: the number 1 is used in line 1 already."),
        (f"- [ ] 1. {'x' * 501}\n", "tasks.md:1: task 1: Invalid task: title: String should have at most 500"),
        ("- [ ] 1 A\n_Depends: soon_", "tasks.md:2: cannot read the dependency 'soon'; write '_Depends: 1.1, 1.2_'."),
        ("- [ ] 1.1 A\n_Depends: 1.3_\n", "tasks.md:1: task 1.1 depends on 1.3, which is not in the file"),
        ("- [ ] 1.1 A\n_Depends: 9_\n", "tasks.md:1: task 1.1 depends on 9, which is not in the file."),
        (
            "- [ ] 1 A\n_Depends: 3_\n- [ ] 2 B\n_Depends: 1_\n- [ ] 3 C\n_Depends: 2_\n",
            "tasks.md:1: these tasks wait for each other: 1 -> 3 -> 2 -> 1.",
        ),
        ("- [ ] 1 A\n_Depends: 1_\n", "tasks.md:1: these tasks wait for each other: 1 -> 1."),
        ("- [ ] 1 A\n- [ ] 1.1 B\n_Depends: 1_\n", "tasks.md:2: these tasks wait for each other: 1.1 -> 1.1."),
        ("- [ ] 1 A\n  ```\n- [ ] 2 B\n", "tasks.md:2: the code block or comment that begins here never ends."),
        ("- [ ] 1 A\n<!-- x\n", "tasks.md:2: the code block or comment that begins here never ends."),
        ("- [ ] 1 A\n\0\n", "tasks.md:2: holds a NUL character."),
        (b"- [ ] 1 A\n\n\xff\n", "tasks.md:3: not UTF-8 (byte 11 of the file); save the file as UTF-8."),
        ("- [ ] 1 A\n".encode("utf-16"), "tasks.md:1: not UTF-8 (byte 0 of the file)"),
        (b" " * (MAX_FILE_BYTES + 1), f"tasks.md:1: the file is larger than {MAX_FILE_BYTES} bytes."),
        ("".join(f"{'  ' * n}- [ ] {n + 1} A\n" for n in range(25)), "task 22 is nested deeper than 20 levels"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_by_file_and_line(text: Any, message: str) -> None:
    assert message in refused(text)


def test_too_many_dependencies_are_refused() -> None:
    lines = [f"- [ ] 1.{n} A" for n in range(2000)] + [f"- [ ] 2.{n} B\n_Depends: 1_" for n in range(600)]
    assert "more than 1000000 dependencies" in refused("- [ ] 1 Group\n" + "\n".join(lines))


def test_too_many_criteria_are_refused() -> None:
    requirements = "# Requirement 1\n" + "".join(f"{n}. x\n" for n in range(501))
    with pytest.raises(TaskContextValidationError, match=r"tasks.md:1: task 1 names more than 500 criteria"):
        spec_of("- [ ] 1 A\n_Requirements: 1_", requirements)


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskContextValidationError, match=r"There is no .*nowhere"):
        load_spec(tmp_path / "nowhere")
    with pytest.raises(TaskContextValidationError, match=r"There is no .*tasks\.md"):
        load_spec(tmp_path)
    (tmp_path / "tasks.md").mkdir()
    with pytest.raises(TaskContextValidationError, match=r"tasks\.md is no ordinary file"):
        load_spec(tmp_path)


def test_a_folder_whose_name_is_no_spec_name_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "my spec"
    folder.mkdir()
    (folder / "tasks.md").write_text("- [ ] 1 A\n")
    with pytest.raises(TaskContextValidationError, match="spec_name"):
        load_spec(folder)
    assert load_spec(folder, spec_name="my-spec").task_set.spec_name == "my-spec"


# --- any text

_PIECES = st.sampled_from(
    ["- [ ] ", "- [x] ", "  ", "\t", "1.1 ", "1. ", "2.", "１．", "*", "**", "_Depends: ", "_Requirements：", "```",
     "~~~", "<!--", "-->", "\n", "\r\n", "\r", "\n\n", "# ", "### 要件 1",
     "日本語", "x", "_", "\ufeff", "\u2028", "é", "👩‍💻"]
)  # fmt: skip
_TEXTS = st.lists(_PIECES | st.text(max_size=8), max_size=60).map("".join)


def only_our_errors(data: bytes) -> None:
    try:
        criteria = read_criteria(data)
        spec = read_spec(data, "spec", criteria=criteria)
    except TaskContextValidationError:
        return
    ids = {task.task_id for task in spec.task_set.tasks}
    assert all(set(task.dependencies) <= ids for task in spec.task_set.tasks)
    assert set(spec.parts) | ids == set(spec.tasks)


@given(_TEXTS)
@settings(max_examples=400)
def test_any_text_is_read_or_refused(text: str) -> None:
    only_our_errors(text.encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    only_our_errors(data)


@given(_TEXTS, st.lists(st.sampled_from(" x-"), min_size=8, max_size=8))
@settings(max_examples=300)
def test_setting_boxes_changes_their_characters_and_nothing_else(text: str, marks: list[Any]) -> None:
    data = f"{text}\n- [~] 7.1 日本\r\n- [X]* 7.2 b\n".encode()
    try:
        tasks = read_tasks(data)
    except TaskContextValidationError:
        return
    wanted = dict(zip(tasks, marks, strict=False))
    changed = marked(data, tasks.values(), wanted)
    places = {task.offset for task in tasks.values()}
    assert len(changed) == len(data)
    assert all(before == after for n, (before, after) in enumerate(zip(data, changed, strict=True)) if n not in places)
    again = read_tasks(changed)
    assert [(t.task_id, t.title, t.mark) for t in again.values()] == [
        (t.task_id, t.title, wanted.get(t.task_id, t.mark)) for t in tasks.values()
    ]
    assert marked(changed, again.values(), {task_id: task.mark for task_id, task in tasks.items()}).lower() == (
        data.lower().replace(b"[~]", b"[-]") if wanted.get("7.1", "-") != "-" else data.lower()
    )  # fmt: skip


@pytest.mark.parametrize(
    "piece",
    ["- [ ] 1", "1.1.", "*", "_Depends: ", "`", "```\n", "  ", "\t- ", "- [ ] 1 A\n", "_ _", "<!--", "[ ]", "1 ", "１",
     "\r", "#", "# 1\n1. x\n", "　", "**1** ", "A: "],
)  # fmt: skip
def test_time_grows_no_faster_than_the_text(piece: str) -> None:
    text = ("- [ ] 1 A\n" + piece * (100_000 // len(piece.encode()))).encode()
    assert is_within(10, lambda: only_our_errors(text))


def test_a_long_spec_is_read_in_bounded_time() -> None:
    lines = (
        f"- [ ] {n}.{m} Task\n  - detail\n  - _Depends: {max(n - 1, 0)}.0_" for n in range(1000) for m in range(10)
    )
    started = time.process_time()
    assert (
        len(spec_of("- [ ] 0.0 First\n" + "\n".join(lines).replace("- [ ] 0.0 Task", "- [ ] 0.99 T")).task_set.tasks)
        == 10_001
    )
    assert time.process_time() - started < 30
