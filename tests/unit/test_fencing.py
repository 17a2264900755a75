from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import TaskContext, TaskContextValidationError
from necrocode.agent_runner.fencing import LOG_FORMAT, Fence, HandedLease, fence_in, signed
from tests.support.repositories import git, make_repository

FENCE = Fence(epoch=3, lineage="ab12")
TRAILERS = "Necrocode-Run: run-1\nNecrocode-Epoch: 3\nNecrocode-Lineage: ab12\n"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("feat: t", f"feat: t\n\n{TRAILERS}"),
        ("t\n\nbody\n\n", f"t\n\nbody\n\n{TRAILERS}"),
        ("t\n\nbody\n\nSigned-off-by: a <a@b>", f"t\n\nbody\n\nSigned-off-by: a <a@b>\n{TRAILERS}"),
        ("t (run-1)", "t (run-1)\n\nNecrocode-Epoch: 3\nNecrocode-Lineage: ab12\n"),
    ],
)
def test_a_message_ends_with_who_made_the_commit(message: str, expected: str) -> None:
    assert signed(message, "run-1", FENCE) == expected


def test_without_a_lease_a_message_names_the_run_alone() -> None:
    assert signed("t", "run-1", None) == "t\n\nNecrocode-Run: run-1\n"
    assert signed("t run-1", "run-1", None) == "t run-1"


_LINES = st.sampled_from(
    [
        "Necrocode-Epoch: 999",
        " necrocode-epoch : 9",
        "NECROCODE-LINEAGE: zz",
        "Signed-off-by: a",
        "text",
        "",
        "---",
        "# c",
    ]
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_repository(tmp_path_factory.mktemp("signed") / "repo")


@settings(max_examples=25, deadline=None)
@given(lines=st.lists(_LINES, max_size=6), fence=st.sampled_from([FENCE, Fence(epoch=0), None]))
def test_git_reads_what_was_written_whatever_the_tasks_text_says(
    repository: Path, lines: list[str], fence: Fence | None
) -> None:
    message = signed("\n".join(["title", "", *lines]), "run-1", fence)
    tree = git(repository, "rev-parse", "HEAD^{tree}")
    commit = git(repository, "commit-tree", tree, stdin=message.encode())
    _, epochs, lineages = git(repository, "log", "-1", f"--format={LOG_FORMAT}", commit).split("\0")
    assert fence_in(epochs, lineages) == fence


@pytest.mark.parametrize("epochs", ["", "x", "-1", "1.5", "9" * 30, "٣", "9" * 5000])
def test_a_trailer_that_names_no_epoch_is_none(epochs: str) -> None:
    assert fence_in(epochs, "") is None


def test_a_lineage_that_can_be_none_makes_no_fence() -> None:
    assert fence_in("1", "../x") is None


def test_epochs_are_compared_within_one_count() -> None:
    assert Fence(epoch=1, lineage="a").is_older_than(Fence(epoch=2, lineage="a"))
    assert not Fence(epoch=2, lineage="a").is_older_than(Fence(epoch=2, lineage="a"))
    assert not Fence(epoch=1, lineage="a").is_older_than(Fence(epoch=2, lineage="b"))
    assert not Fence(epoch=1).is_older_than(Fence(epoch=2, lineage="b"))


def test_a_task_may_bring_a_lease_and_shows_no_token(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(
        "task_id: '1'\nspec_name: s\ntitle: t\ndescription: d\nrepo_url: /r\nlease: {token: hush-hush, epoch: 2}\n"
    )
    task = TaskContext.from_yaml(file)
    assert isinstance(task.lease, HandedLease)
    assert (task.lease.fence, task.lease.token.get_secret_value()) == (Fence(epoch=2), "hush-hush")
    assert "hush" not in f"{task!r} {task} {task.model_dump_json()} {task.model_dump()}"


@pytest.mark.parametrize(
    "lease", [{"token": "", "epoch": 1}, {"token": "hush-hush"}, {"token": "hush-hush", "epoch": -1}, "hush-hush"]
)
def test_a_lease_that_can_be_none_is_refused_and_not_shown(lease: object) -> None:
    with pytest.raises(TaskContextValidationError, match="lease") as caught:
        TaskContext(task_id="1", spec_name="s", title="t", description="d", repo_url="/r", lease=lease)
    assert "hush" not in str(caught.value)
