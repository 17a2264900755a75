"""A tasks.md and a registry, brought to say the same."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import ConfigurationError, LocalTaskRegistry
from necrocode.agent_runner.kiro_spec import KiroSpec, load_spec, read_spec
from necrocode.agent_runner.records import TaskRecord, TaskSetRecord
from necrocode.agent_runner.spec_sync import SyncMemory, SyncPlan, apply_to_registry, plan_sync, write_boxes

TEXT = """\
# Plan

- [ ] 1. Group
- [ ] 1.1 First
  - detail
- [ ] 1.2 Second
  - _Depends: 1.1_
- [ ]* 1.3 Optional
- [ ] 2. Alone
"""


class Bench:
    """A spec's file and a registry."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "chat" / "tasks.md"
        self.file.parent.mkdir()
        self.write(TEXT)
        self.registry = LocalTaskRegistry(f"sqlite:///{folder / 'registry.db'}")
        self.memory = SyncMemory(folder / "specs", self.file, "sqlite:///registry.db")

    def write(self, text: str) -> None:
        self.file.write_bytes(text.encode())

    def tick(self, task_id: str, mark: str = "x") -> None:
        lines = self.file.read_text().splitlines(keepends=True)
        (place,) = (n for n, line in enumerate(lines) if line.split("]")[-1].lstrip("* ").startswith(f"{task_id} "))
        lines[place] = lines[place].replace(lines[place][2:5], f"[{mark}]", 1)
        self.write("".join(lines))

    @property
    def plan(self) -> SyncPlan:
        return plan_sync(self.spec, self.known, self.memory.read())

    @property
    def spec(self) -> KiroSpec:
        return load_spec(self.file)

    @property
    def known(self) -> TaskSetRecord | None:
        return self.registry.get_taskset("chat") if self.registry.list_tasks() else None

    def sync(self) -> SyncPlan:
        plan, spec = self.plan, self.spec
        apply_to_registry(plan, self.registry, "chat")
        write_boxes(self.file, spec, plan)
        self.memory.write(plan.agreed)
        return plan

    def boxes(self) -> dict[str, str]:
        return {task_id: task.mark for task_id, task in self.spec.tasks.items() if task.mark != " "}

    def states(self) -> dict[str, str]:
        return {task.task_id: task.status for task in self.registry.list_tasks(spec_name="chat")}

    def move(self, task_id: str, *states: str) -> None:
        for state in states:
            self.registry.update_task_status(task_id, state, spec_name="chat")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    with made.registry:
        yield made


def test_a_new_spec_is_put_into_the_registry_and_its_file_left_alone(bench: Bench) -> None:
    plan = bench.sync()
    assert plan.new == ("1.1", "1.2", "1.3", "2")
    assert bench.states() == {"1.1": "ready", "1.2": "blocked", "1.3": "ready", "2": "ready"}
    assert bench.file.read_text() == TEXT
    assert bench.plan.is_empty


def test_what_runners_do_is_shown_in_the_boxes(bench: Bench) -> None:
    bench.sync()
    bench.move("1.1", "running")
    assert bench.sync().boxes == {"1": "-", "1.1": "-"}
    bench.move("1.1", "done")
    bench.move("1.2", "running", "done")
    bench.move("2", "running", "failed")
    assert bench.sync().boxes == {"1": "x", "1.1": "x", "1.2": "x"}
    assert bench.boxes() == {"1": "x", "1.1": "x", "1.2": "x"}
    assert bench.file.read_text() == TEXT.replace("[ ] 1.", "[x] 1.")


def test_a_box_ticked_by_hand_makes_the_task_done_and_frees_those_that_waited(bench: Bench) -> None:
    bench.sync()
    bench.tick("1.1")
    assert bench.plan.ticked == ("1.1",)
    bench.sync()
    assert bench.states() == {"1.1": "done", "1.2": "ready", "1.3": "ready", "2": "ready"}
    assert bench.registry.list_events("1.1", spec_name="chat")[-1].event_type == "done_by_hand"
    assert bench.boxes() == {"1": "-", "1.1": "x"}


@pytest.mark.parametrize("state", [(), ("cancelled",), ("running", "failed")])
def test_a_tick_counts_in_every_state_but_running(bench: Bench, state: tuple[str, ...]) -> None:
    bench.sync()
    bench.move("2", *state)
    bench.tick("2.")
    bench.sync()
    assert bench.states()["2"] == "done"


def test_a_tick_on_a_blocked_task_and_on_those_it_waits_for_counts_in_their_order(bench: Bench) -> None:
    bench.tick("1.2")
    bench.tick("1.1")
    assert bench.sync().ticked == ("1.1", "1.2")
    assert bench.states()["1.2"] == "done"


