from __future__ import annotations

import base64
import json
import re
import shlex
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus, unquote, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from necrocode.agent_runner import (
    LLMConfig,
    LocalTaskRegistry,
    RunnerConfig,
    RunnerOrchestrator,
    ScriptedLLM,
    TaskContext,
)
from necrocode.agent_runner._redact import MASK, Redactor, secret_values
from necrocode.agent_runner.wiring import build_services
from tests.support.clocks import FakeClock
from tests.support.pace import is_within

SECRET = 'p4ss/w0rd+ü"&=%'
KEYS = {
    "openai": "sk-proj-" + "aB3_" * 10,
    "github": "ghp_" + "a1B2" * 9,
    "github, fine-grained": "github_pat_" + "a1_B" * 10,
    "gitlab": "glpat-" + "a1-B" * 5,
    "aws": "AKIA" + "A1B2" * 4,
    "aws, temporary": "ASIA" + "A1B2" * 4,
    "slack": "xoxb-" + "1234567890-ab",
    "google": "AIza" + "aB3_x" * 7,
    "stripe": "sk_live_" + "aB3" * 8,
    "npm": "npm_" + "aB3x" * 9,
    "pypi": "pypi-" + "aB3_x" * 12,
    "hugging face": "hf_" + "aB3x" * 9,
    "sendgrid": f"SG.{'a1' * 11}.{'aB3' * 14}x",
    "json web token": f"eyJ{'aB3x' * 4}.eyJ{'aB3x' * 6}.{'aB3_' * 10}",
    "private key": "-----BEGIN RSA PRIVATE KEY-----\nMIIB\nabcd==\n-----END RSA PRIVATE KEY-----",
}


@pytest.mark.parametrize(
    "leaked",
    [SECRET, quote(SECRET, safe=""), quote(SECRET), quote(SECRET, safe="").lower(), quote_plus(SECRET),
     json.dumps(SECRET)[1:-1], json.dumps(SECRET, ensure_ascii=False)[1:-1], json.dumps(json.dumps(SECRET))[3:-3],
     escape(SECRET), escape(SECRET, quote=False), SECRET.encode().hex(), SECRET.encode().hex().upper(),
     f"x{SECRET}y", SECRET * 3],
    ids=["plain", "url", "path", "lower url", "form", "json", "json, other scripts", "json in json", "xml",
         "text of xml", "hex", "upper hex", "inside", "thrice"],
)  # fmt: skip
def test_a_given_secret_is_masked_in_the_forms_in_which_it_leaks(leaked: str) -> None:
    masked = Redactor((SECRET,)).text(f"before {leaked} after")
    assert masked.startswith("before ")
    assert masked.endswith(" after")
    assert MASK in masked
    assert "p4ss" not in masked
    assert "w0rd" not in masked


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30), st.text(st.characters(codec="ascii"), min_size=6, max_size=40), st.text(max_size=30))
def test_any_secret_is_masked_anywhere(before: str, secret: str, after: str) -> None:
    masked = Redactor((secret,)).text(before + secret + after)
    assert secret not in masked.replace(MASK, "")


@pytest.mark.parametrize("secret", [SECRET, "it's $ecret `x` & \\y"])
def test_what_a_shell_would_write_is_masked(secret: str) -> None:
    quoted = shlex.quote(secret)
    escaped = re.sub(r"([^A-Za-z0-9_./-])", r"\\\1", secret)
    for leaked in (quoted, escaped):
        masked = Redactor((secret,)).text(f"echo {leaked};")
        assert masked in (f"echo {MASK};", f"echo '{MASK}';")


