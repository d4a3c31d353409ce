"""What a program in a sandbox may not do, in namespaces and with limits alone."""

import contextlib
import io
import os
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time

import pytest
import sandbox_cases
from sandbox_cases import LIMIT, SMALL, printed, run

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.sandbox import launcher as launcher_lib
from cgrpo_jax.rewards.sandbox import sandbox

isolate = sandbox_cases.isolate  # the fixture
runner = sandbox_cases.runner  # the fixture

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
    pytest.mark.usefixtures("nothing_is_left"),
]


@pytest.mark.parametrize(
    ("code", "text", "status"),
    [
        ("os.write(1, b'42')", "42", 0),
        ("print(job['answer'], flush=True)", "[1, {}]\n", 0),
        ("sys.stdout.write(sys.stdin.read()); sys.stdout.flush()", "", 0),
        ("1 / 0", "", 1),
        ("os._exit(7)", "", 7),
        ("os._exit(3)", "", 3),
        ("os.kill(os.getpid(), 9)", "", -9),
        ("import ctypes; ctypes.string_at(0)", "", -11),
    ],
)
def test_a_program_runs_and_its_status_is_told(runner, isolate, code, text, status):
    assert run(runner, isolate, code, answer=[1, {}]) == (text, status)


def test_standard_input_and_descriptors(runner, isolate):
    read, write = os.pipe()
    code = "os.write(3, sys.stdin.read().upper().encode())"
    with open(read, "rb") as output:
        with sandbox.Sandbox(runner, {"code": f"import os, sys\n{code}"}, stdin=b"abc", fds=[write], isolate=isolate):
            os.close(write)
            assert output.read() == b"ABC"


def test_an_endless_loop_is_killed(runner, isolate):
    start = time.monotonic()
    assert run(runner, isolate, "while True: pass", seconds=0.5) == ("", -9)
    # The limit of CPU strikes where no deadline is watched.
    assert run(runner, isolate, "while True: pass", limits=sandbox.Limits(cpu=1)) == ("", -9)
    assert time.monotonic() - start < 20


def test_ten_gigabytes_of_memory_are_refused(runner, isolate):
    code = """
        try:
            bytearray(10 << 30)
        except MemoryError:
            print("whole")
        parts = []
        try:
            while True:
                parts.append(bytearray(1 << 20))
        except MemoryError:
            print("parts" if len(parts) < 200 else len(parts))
        sys.stdout.flush()
    """
    assert printed(runner, isolate, code) == ["whole", "parts"]


def test_ten_gigabytes_of_output_are_cut(runner, isolate):
    text, status = run(runner, isolate, "for _ in range(10 << 14): os.write(1, b'x' * (1 << 16))")
    assert (len(text), status) == (LIMIT, -9)


def test_ten_gigabytes_of_files_are_refused(runner, isolate):
    code = """
        written = 0
        try:
            for number in range(10 << 10):
                with open(str(number % 3), "ab") as file:
                    written += file.write(bytes(1 << 20))
        except OSError as error:
            os.write(1, f"{type(error).__name__} {written <= 3 << 20}".encode())
    """
    assert printed(runner, isolate, code) == ["OSError", "True"]


def test_files_beyond_their_number_are_refused(runner):
    if not sandbox.isolated():
        pytest.skip("this machine allows no namespaces")
    code = """
        try:
            for number in range(100):
                open(str(number), "x").close()
        except OSError:
            os.write(1, str(number).encode())
    """
    assert printed(runner, True, code) == ["10"]


def test_a_fork_bomb_is_contained(runner, isolate):
    code = """
        while True:
            try:
                os.fork()
            except OSError:
                pass
    """
    start = time.monotonic()
    assert run(runner, isolate, code, seconds=1) == ("", -9)
    assert time.monotonic() - start < 20


def test_processes_are_counted(runner, isolate):
    code = """
        import time
        started = 0
        try:
            while started < 50:
                if not os.fork():
                    time.sleep(60)
                started += 1
        except OSError:
            os.write(1, str(started).encode())
    """
    (started,) = map(int, printed(runner, isolate, code))
    assert started == (SMALL.processes - 1 if isolate or os.getuid() == 0 else 0)


@pytest.mark.parametrize("ends", ["", "time.sleep(60)"], ids=["it ends", "it goes on"])
def test_processes_that_run_away_are_killed(runner, isolate, ends):
    if not isolate and os.getuid():
        pytest.skip("it can start none")
    code = f"""
        import signal, time
        for _ in range(2):
            if os.fork():
                {ends or "os._exit(0)"}
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.write(1, b"away")
        time.sleep(60)
    """
    start = time.monotonic()
    read, write = os.pipe()
    with open(read, "rb") as output:
        job = {"code": "import os\n" + textwrap.dedent(code)}
        with sandbox.Sandbox(runner, job, limits=SMALL, stdout=write, isolate=isolate) as box:
            os.close(write)
            if ends:
                assert output.read(4) == b"away"
                box.stop()
            assert output.read() in (b"", b"away")
    assert time.monotonic() - start < 30


