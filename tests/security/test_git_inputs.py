"""The threat list's remotes and branch names: refused before git is started, or by git before anything is sent."""

from __future__ import annotations

import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import trustme

from necrocode.agent_runner import (
    ConfigurationError,
    LocalRepoPool,
    RepositoryNotFoundError,
    RunnerConfig,
    RunnerOrchestrator,
    ScriptedLLM,
    TaskContext,
    TaskContextValidationError,
)
from necrocode.agent_runner._clock import Deadline
from necrocode.agent_runner._git import Git, GitError, RemoteRefusedError, RemoteRules, Repository
from necrocode.agent_runner._names import remote_of
from necrocode.agent_runner.errors import AuthenticationError, RunCancelledError, WorkspacePreparationError
from necrocode.cli import command_parser
from necrocode.cli.serve import _settings
from tests.support.http_server import Answer, serving
from tests.support.repositories import git, make_repository

TOKEN = "made-up-t0k3n-for-tests"
WHO = {"WWW-Authenticate": 'Basic realm="git"'}


def task(**values: Any) -> TaskContext:
    return TaskContext(**{"task_id": "1", "spec_name": "s", "title": "t", "description": "d", **values})


# --- what a task may name


@pytest.mark.parametrize(
    "url",
    ["ext::sh -c 'touch /tmp/x'", "--upload-pack=touch /tmp/x", "ssh://-oProxyCommand=x/r", "ssh://-oProxyCommand=x@h/r",
     "-oProxyCommand=x:r", "me@-oProxyCommand=x:r", "https://me:t0k3n@host/r", "https://t0k3n@host/r"],
    ids=["ext", "upload-pack", "ssh option", "ssh option as a user", "scp option", "scp option as a host",
         "token in the URL", "token as a user"],
)  # fmt: skip
def test_a_hostile_url_is_refused_when_the_task_is_made(url: str) -> None:
    with pytest.raises(TaskContextValidationError) as caught:
        task(repo_url=url)
    assert "t0k3n" not in str(caught.value)


@pytest.mark.parametrize(
    "branch", ["--force", "HEAD", "a..b", "x.lock", "a/x.lock/b", "@{u}", "@", "x" * 300, "a b", "-x"]
)
@pytest.mark.parametrize("field", ["branch_name", "base_ref"])
def test_a_hostile_branch_is_refused_when_the_task_is_made(field: str, branch: str) -> None:
    with pytest.raises(TaskContextValidationError):
        task(repo_url="/r", **{field: branch})


# --- where git may go

LINK_LOCAL = [
    "http://169.254.169.254/r", "http://169.254.169.254./r", "https://169.254.0.1:8443/r", "http://2852039166/r",
    "http://0xA9FEA9FE/r", "http://0251.0376.0251.0376/r", "http://0xa9.254.43518/r", "http://[fe80::1]/r",
    "http://[::ffff:169.254.169.254]/r", "http://[::ffff:a9fe:a9fe]/r", "http://[64:ff9b::a9fe:a9fe]/r",
    "http://[::169.254.169.254]/r", "http://[2002:a9fe:a9fe::1]/r", "http://[fd00:ec2::254]/r", "http://100.100.100.200/r",
    "http://１６９.254.169.254/r", "http://169。254。169。254/r", "ssh://169.254.169.254/r", "git://169.254.169.254/r",
    "me@169.254.169.254:r", "169.254.169.254:r", "[fe80::1]:r", "me@[fe80::1]:r", "[169.254.169.254:22]:r",
    "http://metadata.google.internal/r", "http://METADATA/r", "http://instance-data.ec2.internal/r",
]  # fmt: skip


@pytest.mark.parametrize("url", LINK_LOCAL)
def test_a_link_local_or_metadata_host_is_refused_however_it_is_written(url: str) -> None:
    with pytest.raises(RemoteRefusedError, match=r"link-local|secrets|may not be given"):
        RemoteRules().check(url)


@pytest.mark.parametrize("address", ["169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254"])
@pytest.mark.parametrize("hosts", [None, ("rebind.example.com",)])
def test_a_name_that_leads_there_is_refused(address: str, hosts: tuple[str, ...] | None) -> None:
    rules = RemoteRules(hosts=hosts, resolve=lambda _host, _port: ("93.184.216.34", address))
    remote = rules.check("https://rebind.example.com/r")
    with pytest.raises(RemoteRefusedError, match="link-local"):
        rules.resolved(remote)


