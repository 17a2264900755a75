"""``necrocode migrate code``: uses are found by where a name comes from, and only what is safe is rewritten."""

from __future__ import annotations

import ast
import os
import subprocess
import time
import warnings
from pathlib import Path
from textwrap import dedent

import pytest

from necrocode.agent_runner import ConfigurationError, RunnerConfig, removed
from necrocode.migration import code_uses
from necrocode.migration.old_code import MAX_FILE_BYTES, Examined, diff_of, examine, examine_file
from necrocode.migration.old_settings import OLD_SETTINGS
from necrocode.migration.source_tree import python_files
from tests.docs.markdown import Document
from tests.docs.snippets import is_old_side
from tests.support.shared import ROOT, migration_guide

GUIDES = ["guide", "MIGRATION.md", "MIGRATION.ja.md"]
ANY = "from necrocode.agent_runner import RunnerConfig\n"
MODEL = 'LLMConfig(api_key=os.getenv("OPENAI_API_KEY"), model="gpt-4", timeout_seconds=120)'


def found(source: str | bytes, *, is_package: bool = False) -> Examined:
    data = source if isinstance(source, bytes) else dedent(source).encode()
    result = examine(data, is_package=is_package)
    with warnings.catch_warnings(action="ignore"):
        ast.parse(result.new_data)
    assert examine(result.new_data, is_package=is_package).new_data == result.new_data
    return result


def rewritten(source: str) -> str:
    """The new source of code that leaves nothing to do."""
    result = found(source)
    assert (result.uses, result.unread) == ((), "")
    return result.new_data.decode()


def uses(source: str, *, is_package: bool = False) -> list[tuple[int, str]]:
    """What is left of code of which nothing can be rewritten."""
    result = found(source, is_package=is_package)
    assert result.new_data == result.data
    assert result.unread == ""
    return [(use.line, use.what) for use in result.uses]


def old_examples(name: str) -> list[str]:
    document = Document(migration_guide() if name == "guide" else ROOT / name)
    return [block.text for block in document.blocks_of("python") if is_old_side(block)]


def config_of(source: str) -> RunnerConfig:
    names: dict[str, object] = {"os": os}  # the guide's new example takes it as given
    exec(source, names)  # noqa: S102  the guide's own code
    config = names["config"]
    assert isinstance(config, RunnerConfig)
    return config


# ---- The guide's examples


@pytest.mark.parametrize("name", GUIDES)
def test_the_guide_s_first_old_example_becomes_its_new_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "your-api-key")
    document = Document(migration_guide() if name == "guide" else ROOT / name)
    (new,) = [block.text for block in document.python() if "RunnerConfig(" in block.text and not is_old_side(block)]
    old, *_ = old_examples(name)
    assert config_of(rewritten(old)) == config_of(new)


@pytest.mark.parametrize("name", GUIDES)
def test_the_guide_s_other_old_examples_are_listed_with_their_sections(name: str) -> None:
    _, task, artifact = old_examples(name)
    listed = [(use.what.split(",")[0], use.section) for use in found(task).uses]
    assert listed == [
        (f"call of {call}()", "Example 2: Run a task")
        for call in ("a2a_client.receive_task", "kiro_client.generate_code", "message_bus.send_result")
    ]
    (use,) = found(artifact).uses
    assert use.section == "Example 3: Upload an artifact"


def test_the_sections_that_are_named_are_headings_of_the_guide() -> None:
    headings = {title for _, title in Document(ROOT / removed.GUIDE).headings}
    assert {value for name, value in vars(code_uses).items() if name.startswith("SECTION_")} <= headings


# ---- Settings