def test_a_tick_on_a_blocked_task_alone_counts(bench: Bench) -> None:
    bench.tick("1.2")
    bench.sync()
    assert bench.states() == {"1.1": "ready", "1.2": "done", "1.3": "ready", "2": "ready"}


def test_a_tick_on_a_running_task_does_not_count(bench: Bench) -> None:
    bench.sync()
    bench.move("2", "running")
    bench.tick("2.")
    plan = bench.sync()
    assert (plan.ticked, plan.boxes) == ((), {"2": "-"})
    assert bench.states()["2"] == "running"


def test_a_task_that_begins_to_run_after_the_plan_was_made_is_left_alone(bench: Bench) -> None:
    bench.sync()
    bench.tick("2.")
    plan = bench.plan
    bench.move("2", "running")
    apply_to_registry(plan, bench.registry, "chat")
    assert bench.states()["2"] == "running"
    assert bench.registry.list_events("2", spec_name="chat") == ()


def test_a_task_that_the_registry_put_back_loses_its_tick(bench: Bench) -> None:
    bench.sync()
    bench.move("2", "running", "done")
    bench.sync()
    task = next(task for task in bench.spec.task_set.tasks if task.task_id == "2")
    bench.registry.put_task(task, spec_name="chat")
    assert bench.states()["2"] == "ready"
    plan = bench.sync()
    assert (plan.ticked, plan.boxes) == ((), {"2": " "})
    assert bench.states()["2"] == "ready"


def test_a_tick_that_is_taken_away_does_not_undo_the_task(bench: Bench) -> None:
    bench.tick("2.")
    bench.sync()
    bench.tick("2.", " ")
    assert bench.sync().boxes == {"2": "x"}
    assert bench.states()["2"] == "done"


def test_a_persons_own_mark_of_progress_stays_and_a_runners_goes(bench: Bench) -> None:
    bench.sync()
    bench.tick("2.", "-")
    bench.move("1.1", "running")
    bench.sync()
    assert bench.boxes() == {"1": "-", "1.1": "-", "2": "-"}
    bench.move("1.1", "ready")
    bench.sync()
    assert bench.boxes() == {"2": "-"}
    assert bench.states()["2"] == "ready"


def test_a_groups_box_follows_its_parts_even_where_somebody_set_it(bench: Bench) -> None:
    bench.tick("1.")
    assert bench.sync().boxes == {"1": " "}
    assert bench.states()["1.1"] == "ready"


def test_the_file_decides_what_the_tasks_are(bench: Bench) -> None:
    bench.sync()
    bench.move("1.1", "running", "done")
    bench.write(TEXT.replace("- [ ]* 1.3 Optional\n", "").replace("First", "First of all") + "- [ ] 3. New\n")
    plan = bench.sync()
    assert (plan.new, plan.removed) == (("3",), ("1.3",))
    assert bench.states() == {"1.1": "done", "1.2": "ready", "2": "ready", "3": "ready"}
    assert bench.registry.get_task("1.1", spec_name="chat").title == "First of all"
    assert bench.plan.is_empty


def test_what_only_the_registry_knows_survives_a_change_of_the_file(bench: Bench) -> None:
    bench.sync()
    task = next(task for task in bench.spec.task_set.tasks if task.task_id == "2")
    own = {"priority": 7, "required_skill": "ui", "metadata": {"repo": "x"}}
    bench.registry.put_task(task.model_copy(update=own), spec_name="chat")
    assert bench.plan.is_empty
    bench.write(TEXT.replace("2. Alone", "2. Changed"))
    bench.sync()
    record = bench.registry.get_task("2", spec_name="chat")
    assert (record.title, record.priority, record.required_skill) == ("Changed", 7, "ui")
    assert record.metadata == {"repo": "x"}


def test_what_the_file_no_longer_says_of_a_task_goes(bench: Bench) -> None:
    bench.write("- [ ]* 1 A\n  _Requirements: 1_\n")
    bench.sync()
    bench.write("- [ ] 1 A\n")
    bench.sync()
    assert bench.registry.get_task("1", spec_name="chat").metadata == {}


def test_a_file_that_changed_meanwhile_is_left_as_it_is(bench: Bench) -> None:
    bench.sync()
    bench.move("2", "running", "done")
    plan, spec = bench.plan, bench.spec
    bench.write(TEXT + "\nA person's words.\n")
    with pytest.raises(ConfigurationError, match=r"tasks\.md was changed meanwhile; nothing in it was touched"):
        write_boxes(bench.file, spec, plan)
    assert bench.file.read_text() == TEXT + "\nA person's words.\n"
    assert sorted(path.name for path in bench.file.parent.iterdir()) == ["tasks.md"]


