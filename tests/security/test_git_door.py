"""Nothing starts git but ``_git/door.py``: by the source, and by what a whole run really starts."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import necrocode
from tests.support.bench import GOOD_ANSWER
from tests.support.repositories import CALC_TEST_COMMAND, make_repository

PACKAGE = Path(necrocode.__file__).parent
DOOR = "agent_runner/_git/door.py"
# Who may start processes at all: the door, and those that run test commands and the sandbox around them.
STARTERS = {DOOR, "agent_runner/_process.py", "agent_runner/sandbox/launching.py", "agent_runner/sandbox/layer.py"}
# In the launcher's own process, which has an empty environment and forks for each command.
FORKERS = {
    "agent_runner/sandbox/kernel.py",
    "agent_runner/sandbox/launcher.py",
    "agent_runner/sandbox/room.py",
    "agent_runner/sandbox/walls.py",
}
GIT_LIBRARIES = {"git", "gitdb", "dulwich", "pygit2", "sh", "plumbum", "pexpect"}
STARTING = {"system", "popen", "posix_spawn", "posix_spawnp", "fork", "forkpty", "startfile"}


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    return tuple(modules())


def modules() -> Iterator[tuple[str, ast.Module]]:
    for file in sorted(PACKAGE.rglob("*.py")):
        yield file.relative_to(PACKAGE).as_posix(), ast.parse(file.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """The top names of what is imported at run time."""
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    nodes = [node for node in ast.walk(tree) if node not in skipped]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.partition(".")[0] for name in names}


def test_no_module_uses_a_library_that_starts_git() -> None:
    assert {name for name, tree in trees() if imported(tree) & GIT_LIBRARIES} == set()


def test_few_modules_can_start_a_process_at_all() -> None:
    found = {name for name, tree in trees() if imported(tree) & {"subprocess", "multiprocessing", "pty"}}
    found |= {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in {"os", "asyncio"}
        and (node.attr in STARTING or node.attr.startswith(("exec", "spawn", "create_subprocess")))
    }
    assert found - FORKERS == STARTERS


def test_the_door_alone_names_git_as_a_program() -> None:
    found = {
        name
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.List | ast.Tuple)
        and node.elts
        and isinstance(node.elts[0], ast.Constant)
        and isinstance(node.elts[0].value, str)
        and node.elts[0].value.rpartition("/")[2] == "git"
        and name in STARTERS | FORKERS
    }
    assert found == {DOOR}


WATCHED_RUN = """
import json, sys, traceback

seen = []

def watch(event, arguments):
    if event in {"subprocess.Popen", "os.posix_spawn", "os.exec", "os.system"}:
        files = [frame.filename for frame in traceback.extract_stack()]
        argv = arguments[1] if event != "os.system" else arguments[0]
        environment = dict(arguments[3] or {}) if event == "subprocess.Popen" else None
        seen.append([event, [str(word) for word in argv], environment, files])

sys.addaudithook(watch)

from necrocode.agent_runner import RunnerConfig, RunnerOrchestrator, ScriptedLLM, TaskContext

state, remote, answer, command, *brought = sys.argv[1:]
task = TaskContext(task_id="1", spec_name="s", title="t", description="Mend add.", test_commands=[command],
                   repo_url=None if brought else remote, slot_path=brought[0] if brought else None)
config = RunnerConfig(state_dir=state, sandbox="none")
with RunnerOrchestrator(config, llm=ScriptedLLM([answer])) as orchestrator:
    result = orchestrator.run(task)
print(json.dumps({"status": result.status, "error": result.error, "seen": seen}))
"""


def watched_run(folder: Path, *brought: Path) -> list[tuple[list[str], dict[str, str] | None, list[str]]]:
    remote = make_repository(folder / "remote", branch="trunk")
    hostile = {"GIT_DIR": "/nowhere", "GIT_TRACE": "1", "GIT_CONFIG_PARAMETERS": "'a.b=c'", "OPENAI_API_KEY": "k3y"}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_RUN, folder / "state", remote, GOOD_ANSWER, CALC_TEST_COMMAND, *brought],
        capture_output=True,
        check=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path), "HOME": str(folder), **hostile},
    )
    told = json.loads(done.stdout)
    assert (told["status"], told["error"]) == ("done", None)
    return [(argv, environment, files) for _, argv, environment, files in told["seen"]]


def assert_all_came_through_the_door(starts: list[tuple[list[str], dict[str, str] | None, list[str]]]) -> None:
    of_git = [start for start in starts if any("git" in word.rpartition("/")[2][:4] for word in start[0][:1])]
    assert len(of_git) > 5
    for argv, environment, files in of_git:
        assert any(file.endswith(DOOR) for file in files), argv
        assert environment is not None
        assert environment["GIT_CONFIG_NOSYSTEM"] == "1"
        assert environment["GIT_CONFIG_GLOBAL"].startswith(environment["HOME"])
        assert not environment.keys() & {"GIT_DIR", "GIT_TRACE", "GIT_CONFIG_PARAMETERS", "OPENAI_API_KEY"}
        assert "safe.bareRepository" in environment.values()
    others = [argv for argv, _, files in starts if not any(file.endswith(DOOR) for file in files)]
    assert not [argv for argv in others if argv[0].rpartition("/")[2].startswith("git")]


def test_every_git_of_a_run_in_the_pool_comes_through_the_door(tmp_path: Path) -> None:
    assert_all_came_through_the_door(watched_run(tmp_path))


def test_every_git_of_a_run_in_a_brought_checkout_comes_through_the_door(tmp_path: Path) -> None:
    assert_all_came_through_the_door(watched_run(tmp_path, make_repository(tmp_path / "brought")))
