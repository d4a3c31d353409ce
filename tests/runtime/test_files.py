"""New folders: whole or not there, one writer at a time, and nothing left of what failed or was killed."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time

import paths
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write(target, text="whole"):
    with files.new_folder(target) as folder:
        (folder / "file").write_text(text)


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path):
    with files.new_folder(tmp_path / "a" / "b" / "out") as folder:
        (folder / "file").write_text("x")
        assert not (tmp_path / "a" / "b" / "out").exists()
    assert names(tmp_path / "a" / "b") == ["out"] and names(tmp_path / "a" / "b" / "out") == ["file"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), KeyError(1)])
def test_nothing_is_left_where_it_fails(tmp_path, error):
    (tmp_path / "kept").mkdir()
    with pytest.raises(type(error) if not isinstance(error, OSError) else UserError):
        with files.new_folder(tmp_path / "kept" / "a" / "b" / "out") as folder:
            (folder / "file").write_text("x")
            with files.checked(folder):
                raise error
    assert names(tmp_path) == ["kept"] and names(tmp_path / "kept") == []


def test_nothing_is_left_by_threads_that_write_on(tmp_path):
    """As TensorStore's do for a moment after a save has failed: they make again the folders that were removed."""
    writers = []

    def write_on(folder):
        for number in range(40):
            (folder / "checkpoints" / str(number)).mkdir(parents=True, exist_ok=True)
            time.sleep(0.01)

    with pytest.raises(KeyError), files.new_folder(tmp_path / "out") as folder:
        writers.append(threading.Thread(target=write_on, args=[folder]))
        writers[0].start()
        raise KeyError("the save failed")
    writers[0].join()
    assert names(tmp_path) == []


def test_what_exists_is_not_replaced(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link", ".", "..", "/"):
        with pytest.raises(UserError, match="exists already; give a new folder, or remove it"):
            write(os.path.join(tmp_path, name))
    for make in (lambda path: path.mkdir(), lambda path: path.write_text(""), lambda path: path.symlink_to("file")):
        with pytest.raises(UserError, match="out exists already"), files.new_folder(tmp_path / "out"):
            make(tmp_path / "out")  # by another program, meanwhile
        (tmp_path / "out").rmdir() if (tmp_path / "out").is_dir() else (tmp_path / "out").unlink()
    assert names(tmp_path) == ["file", "link"]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for name, cause in (("file/out", "Not a directory"), ("n" * 250, "File name too long")):
        with pytest.raises(UserError, match=f"{name} can't be written: {cause}; give another folder"):
            write(tmp_path / name)
    assert names(tmp_path) == ["file"]


def test_a_second_command_does_not_touch_what_the_first_writes(tmp_path):
    with files.new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("first")
        with pytest.raises(UserError, match="out is being written by another command; wait for it to end, or give"):
            write(tmp_path / "out", "second")
        write(tmp_path / "out.partial")  # another target, though its name looks alike
        assert (folder / "file").read_text() == "first"
    assert (tmp_path / "out" / "file").read_text() == "first" and names(tmp_path) == ["out", "out.partial"]


def test_two_commands_where_there_are_no_locks(tmp_path, monkeypatch):
    """Neither removes nor enters the other's folder; the second to end finds the name taken."""

    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refused)
    with pytest.raises(UserError, match="out exists already"), files.new_folder(tmp_path / "out") as folder:
        (folder / "file").write_text("first")
        write(tmp_path / "out", "second")
        assert (folder / "file").read_text() == "first"
    assert (tmp_path / "out" / "file").read_text() == "second" and names(tmp_path) == ["out"]


KILLED = """
import os, pathlib, signal, sys
from cgrpo_jax.runtime import files
with files.new_folder(sys.argv[1]) as folder:
    (folder / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_command_left_is_removed(tmp_path):
    repository = paths.ROOT
    command = [sys.executable, "-c", KILLED, tmp_path / "out"]
    assert subprocess.run(command, cwd=repository).returncode == -signal.SIGKILL
    assert [name[:13] for name in names(tmp_path)] == [".out.lock", ".out.partial-"]
    other = tmp_path / ".outer.partial-0123456789abcdef"
    other.mkdir()  # of another target
    write(tmp_path / "out")
    assert names(tmp_path) == [other.name, "out"]


def test_a_lock_whose_file_was_removed_is_taken_again(tmp_path, monkeypatch):
    """Between opening the file and locking it, the command that held it ended and removed it."""
    flock, calls = files.fcntl.flock, []

    def late(descriptor, flags):
        calls.append(descriptor)
        if len(calls) == 1:
            (tmp_path / ".out.lock").unlink()
        flock(descriptor, flags)

    monkeypatch.setattr(files.fcntl, "flock", late)
    write(tmp_path / "out")
    assert len(calls) == 2 and names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "error, message",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "out can't be written: the disk is full; free space"),
        (ValueError('write "x"\n [No space left on device]'), "out can't be written: the disk is full; free space"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "out can't be written: the disk quota is used up"),
        (OSError(errno.EFBIG, "File too large"), "a file would be larger than is allowed; raise the limit"),
        (PermissionError(errno.EACCES, "Permission denied", "out"), "written: Permission denied; give another folder"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), r"written: No such file \(x\); give another folder"),
        (ValueError("two\nlines"), "out can't be written: ValueError: two lines; give another folder"),
    ],
)
def test_causes(error, message):
    with pytest.raises(UserError, match=message):
        raise files.fault("out", error)


def test_what_tensorstore_says_of_a_bucket_is_of_writing():
    refused = "PERMISSION_DENIED: Error writing gs://mine/run/checkpoints/6/params/_sharding: a fault"
    committed = "PERMISSION_DENIED: a fault [http_response_code='403'] [http_response_body='{}']"
    assert files.is_of_writing(ValueError(committed))
    assert files.is_of_writing(ValueError(refused)) and files.is_of_writing(RuntimeError("x")) is False
    raised = RuntimeError("a thread")
    raised.__cause__ = ValueError(refused)
    assert files.is_of_writing(raised) and not files.is_of_writing(
        ValueError("Error writing gs://mine: a step is there")
    )
