import json

import pytest

from cgrpo_jax.runtime import digests, watchdog


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "one").write_bytes(b"1" * 1000)
    (tmp_path / "a" / "two").write_bytes(b"")
    (tmp_path / "three").write_bytes(b"3")
    (tmp_path / "free").write_bytes(b"")
    digests.write(tmp_path, ["a", "three"], step=4)
    return tmp_path


def test_what_is_written(folder):
    content = digests.read(folder)
    assert content["step"] == 4 and list(content["files"]) == ["a/b/one", "a/two", "three"]
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert content["files"]["a/two"] == {"bytes": 0, "sha256": empty}
    digests.check(folder, content)
    (folder / "free").write_bytes(b"changed")
    (folder / "a" / "new").write_bytes(b"unknown")
    digests.check(folder, content)


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda path: path.write_bytes(b"1" * 999 + b"0"), "a/b/one is not what was written"),
        (lambda path: path.write_bytes(b"1" * 999), "a/b/one has 999 bytes, 1000 were written"),
        (lambda path: path.unlink(), "a/b/one is missing"),
    ],
)
def test_a_damaged_file_is_named(folder, damage, said):
    damage(folder / "a" / "b" / "one")
    with pytest.raises(digests.Damaged, match=said):
        digests.check(folder, digests.read(folder))
    digests.check(folder, digests.read(folder), where=lambda name: not name.startswith("a/b"))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\ud800", '{"version": 2, "files": {}}', '{"version": 1}', '{"version": 1, "files": []}']
    + ['{"version": 1, "files": {"/etc/passwd": {"bytes": 1, "sha256": ""}}}']
    + ['{"version": 1, "files": {"a/../../b": {"bytes": 1, "sha256": ""}}}']
    + ['{"version": 1, "files": {"a": {"bytes": true, "sha256": ""}}}', '{"version": 1, "files": {"a": {"bytes": 1}}}']
    + ['{"version": ' + "1" * 5000 + "}", "[" * 100_000],
)
def test_damaged_digests(folder, text):
    (folder / digests.FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(digests.Damaged, match="digests.json is damaged"):
        digests.read(folder)


def test_a_folder_without_digests(tmp_path):
    assert digests.read(tmp_path) is None


def test_each_of_several_processes_reads_its_part(folder, monkeypatch):
    read, content = [], digests.read(folder)
    of_file = digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: read.append(path.name) or of_file(path))
    monkeypatch.setattr(digests.jax, "process_count", lambda: 2)
    parts = []
    for process in (0, 1):
        monkeypatch.setattr(digests.jax, "process_index", lambda process=process: process)
        digests.check(folder, content, divided=True)
        parts.append(sorted(read))
        read.clear()
    assert parts == [["one", "two"], ["three"]]


def test_json_has_one_digest_however_it_is_written():
    value = {"b": [1, 0.1, None], "a": "\u00e4"}
    assert digests.of_json(value) == digests.of_json(json.loads(json.dumps(value, indent=2)))
    assert digests.of_json(value) != digests.of_json(value | {"b": [1, 0.1, 0]})


def test_each_file_says_that_the_process_goes_on(tmp_path):
    for name in "abc":
        (tmp_path / name).write_text(name)
    before = watchdog._state.events
    digests.write(tmp_path, "abc")
    assert watchdog._state.events == before + 3
    digests.check(tmp_path, digests.read(tmp_path))
    assert watchdog._state.events == before + 6