def stands_once(part: bytes, whole: bytes) -> bool:
    """Whether ``part`` stands at one place only, so that one place only can be masked."""
    first = whole.find(part)
    return first >= 0 and whole.find(part, first + 1) < 0


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=20), st.text(st.characters(codec="ascii"), min_size=8, max_size=40), st.binary(max_size=20))
def test_base64_is_masked_wherever_in_it_the_secret_stands(before: bytes, secret: str, after: bytes) -> None:
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        encoded = encode(before + secret.encode() + after).decode()
        masked = Redactor((secret,)).text(encoded)
        start, end = -(-8 * len(before) // 6), 8 * (len(before) + len(secret)) // 6
        assert encoded[start:end] not in masked
        if stands_once(secret.encode()[1:-1], before + secret.encode() + after):
            assert masked == encoded[:start] + MASK + encoded[end:]


def wrapped(text: str, width: int, between: str) -> str:
    return between.join(text[start : start + width] for start in range(0, len(text), width))


@pytest.mark.parametrize("between", ["\n", "\r\n", "\n    ", "\\n", "\\r\\n"])
@pytest.mark.parametrize("before", [b"", b"remote: ", b"x" * 40])
def test_encodings_are_masked_over_line_ends_and_blanks(between: str, before: bytes) -> None:
    secret = "operator-token-" + "0123456789-aBcD-" * 6
    data = before + secret.encode() + b" after\n"
    for text in (
        wrapped(base64.b64encode(data).decode(), 76, between),
        wrapped(base64.b64encode(data).decode(), 7, between),
        wrapped(data.hex(), 60, between),
        wrapped(data.hex().upper(), 2, " "),
        wrapped(wrapped(data.hex(), 2, " "), 48, between),
        wrapped(data.decode(), 20, between),
        data.hex(":"),
    ):
        bare = re.sub(r"\\[nr]|[\s:]", "", text)
        left = re.sub(r"\\[nr]|[\s:]", "", Redactor((SECRET, secret)).text(text))
        first, _, last = left.partition(MASK)
        assert bare.startswith(first)
        assert bare.endswith(last)
        assert len(bare) - len(first) - len(last) >= len(secret)


def test_blanks_between_ordinary_words_make_no_secret_of_them() -> None:
    redactor = Redactor(("teapot", "a longer pass phrase"))
    assert redactor.text("tea\npot") == "tea\npot"
    assert redactor.text("tea pot; a longer  pass\nphrase; end: x\n") == f"tea pot; {MASK}; end: x\n"


def test_a_long_text_is_masked_as_its_lines_are() -> None:
    redactor = Redactor((SECRET, "two\nlines"))
    one_line = Redactor((SECRET,))
    text = "".join(f"{'word ' * 30}{SECRET if number % 50 == 0 else ''} https://a:b@c\n" for number in range(400))
    wanted = text.replace(SECRET, MASK).replace("a:b@", "a:***@")
    assert redactor.text(text) == one_line.text(text) == wanted
    block = f"{KEYS['private key']}\n"
    assert one_line.text(text + block + text) == f"{wanted}{MASK}\n{wanted}"


def test_of_two_secrets_the_longer_one_goes_first() -> None:
    redactor = Redactor(("secret", "secret-and-more"))
    assert redactor.text("secret-and-more secret") == f"{MASK} {MASK}"


def test_short_and_empty_secrets_do_not_eat_words() -> None:
    assert Redactor(("", "a", "abcde")).text("a abcde") == "a abcde"


def test_a_redactor_without_secrets_still_knows_key_shapes() -> None:
    assert Redactor().text(f"key {KEYS['openai']}.") == f"key {MASK}."
    assert not Redactor().secrets_in(KEYS["openai"])


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_well_known_keys_are_masked(key: str) -> None:
    assert Redactor().text(f"a '{key}' b") == f"a '{MASK}' b"
    assert key not in json.loads(Redactor().text(json.dumps({"text": f"a {key} b"})))["text"]


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://me:p4ss@host/r", "https://me:***@host/r"),
        ("clone https://:p4ss@host", "clone https://:***@host"),
        ("https://me:p@ss@host.x/r", "https://me:***@host.x/r"),
        ("https://me:p4/ss@host/r", "https://me:***@host/r"),
        ("https://me:p@s/s@host.x", "https://me:***@host.x"),
        (f"https://{'u' * 300}:{'p' * 300}@host", f"https://{'u' * 300}:***@host"),
        ("https://me@mail.com:p4ss@host.x", "https://me@mail.com:***@host.x"),
        ("git+https://me:p4ss@host.x/r.git@v1,https://b:c@d", "git+https://me:***@host.x/r.git@v1,https://b:***@d"),
        (r'"https:\/\/me:p4ss@host\/r"', r'"https:\/\/me:***@host\/r"'),
        ("https://abcdef0123456789abcdef:x@host", "https://***:***@host"),
        ("https://abcdef0123456789abcdef@host", "https://***@host"),
        ("Authorization: token abc", "Authorization: token ***"),
        ("('Authorization', 'Bearer abc')", "('Authorization', 'Bearer ***')"),
        ("(b'Authorization', b'Basic abc')", "(b'Authorization', b'Basic ***')"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("authorization:basic YWJjOmRlZg==\nnext", "authorization:basic ***\nnext"),
        ("{'Authorization': 'Bearer abc'}", "{'Authorization': 'Bearer ***'}"),
        ('{"Authorization": "Bearer abc"}', '{"Authorization": "Bearer ***"}'),
        (r'"{\"Authorization\": \"Bearer abc\"}"', r'"{\"Authorization\": \"Bearer ***\"}"'),
    ],
)
def test_passwords_in_urls_and_headers_are_masked(text: str, masked: str) -> None:
    assert Redactor().text(text) == masked


