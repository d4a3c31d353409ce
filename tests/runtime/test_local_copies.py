"""Model folders and data in a bucket are read from copies on the disk, which are what lies there."""

import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import files, local_copies, places

MODEL = "gs://mine/models/tiny"


@pytest.fixture
def folder(bucket, monkeypatch, tmp_path):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    local_copies._local.cache_clear()
    monkeypatch.setattr(local_copies, "_PIECE", 7)
    there = places.place(MODEL)
    for name, text in (("config.json", "{}"), ("model.safetensors", "w" * 100), ("original/model.pth", "x")):
        (there / name).write_text(text)
    return there


def again(path, **kw):
    """As another process asks: nothing is remembered."""
    local_copies._local.cache_clear()
    return local_copies.local(path, **kw)


def test_a_copy_holds_what_the_bucket_does(folder, bucket, capsys):  # noqa: F811
    copy = local_copies.local(MODEL, suffixes=local_copies.MODEL)
    assert copy.name == "tiny" and copy.is_relative_to(local_copies.folder())
    assert sorted(path.name for path in copy.rglob("*")) == ["config.json", "model.safetensors"]
    assert (copy / "model.safetensors").read_text() == "w" * 100
    assert f"copying {MODEL} (2 files, 1.02e-07 GB) to {copy}" in capsys.readouterr().err
    asked = bucket.requests["GET"]
    assert again(MODEL, suffixes=local_copies.MODEL) == copy
    assert bucket.requests["GET"] - asked <= 2  # its listing, not what it holds
    assert f"{MODEL} is read from its copy in {copy}" in capsys.readouterr().err
    assert (again(MODEL) / "original" / "model.pth").read_text() == "x"
    description = again(MODEL, suffixes=local_copies.DESCRIPTION)
    assert [path.name for path in description.iterdir()] == ["config.json"]


def test_what_changes_is_copied_again(folder):
    before = local_copies.local(MODEL)
    (folder / "config.json").write_text("[]")
    assert local_copies.local(MODEL) == before  # within one process it stays what it was
    after = again(MODEL)
    assert after != before and (after / "config.json").read_text() == "[]"


def test_one_file(folder):
    assert local_copies.local(f"{MODEL}/config.json").read_text() == "{}"


def test_a_copy_that_was_killed_goes_on(folder, bucket):  # noqa: F811
    asked = []

    def ends(method, path, number):
        asked.append(path)
        return 403 if "config.json" in path and "alt=media" in path else None

    bucket.faults = ends
    with pytest.raises(UserError, match="can't be read: .*Forbidden"):
        again(MODEL, suffixes=local_copies.MODEL)
    asked.clear()
    bucket.faults = lambda method, path, number: asked.append(path)
    copy = again(MODEL, suffixes=local_copies.MODEL)
    assert (copy / "config.json").read_text() == "{}"
    assert not any("model.safetensors" in path and "alt=media" in path for path in asked)  # which was whole


def test_what_comes_otherwise_is_no_copy(folder, bucket, monkeypatch):  # noqa: F811
    read = type(folder).read_range
    monkeypatch.setattr(type(folder), "read_range", lambda self, start, end: read(self, start, end).replace(b"w", b"v"))
    with pytest.raises(UserError, match="came otherwise than the bucket says"):
        again(MODEL)
    monkeypatch.setattr(type(folder), "read_range", read)
    assert (again(MODEL) / "model.safetensors").read_text() == "w" * 100


def test_what_changes_meanwhile_is_refused(folder, bucket):  # noqa: F811
    def change(method, path, number):
        if "alt=media" in path:
            one = bucket.buckets["mine"]["models/tiny/config.json"]
            one.generation += 1

    bucket.faults = change
    with pytest.raises(UserError, match="changed while it was copied"):
        again(MODEL)


@pytest.mark.parametrize("name", ["../../evil.json", "a//b.json", "./c.json"])
def test_names_that_lead_elsewhere_are_refused(folder, bucket, name):  # noqa: F811
    bucket.write("mine", f"models/tiny/{name}", b"{}")
    with pytest.raises(UserError, match="whose name is no path of a disk"):
        again(MODEL)
    assert not local_copies.folder().exists()


def test_what_is_not_there_stays_as_it_is(folder, tmp_path):
    assert str(local_copies.local("gs://mine/none")) == "gs://mine/none"
    assert local_copies.local(tmp_path / "none") == tmp_path / "none"


def test_a_new_folder_is_whole_or_refused(folder):
    target = places.place("gs://mine/exports/one")
    with files.new_folder(target) as made:
        (made / "config.json").write_text("{}")
        with pytest.raises(UserError, match="is not whole"):
            again(target)
    assert (again(target) / "config.json").read_text() == "{}"
    with pytest.raises(UserError, match="exists already"), files.new_folder(target):
        pass
    with pytest.raises(KeyError), files.new_folder("gs://mine/exports/two") as made:
        (made / "config.json").write_text("{}")
        raise KeyError
    assert not places.place("gs://mine/exports/two").exists()
    # What a killed command has left is replaced.
    (places.place("gs://mine/exports/two") / files.PARTIAL).write_text("")
    (places.place("gs://mine/exports/two") / "old").write_text("")
    with files.new_folder("gs://mine/exports/two") as made:
        (made / "config.json").write_text("{}")
    assert [path.name for path in places.place("gs://mine/exports/two").iterdir()] == ["config.json"]