def test_mode_and_link_are_kept(bench: Bench) -> None:
    link = bench.file.parent.parent / "link.md"
    link.symlink_to(bench.file)
    bench.file.chmod(0o640)
    bench.sync()
    bench.move("2", "running", "done")
    write_boxes(link, bench.spec, bench.plan)
    assert link.is_symlink()
    assert bench.boxes() == {"2": "x"}
    assert bench.file.stat().st_mode & 0o7777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_the_owner_is_kept(bench: Bench) -> None:
    os.chown(bench.file, 12345, 12345)
    bench.sync()
    bench.move("2", "running", "done")
    bench.sync()
    assert bench.file.stat().st_uid == 12345


def test_a_file_that_cannot_be_written_is_named(bench: Bench) -> None:
    bench.sync()
    bench.move("2", "running", "done")
    plan, spec = bench.plan, bench.spec
    bench.file.unlink()
    with pytest.raises(ConfigurationError, match=r"Cannot write .*tasks\.md: No such file"):
        write_boxes(bench.file, spec, plan)
    bench.file.parent.rmdir()
    with pytest.raises(ConfigurationError, match=r"Cannot write .*tasks\.md: No such file"):
        write_boxes(bench.file, spec, plan)


def test_a_content_that_does_not_fit_on_the_disk_leaves_nothing_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    bench.sync()
    bench.move("2", "running", "done")
    plan, spec = bench.plan, bench.spec
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigurationError, match="No space left on device"):
        write_boxes(bench.file, spec, plan)
    assert bench.file.read_text() == TEXT
    assert sorted(path.name for path in bench.file.parent.iterdir()) == ["tasks.md"]


@pytest.mark.parametrize("content", ["", "[]", "{}", "{"])
def test_a_memory_that_cannot_be_read_is_no_reason_to_guess(tmp_path: Path, content: str) -> None:
    memory = SyncMemory(tmp_path, tmp_path / "tasks.md", "url")
    memory.write({"1": "x"})
    assert memory.read() == {"1": "x"}
    (file,) = tmp_path.iterdir()
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=r"Delete it: every ticked box then counts as ticked by hand"):
        memory.read()


def test_a_memory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"Cannot write .*: File exists"):
        SyncMemory(tmp_path / "file", tmp_path / "tasks.md", "url").write({})


def test_files_and_registries_have_memories_of_their_own(tmp_path: Path) -> None:
    SyncMemory(tmp_path, tmp_path / "a", "url").write({"1": "x"})
    assert SyncMemory(tmp_path, tmp_path / "b", "url").read() == {}
    assert SyncMemory(tmp_path, tmp_path / "a", "other").read() == {}


def test_what_the_registry_alone_was_told_is_remembered_without_the_boxes(bench: Bench) -> None:
    bench.tick("1.1")
    bench.tick("2.")
    bench.sync()
    task = next(task for task in bench.spec.task_set.tasks if task.task_id == "2")
    bench.registry.put_task(task, spec_name="chat")
    bench.move("1.2", "running")
    plan = bench.plan
    assert plan.boxes == {"1.2": "-", "2": " "}
    assert plan.agreed_without_boxes(bench.memory.read()) == {"1.1": "x", "2": "x"}


# --- any states

_STATES = st.sampled_from(["blocked", "ready", "running", "done", "failed", "cancelled"])
_MARKS: Any = st.sampled_from([" ", "x", "-"])


@given(st.lists(st.tuples(_STATES, _MARKS, _MARKS), min_size=1, max_size=6))
@settings(max_examples=300)
def test_after_one_sync_there_is_nothing_left_to_do(tasks: list[tuple[str, Any, Any]]) -> None:
    text = "".join(f"- [{mark}] {n}. T\n" for n, (_, mark, _) in enumerate(tasks, 1))
    spec = read_spec(text.encode(), "s")
    records = tuple(
        TaskRecord(**definition.model_dump(), spec_name="s", status=status)
        for definition, (status, _, _) in zip(spec.task_set.tasks, tasks, strict=True)
    )
    agreed: dict[str, Any] = {str(n): mark for n, (_, _, mark) in enumerate(tasks, 1) if mark != " "}
    plan = plan_sync(spec, TaskSetRecord(spec_name="s", tasks=records), agreed)
    for task, (status, mark, before) in zip(records, tasks, strict=True):
        after = plan.boxes.get(task.task_id, mark)
        is_by_hand = mark == "x" and before != "x" and status not in {"done", "running"}
        assert (task.task_id in plan.ticked) == is_by_hand
        assert (after == "x") == (status == "done" or is_by_hand)
        assert after == "-" or status != "running"
    moved = tuple(
        task.model_copy(update={"status": "done"}) if task.task_id in plan.ticked else task for task in records
    )
    marks = {n: plan.boxes.get(str(n), mark) for n, (_, mark, _) in enumerate(tasks, 1)}
    again = read_spec("".join(f"- [{mark}] {n}. T\n" for n, mark in marks.items()).encode(), "s")
    assert plan_sync(again, TaskSetRecord(spec_name="s", tasks=moved), plan.agreed).is_empty
