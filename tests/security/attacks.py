"""What hostile tests try, a function each: it returns when the sandbox held, and fails an assertion when it did not.

The titles are the lines of the table in docs/security.md. None of them harms the machine where nothing holds it.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from necrocode.agent_runner.sandbox import kernel, syscalls
from necrocode.agent_runner.sandbox.launching import LAUNCHER
from tests.contracts.sandbox_contract import assert_gone, processes_with
from tests.security.boxes import SECRET, Attack, Box, snapshot
from tests.support.repositories import git

ATTACKS: dict[str, Attack] = {}


def attack(title: str) -> Callable[[Attack], Attack]:
    def add(function: Attack) -> Attack:
        ATTACKS[title] = function
        return function

    return add


# --- secrets


@attack("reads the model's key from its environment")
def read_environment(box: Box) -> None:
    seen = box.run("env; cat /proc/self/environ /proc/thread-self/environ; export").output
    assert "PATH=" in seen
    assert SECRET not in seen


@attack("reads the key from `/proc/1`, `/proc/$PPID` or any other process")
def read_other_environments(box: Box) -> None:
    # A test process of pytest has the key set after its start, so the host's process is one that was started with it.
    holder = subprocess.Popen(["sleep", "60"], env={"OPENAI_API_KEY": SECRET})
    try:
        seen = box.run(
            f"cat /proc/1/environ /proc/$PPID/environ /proc/{holder.pid}/environ /proc/{os.getpid()}/environ;"
            " cat /proc/[0-9]*/environ; grep -a s3cr3t /proc/[0-9]*/cmdline; true"
        ).output
    finally:
        holder.kill()
        holder.wait()
    assert SECRET not in seen


@attack("reads the memory of the runner")
def read_memory(box: Box) -> None:
    program = f"""
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        name = open(f"/proc/{{pid}}/cmdline").read()
        if pid != "{os.getpid()}" and "agent_runner" not in name:
            continue
        os.close(os.open(f"/proc/{{pid}}/mem", os.O_RDONLY))
        print("OPENED", pid)
    except OSError as error:
        print(error)
"""
    assert "OPENED" not in box.python(program).output


@attack("reads `~/.ssh`, `~/.aws`")
def read_home(box: Box) -> None:
    assert_unreadable(box, *box.secrets[:2])


@attack("reads other slots, the mirror, the registry")
def read_state(box: Box) -> None:
    assert_unreadable(box, *box.secrets[2:])


@attack("reads them through a link, a working folder or `/proc/*/root`")
def read_around(box: Box) -> None:
    target = box.secrets[0]
    (box.slot / "link").symlink_to(target)
    up = "../" * 30
    seen = box.run(
        f"cat link; cat {up}{target}; cd /proc/1/root && cat .{target}; cat /proc/1/cwd/link;"
        f" cat /proc/{os.getpid()}/root{target}; ln {target} hard && cat hard; true"
    ).output
    assert SECRET not in seen


@attack("learns which files there are outside")
def list_outside(box: Box) -> None:
    with tempfile.NamedTemporaryFile() as file:
        done = box.run(f"ls {box.folder}/home {box.folder}/state/pool; test -e {file.name} && echo 'IS THERE'")
    assert "IS THERE" not in done.output
    assert "slot-2" not in done.output


def assert_unreadable(box: Box, *paths: Path) -> None:
    done = box.run(f"cat {' '.join(map(str, paths))}")
    assert SECRET not in done.output
    assert done.exit_code != 0


# --- network


@attack("connects by TCP: to the host, to the metadata address")
def connect_tcp(box: Box) -> None:
    program = f"""
import socket
for address in [("127.0.0.1", {box.tcp_port}), ("169.254.169.254", 80), ("1.1.1.1", 443)]:
    try:
        socket.create_connection(address, timeout=1)
        print("CONNECTED", address)
    except TimeoutError:
        print("SENT", address)
    except OSError as error:
        print(error)
