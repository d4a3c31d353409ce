"""What a run reads, as hashes: whatever a reward may depend on changes them, and a change is named."""

import sys

import pytest

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem

PROBLEMS = [Problem(0, "2+3", "5", columns={"level": 1, "tags": ["a"]}), Problem(1, "3+3", "6")]
OTHERS = [
    {"question": "2+4"},
    {"answer": "6"},
    {"source": "x"},
    {"grader": "math"},
    {"solution": "2+3=5"},
    {"columns": {"level": 2, "tags": ["a"]}},
    {"columns": {"level": 1, "tags": ["a", "b"]}},
    {"columns": {"level": 1}},
]


def test_the_fingerprint_of_problems():
    whole = fingerprints.of_problems(PROBLEMS)
    assert whole == fingerprints.of_problems(iter(PROBLEMS)) != fingerprints.of_problems(PROBLEMS[::-1])
    changed = {fingerprints.of_problems([PROBLEMS[0].replace(**other), PROBLEMS[1]]) for other in OTHERS}
    assert len(changed | {whole, fingerprints.of_problems(PROBLEMS[:1])}) == len(OTHERS) + 2
    # The order of the columns, and a question's place in its file, are nothing that is learnt.
    same = PROBLEMS[0].replace(index=7, columns={"tags": ["a"], "level": 1})
    assert fingerprints.of_problems([same, PROBLEMS[1]]) == whole


def test_the_fingerprint_of_a_functions_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def reward(completions, **kw):\n    return [1.0] * len(completions)\n")
    before = fingerprints.of_function(f"{path}:reward")
    assert len(before) == 16 and before == fingerprints.of_function(f"{path}:other")  # of all of the file
    path.write_text(path.read_text().replace("1.0", "0.5"))
    assert before != fingerprints.of_function(f"{path}:reward")
    with pytest.raises(UserError, match="there is no file"):
        fingerprints.of_function(f"{tmp_path}/none.py:reward")


def test_a_module_is_found_and_not_imported(tmp_path, monkeypatch):
    package = tmp_path / "cgrpo_test_package" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("raise AssertionError('imported')\n")
    (package / "rewards.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "cgrpo_test_package.inner.rewards"
    before = fingerprints.of_function(f"{name}:score")
    assert len(before) == 16
    (package / "rewards.py").write_text("def score(completions): ...\n")
    assert before != fingerprints.of_function(f"{name}:score")
    assert fingerprints.of_function("cgrpo_test_package:score") != ""
    assert not [name for name in sys.modules if name.startswith("cgrpo_test_package")]
    for none in ("cgrpo_test_package.inner.none:f", "cgrpo_test_package.none.rewards:f", "no_such_package:f", "sys:f"):
        assert fingerprints.of_function(none) == ""


def test_what_has_changed_is_named(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("one\n")
    problems = {"training": [PROBLEMS[0], PROBLEMS[1].replace(grader=f"{path}:f")], "held-out": []}
    before = fingerprints.of_all("math", problems)
    assert list(before) == ["the training questions", f"the file of {path}:f"]
    assert fingerprints.changed(before, before) == []
    path.write_text("two\n")
    assert fingerprints.changed(before, fingerprints.of_all("math", problems)) == [f"the file of {path}:f"]
    task = fingerprints.of_all("math", problems, task="chains 2")
    assert task[fingerprints.TASK] == "chains 2" and fingerprints.changed(before, task)[-1] == fingerprints.TASK
    both = fingerprints.of_all("math", problems | {"held-out": PROBLEMS})
    assert fingerprints.changed(before, both) == [f"the file of {path}:f", "the held-out questions"]


def test_the_fingerprint_of_a_file_and_a_folder(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    path = tmp_path / "inner" / "weights"
    path.write_bytes(bytes(1000))
    file, folder = fingerprints.of_file(path), fingerprints.of_folder(tmp_path)
    assert file.startswith("1000 bytes (") and folder.startswith("1 files (")
    path.write_bytes(bytes(999) + b"x")
    assert fingerprints.of_file(path) != file and fingerprints.of_folder(tmp_path) != folder
    path.rename(tmp_path / "inner" / "other")
    assert fingerprints.of_folder(tmp_path) != folder
    # Of a large one the first bytes, the last ones and some between count.
    monkeypatch.setattr(fingerprints, "_WHOLE_BYTES", 10)
    monkeypatch.setattr(fingerprints, "_PART_BYTES", 4)
    whole = []
    for place in (0, 999, 32, 5):
        path.write_bytes(bytes(place) + b"x" + bytes(999 - place))
        whole.append(fingerprints.of_file(path))
    path.write_bytes(bytes(1000))
    assert [one != fingerprints.of_file(path) for one in whole] == [True, True, True, False]