def test_git_connects_to_the_addresses_that_were_looked_at_and_asks_no_resolver(tmp_path: Path) -> None:
    rules = RemoteRules(resolve=lambda _host, _port: ("127.0.0.1",))
    door = Git(tmp_path / "home", remotes=rules)
    door.prepare()
    with serving([Answer(404, "none")]) as server:
        url = f"http://git.example.invalid:{server.url.rpartition(':')[2]}/r"
        with pytest.raises(GitError, match="not found"):
            door.run(["ls-remote", "--", url], address=url)
        assert server.requests


@pytest.mark.parametrize("host", ["[::1]", "[0:0::1]", "127.0.0.1", "2130706433"])
def test_an_address_in_any_spelling_is_connected_to(tmp_path: Path, host: str) -> None:
    door = Git(tmp_path / "home")
    door.prepare()
    url = f"http://{host}:1/r"
    with pytest.raises(GitError, match=r"(?i)connect to|couldn't connect") as caught:
        door.run(["ls-remote", "--", url], address=url)
    assert "resolve" not in caught.value.output.casefold()


def test_a_host_without_an_address_is_told_and_ssh_may_know_better() -> None:
    def unknown(_host: str, _port: int) -> tuple[str, ...]:
        raise OSError("unknown")

    rules = RemoteRules(resolve=unknown)
    with pytest.raises(GitError, match="Could not resolve host: nowhere") as caught:
        rules.resolved(remote_of("https://nowhere/r"))
    assert caught.value.retryable
    assert rules.resolved(remote_of("work:r")) == ()


def test_a_resolver_that_does_not_answer_is_left_when_the_run_is_to_stop() -> None:
    asked, answered = threading.Event(), threading.Event()

    def silent(_host: str, _port: int) -> tuple[str, ...]:
        asked.set()
        answered.wait(60)
        return ()

    deadline = Deadline(60)

    def stop() -> None:
        asked.wait(60)
        deadline.cancellation.request("stop")

    stopper = threading.Thread(target=stop)
    stopper.start()
    with pytest.raises(RunCancelledError):
        RemoteRules(resolve=silent).resolved(remote_of("https://nowhere/r"), deadline)
    with pytest.raises(GitError, match="Could not resolve host: nowhere"):
        RemoteRules(resolve=silent).resolved(remote_of("https://nowhere/r"), Deadline(0.2))
    answered.set()
    stopper.join()


def test_behind_a_proxy_nothing_is_resolved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(host: str, _port: int) -> tuple[str, ...]:
        raise AssertionError(host)

    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    rules = RemoteRules(resolve=fail)
    assert rules.resolved(remote_of("https://git.example.com/r")) == ()
    monkeypatch.setenv("no_proxy", "example.com")
    with pytest.raises(AssertionError, match=r"git\.example\.com"):
        rules.resolved(remote_of("https://git.example.com/r"))


@pytest.mark.parametrize(
    ("hosts", "taken", "refused"),
    [
        (("github.com",), ["https://github.com/a", "https://GitHub.com:8443/a", "git@github.com:a", "/a"],
         ["https://evil.com/a", "https://x.github.com/a", "https://github.com.evil.com/a", "https://2852039166/a"]),
        (("git.example.com:8443", "[::1]"), ["https://git.example.com:8443/a", "http://[::1]:3000/a"],
         ["https://git.example.com/a", "https://[::2]/a"]),
        (("169.254.10.1",), ["https://169.254.10.1/a"], ["https://169.254.169.254/a"]),
        ((), ["/a"], ["https://github.com/a"]),
    ],
)  # fmt: skip
def test_hosts_that_are_named_are_the_only_ones(hosts: tuple[str, ...], taken: list[str], refused: list[str]) -> None:
    rules = RemoteRules(hosts=hosts)
    for url in taken:
        rules.check(url)
    for url in refused:
        with pytest.raises(RemoteRefusedError, match="git_allowed_hosts"):
            rules.check(url)