"""
    seen = box.python(program).output
    assert "CONNECTED" not in seen
    assert "SENT" not in seen


@attack("sends UDP, asks DNS")
def send_udp(box: Box) -> None:
    program = f"""
import socket
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", {box.udp.getsockname()[1]}))
except OSError as error:
    print(error)
try:
    print("RESOLVED", socket.getaddrinfo("example.com", 80))
except OSError as error:
    print(error)
"""
    assert "RESOLVED" not in box.python(program).output
    with pytest.raises(BlockingIOError):  # nothing has come
        box.udp.recv(10)


@attack("connects to Unix sockets of the host, named and abstract")
def connect_unix(box: Box) -> None:
    program = f"""
import socket
for address in ["{box.unix_path}", "\\0{box.abstract}"]:
    try:
        socket.socket(socket.AF_UNIX).connect(address)
        print("CONNECTED", address)
    except OSError as error:
        print(error)
"""
    assert "CONNECTED" not in box.python(program).output


@attack("connects to abstract Unix sockets of the host in a set-up command, which has the network")
def connect_abstract(box: Box) -> None:
    if not kernel.can_leave_abstract_sockets():
        pytest.skip("the kernel is older than Linux 6.12")
    program = f"""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_UNIX, kind).connect("\\0{box.abstract}")
        print("CONNECTED")
    except OSError as error:
        print(error.strerror)
"""
    (box.slot / "attack.py").write_text(program)
    seen = box.set_up("python3 attack.py").output
    assert "CONNECTED" not in seen
    assert "Operation not permitted" in seen


@attack("opens sockets to the hypervisor, and others that no namespace divides")
def open_other_sockets(box: Box) -> None:
    program = """
import ctypes, socket
AF_ALG, AF_VSOCK, SOCK_DIAG, IO_URING_SETUP = 38, 40, 4, 425
for family, kind, protocol in ((AF_VSOCK, 1, 0), (AF_VSOCK, 2, 0), (AF_ALG, 5, 0), (socket.AF_NETLINK, 3, SOCK_DIAG)):
    try:
        socket.socket(family, kind, protocol)
        print("OPENED", family)
    except OSError as error:
        print(error)
if ctypes.CDLL(None).syscall(IO_URING_SETUP, 8, ctypes.create_string_buffer(120)) >= 0:
    print("OPENED io_uring")
"""
    assert "OPENED" not in box.python(program).output


# --- the host's files and processes


@attack("reads or changes keys in the runner's keyring")
def use_keyring(box: Box) -> None:
    add, call = {"x86_64": (248, 250), "aarch64": (217, 219)}[os.uname().machine]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(call, 1, b"necrocode-test") < 0:  # join a session keyring of this name
        pytest.skip("this machine has no keyrings")
    key = libc.syscall(add, b"user", b"token", SECRET.encode(), len(SECRET), -3)
    assert key > 0
    LAUNCHER.close()  # one that is started now would inherit the keyring
    program = f"""
import ctypes
call = ctypes.CDLL(None).syscall
seen = ctypes.create_string_buffer(64)
for key in ({key}, call({call}, 10, -3, b"user", b"token", 0)):
    print(call({call}, 11, key, seen, 64), seen.raw, call({call}, 2, key, b"changed", 7))
