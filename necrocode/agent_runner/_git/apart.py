"""A repository beside another one: the same objects, and nothing of the other one's configuration.

``http.proxy``, ``http.sslVerify``, ``http.cookieFile``, ``url.*.insteadOf``, several URLs of one remote: there is no
list of what a configuration can do to a push that would be whole. So commands that talk to remotes run here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_PREFIX = "apart-"
_DAY_SECONDS = 86_400
_CONFIG = "[core]\n\trepositoryformatversion = 1\n\tbare = true\n[extensions]\n\tobjectFormat = {}\n"


def sweep(home: Path) -> None:
    """Remove what killed processes have left below ``home``; no push takes a day."""
    for folder in home.glob(f"{_PREFIX}*"):
        with suppress(OSError):  # another process sweeps too
            if time.time() - folder.lstat().st_mtime > _DAY_SECONDS:
                shutil.rmtree(folder)


@contextmanager
def apart(home: Path, objects: Path, object_format: str, known: Sequence[str] = ()) -> Iterator[Path]:
    """A bare repository below ``home``, for as long as the block lasts, whose objects are in the folder ``objects``.

    ``known``: commits that a fetch need not ask for. What a fetch gets is in ``objects`` afterwards.
    """
    with tempfile.TemporaryDirectory(prefix=_PREFIX, dir=home) as name:
        folder = Path(name)
        (folder / "refs").mkdir()
        (folder / "HEAD").write_text("ref: refs/heads/none\n")
        (folder / "config").write_text(_CONFIG.format(object_format))
        (folder / "packed-refs").write_text("".join(f"{commit} refs/known/{commit}\n" for commit in sorted({*known})))
        (folder / "objects").symlink_to(objects)
        (folder / "shallow").symlink_to(objects.parent / "shallow")  # where history ends: git writes through the link
        yield folder