def test_a_program_dies_with_the_process_that_started_it(runner, isolate):
    code = f"""
        import pathlib, tempfile, time
        from cgrpo_jax.rewards.sandbox import sandbox
        tempfile.tempdir = {tempfile.gettempdir()!r}
        job = {{"code": "import os, time; os.write(1, b'ready'); time.sleep(60)"}}
        with sandbox.Sandbox(pathlib.Path({str(runner)!r}), job, stdout=1, isolate={isolate}):
            time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as worker:
        assert worker.stdout.read(5) == b"ready"
        start = time.monotonic()
        worker.send_signal(signal.SIGKILL)
        assert worker.stdout.read() == b""
        assert time.monotonic() - start < 20
    for folder in pathlib.Path(tempfile.gettempdir()).glob("sandbox-*") if not isolate else ():
        folder.rmdir()  # no process was left to remove it


def test_writing_outside_its_directory_is_refused(runner, isolate, tmp_path):
    if not isolate and os.getuid():
        pytest.skip("without namespaces a program may write what its user may")
    tmp_path.chmod(0o700)
    code = """
        open("inside", "w").close()
        for path in job["paths"]:
            try:
                open(path, "a").close()
                os.write(1, path.encode() + b"\\n")
            except OSError:
                pass
    """
    outside = [
        tmp_path,
        pathlib.Path.home(),
        pathlib.Path(sys.base_prefix),
        pathlib.Path("/"),
        pathlib.Path("/usr/lib"),
    ]
    paths = [str(folder / "written") for folder in outside]
    tmp_path.chmod(0o711)
    assert printed(runner, isolate, code, paths=[*paths, __file__, str(runner)]) == []
    assert not any(os.path.exists(path) for path in paths)


def test_nothing_but_python_can_be_read(runner, tmp_path):
    if not sandbox.isolated():
        pytest.skip("this machine allows no namespaces")
    (tmp_path / "gold.json").write_text("42")
    (tmp_path / "gold.json").chmod(0o644)
    code = """
        import json, sqlite3, hashlib, ssl, decimal  # some of the libraries that Python is linked with
        for path in job["paths"]:
            assert not os.path.exists(path), path
        os.write(1, " ".join(sorted(os.listdir("."))).encode() + b".")
    """
    paths = [str(tmp_path / "gold.json"), __file__, "/proc/self", "/etc/passwd", "/tmp", "/dev/shm", "/old"]
    assert printed(runner, True, code, paths=paths) == ["."]


def test_environment_and_descriptors_are_its_own(runner, isolate, monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "hunter2")
    code = """
        def opens(path):
            try:
                return b"hunter2" in open(path, "rb").read()
            except OSError:
                return False
        seen = [pid for pid in range(job["pid"] - 100, job["pid"] + 100) if opens(f"/proc/{pid}/environ")]
        fds = []
        for fd in range(64):
            try:
                os.fstat(fd)
                fds.append(fd)
            except OSError:
                pass
        os.write(1, f"{dict(os.environ)} {seen} {fds}".encode())
    """
    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        assert printed(runner, isolate, code, pid=os.getpid()) == "{} [] [0, 1, 2]".split()


def test_there_is_no_network(runner):
    if not sandbox.isolated():
        pytest.skip("this machine allows no namespaces")
    code = """
        import socket
        try:
            socket.create_connection(("127.0.0.1", job["port"]), timeout=5)
        except OSError as error:
            os.write(1, type(error).__name__.encode())
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert printed(runner, True, code, port=server.getsockname()[1]) == ["OSError"]
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_privileges_are_gone(runner, isolate):
    code = """
        import ctypes, resource
        libc = ctypes.CDLL(None)
        attempts = [
            lambda: os.setuid(0) if os.getuid() else os.chroot("."),
            lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1)),
            lambda: os.kill(os.getppid(), 9) or os.kill(1, 9) or 1 / 0,
        ]
        for number, attempt in enumerate(attempts):
            try:
                attempt()
                os.write(1, f"{number} ".encode())
            except (OSError, ValueError, ZeroDivisionError):
                pass
        os.write(1, f"mount{libc.mount(b'tmpfs', b'.', b'tmpfs', 0, None)} ".encode())
    """
    if not isolate and os.getuid():
        pytest.skip("without namespaces a program may kill its user's processes")
    assert printed(runner, isolate, code) == ["mount-1"]