"""
    seen = box.python(program).output
    kept = ctypes.create_string_buffer(64)
    libc.syscall(call, 11, key, kept, 64)
    assert SECRET not in seen
    assert kept.value == SECRET.encode()


@attack("writes, deletes, renames or links files outside")
def write_outside(box: Box) -> None:
    (box.folder / "open").mkdir()
    (box.folder / "open").chmod(0o777)
    (box.folder / "open/file").write_text("kept")
    (box.folder / "open/file").chmod(0o666)
    before = snapshot(box.folder)
    place = box.folder / "open"
    box.run(f"echo x >{place}/new; echo x >>{place}/file; mv {place}/file {place}/moved; rm -f {place}/file;"
            f" ln -s / {place}/link; mkdir {place}/d; echo x >{box.slot}/test_ok.py;"
            f" echo x >{box.slot}/.git/config")  # fmt: skip
    assert snapshot(box.folder) == before


@attack("changes modes, owners or times of files outside")
def change_modes(box: Box) -> None:
    before = [(path.stat().st_mode, path.stat().st_mtime_ns, path.stat().st_uid) for path in box.secrets]
    paths = " ".join(map(str, box.secrets))
    box.run(f"chmod 777 {paths}; touch {paths}; chown 12345 {paths}; setfattr -n user.x -v 1 {paths}; true")
    assert before == [(path.stat().st_mode, path.stat().st_mtime_ns, path.stat().st_uid) for path in box.secrets]


@attack("changes settings of the kernel in `/proc/sys`, `/sys`")
def write_kernel_settings(box: Box) -> None:
    program = """
import os
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/vm/overcommit_memory", "/proc/sysrq-trigger",
             "/sys/kernel/mm/transparent_hugepage/enabled"):
    try:
        os.close(os.open(path, os.O_WRONLY))
        print("OPENED", path)
    except OSError as error:
        print(error)
"""
    assert "OPENED" not in box.python(program).output


@attack("sends signals to the runner")
def signal_runner(box: Box) -> None:
    done = box.run(f"kill -0 {os.getpid()} && echo REACHED; kill -0 -- -{os.getpgid(0)} && echo REACHED; true")
    assert "REACHED" not in done.output


@attack("mounts, makes namespaces or device nodes")
def take_rights(box: Box) -> None:
    done = box.run(
        "mkdir m; mount -t tmpfs x m && echo TOOK mount; mount --bind / m && echo TOOK bind;"
        " unshare --user --map-root-user true && echo TOOK userns; unshare --mount true && echo TOOK mountns;"
        " mknod sda b 8 0 && echo TOOK device; true"
    )
    assert "TOOK" not in done.output


@attack("is root, or becomes it by a setuid program")
def become_root(box: Box) -> None:
    done = box.run("test $(id -u) = 0 && echo ROOT; grep NoNewPrivs /proc/self/status; cp /bin/sh s; chmod 4755 s; ls")
    assert "ROOT" not in done.output
    assert "NoNewPrivs:\t1" in done.output


# --- processes that stay


@attack("leaves a daemon behind, forked twice in a session of its own")
def leave_daemon(box: Box) -> None:
    marker = f"daemon-{box.folder.name}-{time.time_ns()}"
    program = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for handle in (0, 1, 2):
            os.close(handle)
        os.execlp("sh", "sh", "-c", "while :; do sleep 60; done", "{marker}")
    os._exit(0)
os.wait()
time.sleep(0.2)
"""
    assert box.python(program).exit_code == 0
    try:
        assert_gone(marker)
    finally:
        for process in processes_with(marker):
            os.kill(process, 9)


@attack("leaves a daemon that holds the output open")
def hold_output(box: Box) -> None:
    marker = f"holder-{box.folder.name}-{time.time_ns()}"
    done = box.run(f"setsid sh -c 'while :; do sleep 60; done' {marker} & echo end")
    try:
        assert (done.exit_code, done.output) == (0, "end\n")
        assert done.duration_seconds < 10
        assert_gone(marker)
    finally:
        for process in processes_with(marker):
            os.kill(process, 9)


@attack("ignores SIGTERM and the time limit")
def ignore_signals(box: Box) -> None:
    done = box.run("trap '' TERM INT HUP QUIT; while :; do sleep 60; done", seconds=1)
    assert (done.stopped_by, done.timed_out, done.exit_code) == ("timeout", True, None)


# --- using up the machine