@pytest.mark.parametrize(
    ("url", "protocol"),
    [("file:///r", "file"), ("/r", "file"), ("../r", "file"), ("http://h/r", "http"), ("ssh://h/r", "ssh"),
     ("h:r", "ssh"), ("git://h/r", "git")],
)  # fmt: skip
def test_a_protocol_that_is_not_allowed_is_refused(url: str, protocol: str) -> None:
    with pytest.raises(RemoteRefusedError, match=f"The protocol {protocol} is not among"):
        RemoteRules(protocols=("https",)).check(url)


def test_a_run_ends_before_the_model_is_asked_where_its_repository_is_not_allowed(
    repository: Path, tmp_path: Path
) -> None:
    config = RunnerConfig(state_dir=tmp_path / "state", git_allowed_protocols=["https"], sandbox="none")
    with RunnerOrchestrator(config, llm=ScriptedLLM([])) as orchestrator:
        result = orchestrator.run(task(repo_url=str(repository)))
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("RepositoryNotFoundError", "allocate")
    assert "git_allowed_protocols" in result.error_details.message
    assert list((tmp_path / "state").glob("pool/*/mirror.git")) == []


def test_the_remote_of_a_brought_checkout_keeps_to_the_rules_however_its_configuration_names_it(tmp_path: Path) -> None:
    checkout = make_repository(tmp_path / "r")
    git(checkout, "remote", "add", "origin", "https://github.com/a/b")
    git(checkout, "config", "url.http://169.254.169.254/.insteadOf", "https://github.com/")
    door = Git(tmp_path / "home")
    door.prepare()
    for argv in (("fetch", "--", "origin"), ("push", "--", "origin", "HEAD")):
        with pytest.raises(RemoteRefusedError, match="link-local"):
            Repository(door, checkout).run(*argv, network=True)


def test_a_remote_of_a_brought_checkout_is_one_place(tmp_path: Path) -> None:
    checkout = make_repository(tmp_path / "r")
    git(checkout, "remote", "add", "origin", "https://github.com/a/b")
    for url in ("https://github.com/a/b", "http://169.254.169.254/x"):
        git(checkout, "remote", "set-url", "--add", "--push", "origin", url)
    door = Git(tmp_path / "home")
    door.prepare()
    with pytest.raises(RemoteRefusedError, match="several URLs to push to"):
        Repository(door, checkout).check_remote("origin")


def test_the_configuration_of_a_brought_checkout_has_no_say_in_what_is_sent_where(tmp_path: Path) -> None:
    """So the token, which goes over https alone, is shown to no proxy, and no file is written for the remote."""
    checkout, victim = make_repository(tmp_path / "r"), tmp_path / "victim"
    victim.write_text("precious\n")
    cookie = {"Set-Cookie": "a=line-of-the-remote; Max-Age=99999"}
    with serving([Answer(500, "", cookie)]) as server, serving([Answer(500, "")]) as thief:
        url, to_thief = f"{server.url}/r", f"{thief.url}/r"
        for key, value in (
            ("http.proxy", thief.url), (f"http.{server.url}/.proxy", thief.url), ("remote.origin.proxy", thief.url),
            (f"remote.{url}.proxy", thief.url), (f"remote.{url}.pushurl", to_thief), ("remote.origin.url", url),
            (f"url.{to_thief}.pushInsteadOf", url), (f"url.{to_thief}.insteadOf", url),
            ("http.extraHeader", "X-Evil: 1"), ("http.cookieFile", str(victim)), ("http.saveCookies", "true"),
            (f"http.{server.url}/.curloptResolve", "127.0.0.1:1:127.0.0.2"), (f"remote.{url}.vcs", "evil"),
        ):  # fmt: skip
            git(checkout, "config", key, value)
        door = Git(tmp_path / "home", TOKEN)
        door.prepare()
        refspec = f"{git(checkout, 'rev-parse', 'HEAD')}:refs/heads/x"
        for argv in (("ls-remote", "--", url), ("push", "--", url, refspec)):
            with pytest.raises(GitError, match="500"):
                Repository(door, checkout).run(*argv, network=True)
        with pytest.raises(GitError, match="500"):
            Repository(door, checkout).fetch_commit(url, "refs/heads/x", known=())
        assert len(server.requests) == 3
        assert not any("x-evil" in request.headers for request in server.requests)
        assert thief.requests == []
    assert victim.read_text() == "precious\n"