def test_only_what_has_to_change_does() -> None:
    source = '''\
        #!/usr/bin/env python
        """Doc."""
        from __future__ import annotations

        from necrocode.agent_runner import (
            RunnerConfig,  # the settings
            RunnerOrchestrator,
        )

        config = RunnerConfig(
            push = False,  # never
            message_bus_url = 'http://bus:5000',  # the bus
            kiro_url='http://kiro',
            pool_size=3,
        )
    '''
    assert rewritten(source) == dedent('''\
        #!/usr/bin/env python
        """Doc."""
        from __future__ import annotations

        import os
        from necrocode.agent_runner import (
            LLMConfig,
            RunnerConfig,  # the settings
            RunnerOrchestrator,
        )

        config = RunnerConfig(
            push = False,  # never
            task_registry_url = 'http://bus:8001',
            repo_pool_url = 'http://bus:8002',
            artifact_store_url = 'http://bus:8003',  # the bus
            llm_config=LLMConfig(api_key=os.getenv("OPENAI_API_KEY"), model="gpt-4", timeout_seconds=120),
            pool_size=3,
        )
    ''')


TRIED = f"try:\n    {ANY}except ImportError:\n    RunnerConfig = None\nRunnerConfig(kiro_url='k')"
URLS = 'task_registry_url="http://b:8001", repo_pool_url="http://b:8002", artifact_store_url="http://b:8003"'


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('RunnerConfig(message_bus_url="http://b")', f"RunnerConfig({URLS})"),
        ('RunnerConfig.from_env(message_bus_url="http://b",)', f"RunnerConfig.from_env({URLS},)"),
        ('RunnerConfig.from_yaml(p, message_bus_url="b:1")', f"RunnerConfig.from_yaml(p, {URLS})"),
        ('RunnerConfig(message_bus_url="x", task_registry_url="y")', 'RunnerConfig(task_registry_url="y")'),
        ("RunnerConfig(pool_size=1, kiro_url=K, llm_config=m)", "RunnerConfig(pool_size=1, llm_config=m)"),
        ('RunnerConfig(pool_size=1, llm={}, kiro_url=K.u["a"])', "RunnerConfig(pool_size=1, llm={})"),
        ('RunnerConfig(\n    message_bus_url="b"\n)', f"RunnerConfig(\n    {URLS}\n)".replace(", ", ",\n    ")),
    ],
)  # fmt: skip
def test_a_call_is_rewritten_where_its_arguments_are_certain(source: str, expected: str) -> None:
    assert rewritten(f"{ANY}{source}\n") == f"{ANY}{expected}\n"


@pytest.mark.parametrize(
    ("imports", "call", "new_imports", "name"),
    [
        ("from necrocode.agent_runner import RunnerConfig as RC", "RC",
         "import os\nfrom necrocode.agent_runner import LLMConfig, RunnerConfig as RC", "LLMConfig"),
        ("import os, necrocode.agent_runner", "necrocode.agent_runner.RunnerConfig",
         "import os, necrocode.agent_runner", "necrocode.agent_runner.LLMConfig"),
        ("from necrocode import agent_runner as ar", "ar.RunnerConfig",
         "import os\nfrom necrocode import agent_runner as ar", "ar.LLMConfig"),
        ("import os\nfrom necrocode.agent_runner.config import LLMConfig as L, RunnerConfig", "RunnerConfig",
         "import os\nfrom necrocode.agent_runner.config import LLMConfig as L, RunnerConfig", "L"),
    ],
)  # fmt: skip
def test_the_names_that_new_code_needs_come_by_the_import_that_is_there(
    imports: str, call: str, new_imports: str, name: str
) -> None:
    source = f"{imports}\nc = {call}(kiro_url='k')\n"
    assert rewritten(source) == f"{new_imports}\nc = {call}(llm_config={MODEL.replace('LLMConfig', name)})\n"