@attack("forks without end")
def fork_bomb(box: Box) -> None:
    program = """
import os, time
for _ in range(400):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    except OSError:
        time.sleep(0.01)
time.sleep(30)
"""
    assert box.python(program).stopped_by == "process-limit"


@attack("writes 10 GB of output")
def flood_output(box: Box) -> None:
    done = box.run("head -c 10000000000 /dev/zero")
    assert done.stopped_by == "output-limit"
    assert len(done.output) < 30_000


@attack("writes a 10 GB file")
def write_large_file(box: Box) -> None:
    assert box.run("head -c 10000000000 /dev/zero >large").stopped_by == "disk-limit"
    done = box.python("with open('large', 'wb') as file:\n    while True:\n        file.write(bytes(1 << 20))\n")
    assert done.stopped_by == "disk-limit"


@attack("fills the disk with many files, some without a name")
def fill_disk(box: Box) -> None:
    many = "for i in 1 2 3 4 5; do head -c 50000000 /dev/zero >$TMPDIR/f$i || exit; done; sleep 20"
    assert box.run(many).stopped_by == "disk-limit"
    program = """
import os, time
held = []
for number in range(5):
    held.append(open("f", "wb", buffering=0))
    os.unlink("f")
    for _ in range(50):
        held[-1].write(bytes(1 << 20))
time.sleep(20)
"""
    assert box.python(program).stopped_by == "disk-limit"


@attack("takes all memory: as such, as shared memory, in memory files")
def fill_memory(box: Box) -> None:
    assert box.python("x = b'x' * (600 << 20)\nimport time\ntime.sleep(20)").stopped_by == "oom"
    program = """
import os, time
held = []
for _ in range(10):
    held.append(os.memfd_create("m"))
    for _ in range(60):
        os.write(held[-1], bytes(1 << 20))
time.sleep(20)
"""
    assert box.python(program).stopped_by == "oom"
    done = box.run("head -c 400000000 /dev/zero >/dev/shm/x; sleep 2; cat /dev/shm/x | wc -c; rm -f /dev/shm/x")
    assert done.stopped_by is not None or int(done.output.split()[-1]) < 256 << 20


AFTER_ITS_FIRST_THREAD = """
import ctypes, os, threading, time
def go_on():
    time.sleep(0.3)
    {work}
    time.sleep(20)
    os._exit(0)
threading.Thread(target=go_on).start()
EXIT = dict(x86_64=60, aarch64=93)[os.uname().machine]
ctypes.CDLL(None).syscall(EXIT, 0)  # of this thread alone
"""


@attack("takes all memory behind a first thread that has ended, or in segments of System V")
def hide_memory(box: Box) -> None:
    hog = AFTER_ITS_FIRST_THREAD.format(work='held = b"x" * (600 << 20)')
    assert box.python(hog).stopped_by == "oom"
    program = """
import ctypes
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
for number in range(8):
    segment = libc.shmget(0, ctypes.c_size_t(50 << 20), 0o1600)
    if segment < 0:
        break
    address = libc.shmat(segment, None, 0)
    libc.shmctl(segment, 0, None)  # it goes with this process
    ctypes.memset(address, 1, 50 << 20)
    print("TOOK", number)
"""
    assert "TOOK 2" not in box.python(program).output


@attack("fills the disk with folders and links, or where a look does not reach: modes 000, threads")
def hide_files(box: Box) -> None:
    few = {"disk_bytes": 4 << 20}
    for make in ("os.mkdir(str(n))", "os.symlink('x' * 3000, str(n))", "os.symlink('x', str(n))"):
        program = f"import os, time\nfor n in range(1200):\n    {make}\ntime.sleep(20)\n"
        assert box.python(program, cpu_seconds=20, **few).stopped_by == "disk-limit"
    work = (
        "held = open('f', 'wb'); os.unlink('f'); held.write(bytes(30 << 20)); time.sleep(3); print('TOOK', flush=True)"
    )
    assert "TOOK" not in box.python(AFTER_ITS_FIRST_THREAD.format(work=work), **few).output
    program = """
import os, time
os.makedirs("d/e")
inner = os.open("d/e", os.O_RDONLY)
os.chmod("d", 0)
for number in range(6):
    with open(os.open(str(number), os.O_WRONLY | os.O_CREAT, dir_fd=inner), "wb") as file:
        file.write(bytes(5 << 20))
time.sleep(20)
"""
    assert box.python(program, **few).stopped_by == "disk-limit"