@pytest.mark.skipif(os.uname().machine not in ("x86_64", "aarch64"), reason="system calls are not filtered")
def test_system_calls_that_no_program_needs_are_refused(runner, isolate):
    code = """
        import ctypes, errno
        libc = ctypes.CDLL(None, use_errno=True)
        first = os.uname().machine == "x86_64"
        calls = {
            "shmget": (29 if first else 194, 0, 1 << 20, 0o1600),
            "memfd_create": (319 if first else 279, b"x", 0),
            "unshare": (272 if first else 97, 0x10000000),
            "clone": (56 if first else 220, 0x10000000 | 17, 0, 0, 0, 0),
            "clone3": (435, 0, 0),
            "ptrace": (101 if first else 117, 0, 0, 0, 0),
            "bpf": (321 if first else 280, 0, 0, 0),
            "io_uring_setup": (425, 1, 0),
            "x32": (0x40000000 | 39,),
        }
        for name, arguments in calls.items():
            if name == "x32" and not first:
                continue
            result = libc.syscall(*[ctypes.c_long(one) if isinstance(one, int) else one for one in arguments])
            os.write(1, f"{name}:{errno.errorcode[ctypes.get_errno()] if result == -1 else result} ".encode())
        import _thread
        ended = _thread.allocate_lock()
        ended.acquire()
        _thread.start_new_thread(lambda: (os.write(1, b"thread"), ended.release()), ())
        ended.acquire()
    """
    if not isolate and os.getuid():
        code = code[: code.index("import _thread")]  # it can start none
    said = printed(runner, isolate, code)
    if not isolate and os.getuid():
        said.append("thread")
    assert said.pop() == "thread"
    assert said == [
        f"{name}:{'ENOSYS' if name == 'clone3' else 'EPERM'}"
        for name in "shmget memfd_create unshare clone clone3 ptrace bpf io_uring_setup x32".split()
        if name != "x32" or os.uname().machine == "x86_64"
    ]