def test_a_brought_checkout_whose_remote_is_not_allowed_ends_the_run_before_the_model_is_asked(tmp_path: Path) -> None:
    checkout = make_repository(tmp_path / "r")
    git(checkout, "remote", "add", "origin", "http://169.254.169.254/a")
    config = RunnerConfig(state_dir=tmp_path / "state", sandbox="none")
    with RunnerOrchestrator(config, llm=ScriptedLLM([])) as orchestrator:
        result = orchestrator.run(task(slot_path=checkout))
    assert result.error_details is not None
    assert (result.error_details.type, result.error_details.step) == ("RepositoryNotFoundError", "allocate")
    assert "Nothing may be pushed to origin" in result.error_details.message


def test_a_redirect_is_not_followed_and_the_pool_says_what_to_do(tmp_path: Path) -> None:
    with serving([Answer(200, "secret")]) as metadata:
        there = {"Location": f"{metadata.url}/latest/info/refs?service=git-upload-pack"}
        with serving([Answer(302, "", there)]) as server:
            pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "home"))
            with pytest.raises(Exception, match="give the URL that it redirects to"):
                pool.allocate_slot(f"{server.url}/r", "me")
        assert metadata.requests == []


# --- whom the token is for


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "evil.example").configure_cert(context)
    return context


def test_a_host_that_a_task_names_does_not_get_the_token(tmp_path: Path, tls: ssl.SSLContext) -> None:
    door = Git(tmp_path / "home", TOKEN, RemoteRules(resolve=lambda _host, _port: ("127.0.0.1",)))
    pool = LocalRepoPool(tmp_path / "pool", door)
    with serving([Answer(401, "who are you?", WHO)], tls=tls) as server:
        url = f"https://evil.example:{server.url.rpartition(':')[2]}/r"
        with pytest.raises(
            Exception, match=r"The git token is not sent to evil\.example:\d+: name it in git_token_hosts"
        ):
            pool.allocate_slot(url, "me")
        assert server.requests
        assert [request.headers.get("authorization") for request in server.requests] == [None] * len(server.requests)


@pytest.mark.parametrize(
    ("hosts", "url", "expected"),
    [
        (("github.com",), "https://github.com/a", True),
        (("github.com",), "https://GITHUB.com:443/a", True),
        (("github.com",), "https://github.com.evil.com/a", False),
        (("github.com",), "https://evil.com/github.com", False),
        (("github.com",), "http://github.com/a", False),
        (("github.com",), "ssh://github.com/a", False),
        (("git.example.com:8443",), "https://git.example.com:8443/a", True),
        (("git.example.com:8443",), "https://git.example.com/a", False),
        ((), "https://github.com/a", False),
    ],
)
def test_the_token_is_for_https_at_the_hosts_that_are_named(hosts: tuple[str, ...], url: str, expected: bool) -> None:
    assert RemoteRules(token_hosts=hosts).takes_token(remote_of(url)) is expected


def test_a_host_in_capitals_gets_the_token_and_one_that_refuses_it_is_told(tmp_path: Path, tls: ssl.SSLContext) -> None:
    del tls
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")  # what git is told to trust, by the fixture
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "home", TOKEN))
    with serving([Answer(401, "who are you?", WHO)], tls=context) as server:
        port = server.url.rpartition(":")[2]
        with pytest.raises(AuthenticationError, match=f"LOCALHOST:{port} refuses the git token: is it still") as caught:
            pool.allocate_slot(f"https://LOCALHOST:{port}/r", "me")
        assert any("authorization" in request.headers for request in server.requests)
    assert "askpass" not in str(caught.value)


def test_another_port_and_an_unknown_authority_are_told(
    tmp_path: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = RemoteRules(token_hosts=("127.0.0.1:8443",))
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "home", TOKEN, rules))
    with serving([Answer(401, "who are you?", WHO)], tls=tls) as server:
        told = f"not sent to {server.url.removeprefix('https://')}: name it"
        with pytest.raises(AuthenticationError, match=told) as caught:
            pool.allocate_slot(f"{server.url}/r", "me")
        assert "askpass" not in str(caught.value)
        monkeypatch.delenv("GIT_SSL_CAINFO")
        with pytest.raises(WorkspacePreparationError, match=r"certificate in the variable GIT_SSL_CAINFO"):
            pool.allocate_slot(f"{server.url}/r", "me")


