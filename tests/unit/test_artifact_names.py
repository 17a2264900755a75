from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from necrocode.agent_runner.clients import _artifact_names as names

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)


@given(anything, anything, anything, anything)
def test_any_names_make_one_key_that_leads_nowhere_else(kind: str, spec: str, task: str, run: str) -> None:
    key = names.key_for(kind, {"spec_name": spec, "task_id": task, "run_id": run})
    assert names.is_key(key)
    assert all(part not in {"", ".", ".."} and not part.startswith("+") for part in key.split("/"))
    assert key.isascii()
    assert key.isprintable()


@given(anything, anything)
def test_an_id_is_one_segment_and_leads_back(kind: str, task: str) -> None:
    for key, _ in zip(names.versions(names.key_for(kind, {"task_id": task})), range(12), strict=False):
        artifact_id = names.id_of(key)
        assert names.key_of_id(artifact_id) == key
        assert set(artifact_id) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(anything)
def test_no_text_is_an_id_by_chance_and_none_is_trusted(text: str) -> None:
    key = names.key_of_id(text)
    assert key is None or (names.is_key(key) and names.id_of(key) == text)


@given(st.text("./+ab%\\\0", max_size=20))
def test_an_id_of_a_path_that_leads_elsewhere_is_none(path: str) -> None:
    made = base64.urlsafe_b64encode(path.encode()).decode().rstrip("=")
    key = names.key_of_id(made)
    assert key is None or not {"", ".", ".."} & set(key.split("/"))


@pytest.mark.parametrize("kind", ["log", "diff", "test", "transcript", "x", "x.bin.json", "test.json", "a.json"])
def test_a_description_is_never_taken_for_an_artifact(kind: str) -> None:
    for key, _ in zip(names.versions(names.key_for(kind, {})), range(12), strict=False):
        assert names.described_by(key) is None
        assert names.described_by(names.sidecar_of(key)) == key
        assert not names.is_key(names.sidecar_of(key))


def test_versions_are_all_different() -> None:
    keys = list(names.versions("a/b/c/log.txt"))
    assert keys[:3] == ["a/b/c/log.txt", "a/b/c/log-2.txt", "a/b/c/log-3.txt"]
    assert len(set(keys)) == len(keys) == names.MOST_VERSIONS - 1


@pytest.mark.parametrize(
    ("reference", "key"),
    [
        ("http://host:8003/artifacts/YS9iL2MvZA", "a/b/c/d"),
        ("https://host/base/artifacts/YS9iL2MvZA", "a/b/c/d"),
        ("YS9iL2MvZA", "a/b/c/d"),
        ("s3://bucket/deep/prefix/a/b/c/d", "a/b/c/d"),
        ("s3://bucket/a/b%20b/c/d", "a/b b/c/d"),
    ],
)
def test_ids_are_found_in_uris(reference: str, key: str) -> None:
    assert names.key_of_id(names.id_in(reference)) == key
