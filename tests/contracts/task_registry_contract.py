"""What every ``TaskRegistry`` does."""

from __future__ import annotations

import math
from typing import Any, Protocol

import pytest

from necrocode.agent_runner import (
    AmbiguousTaskError,
    ArtifactRecord,
    EventRecord,
    IllegalTransitionError,
    ServiceConnectionError,
    ServiceError,
    TaskContext,
    TaskNotFoundError,
    TaskRecord,
    TaskRegistry,
)
from tests.contracts.threads import at_once

UNKNOWN_IDS = ["none", "..", "a/b", "1.1 ", "1.1?spec_name=chat", "仕様", "-", "1\n1", "1\0", "%2e%2e"]
ODD_DATA: dict[str, Any] = {
    "text": "日本語 \U0001f600 \" ' \\ \n \t end",
    "nested": {"list": [1, 2.5, None, True, {"deep": []}], "": "empty name"},
    "large": 2**53,
    "long": "x" * 100_000,
    "空": "",
}


class Records(Protocol):
    """How a test looks into a registry."""

    def get_task(self, task_id: str, *, spec_name: str | None = None) -> TaskRecord: ...
    def list_events(self, task_id: str, *, spec_name: str | None = None) -> tuple[EventRecord, ...]: ...
    def list_artifacts(self, task_id: str, *, spec_name: str | None = None) -> tuple[ArtifactRecord, ...]: ...


def task(task_id: str = "1.1", spec_name: str = "chat", **changes: Any) -> TaskContext:
    values = {"task_id": task_id, "spec_name": spec_name, "title": "T", "description": "D", "repo_url": "/r"}
    return TaskContext(**(values | changes))


