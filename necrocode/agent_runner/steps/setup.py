"""Set up: install what the tests need, once for the same dependency files, and lay that under every run of the tests.

What is kept for other runs is made on the base alone, never from a model's change: a change that touches a dependency
file gets a set-up of its own, which nobody else is shown. Nor do repositories, or branches that runs start from, share
any: who can write to one could otherwise decide what runs in the tests of another.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from contextlib import ExitStack
from fnmatch import fnmatchcase
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Self

from necrocode.agent_runner._text import one_line
from necrocode.agent_runner.errors import ChangedSetupError, SetupError, TestExecutionError
from necrocode.agent_runner.sandbox.kept import made_fit
from necrocode.agent_runner.sandbox.setup_cache import SetupCache
from necrocode.agent_runner.verdict.feedback import ending, failure_feedback
from necrocode.agent_runner.verdict.test_run import masked, masked_output

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from necrocode.agent_runner._clock import Deadline
    from necrocode.agent_runner._git import TreeEntry
    from necrocode.agent_runner._redact import Redactor
    from necrocode.agent_runner.config import RunnerConfig
    from necrocode.agent_runner.models import TaskContext
    from necrocode.agent_runner.protocols import Sandbox
    from necrocode.agent_runner.test_results import StopReason, TestResult
    from necrocode.agent_runner.workspace import Workspace

DEPENDENCY_FILES = (
    "*requirements*.txt", "*requirements*.in", "requirements/*.txt", "requirements/*.in", "constraints*.txt",
    "pyproject.toml", "setup.py", "setup.cfg", "Pipfile", "Pipfile.lock", "poetry.lock", "poetry.toml", "uv.lock",
    "uv.toml", "pdm.lock", "pylock*.toml", "pixi.toml", "pixi.lock", "environment*.yml", "environment*.yaml",
    "conda-lock.yml", "package.json", "package-lock.json", "npm-shrinkwrap.json", ".npmrc", "yarn.lock", ".yarnrc",
    ".yarnrc.yml", "pnpm-lock.yaml", "pnpm-workspace.yaml", ".pnpmfile.cjs", "bun.lock", "bun.lockb", "deno.json",
    "deno.lock", "go.mod", "go.sum", "go.work", "go.work.sum", "Cargo.toml", "Cargo.lock", "rust-toolchain",
    "rust-toolchain.toml", ".cargo/config.toml", "Gemfile", "Gemfile.lock", "*.gemspec", "composer.json",
    "composer.lock", "pom.xml", "*.gradle", "*.gradle.kts", "gradle.properties", "*.lockfile", "libs.versions.toml",
    "gradle-wrapper.properties", "verification-metadata.xml", "build.sbt", "mix.exs", "mix.lock", "rebar.config",
    "rebar.lock", "pubspec.yaml", "pubspec.lock", "Package.swift", "Package.resolved", "*.csproj", "*.fsproj",
    "*.vbproj", "*.props", "nuget.config", "packages.config", "packages.lock.json", "global.json", "stack.yaml",
    "stack.yaml.lock", "*.cabal", "cabal.project*", "conanfile.txt", "conanfile.py", "conan.lock", "vcpkg.json",
    "cpanfile", "cpanfile.snapshot", "renv.lock", "Manifest.toml", "Project.toml", "flake.nix", "flake.lock",
    ".tool-versions", ".mise.toml", "mise.toml", ".python-version", ".nvmrc", ".node-version", ".ruby-version",
    ".java-version",
)  # fmt: skip
"""Globs of the files that decide what is installed, in any folder; a slash stands for one, as does ``*``."""
_TOOLS = (
    "python3", "python", "pip", "uv", "poetry", "pipenv", "pdm", "conda", "node", "npm", "yarn", "pnpm", "bun", "deno",
    "go", "cargo", "rustc", "cc", "ruby", "bundle", "php", "composer", "java", "mvn", "gradle", "sbt", "mix", "elixir",
    "dart", "flutter", "swift", "dotnet", "ghc", "cabal", "stack", "make",
)  # fmt: skip
_FORMAT = 1
_TOLD_CHARACTERS = 2_000
_TOLD_LINES, _LINE_CHARACTERS = 3, 200
_BASE_HINT = "Mend setup_commands, or what they need (setup_network, test_environment, sandbox_read_paths)."
_LIMIT_SETTINGS: dict[StopReason, str] = {
    "timeout": "the task's timeout_seconds",
    "cpu-limit": "max_test_cpu_seconds",
    "oom": "max_test_memory_bytes",
    "process-limit": "max_test_processes",
    "output-limit": "max_test_output_bytes",
    "disk-limit": "max_test_file_bytes or max_test_disk_bytes",
}


class Setups:
    """What the tests of one run need besides the checkout; as a context, it holds what they use until the end."""

    def __init__(
        self,
        task: TaskContext,
        workspace: Workspace,
        sandbox: Sandbox,
        *,
        config: RunnerConfig,
        redactor: Redactor,
        deadline: Deadline,
        on_note: Callable[[str], None],
    ) -> None:
        self._commands = tuple(task.setup_commands)
        self._base_ref = task.base_ref or ""
        self._workspace = workspace
        self._sandbox = sandbox
        self._config = config
        self._redactor = redactor
        self._deadline = deadline
        self._on_note = on_note
        self._cache = SetupCache(config.state_dir / "setups", deadline.clock, config.setup_cache_bytes)
        self._held = ExitStack()
        self._folders: dict[str, Path] = {}
        self._files: dict[str, Mapping[str, tuple[TreeEntry, int]]] = {}
        self._keys: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._held.close()

    def prepare(self) -> None:
        """Have what the base's tests need; the checkout must hold the base.

        ``SetupError`` where a command fails, ``TestExecutionError`` where they cannot be run at all.
        """
        if self._commands:
            self.folder(self._base_tree)

    @property
    def _base_tree(self) -> str:
        return self._workspace.objects.tree_of(self._workspace.base_commit)

    def folder(self, tree: str) -> Path | None:
        """What lies below a run of the tree's tests; where that has yet to be made, the checkout must hold the tree.

        None for a task without set-up commands. ``ChangedSetupError`` where a command fails with the dependencies of a
        tree that is not the base's.
        """
        if not self._commands:
            return None
        key = self.key(tree)
        if key not in self._folders:
            is_kept = key == self.key(self._base_tree) and not self._workspace.is_brought
            fill = partial(self._fill, tree)
            folder = self._cache.kept(key, fill, self._deadline) if is_kept else self._cache.scratch(fill)
            try:
                self._folders[key] = self._held.enter_context(folder)
            except OSError as error:
                raise TestExecutionError(f"What set-up commands made cannot be kept: {error}.") from error
        return self._folders[key]

    def key(self, tree: str) -> str:
        """The same for two trees for which the set-up is the same, as far as can be told; empty without commands."""
        if not self._commands:
            return ""
        if tree not in self._keys:
            self._keys[tree] = self._key(tree)
        return self._keys[tree]

    def _key(self, tree: str) -> str:
        globs = [f"*/{glob}" for glob in (*DEPENDENCY_FILES, *self._config.setup_files)]
        found = [
            (path, entry.mode, entry.oid)
            for path, (entry, _) in sorted(self._tree_files(tree).items())
            if any(fnmatchcase(f"/{path}", glob) for glob in globs)
        ]
        config, workspace = self._config, self._workspace
        parts = [
            _FORMAT, found or self._base_tree, self._commands, config.setup_network,
            sorted(config.test_environment.items()), workspace.remote or str(workspace.path), self._base_ref,
            getattr(self._sandbox, "identity", ""), _machine(config.test_environment),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode(errors="surrogatepass")).hexdigest()

    def _tree_files(self, tree: str) -> Mapping[str, tuple[TreeEntry, int]]:
        if tree not in self._files:
            self._files[tree] = self._workspace.repository.files(tree, deadline=self._deadline)
        return self._files[tree]

    def _fill(self, tree: str, folder: Path) -> int:
        """Run the commands over the checkout, and leave in the folder what they wrote; its bytes."""
        result = self._sandbox.run_setup(
            self._commands,
            self._workspace.path,
            folder,
            tree=tree,
            environment=self._config.test_environment,
            has_network=self._config.setup_network,
            deadline=self._deadline,
        )
        self._workspace.check_hold()  # another holder may have written to the slot meanwhile: then it was not this tree
        if not result.success:
            raise self._failure(result, tree)
        paths = self._tree_files(tree)
        folders = {f"{step}/" for path in paths for step in accumulate(path.split("/")[:-1], "{}/{}".format)}
        size = made_fit(folder, {*paths, *folders})
        self._on_note(f"set up what the tests need in {result.duration_seconds:.1f} s, {size / 1e6:.1f} MB")
        return size

    def _failure(self, result: TestResult, tree: str) -> SetupError:
        shown = [
            one.model_copy(update={"output": masked_output(one.output, self._redactor)}) for one in result.commands
        ]
        failed = masked(shown[-1], self._redactor.text)
        told = failed.output.strip()[-_TOLD_CHARACTERS:]
        self._on_note(f"set-up: `{failed.command}` {ending(failed)}; its output ends so:\n{told}")
        what = f"`{one_line(failed.command)[:_LINE_CHARACTERS]}` {ending(failed)}{_last_lines(failed.output)}"
        limit = _LIMIT_SETTINGS.get(failed.stopped_by) if failed.stopped_by else None
        hint = None if limit is None else f"Raise {limit}, or have setup_commands need less."
        if self.key(tree) == self.key(self._base_tree):
            return SetupError(
                f"The set-up of the tests fails before any change: {what}",
                hint=hint or _BASE_HINT,
            )
        feedback = failure_feedback(result.model_copy(update={"commands": (failed,)}), None)
        return ChangedSetupError(
            f"The set-up of the tests fails with the dependencies that the change names: {what}",
            feedback=feedback,
            hint=hint,
        )


def _last_lines(output: str) -> str:
    """What a command said last, on one line and with a colon before it; empty: it said nothing."""
    lines = [one_line(line)[-_LINE_CHARACTERS:] for line in output.splitlines() if line.strip()]
    return f": {' | '.join(lines[-_TOLD_LINES:]).removesuffix('.')}." if lines else ""


def _machine(environment: Mapping[str, str]) -> list[object]:
    """System and tools, as far as what is installed may depend on them."""
    path = environment.get("PATH") or os.environ.get("PATH") or os.defpath
    found = (shutil.which(name, path=path) for name in _TOOLS)
    tools = [(tool, os.path.realpath(tool), *_mark(tool)) for tool in found if tool is not None]
    return [platform.platform(), sys.version, _text(Path("/etc/os-release")), os.getuid(), path, tools]


def _mark(tool: str) -> tuple[int, int]:
    try:
        found = Path(tool).stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
