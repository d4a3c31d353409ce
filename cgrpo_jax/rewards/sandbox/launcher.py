"""The processes of a sandbox, from the inside: enters namespaces, sets limits, runs the program. See `sandbox`.

`sandbox` starts this file as `python -s -P -S launcher.py FD ISOLATE PARENT`; it needs nothing of the package.
That process, the launcher, starts sandboxes on request over the socket FD: a fork takes a tenth of Python's start. It
never reads what a sandbox is given, so there is nothing to find in it. In each sandbox up to three processes follow
one another, of which only the last runs code that is not ours:

  - the outer one waits, and kills the next if it is asked to end or if the process that started it dies;
  - the init, where there are namespaces: process 1 of its own; whatever it leaves behind, the kernel kills;
  - the program, under limits, without privileges, with no descriptor but those that it was given.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import signal
import socket
import struct
import sys
import traceback

SIGNALLED = 128  # and the signal: the exit status of a program that a signal has ended
FIRST_FD = 3  # where the program finds the descriptors that it was given
_REPORT = 2  # standard error, where a sandbox reports what went wrong, and how its program ended
_FOLDER = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 3))

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE = 2, 4, 4096, 16384, 1 << 18
_DETACH, _AT_FDCWD, _AT_RECURSIVE = 2, -100, 0x8000
_MOUNT_SETATTR, _ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 442, 1, 2, 4
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 36, 38
_CAPSET_VERSION = 0x20080522
_BELOW, _WORK = "/old", "/sandbox"  # the machine's own files while the sandbox's are mounted; the program's directory
_OWN_USERS = 1 << 30  # the first user id of programs, far above any that people have
_PASSING_USERS = range(61184, 65520)  # as systemd gives them to services

_libc = ctypes.CDLL(None, use_errno=True)


def main(fd, isolate, parent):
    """Starts sandboxes until the other end of the socket is closed.

    A request is JSON, `{"ended": [PID, ...], "folder": ..., "module": ...}`, with the descriptors of the description,
    standard input, output, the report, and those that the program gets. The answer is the outer
    process's id, which stays its own until it is among those that ended.
    """
    _die_with_parent(parent)
    if not isolate:  # other programs of this user run beside it, and must not look into what it is given
        _libc.prctl(_SET_DUMPABLE, 0)
    channel, launcher = socket.socket(fileno=fd), os.getpid()
    while True:
        message, fds, _, _ = socket.recv_fds(channel, 1 << 16, 64)
        if not message:
            return
        request = json.loads(message)
        for pid in request["ended"]:
            os.waitpid(pid, 0)
        if request["folder"] == _FOLDER:  # others may each have a module of the same name
            _runner(request["folder"], request["module"])
        gc.freeze()  # what is never looked at again is not copied by those that follow
        pid = os.fork()
        if not pid:
            channel.close()
            _sandbox(fds, isolate, launcher)
        for one in fds:
            os.close(one)
        channel.send(str(pid).encode())


def _runner(folder, module):
    """The function of a module that runs programs."""
    sys.path.append(folder)
    try:
        return importlib.import_module(module).main
    finally:
        sys.path.remove(folder)


def _sandbox(fds, isolate, launcher):
    """Sets up a sandbox and runs its program; never returns."""
    try:
        description, *standard = fds[:4]
        for at, fd in enumerate(standard):
            os.dup2(fd, at)
            os.close(fd)
        os.setsid()
        _die_with_parent(launcher)
        with open(description, encoding="utf-8") as file:
            job = json.load(file) | {"fds": fds[4:], "isolate": isolate}
        run = _runner(job["folder"], job["module"])  # before its file is out of sight
        root = os.geteuid() == 0
        uid = _other_user() if root else None
        if isolate:
            paths = _shown(job["shown"])
            _enter_namespaces(root)
            child = _fork(lambda: _init(job, run, paths, uid))
        else:
            parent = os.getpid()
            _libc.prctl(_SET_SUBREAPER, 1)  # what the program leaves behind becomes the child of this process
            child = _fork(lambda: _program(job, run, uid, parent))
        _wait(child, sweep=not isolate, uid=uid)
    except OSError as error:
        _fail(error)
    except BaseException:  # noqa: BLE001 - this process must not go on as a launcher
        _fail(traceback.format_exc())


def _fail(error):
    os.write(_REPORT, f"{error}\n".encode())  # the program has another one, so this is no word of its own
    os._exit(1)


def _check(name, *args):
    """Calls a function of the C library; raises the `OSError` that it reports."""
    if getattr(_libc, name)(*args) == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _die_with_parent(parent):
    _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before it could be bound to
        os._exit(1)


def _fork(child):
    """Forks; the new process dies with this one, runs `child` and ends."""
    ready, arm = os.pipe()
    pid = os.fork()
    if pid:
        os.close(arm)
        os.read(ready, 1)
        os.close(ready)
        return pid
    try:
        os.close(ready)
        _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)
        os.write(arm, b".")  # fails if the parent is dead already
        os.close(arm)
        child()
    except OSError as error:
        _fail(error)
    os._exit(1)


def _wait(pid, *, sweep, uid):
    """Waits for the child, kills it on SIGTERM, and reports how it ended.

    Args:
      pid: the child.
      sweep: kill what it left behind, too: no kernel does.
      uid: the user that it has become, if any.
    """
    signal.signal(signal.SIGTERM, lambda *_: _kill(pid))
    for opened in ((0, _REPORT), (_REPORT + 1, 1 << 20)):  # readers of the program's output must see its end
        os.closerange(*opened)
    status = os.waitpid(pid, 0)[1]
    while sweep:
        _kill_all_of(uid)
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="utf-8") as file:
            left = [int(one) for one in file.read().split()]
        if not left:
            break
        for one in left:
            _kill(one)
        for one in left:
            os.waitpid(one, 0)
    os.write(_REPORT, f"\0{_code(status)}".encode())
    os._exit(0)


def _kill_all_of(uid):
    """Kills all processes of a user that only one sandbox has at one stroke, faster than they can multiply."""
    if uid is None or uid < _OWN_USERS:
        return
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    _become(uid)
    if os.getuid() == uid:
        _kill(-1)
    os._exit(0)


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _code(status):
    code = os.waitstatus_to_exitcode(status)
    return SIGNALLED - code if code < 0 else code


# --- namespaces -----------------------------------------------------------------------------------------------------


def _enter_namespaces(root):
    flags = _NEWNS | _NEWPID | _NEWNET | _NEWIPC
    if root:
        return _check("unshare", flags)
    uid, gid = os.getuid(), os.getgid()
    _check("unshare", flags | _NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
            file.write(text)


def _init(job, run, paths, uid):
    """Process 1 of the sandbox: makes its file system, starts the program, reaps what dies, ends with the program."""
    _make_root(paths, job["limits"], os.getuid() if uid is None else uid)
    parent = os.getpid()
    child = _fork(lambda: _program(job, run, uid, parent))
    os.closerange(0, 1 << 20)
    pid = status = None
    while pid != child:
        pid, status = os.wait()
    os._exit(_code(status))


def _shown(paths):
    """Returns `(path, the same without links)` of what there is; what lies within another is left out."""
    found = []
    for path in sorted({os.path.abspath(path) for path in paths if path != "/" and os.path.exists(path)}):
        if not any(path.startswith(f"{other}/") for other, _ in found):
            found.append((path, os.path.realpath(path)))
    return found


def _make_root(paths, limits, uid):
    """Makes an empty root with `paths`, which can be read only, and a small directory of its own in memory."""
    _check("mount", None, b"/", None, ctypes.c_ulong(_REC | _PRIVATE), None)
    _tmpfs("/tmp", "size=64k,mode=755")
    os.mkdir(f"/tmp{_BELOW}")
    _check("pivot_root", b"/tmp", f"/tmp{_BELOW}".encode())
    os.chdir("/")
    for path, source in [*paths, ("/dev/null", "/dev/null")]:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if os.path.isdir(_BELOW + source):
            os.mkdir(path)
        else:
            open(path, "x").close()
        bind = ctypes.c_ulong(_BIND | _REC)
        _check("mount", (_BELOW + source).encode(), path.encode(), None, bind, None)
        _read_only(path, _AT_RECURSIVE, devices=path == "/dev/null")
    os.mkdir(_WORK)
    _tmpfs(_WORK, f"size={limits['disk']},nr_inodes={limits['files'] + 1},mode=700,uid={uid},gid={uid}")
    _check("umount2", _BELOW.encode(), _DETACH)
    os.rmdir(_BELOW)
    _read_only("/", 0)


def _tmpfs(path, options):
    _check("mount", b"tmpfs", path.encode(), b"tmpfs", ctypes.c_ulong(_NOSUID | _NODEV), options.encode())


def _read_only(path, flags, devices=False):
    attributes = (ctypes.c_uint64 * 4)(_ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV), 0, 0, 0)
    args = [ctypes.c_long(value) for value in (_MOUNT_SETATTR, _AT_FDCWD)]
    _check("syscall", *args, path.encode(), ctypes.c_long(flags), attributes, ctypes.c_size_t(32))


# --- the program ----------------------------------------------------------------------------------------------------


def _other_user():
    """A user id that no other sandbox has: root's own processes can't be limited in number.

    It is one that no person has; in a container whose ids end at 65,535, one of those for passing users. There, two
    sandboxes that started thousands of processes apart may share one, and count each other's processes.
    """
    pid = os.getpid()
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        spans = [[int(number) for number in line.split()] for line in file]
    for uid in (_OWN_USERS + pid, _PASSING_USERS[pid % len(_PASSING_USERS)]):
        if any(first <= uid < first + length for first, _, length in spans):
            return uid
    return 65534


def _program(job, run, uid, parent):
    """Gives up what the program must not have, and runs it."""
    limits, isolate = job["limits"], job["isolate"]
    os.setsid()
    _keep(job["fds"])
    os.environ.clear()
    if isolate:
        os.chdir(_WORK)
    else:
        os.chdir(job["directory"])
        if uid is not None:
            os.chown(".", uid, uid)
    # Without a user of its own or a namespace, the user's other processes would count: then none may be started.
    processes = limits["processes"] if uid is not None else limits["processes"] + 2 if isolate else 0
    for name, value in (
        ("CPU", limits["cpu"]),
        ("FSIZE", limits["disk"]),
        ("NOFILE", limits["open_files"]),
        ("NPROC", processes),
        ("CORE", 0),
        ("MEMLOCK", 0),
        ("MSGQUEUE", 0),
        ("AS", limits["memory"]),
    ):
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if uid is not None:
        _become(uid)
    _drop_capabilities()
    _libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_SET_DUMPABLE, 0)  # no other process of this user may look into this one
    _libc.prctl(_SET_PDEATHSIG, signal.SIGKILL)  # a change of user has taken it back
    if os.getppid() != parent:
        os._exit(1)
    nowhere = os.open("/dev/null", os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    _deny_system_calls()
    run(job["job"])
    os._exit(0)


def _keep(fds):
    """Moves the descriptors to `FIRST_FD` and on, and closes all others but standard input, output and error."""
    moved = [os.dup(fd) for fd in fds]
    while moved and min(moved) < FIRST_FD + len(fds):
        moved = [os.dup(fd) for fd in moved]
    for at, fd in enumerate(moved, start=FIRST_FD):
        os.dup2(fd, at)
    os.closerange(FIRST_FD + len(fds), 1 << 20)


def _become(uid):
    with contextlib.suppress(OSError):  # root that may not change its user has no limit of processes, see `sandbox`
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _drop_capabilities():
    header = (ctypes.c_uint32 * 2)(_CAPSET_VERSION, 0)
    _check("capset", header, (ctypes.c_uint32 * 6)())


# Numbers on x86_64 and aarch64 of what no program needs. None of this memory counts as the process's own:
_DENIED = {
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    # new namespaces, and mounts in them:
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # other processes:
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # parts of the kernel in which faults were often found:
    "bpf": (321, 280), "userfaultfd": (323, 282), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "open_by_handle_at": (304, 265), "init_module": (175, 105), "finit_module": (313, 273),
    "kexec_load": (246, 104),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E, 56), "aarch64": (1, 0xC00000B7, 220)}  # column, architecture, number of clone
_CLONE3, _NEW_NAMESPACES, _X32 = 435, 0x7E020000, 0x40000000
_SET_SECCOMP, _MODE_FILTER = 22, 2
_ALLOW, _EPERM, _ENOSYS = 0x7FFF0000, 0x50001, 0x50026
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of the filter


def _deny_system_calls():
    """Refuses `_DENIED` to this process and all that it starts, where the kernel can."""
    if os.uname().machine not in _MACHINES or sys.maxsize < 1 << 32:
        return
    code = _filter(*_MACHINES[os.uname().machine])
    text = ctypes.create_string_buffer(code)
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(text)))
    _libc.prctl(_SET_SECCOMP, _MODE_FILTER, program, 0, 0)


def _filter(column, architecture, clone):
    """The filter as the kernel reads it: of each instruction its code, what to skip if so and if not, and a number."""
    denied = [numbers[column] for numbers in _DENIED.values()]
    steps = [
        (_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _EPERM),
        (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _EPERM),
        # What clone3 is asked for stands in memory, where no filter can look; without it, libraries use clone.
        (_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _ENOSYS),
        (_EQUAL, 0, 4, clone), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NEW_NAMESPACES), (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]  # fmt: skip
    for number in denied:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _EPERM)]
    return b"".join(struct.pack("HBBI", *step) for step in [*steps, (_RETURN, 0, 0, _ALLOW)])


if __name__ == "__main__":
    main(int(sys.argv[1]), bool(int(sys.argv[2])), int(sys.argv[3]))