@pytest.mark.parametrize(
    "text",
    ["", "risk-free", "sk-short", "AKIA", "xoxo", "https://host:80/a@b", "http://[::1]:80/a@b", "https://host.x:80?a=b@c",
     "https://host/a:b@c", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY----- it is",
     "git@host:a/b", "ssh://git@host/r",
     "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "authorization is needed", "日本語 ~ *** ~"],
)  # fmt: skip
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert Redactor((SECRET,)).text(text) == text


def test_how_often_a_secret_is_in_a_text_is_told_for_each_of_its_forms() -> None:
    redactor = Redactor((SECRET,))
    escaped = json.dumps(SECRET)[1:-1]
    assert redactor.secrets_in(f"a{SECRET}") == {SECRET: 1}
    assert redactor.secrets_in(f"{SECRET} {escaped} {SECRET}") == {SECRET: 2, escaped: 1}
    assert not redactor.secrets_in("p4ss")
    assert not Redactor().secrets_in(SECRET)


PIECES = st.sampled_from(
    [*KEYS.values(), *'":@\\/\n, x', "https://", "u:p", "Authorization: Bearer ", "-----BEGIN PRIVATE KEY-----",
     "-----END PRIVATE KEY-----", "s3cr3t-w0rd"]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=5).map("".join)
DOCUMENTS = st.recursive(
    TEXTS | st.none() | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=200, deadline=None)
@given(DOCUMENTS)
def test_data_of_any_shape_are_masked(document: Any) -> None:
    masked = Redactor(("s3cr3t-w0rd",)).data(document)
    assert type(masked) is type(document)
    assert "s3cr3t-w0rd" not in json.dumps(masked)


def test_data_keep_their_shape_where_masked_text_would_be_no_json() -> None:
    data = {"a": ["-----BEGIN PRIVATE KEY-----"], "b": "-----END PRIVATE KEY-----", "c": [1, None, True, 0.5, {}]}
    assert Redactor().data(data) == data
    assert Redactor((SECRET,)).data([{SECRET: f"Authorization: Bearer {SECRET}"}]) == [
        {MASK: f"Authorization: Bearer {MASK}"}
    ]


def test_masking_breaks_neither_a_runs_metadata_nor_its_transcript(repository: Path, state_dir: Path) -> None:
    task = TaskContext(
        task_id="1", spec_name="s", title="t", description="d", repo_url=str(repository),
        metadata={"how": "Authorization: Bearer abc", "list": ["-----BEGIN PRIVATE KEY-----"], "number": 1},
    )  # fmt: skip
    answer = "-----END PRIVATE KEY----- Authorization: Bearer abc\nnew.py\n```python\nx = 1\n```\n"
    config = RunnerConfig(state_dir=state_dir, detect_tests=False)
    result = RunnerOrchestrator(config, llm=ScriptedLLM([answer])).run(task)
    assert result.success
    transcript = next(one for one in result.artifacts if one.type == "transcript")
    told = json.loads(Path(unquote(urlsplit(transcript.uri).path)).read_text(encoding="utf-8"))
    assert told["calls"][0]["answer"]["text"].startswith(
        "-----END PRIVATE KEY----- Authorization: Bearer ***\nnew.py\n"
    )
    with LocalTaskRegistry(f"sqlite:///{state_dir / 'registry.db'}") as registry:
        kept = registry.get_task("1").metadata
    assert {key: kept[key] for key in task.metadata} == {**task.metadata, "how": "Authorization: Bearer ***"}


def test_masking_twice_changes_nothing_more() -> None:
    redactor = Redactor((SECRET,))
    once = redactor.text(f"{SECRET} {KEYS['aws']} https://a:b@c Authorization: Bearer d")
    assert redactor.text(once) == once


# --- hostile text


BEGIN, END = "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"a {BEGIN}\nMIIB\n{END} b {BEGIN}\nMIIC\n{END} c", f"a {MASK} b {MASK} c"),
        (f"{BEGIN}\n{BEGIN}\nMIIB\n{END} c", f"{MASK} c"),
        (f"{END} a {BEGIN}\nMIIB\n{END}", f"{END} a {MASK}"),
        ("-----BEGIN EC PRIVATE KEY-----END EC PRIVATE KEY-----BEGIN PRIVATE KEY-----x" + END, MASK + MASK),
        (f"{BEGIN}\nnever ended", f"{BEGIN}\nnever ended"),
        (f"a {BEGIN}\n{'MIIB' * 16}\nabcd==\n\n[end]", f"a {MASK}[end]"),
        (f"{BEGIN}\\n{'MIIB' * 16}\\nabcd==", MASK),
        (f"{BEGIN}\n{'MIIB' * 5}\n{BEGIN}\n{'MIIB' * 5}", MASK * 2),
        (f"{BEGIN}\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,AB\n\n{'MIIB' * 16}", MASK),
        ("-----BEGIN PGP PRIVATE KEY BLOCK-----\nlQdG\n-----END PGP PRIVATE KEY BLOCK-----", MASK),
        ("-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----",) * 2,
    ],
)
def test_key_blocks_are_masked_from_their_beginning_to_the_next_end(text: str, masked: str) -> None:
    assert Redactor().text(text) == masked


