"""Names that come from outside (task files, model answers), checked before anything is done with them.

Each ``check_...`` returns the value or raises :class:`ValueError` with a text that names the rule; the caller puts
it into the error type of its own boundary.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit

from necrocode.agent_runner._invisible import invisible_in, told, visible

if TYPE_CHECKING:
    from pathlib import Path

MAX_PATH_BYTES = 4095  # Linux PATH_MAX less the closing NUL
MAX_COMPONENT_BYTES = 255  # Linux NAME_MAX, the same on ext4, xfs, btrfs, APFS and NTFS
MAX_BRANCH_BYTES = 240  # a ref's last component becomes a file name, and git adds ".lock" to it
MAX_SLUG_CHARACTERS = 50

# Code points that HFS+ ignores in names: ".g<U+200C>it" opens ".git" there (git's utf8.c, next_hfs_char).
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")
# As git's compat/mingw.c, is_valid_win32_path, has it: spaces before the dot do not count; superscripts do.
_WINDOWS_DEVICE = re.compile(r"(?i)^(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$|clock\$) *(\..*)?$")
_WINDOWS_FORBIDDEN = re.compile(r'[<>:"|?*]')
# git's own files, and the 8.3 aliases that NTFS gives them: the first six letters, or from the fifth file of that
# beginning on a hash (git's path.c, is_ntfs_dot_generic; the hashes are from its callers).
_GIT_FILES = {"gitmodules": "gi7eba", "gitattributes": "gi7d29", "gitignore": "gi250a", "mailmap": "maba30"}
_GIT_FILE_ALIAS = re.compile(
    "|".join(
        [rf"{name[:6]}~[1-4]" for name in _GIT_FILES]
        + [rf"{start[:kept]}~[1-9][0-9]{{{6 - kept}}}" for start in _GIT_FILES.values() for kept in range(7)]
    )
)
_GIT_SHORT_NAME = re.compile(r"^git~[0-9]+$")  # the 8.3 alias of ".git" on NTFS
_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SPEC_NAME = re.compile(r"[^\W_][\w.-]{0,127}")
GitProtocol = Literal["https", "ssh", "http", "git", "file"]
GIT_PROTOCOLS: tuple[GitProtocol, ...] = ("https", "ssh", "http", "git", "file")
TOKEN_HOSTS = ("github.com", "gitlab.com", "bitbucket.org", "localhost", "127.0.0.1")
"""Whom the git token is for, where the operator names nobody."""
_HOST = re.compile(r"(?:\[[0-9a-f:]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::[0-9]{1,5})?")
_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}
_NO_HOST = re.compile(r"-|$|.*[\s<>\"{}|^`]")
_BRACKETED = re.compile(r"(?:[^/:@]*@)?\[")
_SCP_LIKE = re.compile(r"(?:[^/:\[]*@)?(?:\[(?P<bare>[^/\]]*)\]|(?P<host>[^/:]*)):(?P<path>.*)", re.DOTALL)
_URL_USER = re.compile(r"(?i)(https?://)[^/?#\s'\"]{1,1024}@")
_CLASS = re.compile(r"\[!?\]?[^\]]*\]")  # as fnmatch has it
_BRANCH_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//")


def has_control_character(text: str) -> bool:
    """Whether the text holds a C0 or C1 control character, DEL, or a line or paragraph separator."""
    return any(unicodedata.category(char) in {"Cc", "Zl", "Zp"} for char in text)


def check_task_id(value: str) -> str:
    """A task's id: ASCII, for it becomes part of URLs, branch names and folders."""
    if not _TASK_ID.fullmatch(value) or ".." in value:
        raise ValueError("must be 1 to 128 letters, digits, '.', '_' or '-', start with a letter or digit, no '..'")
    return value


def check_spec_name(value: str) -> str:
    """A spec's name: as a task's id, with letters and digits of any script."""
    _refuse_invisible(value)
    if not _SPEC_NAME.fullmatch(value) or ".." in value:
        raise ValueError("must be 1 to 128 letters, digits, '.', '_' or '-', start with a letter or digit, no '..'")
    return value


def check_branch_name(name: str) -> str:
    """A branch name by the rules of ``git check-ref-format --branch``, which also refuses a leading dash."""
    if not name or name in {"@", "HEAD"}:
        raise ValueError(f"{name!r} is not a branch name")
    if name.startswith(("-", "/", "refs/")) or name.endswith(("/", ".")):
        raise ValueError(f"branch name {name!r} may not start with '-', '/' or 'refs/', nor end with '/' or '.'")
    if _BRANCH_FORBIDDEN.search(name) or has_control_character(name):
        raise ValueError(f"branch name {name!r} holds a space, '..', '@{{' or one of ~ ^ : ? * [ \\ or '//'")
    _refuse_invisible(name)
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        raise ValueError(f"branch name {name!r} has a part that starts with '.' or ends with '.lock'")
    if len(name.encode()) > MAX_BRANCH_BYTES:
        raise ValueError(f"branch name is longer than {MAX_BRANCH_BYTES} bytes")
    return name