def test_os_is_imported_once_for_a_module() -> None:
    source = "from necrocode import agent_runner as ar\nfrom necrocode.agent_runner import RunnerConfig\n"
    calls = "RunnerConfig(kiro_url='k')\nar.RunnerConfig(kiro_url='k')\n"
    assert rewritten(source + calls).count("import os") == 1


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (f"{ANY}RunnerConfig(message_bus_url=URL)", "no host"),
        (f'{ANY}RunnerConfig(message_bus_url=f"{{x}}")', "no host"),
        (f'{ANY}RunnerConfig(message_bus_url="${{BUS}}")', "no host"),
        (f'{ANY}RunnerConfig(message_bus_url=b"http://b")', "no host"),
        (f'{ANY}RunnerConfig(message_bus_url="b", **more)', "**"),
        (f"{ANY}RunnerConfig(kiro_url=find())", "computed"),
        (f"{ANY}os = 1\nRunnerConfig(kiro_url='k')", '"os"'),
        (f"{ANY}class LLMConfig: pass\nRunnerConfig(kiro_url='k')", '"LLMConfig"'),
        (TRIED, "one import"), ("from necrocode.agent_runner import *\nRunnerConfig(kiro_url='k')", "one import"),
        ("from x import LLMConfig\n" + ANY + "RunnerConfig(kiro_url='k')", '"LLMConfig"'),
    ],
)  # fmt: skip
def test_a_call_that_is_not_certain_is_listed_instead(source: str, why: str) -> None:
    listed = uses(source)
    assert [why in what for _, what in listed] == [True]


@pytest.mark.parametrize("name", [name for name in OLD_SETTINGS if name not in removed.REMOVED_SETTINGS])
def test_every_other_old_keyword_is_listed_with_its_successor(name: str) -> None:
    ((line, what),) = uses(f"{ANY}RunnerConfig({name}=1)")
    assert (line, what.startswith(f"{name}= of RunnerConfig (")) == (2, True)
    assert OLD_SETTINGS[name].target in what


def test_old_keywords_beside_one_that_is_rewritten_are_listed() -> None:
    result = found(f"{ANY}RunnerConfig(message_bus_url='b', agent_id='a', kiro_timeout=5, kiro_cache=1, push=True)")
    assert b"task_registry_url='http://b:8001'" in result.new_data
    assert [use.what for use in result.uses] == [
        "agent_id= of RunnerConfig (runner_id took its place)",
        "kiro_cache= of RunnerConfig (nothing took its place)",
        "kiro_timeout= of RunnerConfig (llm.timeout_seconds (of llm_config in code, timeout_seconds) took its place)",
    ]


@pytest.mark.parametrize(
    "source",
    [
        "from mine import RunnerConfig\nRunnerConfig(message_bus_url='b', kiro_url='k')",
        "class RunnerConfig: ...\nRunnerConfig(message_bus_url='b')", "RunnerConfig(kiro_url='k')",
        "from kombu import MessageBus\nMessageBus().publish()", "class KiroClient: ...\nKiroClient().go()",
        "from .bus import MessageBus\nMessageBus()", "message_bus.publish(1)", 'x = {"kiro_url": 1}',
        "from necrocode.agent_runner import LLMClient\nLLMClient(config).generate_code('KiroClient is gone')",
        "# MessageBus, KiroClient", "def f(MessageBus): return MessageBus()",
    ],
)  # fmt: skip
def test_what_others_call_by_the_same_names_is_left_alone(source: str) -> None:
    assert uses(source) == []


# ---- Imports


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from necrocode import MessageBus\nx = 1\n", "x = 1\n"),
        ("from necrocode.agent_runner import LLMClient, KiroClient\nLLMClient\n",
         "from necrocode.agent_runner import LLMClient\nLLMClient\n"),
        ("from necrocode.agent_runner import (\n    KiroAgent,\n    LLMClient,\n    KiroClient as K,\n)\nLLMClient\n",
         "from necrocode.agent_runner import (\n    LLMClient,\n)\nLLMClient\n"),
        ("if x:\n    from necrocode import MessageBus\n", "if x:\n    pass\n"),
        ("if x: from necrocode import MessageBus\n", "if x: pass\n"),
        ("x = 1; from necrocode import MessageBus; y = 2\n", "x = 1; y = 2\n"),
        ("from necrocode.agent_runner.bus import MessageBus", ""),
    ],
)  # fmt: skip
def test_an_old_import_that_nothing_uses_goes(source: str, expected: str) -> None:
    assert rewritten(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        "from necrocode import MessageBus\nMessageBus()\n",
        "from necrocode import MessageBus\ndef f(x: 'MessageBus'): ...\n",
        "from necrocode import MessageBus\n__all__ = ['MessageBus']\n",
        "from necrocode import MessageBus as MessageBus\n",
        "try:\n    from necrocode import MessageBus\nexcept ImportError:\n    pass\n",
        "x = 1\n# the bus\nfrom necrocode import MessageBus\n", "from necrocode import MessageBus  # the bus\n",
        "def f():\n    from necrocode import MessageBus\n    return MessageBus\n", "import kiro_client\n",
        "from kiro_client import anything\n", "from a2a_protocol.client import *\n",
    ],
)  # fmt: skip
def test_an_old_import_that_is_used_or_explained_is_listed(source: str) -> None:
    assert any(what.startswith("import of") for _, what in uses(source))