@attack("uses the processor without end")
def burn_processor(box: Box) -> None:
    assert box.run("(while :; do :; done) & while :; do :; done").stopped_by == "cpu-limit"


@attack("uses the processor in many short processes that nobody waits for")
def burn_processor_unseen(box: Box) -> None:
    if not clock_works():
        pytest.skip("the kernel tells no processor time of process trees")
    program = """
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
until = time.monotonic() + 7
while time.monotonic() < until:
    if os.fork() == 0:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass
        os._exit(0)
    time.sleep(0.05)
"""
    assert box.python(program).stopped_by == "cpu-limit"


def clock_works() -> bool:
    clock = syscalls.count_processor_time()
    if clock is None:
        return False
    os.close(clock)
    return True


# --- the host's git, and cleaning up


@attack("prepares the checkout for the host's git: pointer, config, hooks, filters, bare repositories")
def poison_git(box: Box) -> None:
    canary = box.folder / "canary"
    before = snapshot(box.slot)
    hook = f"#!/bin/sh\\ntouch {canary}\\n"
    box.run(
        "git init -q nested; printf '* filter=f' >nested/.gitattributes;"
        f" git -C nested config filter.f.clean 'touch {canary}; cat'; echo x >nested/file;"
        " git init -q --bare bare.git; rm -rf .git; printf 'gitdir: nested/.git' >.git;"
        f" mkdir -p .git/hooks; printf '{hook}' >.git/hooks/post-checkout;"
        f" printf '[core]\\nfsmonitor = touch {canary}\\nhooksPath = .\\n' >>.git/config;"
        f" printf '{hook}' >post-checkout; chmod +x post-checkout .git/hooks/post-checkout; true"
    )
    assert snapshot(box.slot) == before
    assert git(box.slot, "status", "--porcelain") == ""
    git(box.slot, "reset", "--quiet", "--hard")
    git(box.slot, "add", "-A")
    assert not canary.exists()


@attack("lays links to `/` and folders of mode 000 in the way of cleaning up")
def hinder_cleaning(box: Box) -> None:
    before = snapshot(box.folder / "home")
    done = box.run(f"ln -s / root; ln -s {box.folder}/home home; mkdir -p a/b/c; touch a/b/c/d; chmod 000 a/b a;"
                   ' mkdir -p "$HOME/x/y"; chmod 000 "$HOME/x"; ln -s / "$TMPDIR/root"')  # fmt: skip
    assert done.exit_code == 0
    assert snapshot(box.folder / "home") == before
    assert list((box.folder / "state/layers").glob("layer-*")) == []


@attack("tells the runner another exit code through a handle that it inherited")
def forge_exit_code(box: Box) -> None:
    program = """
import os, socket, sys
for handle in range(3, 64):
    try:
        os.write(handle, b'{"exit": 0}\\n')
        socket.socket(fileno=handle).shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
sys.exit(7)
"""
    done = box.python(program)
    assert (done.exit_code, done.output) == (7, "")


@attack("hands in a link, a device or a FIFO as its report")
def hand_in_links(box: Box) -> None:
    done = box.run(
        f'cd "$NECROCODE_REPORTS"; ln -s {box.secrets[0]} a.xml; ln {box.secrets[0]} b.xml; mkfifo c.xml;'
        " ln -s /dev/zero d.xml; ln -s .. e; echo ok >f.xml",
        collect=("*.xml",),
    )
    assert list(done.collected) == ["reports/f.xml"]
