from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from necrocode.agent_runner._trees import remove_tree
from necrocode.agent_runner.clients._pool_files import Trash
from tests.support.trees import make_deep

_NOBODY = 65534
_AS_NOBODY = """\
import os, pathlib, sys
from necrocode.agent_runner._trees import remove_tree
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
remove_tree(pathlib.Path(sys.argv[1]))
"""


def test_a_folder_goes_whatever_is_in_it_and_no_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir(mode=0o750)
    (tmp_path / "outside/kept").write_text("kept")
    deep = tmp_path / "folder/a/b/c"
    deep.mkdir(parents=True)
    (deep / "link").symlink_to(tmp_path / "outside")
    (deep / "up").symlink_to("..")
    os.mkfifo(deep / "fifo")
    (deep / "file").write_text("x")
    for path in (deep / "file", deep, deep.parent, deep.parent.parent):
        path.chmod(0)
    remove_tree(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()
    assert (tmp_path / "outside/kept").read_text() == "kept"
    assert stat.S_IMODE((tmp_path / "outside").stat().st_mode) == 0o750
    remove_tree(tmp_path / "folder")


def test_a_link_to_a_folder_is_no_tree(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/kept").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    remove_tree(tmp_path / "link")
    assert (tmp_path / "outside/kept").read_text() == "kept"


def test_a_tree_deeper_than_any_path_goes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    make_deep(tmp_path / "folder")
    before = len(list(Path("/proc/self/fd").iterdir()))
    remove_tree(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_a_user_without_rights_in_its_own_folders_gets_rid_of_them() -> None:
    with tempfile.TemporaryDirectory() as name:  # tmp_path is shut to others
        folder = Path(name)
        deep = folder / "tree/a/b/c"
        deep.mkdir(parents=True)
        (deep / "file").write_text("x")
        for path in (deep, deep.parent, deep.parent.parent, folder / "tree"):
            os.chown(path, _NOBODY, _NOBODY)
            path.chmod(0)
        os.chown(folder, _NOBODY, _NOBODY)
        subprocess.run([sys.executable, "-c", _AS_NOBODY, str(folder / "tree")], check=True, timeout=30)
        assert list(folder.iterdir()) == []


def test_the_trash_takes_and_deletes_a_deep_tree(tmp_path: Path) -> None:
    trash = Trash(tmp_path / "trash")
    (tmp_path / "folder").mkdir()
    make_deep(tmp_path / "folder")
    trash.take(tmp_path / "folder")
    assert trash.empty() == 1
    assert list((tmp_path / "trash").iterdir()) == []


def test_a_trash_that_cannot_be_listed_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "trash").write_text("no folder")
    trash = Trash(tmp_path / "trash")
    assert trash.empty() == 0
    trash.empty_later()
    assert "cannot be emptied" in caplog.text