def test_an_import_in_a_package_s_init_is_for_others() -> None:
    assert uses("from necrocode import MessageBus\n", is_package=True) == [(1, "import of MessageBus")]


# ---- Uses


def test_uses_are_followed_to_the_objects_of_old_classes() -> None:
    source = """\
        import necrocode.agent_runner as ar
        from necrocode.agent_runner import A2AClient as Client, KiroClient

        class Worker(ar.KiroAgent):
            def work(self):
                self.kiro.ask("x")
                self.other.ask("x")

            def __init__(self, bus: ar.MessageBus):
                self.kiro = KiroClient("http://kiro")
                bus.subscribe(self)

        with Client(url=1) as client:
            client.receive_task()
        if (later := Client()):
            later.stop()
        client2: Client = Client()
        client2.stop()
        stop = lambda client2: client2.stop()
        isinstance(x, KiroClient)
        ar.KiroClient.configure()
    """
    assert uses(source) == [
        (2, "import of A2AClient"), (2, "import of KiroClient"), (4, "use of KiroAgent"),
        (6, "call of self.kiro.ask() on a KiroClient"), (9, "use of MessageBus"), (10, "use of KiroClient"),
        (11, "call of bus.subscribe() on a MessageBus"), (13, "use of A2AClient"),
        (14, "call of client.receive_task() on a A2AClient"), (15, "use of A2AClient"),
        (16, "call of later.stop() on a A2AClient"), (17, "use of A2AClient"),
        (18, "call of client2.stop() on a A2AClient"), (20, "use of KiroClient"), (21, "use of KiroClient"),
    ]  # fmt: skip


def test_a_star_import_of_the_sdk_is_taken_to_have_brought_the_old_names() -> None:
    source = (
        "from necrocode.agent_runner import *\nbus = MessageBus()\nbus.send(1)\nclass KiroClient: ...\nKiroClient()\n"
    )
    assert uses(source) == [(2, "use of MessageBus"), (3, "call of bus.send() on a MessageBus")]


def test_texts_that_name_old_settings_and_variables_are_listed() -> None:
    source = """\
        import os
        from necrocode.agent_runner import RunnerConfig
        os.environ["MESSAGE_BUS_URL"]
        RunnerConfig(**{"kiro_url": "x"})
    """
    result = found(source)
    assert [(use.line, use.what, use.section) for use in result.uses] == [
        (3, "the variable MESSAGE_BUS_URL", "Step 3: Environment variables"),
        (4, 'the text "kiro_url"', "Step 2: The configuration file"),
    ]


def test_a_variable_that_the_rewriting_drops_is_not_listed() -> None:
    assert "KIRO_URL" not in rewritten(f'import os\n{ANY}RunnerConfig(kiro_url=os.environ["KIRO_URL"])\n')


# ---- Files