class TaskRegistryContract:
    """Inherit it, and say what the registry under test is."""

    @pytest.fixture
    def registry(self) -> TaskRegistry:
        """An empty registry."""
        raise NotImplementedError

    @pytest.fixture
    def records(self) -> Records:
        """The eye that sees what ``registry`` holds."""
        raise NotImplementedError

    @pytest.fixture
    def unreachable(self) -> TaskRegistry:
        """A registry whose place cannot be reached."""
        raise NotImplementedError

    @pytest.fixture
    def known(self, registry: TaskRegistry) -> TaskRegistry:
        """The registry, with task 1.1 of the spec chat in it."""
        registry.register_task(task())
        return registry

    # --- registering

    def test_a_registered_task_is_ready_and_on_record(self, registry: TaskRegistry, records: Records) -> None:
        registry.register_task(
            task(
                title="データベース",
                description="行\nと 'quotes'",
                acceptance_criteria=["one", "二"],
                dependencies=["1.0"],
                required_skill="backend",
                metadata=ODD_DATA,
            )
        )
        found = records.get_task("1.1", spec_name="chat")
        assert (found.task_id, found.spec_name, found.status) == ("1.1", "chat", "ready")
        assert (found.title, found.description) == ("データベース", "行\nと 'quotes'")
        assert (found.acceptance_criteria, found.dependencies) == (("one", "二"), ("1.0",))
        assert (found.required_skill, found.metadata) == ("backend", ODD_DATA)

    def test_registering_twice_is_one_task(self, known: TaskRegistry, records: Records) -> None:
        before = records.get_task("1.1")
        known.register_task(task())
        after = records.get_task("1.1")
        assert after.model_copy(update={"updated_at": before.updated_at}) == before

    def test_registering_again_brings_the_record_up_to_date(self, known: TaskRegistry, records: Records) -> None:
        known.register_task(task(title="New", dependencies=["0"]))
        found = records.get_task("1.1")
        assert (found.title, found.dependencies) == ("New", ("0",))

    def test_registering_keeps_the_history(self, known: TaskRegistry, records: Records) -> None:
        known.add_event("1.1", "e")
        known.add_artifact("1.1", "log", "u")
        known.register_task(task(title="New"))
        assert [event.event_type for event in records.list_events("1.1")] == ["e"]
        assert [artifact.uri for artifact in records.list_artifacts("1.1")] == ["u"]

    def test_registering_does_not_disturb_a_running_task(self, known: TaskRegistry, records: Records) -> None:
        known.update_task_status("1.1", "running")
        known.register_task(task())
        assert records.get_task("1.1").status == "running"

    @pytest.mark.parametrize("end", ["done", "failed", "cancelled"])
    def test_a_finished_task_that_is_registered_is_ready(self, known: TaskRegistry, records: Records, end: str) -> None:
        for status in ("running", end):
            known.update_task_status("1.1", status)
        known.register_task(task())
        assert records.get_task("1.1").status == "ready"

    # --- states

    @pytest.mark.parametrize(
        "walk",
        [
            ("running", "done"),
            ("running", "failed", "ready", "running", "done"),
            ("running", "failed", "running"),
            ("running", "cancelled", "ready"),
            ("blocked", "ready", "running"),
            ("cancelled", "ready"),
            ("running", "ready", "running"),
            ("ready", "running", "running", "done", "done"),
        ],
        ids="-".join,
    )
    def test_states_that_may_follow(self, known: TaskRegistry, records: Records, walk: tuple[str, ...]) -> None:
        for status in walk:
            known.update_task_status("1.1", status)
            assert records.get_task("1.1").status == status

    @pytest.mark.parametrize(
        ("walk", "wrong"),
        [
            ((), "done"),
            (("blocked",), "running"),
            (("blocked",), "done"),
            (("running",), "blocked"),
            (("running", "done"), "running"),
            (("running", "done"), "failed"),
            (("running", "done"), "cancelled"),
            (("running", "failed"), "done"),
            (("cancelled",), "done"),
        ],
    )
    def test_states_that_may_not_follow(
        self, known: TaskRegistry, records: Records, walk: tuple[str, ...], wrong: str
    ) -> None:
        for status in walk:
            known.update_task_status("1.1", status)
        before = records.get_task("1.1")
        with pytest.raises(IllegalTransitionError) as caught:
            known.update_task_status("1.1", wrong, {"k": 1})
        assert records.get_task("1.1") == before
        assert before.status in str(caught.value)
        assert wrong in str(caught.value)
        assert caught.value.retryable is False

    @pytest.mark.parametrize(
        ("alias", "status"), [("pending", "ready"), ("in_progress", "running"), ("completed", "done")]
    )
    def test_states_have_older_names(self, known: TaskRegistry, records: Records, alias: str, status: str) -> None:
        if status == "done":
            known.update_task_status("1.1", "running")
        known.update_task_status("1.1", alias)
        assert records.get_task("1.1").status == status

    @pytest.mark.parametrize("status", ["", "DONE", "finished", "done ", "状態"])
    def test_a_state_that_is_none_is_refused(self, known: TaskRegistry, records: Records, status: str) -> None:
        with pytest.raises(ServiceError) as caught:
            known.update_task_status("1.1", status)
        assert caught.value.retryable is False
        assert records.get_task("1.1").status == "ready"

    def test_what_is_told_with_a_state_is_on_record(self, known: TaskRegistry, records: Records) -> None:
        known.update_task_status("1.1", "running", ODD_DATA)
        assert records.get_task("1.1").metadata == ODD_DATA

    def test_each_start_counts_as_an_attempt(self, known: TaskRegistry, records: Records) -> None:
        for status in ("running", "running", "failed", "running"):
            known.update_task_status("1.1", status)
        assert records.get_task("1.1").attempt == 2

    # --- history

    def test_events_keep_their_order_and_data(self, known: TaskRegistry, records: Records) -> None:
        for number in range(8):
            known.add_event("1.1", f"event_{number}", {"number": number})
        known.add_event("1.1", "最後", ODD_DATA)
        found = records.list_events("1.1")
        assert [event.event_type for event in found] == [*(f"event_{number}" for number in range(8)), "最後"]
        assert [event.data for event in found] == [*({"number": number} for number in range(8)), ODD_DATA]
        assert [event.sequence for event in found] == sorted({event.sequence for event in found})

    def test_an_event_needs_no_data(self, known: TaskRegistry, records: Records) -> None:
        known.add_event("1.1", "e")
        assert [(event.event_type, event.data) for event in records.list_events("1.1")] == [("e", {})]

    def test_an_event_does_not_change_the_state(self, known: TaskRegistry, records: Records) -> None:
        before = records.get_task("1.1")
        known.add_event("1.1", "run_finished", {"status": "done"})
        assert records.get_task("1.1").status == before.status

    def test_artifacts_are_on_record(self, known: TaskRegistry, records: Records) -> None:
        known.add_artifact("1.1", "diff", "file:///日本/diff.patch", 2**40, ODD_DATA)
        known.add_artifact("1.1", "log", "s3://b/1")
        for number in range(4):
            known.add_artifact("1.1", "test", f"u{number}", 0)
        found = [(one.type, one.uri, one.size_bytes, one.metadata) for one in records.list_artifacts("1.1")]
        assert found == [
            ("diff", "file:///日本/diff.patch", 2**40, ODD_DATA),
            ("log", "s3://b/1", None, {}),
            *(("test", f"u{number}", 0, {}) for number in range(4)),
        ]

    @pytest.mark.parametrize(
        "value", [math.nan, math.inf, object(), {1, 2}, b"bytes"], ids=["nan", "inf", "object", "set", "bytes"]
    )
    def test_data_that_is_no_json_is_refused_for_good(
        self, known: TaskRegistry, records: Records, value: object
    ) -> None:
        for tell in (
            lambda: known.add_event("1.1", "e", {"value": value}),
            lambda: known.add_artifact("1.1", "log", "u", 1, {"value": value}),
            lambda: known.update_task_status("1.1", "running", {"value": value}),
        ):
            with pytest.raises(ServiceError) as caught:
                tell()
            assert not isinstance(caught.value, ServiceConnectionError)
            assert caught.value.retryable is False
        assert (records.list_events("1.1"), records.list_artifacts("1.1")) == ((), ())
        assert records.get_task("1.1").status == "ready"

    def test_text_that_is_no_unicode_is_refused_for_good(self, known: TaskRegistry, records: Records) -> None:
        for tell in (
            lambda: known.add_event("1.1", "half a pair: \ud83d"),
            lambda: known.add_artifact("1.1", "log", "a byte of a file name: \udcff"),
        ):
            with pytest.raises(ServiceError) as caught:
                tell()
            assert caught.value.retryable is False
        assert (records.list_events("1.1"), records.list_artifacts("1.1")) == ((), ())

    # --- which task

    @pytest.mark.parametrize("task_id", UNKNOWN_IDS)
    def test_an_unknown_task_is_told(self, known: TaskRegistry, task_id: str) -> None:
        with pytest.raises(TaskNotFoundError) as caught:
            known.update_task_status(task_id, "running")
        assert caught.value.retryable is False

    def test_no_write_makes_a_task_known(self, registry: TaskRegistry, records: Records) -> None:
        for tell in (
            lambda: registry.update_task_status("1.1", "running", spec_name="chat"),
            lambda: registry.add_event("1.1", "e", spec_name="chat"),
            lambda: registry.add_artifact("1.1", "log", "u", spec_name="chat"),
            lambda: records.get_task("1.1", spec_name="chat"),
        ):
            with pytest.raises(TaskNotFoundError):
                tell()

    def test_a_task_of_another_spec_is_not_meant(self, known: TaskRegistry) -> None:
        with pytest.raises(TaskNotFoundError):
            known.update_task_status("1.1", "running", spec_name="other")

    def test_a_bare_id_works_while_it_names_one_task(self, known: TaskRegistry, records: Records) -> None:
        known.update_task_status("1.1", "running")
        known.register_task(task(spec_name="仕様"))
        for tell in (
            lambda: known.update_task_status("1.1", "done"),
            lambda: known.add_event("1.1", "e"),
            lambda: known.add_artifact("1.1", "log", "u"),
        ):
            with pytest.raises(AmbiguousTaskError) as caught:
                tell()
            assert "chat" in str(caught.value)
            assert "仕様" in str(caught.value)
        known.update_task_status("1.1", "cancelled", spec_name="仕様")
        known.add_event("1.1", "e", spec_name="仕様")
        assert records.get_task("1.1", spec_name="chat").status == "running"
        assert records.get_task("1.1", spec_name="仕様").status == "cancelled"
        assert records.list_events("1.1", spec_name="chat") == ()

    @pytest.mark.parametrize("task_id", ["a", "A.b_c-9", "0" * 128])
    def test_every_valid_id_works(self, registry: TaskRegistry, records: Records, task_id: str) -> None:
        registry.register_task(task(task_id))
        registry.update_task_status(task_id, "running", spec_name="chat")
        assert records.get_task(task_id).status == "running"

    # --- many at once, and none there

    def test_eight_threads_register_one_task(self, registry: TaskRegistry, records: Records) -> None:
        assert at_once(lambda _: registry.register_task(task()), range(8)) == [None] * 8
        assert records.get_task("1.1").status == "ready"

    def test_eight_threads_lose_no_event(self, known: TaskRegistry, records: Records) -> None:
        def tell(thread: int) -> None:
            for number in range(5):
                known.add_event("1.1", f"t{thread}", {"number": number})

        assert at_once(tell, range(8)) == [None] * 8
        found = records.list_events("1.1")
        assert len(found) == 40
        for thread in range(8):
            assert [event.data["number"] for event in found if event.event_type == f"t{thread}"] == list(range(5))

    def test_one_of_eight_endings_counts(self, known: TaskRegistry, records: Records) -> None:
        known.update_task_status("1.1", "running")
        endings = ["done", "failed", "cancelled", "done"] * 2
        said = at_once(lambda end: known.update_task_status("1.1", end), endings)
        final = records.get_task("1.1").status
        for ending, outcome in zip(endings, said, strict=True):
            assert (outcome is None) if ending == final else isinstance(outcome, IllegalTransitionError)

    def test_eight_threads_start_one_attempt(self, known: TaskRegistry, records: Records) -> None:
        assert at_once(lambda _: known.update_task_status("1.1", "running"), range(8)) == [None] * 8
        assert records.get_task("1.1").attempt == 1

    def test_a_registry_that_is_not_there_is_a_connection_error(self, unreachable: TaskRegistry) -> None:
        for tell in (
            lambda: unreachable.register_task(task()),
            lambda: unreachable.update_task_status("1.1", "running"),
            lambda: unreachable.add_event("1.1", "e"),
            lambda: unreachable.add_artifact("1.1", "log", "u"),
        ):
            with pytest.raises(ServiceConnectionError) as caught:
                tell()
            assert caught.value.retryable