def _refuse_invisible(name: str) -> None:
    """Two names that look like one are a trap."""
    if hidden := invisible_in([f" {name}"]):
        raise ValueError(f"{_shown_path(visible(name))} holds characters that nobody sees: {told(hidden)}")


@dataclass(frozen=True)
class Remote:
    """Where git would go for a repository."""

    protocol: str
    """``https``, ``http``, ``ssh``, ``git``, or ``file`` for this machine."""
    host: str = ""
    """Without brackets; empty for ``file``."""
    port: int = 0
    """0: the URL names none."""
    path: str = ""
    spelled: str = field(default="", compare=False)
    """Host and port as the URL has them, in its letters; empty where it is none."""

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this machine."""
        return self.protocol == "file"

    @property
    def port_or_default(self) -> int:
        """The port that git connects to."""
        return self.port or _PORTS.get(self.protocol, 0)

    @property
    def authority(self) -> str:
        """Host and port as git shows them."""
        if self.spelled:
            return self.spelled
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" if self.port else host


def remote_of(url: str) -> Remote:
    """What git makes of a URL, of ``host:path``, or of a local path; ``ValueError`` for what git must not be given."""
    if not url or url.startswith("-") or has_control_character(url):
        raise ValueError("a repository URL may not be empty, start with '-' or hold control characters")
    if len(url.encode(errors="replace")) > MAX_PATH_BYTES:
        raise ValueError(f"a repository URL may have at most {MAX_PATH_BYTES} bytes")
    if "::" in url.split("/", 1)[0] and not _BRACKETED.match(url):
        raise ValueError(f"{url.split('::', 1)[0]}:: is a remote helper, which could run any command")
    remote = _remote_of_url(url) if "://" in url else _remote_of_place(url)
    if remote.protocol != "file" and _NO_HOST.match(remote.host):
        raise ValueError("the URL has no valid host")
    return remote


def _remote_of_url(url: str) -> Remote:
    parts = urlsplit(url)
    if set("%\\") & set(parts.netloc):  # git decodes these before it looks where the host ends
        raise ValueError("the host part of the URL may not hold '%' or a backslash")
    if parts.scheme == "file":
        if parts.netloc not in {"", "localhost"}:
            raise ValueError("a file URL names no host (git would ignore it): file:///path")
        return Remote("file", path=unquote(parts.path))
    if parts.scheme not in _PORTS:
        raise ValueError(f"the scheme {parts.scheme!r} is not one of {', '.join([*_PORTS, 'file'])}")
    if parts.netloc.startswith("-"):
        raise ValueError("the host part of the URL may not start with '-'")
    if parts.password is not None:
        raise ValueError("the URL holds a user or password, which would end up in git's files; use GIT_TOKEN instead")
    return Remote(parts.scheme, parts.hostname or "", parts.port or 0, parts.path, parts.netloc.rpartition("@")[2])


def _remote_of_place(url: str) -> Remote:
    """``host:path`` or a local path: by connect.c a colon before the first slash makes the difference."""
    found = _SCP_LIKE.fullmatch(url)
    if found is None:
        _check_lengths(url)
        return Remote("file", path=url)
    host, port = found["bare"] or found["host"], 0
    if found["bare"] is not None and host.count(":") == 1:  # [host:port]:path
        host, _, digits = host.partition(":")
        port = int(digits) if digits.isascii() and digits.isdigit() else 0
    return Remote("ssh", host.lower(), port, found["path"])


def mask_users(text: str) -> str:
    """The text with ``***`` for each user in an http or https URL: many hosts take a token there."""
    return _URL_USER.sub(r"\1***@", text)


def check_host(entry: str) -> str:
    """A host as lists of allowed ones name it: ``github.com``, ``[::1]``, with a port or without; in small letters."""
    host = entry.lower()
    if not _HOST.fullmatch(host):
        raise ValueError(f"{entry!r} is no host such as github.com or git.example.com:8443")
    return host


def check_pattern(pattern: str) -> str:
    """A pattern of paths inside a repository, in git's form, that some path can fit."""
    if not pattern.strip("/") or has_control_character(pattern):
        raise ValueError(f"{pattern!r} is no pattern of paths, such as deploy/*")
    if "\\" in pattern or "//" in pattern or {".", ".."} & set(pattern.removeprefix("./").split("/")):
        raise ValueError(f"{pattern!r} fits no path: paths have no backslash, and no empty, '.' or '..' part")
    if "[" in _CLASS.sub("", pattern):
        raise ValueError(f"{pattern!r} has a [ without its ]")
    return pattern


def check_repository_url(url: str) -> str:
    """A URL or local path that git may be given: no option, no helper transport, no password in it."""
    remote = remote_of(url)
    if remote.protocol in {"http", "https"} and urlsplit(url).username:
        raise ValueError("the URL holds a user or password, which would end up in git's files; use GIT_TOKEN instead")
    return url