TELLING = [*KEYS.values(), *"-:@/ \n\\'\"", "a", "a-" * 10, "://", ":\\/\\/", "eyJ", ".eyJ", BEGIN, END, "A1b2C3d4" * 3]
TELLING += [
    "Proc-Type: ",
    "authorization",
    ": ",
    "bearer ",
    SECRET,
    base64.b64encode(SECRET.encode()).decode()[:20],
    "70 34 73 73 2f ",
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(TELLING), min_size=1, max_size=5).map("".join), st.sampled_from(TELLING))
def test_no_mixture_takes_longer_than_its_length_says(repeated: str, last: str) -> None:
    text = repeated * (100_000 // len(repeated)) + last
    assert is_within(1, lambda: Redactor((SECRET, "secret-and-more")).text(text))


@pytest.mark.parametrize(
    "piece",
    [
        f"{BEGIN}\n", "-----BEGIN ", "-----BEGIN A ", "-----BEGIN PRIVATE KEY ", f"{END}\n", f"{BEGIN}{END}", "-",
        "A ", "PRIVATE KEY-----", "sk-", "sk-a ", "ghp_", "ghp_" + "a" * 35 + " ", "github_pat_", "glpat-", "AKIA",
        "xoxb-", "://a@", "://:", "://a:", ":", "://" + "a" * 255 + ":", "@", "authorization", "authorization: ",
        "authorization ", "authorization: bearer ", 'authorization:\\"basic ', " ", "\\", '"', "secret",
        "eyJ" + "a-" * 10, "-eyJ", f"Proc-Type: a: b {BEGIN}", f"{BEGIN}\nA: b b\n", f"{BEGIN}\n{'MIIB' * 5} A: ",
        "eyJ" + "a" * 10 + ".", ".eyJ" + "a" * 10, f"-AKIA{'A' * 16}-eyJ", "xoxb-eyJ ",
    ],
)  # fmt: skip
def test_masking_takes_time_in_proportion_to_the_length(piece: str) -> None:
    """Each of these took minutes, or would, with a pattern that looks ahead from everywhere."""
    size = 500_000
    redactor = Redactor((SECRET, "secret-and-more"))
    for text in (
        piece * (size // len(piece)),
        "authorization" + piece * (size // len(piece)) + "://x:y@z sk-",
        f"{BEGIN}\n" + piece * (size // len(piece)),
        piece * (size // len(piece)) + ".eyJ",
    ):
        assert is_within(2, lambda: redactor.text(text))  # noqa: B023


def test_what_a_run_masks_includes_the_secret_headers_of_its_model(tmp_path: Path) -> None:
    llm = LLMConfig(api_key="model-key-1", headers={"X-Gateway-Token": "gateway-token-1", "X-Title": "my-title"})
    services = build_services(RunnerConfig(state_dir=tmp_path, llm_config=llm), FakeClock())
    assert services.redactor.text("model-key-1 gateway-token-1 my-title") == "*** *** my-title"
    services.close()


def test_variables_named_like_a_secret_are_secrets_and_so_are_passwords_of_urls() -> None:
    variables = {
        "NPM_TOKEN": "t1", "NPM_CONFIG_//npm.example/:_authToken": "t2", "PGPASSWORD": "t3", "MY_KEY": "t4",
        "MYSQL_PWD": "t5", "ApiKey": "t6", "PIP_INDEX_URL": "https://me:p%40ss@pypi.example/simple",
        "PIP_EXTRA_INDEX_URL": "https://a.example/ https://t7@b.example/", "BASIC_AUTH": "t8",
        "AUTHOR": "Jane", "MONKEY": "x", "PATH": "/bin", "PIP_CERT": "/ca.pem", "TOKEN_FILE": "/run/token",
        "http_proxy": "http://proxy:8080", "BROKEN": "http://[@",
    }  # fmt: skip
    assert secret_values(variables) == ("t1", "t2", "t3", "t4", "t5", "t6", "p@ss", "t7", "t8")