def test_what_forbids_everything_says_so() -> None:
    with pytest.raises(RemoteRefusedError, match="not among git_allowed_protocols: none is allowed"):
        RemoteRules(protocols=()).check("https://github.com/a")
    with pytest.raises(RemoteRefusedError, match=r"github\.com:8443 is not among git_allowed_hosts: none is allowed"):
        RemoteRules(hosts=()).check("https://github.com:8443/a")


def test_a_credential_helper_of_the_checkout_does_not_learn_the_token(tmp_path: Path, tls: ssl.SSLContext) -> None:
    checkout = make_repository(tmp_path / "r")
    git(checkout, "config", "credential.helper", f"!tee -a {tmp_path}/learned; :")
    door = Git(tmp_path / "home", TOKEN)
    door.prepare()
    # Only what was accepted is told to helpers: the second request has the token, and its answer is no error.
    refs = Answer(
        200, b"001e# service=git-upload-pack\n00000000", {"Content-Type": "application/x-git-upload-pack-advertisement"}
    )
    with serving([Answer(401, "who are you?", WHO), refs], tls=tls) as server:
        Repository(door, checkout).run("ls-remote", "--", f"{server.url}/r", network=True)
        assert "authorization" in server.requests[1].headers
    assert not (tmp_path / "learned").exists()


def test_a_pool_service_is_told_whom_its_token_is_for(tmp_path: Path) -> None:
    given = ["serve", "repo-pool", "--data-dir", str(tmp_path), "--git-token-host", "Git.example.com"]
    settings = _settings(command_parser().parse_args(given))
    assert settings.git_token_hosts == ("git.example.com",)
    with pytest.raises(ConfigurationError, match="no host such as"):
        _settings(command_parser().parse_args([*given, "--git-token-host", "https://x"]))


# --- what a repository holds


def test_submodules_are_not_fetched_and_their_urls_not_asked(tmp_path: Path) -> None:
    with serving([Answer(404, "none")]) as server:
        remote = make_repository(tmp_path / "remote")
        (remote / ".gitmodules").write_text(f'[submodule "m"]\n\tpath = m\n\turl = {server.url}/m\n')
        head = git(remote, "rev-parse", "HEAD")
        git(remote, "update-index", "--add", "--cacheinfo", f"160000,{head},m")
        git(remote, "add", ".gitmodules")
        git(remote, "commit", "--quiet", "-m", "a submodule")
        git(remote, "config", "fetch.recurseSubmodules", "true")
        pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "home"))
        slot = pool.allocate_slot(str(remote), "me")
        assert list((slot.slot_path / "m").iterdir()) == []
        assert server.requests == []


def test_a_partial_clone_asks_nobody_for_what_it_lacks(tmp_path: Path) -> None:
    with serving([Answer(404, "none")]) as server:
        checkout = make_repository(tmp_path / "r")
        for name, value in (("remote.origin.url", f"{server.url}/r"), ("remote.origin.promisor", "true"),
                            ("extensions.partialClone", "origin"), ("core.repositoryFormatVersion", "1")):  # fmt: skip
            git(checkout, "config", name, value)
        oid = git(checkout, "rev-parse", "HEAD:calc.py")
        (checkout / ".git/objects" / oid[:2] / oid[2:]).unlink()
        door = Git(tmp_path / "home")
        door.prepare()
        with pytest.raises(GitError):
            Repository(door, checkout).run("cat-file", "blob", oid)
        assert server.requests == []


def test_a_url_that_the_pool_cannot_take_is_the_callers_mistake(tmp_path: Path) -> None:
    pool = LocalRepoPool(tmp_path / "pool", Git(tmp_path / "home"))
    with pytest.raises(RepositoryNotFoundError, match="link-local"):
        pool.allocate_slot("http://169.254.169.254/latest", "me")
    assert list((tmp_path / "pool").glob("[!.]*")) == []