@pytest.mark.parametrize(
    "source",
    [
        (ANY + "x = 'é'\nRunnerConfig(message_bus_url='b')\n").encode(),
        ("# coding: latin-1\n" + ANY + "x = 'é'\nRunnerConfig(message_bus_url='b')").encode("latin-1"),
        b"\xef\xbb\xbf" + (ANY + "RunnerConfig(message_bus_url='b')\n").encode(),
        (ANY + "RunnerConfig(message_bus_url='b')\n\tif 0 else 1\n").replace("\n\tif", " if").encode(),
        (ANY + "RunnerConfig(message_bus_url='b')\n\f\nx = 1\n").replace("\n", "\r\n").encode(),
        (ANY + "RunnerConfig(message_bus_url='b')\r\nx = 1\n").encode(),
    ],
)  # fmt: skip
def test_encoding_line_ends_and_byte_order_mark_stay(source: bytes) -> None:
    result = found(source)
    new = b"task_registry_url='http://b:8001', repo_pool_url='http://b:8002', artifact_store_url='http://b:8003'"
    assert result.new_data == source.replace(b"message_bus_url='b'", new)


@pytest.mark.parametrize(
    "source",
    [
        b"x = (", b"print 'x'", b"\0", b"# coding: nonsense\n", b"\xff\xfe", b"x = " + b"(" * 100_000,
        b"x = " + b"not " * 50_000 + b"1", b"x = " + b"-" * 900 + b"1", b"x = " + b"+".join([b"1"] * 900),
        b"x = " + b" ".join([b"'a'"] * 3000), b"x = a" + b".b" * 2900, b"if x:\n  pass\n" + b"elif x:\n  pass\n" * 300,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_told_and_left(source: bytes) -> None:
    data = source + b"\n# KiroClient\n"
    began = time.process_time()
    result = examine(data, is_package=False)
    assert time.process_time() - began < 10
    assert result.unread
    assert result.new_data == data


def test_a_file_that_names_nothing_old_is_not_even_parsed() -> None:
    assert examine(b"x = (", is_package=False) == Examined(b"x = (", b"x = (")


def test_wrong_escapes_in_somebody_s_text_are_no_matter() -> None:
    assert uses("x = '\\d'\n# KiroClient\n") == []


def test_the_diff_is_one_that_git_applies(tmp_path: Path) -> None:
    for number, source in enumerate([
        ANY + "x = 1\nRunnerConfig(kiro_url='k')\n", ANY + "RunnerConfig(kiro_url='k')",
        (ANY + "x = '\x0c\u2028'\nRunnerConfig(kiro_url='k')\n").replace("\n", "\r\n"),
    ]):  # fmt: skip
        result = found(source.encode())
        file = tmp_path / f"{number}.py"
        file.write_bytes(result.data)
        diff = diff_of(result, name=file.name) + "\n"
        subprocess.run(["git", "apply", "-"], cwd=tmp_path, input=diff.encode(), check=True)
        assert file.read_bytes() == result.new_data


def test_folders_are_walked_without_links_and_what_is_not_one_s_own(tmp_path: Path) -> None:
    wanted = ["a.py", "pkg/b.pyi", "pkg/deep/c.py"]
    others = [".git/d.py", ".venv/e.py", "env/f.py", "node_modules/g.py", "__pycache__/h.py", "i.txt", "build/j.py"]
    for name in [*wanted, *others, "env/pyvenv.cfg"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.py").symlink_to(tmp_path / "a.py")
    os.mkfifo(tmp_path / "pipe.py")
    assert list(python_files([tmp_path])) == [tmp_path / name for name in wanted]
    assert list(python_files([tmp_path / "i.txt", tmp_path / "pkg", tmp_path])) == [
        tmp_path / name for name in ["i.txt", "pkg/b.pyi", "pkg/deep/c.py", "a.py"]
    ]


def test_a_path_that_is_not_there_is_an_error_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There is no"):
        next(python_files([tmp_path, tmp_path / "nosuch"]))


def test_files_that_cannot_be_opened_or_are_too_large_are_told(tmp_path: Path) -> None:
    large = tmp_path / "large.py"
    large.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert "larger than" in examine_file(large).unread
    (tmp_path / "gone.py").symlink_to("nowhere")
    assert "Cannot read" in examine_file(tmp_path / "gone.py").unread