def expand_home(path: Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder that it means."""
    if "\0" in str(path):
        raise ValueError("a path may not hold a NUL character")
    _check_lengths(str(path))
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"there is no home folder {path.parts[0]!r}") from None


def _check_lengths(path: str) -> None:
    """Refuse a path that no system call takes; it would fail somewhere else, over another text."""
    encoded = path.encode(errors="surrogateescape")
    if len(encoded) > MAX_PATH_BYTES or any(len(part) > MAX_COMPONENT_BYTES for part in encoded.split(b"/")):
        raise ValueError(f"a path may have at most {MAX_PATH_BYTES} bytes, and each part of it {MAX_COMPONENT_BYTES}")


def check_path_inside(path: str) -> str:
    """A path inside a repository, in git's form (``a/b.py``), that no file system reads as one of git's own.

    Some may not be able to hold it: see :func:`check_change_path`.
    """
    if not path:
        raise ValueError("the path is empty")
    shown = _shown_path(path)
    if has_control_character(path):
        raise ValueError(f"{shown} holds a control character or line break")
    if "\\" in path:
        raise ValueError(f"{shown} holds a backslash; paths use '/'")
    if re.match(r"^(?:[A-Za-z]:)?/", path):
        raise ValueError(f"{shown} is absolute; paths are relative to the repository")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{shown} is not valid Unicode") from None
    if size > MAX_PATH_BYTES:
        raise ValueError(f"{shown} is longer than {MAX_PATH_BYTES} bytes")
    for component in path.split("/"):
        _check_component(component, shown)
    return path


def check_change_path(path: str) -> str:
    """A path inside a repository that is safe on every file system, and seen as it is: for files not there yet."""
    check_path_inside(path)
    _refuse_invisible(path)
    for component in path.split("/"):
        if component.endswith((" ", ".")) or _WINDOWS_FORBIDDEN.search(component) or _WINDOWS_DEVICE.match(component):
            raise ValueError(
                f"{_shown_path(path)} has a part that some file systems cannot hold or read as something else"
            )
    return path


def _shown_path(path: str) -> str:
    return repr(path if len(path) <= MAX_SLUG_CHARACTERS * 2 else path[: MAX_SLUG_CHARACTERS * 2] + "...")


def _check_component(component: str, shown: str) -> None:
    if component in {"", ".", ".."}:
        raise ValueError(f"{shown} has an empty, '.' or '..' part")
    if len(component.encode()) > MAX_COMPONENT_BYTES:
        raise ValueError(f"{shown} has a part longer than {MAX_COMPONENT_BYTES} bytes")
    if _is_git_directory(component):
        raise ValueError(f"{shown} would reach into git's own directory")
    if _is_git_file_in_disguise(component):
        raise ValueError(f"{shown} has a part that some file systems read as one of git's own files")


def _is_git_directory(component: str) -> bool:
    """Whether any of Linux, macOS (HFS+) or Windows (NTFS) would open ``.git`` under this name."""
    plain = _as_opened(component)
    return plain == ".git" or _GIT_SHORT_NAME.match(plain) is not None


def _is_git_file_in_disguise(component: str) -> bool:
    """Whether any of them would open ``.gitmodules`` or its like under this name, though it is another one."""
    plain = _as_opened(component)
    is_other = component.casefold() != plain
    return _GIT_FILE_ALIAS.fullmatch(plain) is not None or (is_other and plain.removeprefix(".") in _GIT_FILES)


def _as_opened(component: str) -> str:
    """The name that a file system may make of a name."""
    folded = _HFS_IGNORED.sub("", unicodedata.normalize("NFKC", component)).casefold()
    return folded.split(":", 1)[0].rstrip(" .")


def slug(text: str, *, fallback: str = "task", max_bytes: int = MAX_COMPONENT_BYTES) -> str:
    """The text as a part of a branch or file name: letters and digits of any script kept, the rest made dashes.

    A Japanese title stays readable (git refs are UTF-8); a text with no letter or digit becomes ``fallback``.
    """
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", visible(text)).casefold()).strip("-")
    kept = words[:MAX_SLUG_CHARACTERS].encode()[:max_bytes].decode(errors="ignore")
    return kept.strip("-") or fallback


def task_branch(spec_name: str, task_id: str, title: str) -> str:
    """``feature/task-{spec}-{id}-{title}``; spec and title give way where all of it would be too long for git."""
    room = MAX_BRANCH_BYTES - len(f"feature/task--{task_id}-")
    spec = slug(spec_name, fallback="spec", max_bytes=room * 2 // 3)
    return f"feature/task-{spec}-{task_id}-{slug(title, max_bytes=room - len(spec.encode()))}"


def fold_name(name: str) -> str:
    """The form under which two names are one file on a case-insensitive or normalising file system."""
    return unicodedata.normalize("NFC", name).casefold()


def slot_holder(runner_id: str, run_id: str) -> str:
    """Who holds the slot of a run: a runner has many runs, and only one of them may have died."""
    return f"{runner_id}/{run_id}"
