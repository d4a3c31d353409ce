"""What processes that differ are told, before they compute; several real ones: tests/integration/test_hosts.py."""

import pathlib

import jax
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import agreement, key_values


class Store:
    """The store of two processes, of which this one is `here`; the other says what the test gives."""

    def __init__(self, monkeypatch, others, here=0, ended=None):
        self.said, self.here = [], here
        others = iter(others)
        monkeypatch.setattr(key_values, "place", lambda: (here, 2))

        def put(name, value):
            self.said.append(value)
            self.both = {here: value}
            other = next(others, None)
            other = other(value) if callable(other) else other
            if other is not None:
                self.both[1 - here] = other

        monkeypatch.setattr(key_values, "put", put)
        monkeypatch.setattr(
            key_values, "read", lambda name: dict(ended or {}) if name == key_values.ENDED else dict(self.both)
        )


def test_one_process_agrees_with_itself():
    assert agreement.exchange("name", {"a": (1, 2)}) == [{"a": [1, 2]}]
    agreement.check_same("name", {"a": 1})
    agreement.check_shared("nowhere", flag="--workdir")


def test_a_difference_names_the_rarer_value_first():
    values = [{"seed": 0, "t": 1.0}, {"seed": 0, "t": 1.0}, {"seed": 0, "t": 0.5}]
    assert agreement.differences(values) == ["t is 0.5 on process 2, 1.0 on processes 0, 1"]
    assert agreement.differences([{"a": 1}, {}]) == ["a is absent on process 1, 1 on process 0"]
    assert agreement.differences([{"a": True}, {"a": 1}]) == ["a is 1 on process 1, true on process 0"]
    assert agreement.differences([{"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}]) == []


def test_a_line_stays_short():
    long = [{"prompt": "x" * 1000 + str(process % 2)} for process in range(64)]
    (line,) = agreement.differences(long)
    assert len(line) < 400 and line.count("hash ") == 2 and "1, 3, 5, 7 and 28 more" in line
    all_differ = [{"a": process} for process in range(64)]
    assert len(agreement.differences(all_differ)[0]) < 200


def test_many_differences_are_counted(monkeypatch):
    Store(monkeypatch, [{f"k{i}": 1 for i in range(9)}])
    with pytest.raises(UserError) as caught:
        agreement.check_same("configuration", {f"k{i}": 0 for i in range(9)})
    assert str(caught.value).startswith("the processes differ: k0 is 1 on process 1, 0 on process 0; k1 is ")
    assert str(caught.value).endswith("; 5 more; give all the same.")


def test_what_is_the_same_passes(monkeypatch):
    store = Store(monkeypatch, [{"a": 1}])
    agreement.check_same("configuration", {"a": 1})
    assert store.said == [{"a": 1}]


def test_one_that_ended_is_not_waited_for(monkeypatch):
    Store(monkeypatch, [], ended={0: "mine", 1: "unknown flag --x; flags are --config"})
    with pytest.raises(UserError, match="^process 1 ended: unknown flag --x; flags are --config$"):
        agreement.exchange("command", 1)


def test_one_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(agreement, "WAIT_SECONDS", 0)
    Store(monkeypatch, [])
    with pytest.raises(UserError, match="^process 1 did not give its command in 0 s; start all processes with"):
        agreement.exchange("command", 1)


def test_a_store_that_is_gone_is_one_line(monkeypatch):
    def gone(*_):
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed\nand more")

    monkeypatch.setattr(key_values, "place", lambda: (1, 2))
    monkeypatch.setattr(key_values, "put", gone)
    with pytest.raises(UserError, match=r"^process 0 has ended \(UNAVAILABLE: Socket closed\); its own message"):
        agreement.exchange("command", 1)


def seen_as(folder):
    """Answers of another process, number 1, that calls the folder so."""
    path = pathlib.Path(folder).resolve()
    first = {}

    def hears(said):
        first.update(said)
        return {}

    def looks(_):
        there = len(path.parts) - first["missing"]
        seen = (pathlib.Path(*path.parts[:there]) / first["file"]).exists()
        return [seen and "/".join(path.parts[there:]), str(folder)]

    return [hears, looks]


@pytest.mark.parametrize("made", [False, True])
def test_a_folder_that_all_see_may_have_other_names(monkeypatch, tmp_path, made):
    (tmp_path / "disk" / ("run" if made else "")).mkdir(parents=True)
    (tmp_path / "mount").symlink_to(tmp_path / "disk")
    Store(monkeypatch, seen_as(tmp_path / "mount" / "run"))
    agreement.check_shared(tmp_path / "disk" / "run", flag="--workdir")
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["disk", "mount", *["run"] * made])


@pytest.mark.parametrize("other", ["disk/run2", "other/run", "disk"])
@pytest.mark.parametrize("made", [False, True])
def test_another_folder_is_refused(monkeypatch, tmp_path, other, made):
    (tmp_path / "disk" / ("run" if made else "")).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    monkeypatch.setattr(agreement, "_SEEN_SECONDS", 0)
    Store(monkeypatch, seen_as(tmp_path / other))
    with pytest.raises(UserError) as caught:
        agreement.check_shared(tmp_path / "disk" / "run", flag="--workdir")
    assert str(caught.value) == (
        f"--workdir {tmp_path / other} on process 1 is not the folder that process 0 calls {tmp_path}/disk/run; "
        "give all of them one folder, on a disk that they share."
    )
    assert not list(tmp_path.rglob(".shared*"))


def test_a_folder_that_process_0_can_not_write_is_refused_on_all(monkeypatch, tmp_path):
    (tmp_path / "file").touch()

    def refused(*_, **__):
        raise PermissionError("no")

    monkeypatch.setattr(pathlib.Path, "touch", refused)
    Store(monkeypatch, [lambda said: {}])
    with pytest.raises(UserError, match=r"^--out .*run can't be written \(no\); give another --out"):
        agreement.check_shared(tmp_path / "run", flag="--out")


def test_the_code_and_what_it_needs_are_compared(monkeypatch, tmp_path):
    found = agreement._versions()
    assert {"the code of cgrpo_jax", "the version of jax", "the version of math-verify"} <= found.keys()
    package = tmp_path / "cgrpo_jax"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inner" / "one.py").write_text("x = 1\n")
    monkeypatch.setattr(agreement.cgrpo_jax, "__file__", str(package / "__init__.py"))
    one = agreement._versions()["the code of cgrpo_jax"]
    (package / "inner" / "one.py").write_text("x = 2\n")
    assert agreement._versions()["the code of cgrpo_jax"] != one != found["the code of cgrpo_jax"]
