"""What a store does with the uploads of a runner that was overtaken."""

from __future__ import annotations

from typing import Any

import pytest

from necrocode.agent_runner import ArtifactFilter, ArtifactUploadError, LocalArtifactStore, StaleLeaseError
from tests.contracts.threads import at_once

PLACE = {"task_id": "1.1", "spec_name": "仕様", "run_id": "run-1"}


def under(epoch: Any, lineage: str = "a1", **more: Any) -> dict[str, Any]:
    return PLACE | {"lease_epoch": epoch, "lease_lineage": lineage} | more


class ArtifactFenceContract:
    """Inherit it, and say what the store under test, ``keeper``, is."""

    def test_what_an_overtaken_run_uploads_is_refused(self, keeper: LocalArtifactStore) -> None:
        early = keeper.upload("log", b"1", under(1))
        late = keeper.upload("log", b"2", under(2, run_id="run-2"))
        before = [one.uri for one in keeper.walk()]
        for kind in ("log", "manifest"):
            with pytest.raises(StaleLeaseError, match="what a run of epoch 1 uploads is refused") as caught:
                keeper.upload(kind, b"3", under(1))
            assert (caught.value.status_code, caught.value.retryable) == (409, False)
        with pytest.raises(StaleLeaseError):
            keeper.upload("log", b"1", under(1))  # what is there already, too
        assert [one.uri for one in keeper.walk()] == before
        assert {early, late} <= set(before)
        keeper.upload("log", b"4", under(2, run_id="run-2"))
        keeper.upload("log", b"5", under(30, run_id="run-3"))
        with pytest.raises(StaleLeaseError):
            keeper.upload("log", b"6", under(4))

    def test_epochs_of_other_tasks_and_of_other_counts_are_not_compared(self, keeper: LocalArtifactStore) -> None:
        keeper.upload("log", b"1", under(5))
        for other in (under(1, "b2"), under(1, ""), under(1, task_id="1.2"), under(1, spec_name="other"), PLACE):
            keeper.upload("log", b"2", other)
        without_a_task = {"lease_epoch": 1, "lease_lineage": "a1"}
        keeper.upload("log", b"3", without_a_task)

    def test_what_is_remembered_is_no_artifact(self, keeper: LocalArtifactStore) -> None:
        uri = keeper.upload("log", b"1", under(3))
        assert [one.uri for one in keeper.walk()] == [uri]
        report = keeper.verify()
        assert (report.checked, report.orphans, report.damaged) == (1, (), ())
        assert keeper.usage().count == 1
        keeper.delete_matching(ArtifactFilter(task_id="1.1"))
        keeper.sweep()
        with pytest.raises(StaleLeaseError):
            keeper.upload("log", b"1", under(2))

    @pytest.mark.parametrize("epoch", ["1", -1, 1.5, True, [1], 2**63])
    def test_an_epoch_that_can_be_none_is_refused(self, keeper: LocalArtifactStore, epoch: Any) -> None:
        with pytest.raises(ArtifactUploadError) as caught:
            keeper.upload("log", b"1", under(epoch))
        assert caught.value.status_code in {400, 422}
        assert list(keeper.walk()) == []

    @pytest.mark.parametrize("lineage", ["../x", "a/b", "x" * 65, "é"])
    def test_a_lineage_that_can_be_none_is_refused(self, keeper: LocalArtifactStore, lineage: str) -> None:
        with pytest.raises(ArtifactUploadError):
            keeper.upload("log", b"1", under(1, lineage))

    def test_many_at_once_leave_the_newest_in_force(self, keeper: LocalArtifactStore) -> None:
        done = at_once(lambda epoch: keeper.upload("log", b"%d" % epoch, under(epoch, run_id=f"r{epoch}")), range(6))
        assert isinstance(done[5], str)
        assert all(isinstance(one, (str, StaleLeaseError)) for one in done)
        with pytest.raises(StaleLeaseError):
            keeper.upload("log", b"late", under(4, run_id="r4"))
