"""Paths in a bucket behave as those on a disk where the package calls them, also while the service fails."""

import errno

import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from gcsfs import retry

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files, folder_lock, places


@pytest.fixture
def root(bucket, monkeypatch):  # noqa: F811
    async def at_once(seconds):
        pass

    monkeypatch.setattr(retry.asyncio, "sleep", at_once)  # between two tries
    return places.place("gs://mine/a")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_methods_are_those_of_a_disk(root, tmp_path):
    found = []
    for folder in (root, tmp_path):
        (folder / "inner" / "deep").mkdir(parents=True, exist_ok=True)
        (folder / "inner" / "deep" / "x.txt").write_text("é", encoding="utf-8")
        (folder / "step_2.txt").write_bytes(b"one\ntwo\n")
        assert (folder / "inner").is_dir() and not (folder / "inner").is_file() and folder.is_absolute()
        assert (folder / "step_2.txt").is_file() and not (folder / "none").exists()
        with (folder / "step_2.txt").open("rb") as file:
            assert file.readline() == b"one\n"
        with (folder / "step_2.txt").open(encoding="utf-8") as file:
            assert list(file) == ["one\n", "two\n"]
        (folder / "inner").rename(folder / "other")
        (folder / "gone").write_text("")
        (folder / "gone").unlink()
        (folder / "gone").unlink(missing_ok=True)
        within = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        found.append(
            (
                names(folder),
                sorted(within),
                [path.name for path in folder.glob("step_*.txt")],
                list((folder / "none").glob("*")),
                (folder / "other" / "deep" / "x.txt").read_text(encoding="utf-8"),
                (folder / "step_2.txt").stat().st_size,
                str((folder / "step_2.txt").parent) == str(folder),
            )
        )
    assert found[0] == found[1]
    assert found[0][0] == ["other", "step_2.txt"]


def test_what_is_not_there_is_said_as_on_a_disk(root, tmp_path):
    (root / "file").write_text("")
    for act, error in (
        (lambda folder: (folder / "none").read_bytes(), FileNotFoundError),
        (lambda folder: (folder / "none").stat(), FileNotFoundError),
        (lambda folder: list((folder / "none").iterdir()), FileNotFoundError),
        (lambda folder: (folder / "none").unlink(), FileNotFoundError),
        (lambda folder: (folder / "file").mkdir(exist_ok=True), FileExistsError),
    ):
        (tmp_path / "file").write_text("")
        for folder in (root, tmp_path):
            with pytest.raises(error) as caught:
                act(folder)
            assert caught.value.errno in (errno.ENOENT, errno.EEXIST)


def test_a_service_that_refuses_is_no_missing_file(root, bucket):  # noqa: F811
    (root / "config.json").write_text("{}")
    bucket.faults = lambda method, path, number: 403
    with pytest.raises(PermissionError, match="Forbidden"):
        (root / "config.json").exists()
    bucket.faults = lambda method, path, number: 503
    with pytest.raises(OSError, match="503|fault"):
        (root / "config.json").is_file()


@pytest.mark.parametrize("fault", [503, "cut"])
def test_lines_are_appended_once_each_through_faults(root, bucket, fault):  # noqa: F811
    """A request whose answer is lost was done; its second try must not append again."""
    bucket.faults = lambda method, path, number: fault if number % 3 == 0 else None
    for number in range(4):
        files.append(root / "metrics.jsonl", f"{number}\n")
    bucket.faults = lambda method, path, number: None
    assert (root / "metrics.jsonl").read_text() == "0\n1\n2\n3\n"
    assert bucket.names("mine") == ["a/metrics.jsonl"]


def test_two_that_append_lose_nothing(root, bucket, monkeypatch):  # noqa: F811
    """What another has appended between this one's look and its own is kept, and said."""
    path = root / "metrics.jsonl"
    path.append(b"0\n")
    wrote = []

    def other(method, target, number):
        if "compose" in target and not wrote:
            wrote.append(bucket.buckets["mine"]["a/metrics.jsonl"])
            one = bucket.buckets["mine"]["a/metrics.jsonl"]
            bucket.buckets["mine"]["a/metrics.jsonl"] = type(one)(one.data + b"other's\n", one.generation + 1000)

    bucket.faults = other
    with pytest.raises(OSError, match="another program has written it"):
        path.append(b"1\n")
    assert path.read_text() == "0\nother's\n"

    def first(method, what, number):
        if what.endswith("writes a/new.jsonl"):
            bucket.write("mine", "a/new.jsonl", b"other's\n")

    bucket.faults = first
    with pytest.raises(OSError, match="another program has written it"):
        (root / "new.jsonl").append(b"1\n")
    assert (root / "new.jsonl").read_text() == "other's\n"


def test_files_of_both_kinds_by_one_interface(root, tmp_path):
    for folder in (root, tmp_path):
        files.write_atomically(folder / "config.json", "{}\n")
        files.append(folder / "log", "one\n")
        files.append(folder / "log", "two\n")
        files.copy(folder / "log", folder / "log.before")
        files.truncate(folder / "log", 4)
        with files.whole_file(folder / "table") as temporary:
            temporary.write_bytes(b"rows")
        with pytest.raises(KeyError), files.whole_file(folder / "half") as temporary:
            temporary.write_bytes(b"ro")
            raise KeyError
        with files.filled_folder(folder / "model", last="digests.json") as made:
            (made / "digests.json").write_text("{}")
            (made / "tokenizer.json").write_text("{}")
        (folder / "old" / "inner").mkdir(parents=True, exist_ok=True)
        (folder / "old" / "inner" / "file").write_text("")
        files.remove_folder(folder / "old")
        files.remove_folder(folder / "never")
        assert names(folder) == ["config.json", "log", "log.before", "model", "table"]
        assert (folder / "log").read_text() == "one\n" and (folder / "log.before").read_text() == "one\ntwo\n"
        assert (folder / "table").read_bytes() == b"rows" and names(folder / "model") == [
            "digests.json",
            "tokenizer.json",
        ]


def test_the_seal_of_a_folder_comes_last(root, bucket):  # noqa: F811
    with files.filled_folder(root / "model", last="digests.json") as made:
        for name in ("tokenizer.json", "digests.json", "a.json", "z.json"):
            (made / name).write_text("{}")
    order = [bucket.buckets["mine"][f"a/model/{name}"].generation for name in ("a.json", "z.json", "digests.json")]
    assert order == sorted(order)


def test_the_program_that_came_last_owns_a_folder(root):
    (root / ".metrics.jsonl.0a1b2c3d.part").write_text("half")  # as a killed program leaves it
    with folder_lock.owned(root, busy="") as first:
        first()
        assert names(root) == [".writer"]
        with folder_lock.owned(root, busy="") as second:
            second()
            with pytest.raises(UserError, match="is written by process .* now, which began after this one"):
                first()
            second()


def test_no_bucket_is_said_so(bucket):  # noqa: F811
    with pytest.raises(OSError, match="no such bucket"), folder_lock.owned(places.place("gs://none/a"), busy=""):
        pass