def filtered(machine, number, *arguments, architecture=None):
    """What the filter of a machine says of a system call: the instructions carried out as the kernel does."""
    code = launcher_lib._filter(*launcher_lib._MACHINES[machine])
    steps = list(struct.iter_unpack("HBBI", code))
    architecture = launcher_lib._MACHINES[machine][1] if architecture is None else architecture
    data = struct.pack("IIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    at = value = 0
    while True:
        kind, yes, no, number = steps[at]
        at += 1
        if kind == 0x20:
            value = struct.unpack_from("I", data, number)[0]
        elif kind == 0x06:
            return {0x7FFF0000: "allowed", 0x50001: "EPERM", 0x50026: "ENOSYS"}[number]
        else:
            at += yes if {0x15: value == number, 0x35: value >= number, 0x45: value & number}[kind] else no


@pytest.mark.parametrize(
    ("machine", "denied", "allowed", "clone"),
    [
        ("x86_64", [29, 272, 101, 165, 321, 425, 246, 0x40000000 + 39], [0, 1, 39, 57, 59, 9, 231], 56),
        ("aarch64", [194, 97, 117, 40, 280, 425, 104], [63, 64, 172, 221, 222, 94], 220),
    ],
)
def test_the_filter_of_system_calls(machine, denied, allowed, clone):
    assert {filtered(machine, number) for number in denied} == {"EPERM"}
    assert {filtered(machine, number) for number in allowed} == {"allowed"}
    assert {filtered(machine, number, architecture=0x40000003) for number in allowed} == {"EPERM"}
    assert filtered(machine, clone, 0x3D0F00) == filtered(machine, clone, 17) == "allowed"  # a thread, a fork
    for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert filtered(machine, clone, namespace | 17) == "EPERM"
    assert filtered(machine, 435) == "ENOSYS"


def test_sandboxes_have_users_of_their_own(runner, isolate):
    if os.getuid():
        pytest.skip("only root may change its user")
    code = "os.write(1, str(os.getuid()).encode())"
    users = {printed(runner, isolate, code)[0] for _ in range(3)}
    assert len(users) == 3 and not users & {"0", "65534"}


def test_users_where_their_ids_end_early(monkeypatch):
    text = "0 100000 65536\n"
    monkeypatch.setattr(launcher_lib, "open", lambda *args, **kwargs: io.StringIO(text), raising=False)
    users = set()
    for pid in range(1000, 1100):
        monkeypatch.setattr(os, "getpid", lambda: pid)  # noqa: B023 - used at once
        users.add(launcher_lib._other_user())
    assert len(users) == 100 and min(users) > 60000 and max(users) < 65534
    text = "0 1000 1\n"
    assert launcher_lib._other_user() == 65534


def test_a_launcher_that_dies_as_it_is_asked_is_replaced(runner, isolate, monkeypatch):
    """What it was sent is sent again, from the start."""
    launcher = sandbox._Launcher(isolate)
    monkeypatch.setattr(sandbox._threads, "launchers", {(os.getpid(), isolate): launcher}, raising=False)
    monkeypatch.setattr(launcher, "runs", lambda: True)  # as it was a moment ago
    launcher._process.kill()
    launcher._process.wait()
    assert printed(runner, isolate, "os.write(1, b'2')") == ["2"]
    assert sandbox._launcher(isolate) is not launcher


def test_a_launcher_that_never_answers_is_an_error(runner, isolate, monkeypatch):
    monkeypatch.setattr(sandbox, "_FORK_SECONDS", 0.5)
    monkeypatch.setattr(sandbox, "_LAUNCHER", runner.with_name("hangs.py"))
    runner.with_name("hangs.py").write_text("import signal\nsignal.pause()\n")
    monkeypatch.setattr(sandbox._threads, "launchers", {}, raising=False)
    with pytest.raises(sandbox.SandboxError, match=r"could not be set up: Python gave no answer within 0\.5 s"):
        sandbox.Sandbox(runner, {"code": ""}, isolate=isolate)
    for launcher in sandbox._threads.launchers.values():
        assert launcher._process.wait(20) is not None


def test_a_launcher_ends_with_its_thread(runner, isolate):
    launchers = []

    def use():
        printed(runner, isolate, "os.write(1, b'1')")
        launchers.append(sandbox._launcher(isolate)._process)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert launchers[0].wait(20) is not None
    assert launchers[0].pid != sandbox._launcher(isolate)._process.pid


def test_a_launcher_buries_its_dead(runner, isolate):
    for _ in range(5):
        printed(runner, isolate, "os.write(1, b'1')")
    launcher = sandbox._launcher(isolate)._process.pid
    children = pathlib.Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    assert len(children) == 1  # the last one's number must stay its own while it may get a signal


def test_what_a_runner_of_the_same_name_does(tmp_path, isolate):
    """Modules of other folders are not kept by the launcher."""
    for word in ("one", "two"):
        file = tmp_path / word / "runs.py"
        file.parent.mkdir(mode=0o755)
        file.write_text(f"import os\ndef main(job):\n    os.write(1, b'{word}')\n")
        assert printed(file, isolate, "") == [word]


def test_a_sandbox_that_can_not_be_made_is_an_error(runner, monkeypatch):
    monkeypatch.setattr(tempfile, "mkdtemp", lambda prefix: "/no/such/folder")
    with pytest.raises(sandbox.SandboxError, match="/no/such/folder"):
        with sandbox.Sandbox(runner, {"code": ""}, isolate=False) as box:
            box.wait(20)
    with contextlib.suppress(sandbox.SandboxError):
        box.stop()


def test_what_the_machine_denies_is_said(monkeypatch, caplog):
    hidden = []
    monkeypatch.setattr(sandbox, "hide", lambda: hidden.append(True))
    _forget()
    sandbox.check()
    said = bool(caplog.messages)
    assert said != sandbox.isolated()
    caplog.clear()
    _forget()
    try:
        monkeypatch.setattr(sandbox, "_refusal", lambda isolate: "unshare: not permitted" if isolate else None)
        assert not sandbox.isolated()
        sandbox.check()
        sandbox.check()
        (message,) = caplog.messages  # said once
        assert hidden and "WITHOUT namespaces" in message and "unshare: not permitted" in message
        monkeypatch.setattr(sandbox, "_refusal", lambda isolate: "no")
        sandbox.check.cache_clear()
        with pytest.raises(UserError, match="can't be run in a sandbox on this machine: no;"):
            sandbox.check()
    finally:
        _forget()


def test_a_library_that_programs_can_not_read_is_told(monkeypatch, tmp_path, isolate):
    """The probe, among files of which none is `colorsys`: of a folder that its user is not let into it sees none."""
    probe = pathlib.Path(sandbox.__file__).with_name("probe.py").read_text()
    (tmp_path / "probe.py").write_text("import sys\nsys.modules['colorsys'] = None\n" + probe)
    monkeypatch.setattr(sandbox, "_HERE", tmp_path)
    assert sandbox._refusal(isolate=isolate) == (
        f"the user that programs run as can't read Python's library in {sys.base_prefix}"
    )


def _forget():
    sandbox.check.cache_clear()
    sandbox._why_not.cache_clear()


def test_elsewhere_it_is_an_error(monkeypatch, runner):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux, not darwin"):
        sandbox.Sandbox(runner, {})
