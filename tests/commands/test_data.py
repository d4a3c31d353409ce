"""`data prepare`: what it writes, says and refuses. The formats themselves are in test_formats.py."""

import shutil
import subprocess
import sys
import textwrap

import pytest
import tiny_run
from data_cases import MINE, run, write

from cgrpo_jax import data
from cgrpo_jax.datasets import array_record, formats, readers
from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.runtime import digests

GOOD = {"question": "How many?", "answer": "#### 1"}
ADD = "assert add(1, 2) == 3"


def refused(capsys, *args, **kw):
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*args, **kw)
    out, err = capsys.readouterr()
    error = err.splitlines()[-1]  # after the bar of what was read
    assert caught.value.code == 2 and error.startswith("error: ") and out == ""
    return error


def problems(out, name, split="train", **keys):
    return readers.read_tfds(name, split=split, data_dir=out, **{"question_key": "-", "answer_key": "-"} | keys)


def test_two_splits_in_their_order_and_what_is_said(tmp_path, capsys):
    train = write(tmp_path / "a.jsonl", *[GOOD | {"question": f"{k}?"} for k in range(30)])
    test = write(tmp_path / "b.jsonl", GOOD, GOOD)
    run(tmp_path / "out", "gsm8k", f"--source=train={train},test={test}")
    out = capsys.readouterr().out
    assert "gsm8k, split train: 30 rows\ngsm8k, split test: 2 rows\ngraders: numeric (32)\n" in out
    assert f"--config.data.kind=tfds --config.data.train=gsm8k --config.data.tfds_dir={tmp_path / 'out'}" in out
    assert [problem.question for problem in problems(tmp_path / "out", "gsm8k")] == [f"{k}?" for k in range(30)]
    assert len(problems(tmp_path / "out", "gsm8k", split="train[:7]")) == 7
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["gsm8k"]
    assert [path.name for path in (tmp_path / "out" / "gsm8k").iterdir()] == ["1.0.0"]
    about = array_record.description(array_record.open_source("gsm8k", split="test", data_dir=tmp_path / "out"))
    assert about["splits"]["train"]["sha256"] == array_record.digest(train) and about["format"] == "gsm8k"


def test_a_damaged_set_is_not_read(tmp_path):
    source = write(tmp_path / "a.jsonl", *[GOOD | {"question": f"{k}?"} for k in range(30)])
    run(tmp_path / "out", "gsm8k", f"--source={source}")
    folder = tmp_path / "out" / "gsm8k" / "1.0.0"
    names = sorted(path.name for path in folder.iterdir())
    assert digests.FILE in names
    for name in names:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(UserError, match=r"data set '.*' (is damaged \(.*\); restore|can't be opened)"):
            problems(tmp_path / "out", "gsm8k")
        (folder / name).write_bytes(whole)
    assert len(problems(tmp_path / "out", "gsm8k")) == 30
    (folder / digests.FILE).unlink()
    with pytest.raises(UserError, match="is damaged .digests.json is missing."):
        problems(tmp_path / "out", "gsm8k")


def test_columns_by_name_and_a_grader(tmp_path, capsys):
    path = write(tmp_path / "mine.jsonl", {"q": "2+2", "a": "so #4", "level": 3, "tags": ["x"]})
    run(tmp_path, "mine", f"--source={path}", *MINE, "--answer_pattern=#(.)", "--grader=exact")
    (problem,) = problems(tmp_path, "mine")
    assert (problem.question, problem.answer, problem.grader) == ("2+2", "4", "exact")
    assert problem.columns == {"a": "so #4", "level": 3, "tags": ["x"]}
    run(tmp_path / "other", "mine", f"--source={path}", *MINE)
    assert problems(tmp_path / "other", "mine")[0].grader == ""
    assert "graders: as the run says (1)" in capsys.readouterr().out


def test_rows_whose_answer_cant_be_read(tmp_path, capsys):
    path = write(tmp_path / "mine_test.jsonl", GOOD, {"question": "Who?", "answer": "#### him"}, GOOD)
    said = refused(capsys, tmp_path / "out", "gsm8k", f"--source={path}")
    assert f"1 gold answers can't be read ({path}, line 2: 'him', by grader 'numeric')" in said
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", "gsm8k", f"--source={path}", "--drop_unreadable")
    assert "gsm8k, split test: 2 rows; 1 left out: gold answer can't be read\n" in capsys.readouterr().out
    assert len(problems(tmp_path / "out", "gsm8k", split="test")) == 2


def test_rows_without_a_gold_answer(tmp_path, capsys):
    rows = [{"q": "1?", "a": "1"}, {"q": "2?", "a": None}, {"q": "3?"}, {"q": "4?", "a": "him"}, {"q": "5?", "a": "5"}]
    path, flags = write(tmp_path / "a.jsonl", *rows), (*MINE, "--grader=numeric")
    said = refused(capsys, tmp_path / "out", "mine", f"--source={path}", *flags)
    assert f"2 rows have no gold answer ({path}, line 2: column 'a' is None; it must hold text or a number; " in said
    assert f"{path}, line 3: column 'a' is missing (there are: q)" in said
    assert said.endswith("fix these rows, or leave them out with --drop_unreadable.")
    run(tmp_path / "out", "mine", f"--source={path}", *flags, "--drop_unreadable")
    left = "2 rows; 2 left out: no gold answer; 1 left out: gold answer can't be read\n"
    assert f"mine, split train: {left}graders: numeric (2)\n" in capsys.readouterr().out
    assert [problem.question for problem in problems(tmp_path / "out", "mine")] == ["1?", "5?"]
    # A misspelt column leaves none; and a question that is missing is an error all the same.
    misspelt = ("--format=jsonl", "--question_key=q", "--answer_key=b", "--drop_unreadable")
    said = refused(capsys, tmp_path / "other", "mine", f"--source={path}", *misspelt)
    assert "has no rows for split train (5 left out: no gold answer, such as" in said
    assert "line 1: column 'b' is missing (there are: q, a)" in said
    path = write(tmp_path / "b.jsonl", rows[0], {"q": None, "a": "1"})
    said = refused(capsys, tmp_path / "other", "mine", f"--source={path}", *flags, "--drop_unreadable")
    assert "line 2: column 'q' is None" in said


def test_rows_with_numbers_that_are_none_and_with_damaged_text(tmp_path, capsys):
    rows = [{"q": "1?", "a": 1.5}, {"q": "2?", "a": float("nan")}, {"q": "3?", "a": float("-inf")}]
    rows += [{"q": "4?\ud83d", "a": "4"}, {"q": "5?", "a": "\ud800"}, {"q": "6?", "a": "6", "x": "\ud800"}]
    path, flags = write(tmp_path / "a.jsonl", *rows), (*MINE, "--grader=numeric")
    said = refused(capsys, tmp_path / "out", "mine", f"--source={path}", *flags)
    assert f"3 rows have no gold answer ({path}, line 2: column 'a' is nan; it must hold text or a finite" in said
    assert f"{path}, line 3: column 'a' is -inf" in said and f"{path}, line 5: column 'a' is not valid Unicode" in said
    run(tmp_path / "out", "mine", f"--source={path}", *flags, "--drop_unreadable")
    left = "2 rows; 3 left out: no gold answer; 1 left out: text is damaged\n"
    assert f"mine, split train: {left}" in capsys.readouterr().out
    kept = problems(tmp_path / "out", "mine")
    assert [(one.question, one.answer) for one in kept] == [("1?", "1.5"), ("6?", "6")]
    assert kept[1].columns == {"a": "6", "x": "?"}
    damaged = write(tmp_path / "b.jsonl", rows[0], rows[3])
    said = refused(capsys, tmp_path / "other", "mine", f"--source={damaged}", *flags)
    assert f"1 rows have damaged text ({damaged}, line 2: column 'q' is not valid Unicode: character 3 of 3" in said


def test_sets_from_before_there_were_turns_are_read():
    row = {"question": b"1?", "answer": b"1", "solution": b"", "columns": b'{"x": 1}', "grader": b"math"}
    assert array_record.decode(row, "old, row 1") == formats.Example("1?", "1", "", {"x": 1}, "math", ())
    turns = b'[["system", "Be brief."]]'
    assert array_record.decode(row | {"turns": turns}, "new, row 1").turns == (("system", "Be brief."),)
    for broken in ({"turns": b"["}, {"turns": b"[1]"}, {"columns": b"["}, {"question": b"\xff"}, {"answer": 1}):
        with pytest.raises(UserError, match="^old, row 1 is damaged .*; prepare the set again.$"):
            array_record.decode(row | broken, "old, row 1")


@pytest.mark.parametrize(
    "name, row",
    [
        ("openr1", {"prompt": "1?", "reward_model": {"ground_truth": None}}),
        ("svamp", {"Body": "1", "Question": "?", "Answer": None}),
        ("theoremqa", {"Question": "1?", "Answer_type": "integer", "Answer": None}),
        ("gpqa_diamond", {"Question": "1?", "Correct Answer": None}),
        ("mmlu_pro", {"question": "1?", "options": ["a", "b"], "answer": None}),
        ("mbpp", {"task_id": 601, "text": "Add.", "test_list": None}),
    ],
)
def test_formats_know_a_row_without_a_gold_answer(tmp_path, name, row):
    path = write(tmp_path / "a.jsonl", row)
    ((_, found),) = formats.examples(formats.FORMATS[name].convert, path, "train")
    assert isinstance(found, formats.NoAnswer)


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_rows_whose_own_solution_fails_their_tests(tmp_path, capsys, name):
    if name == "mbpp":
        good = {"task_id": 601, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": [ADD]}
        bad = good | {"test_list": ["assert add(1, 2) == 4", ADD]}
        rows, failed = [good, good | {"code": None}, bad], "Test 1 of 2 fails: add(1, 2) returns 3."
    else:
        good = {"prompt": "def add(a, b):\n", "entry_point": "add", "canonical_solution": "    return a + b\n"}
        good["test"] = f"def check(add):\n    {ADD}\n"
        bad = good | {"test": f"def check(candidate):\n    {ADD}\n    assert isclose(candidate(1, 2), 3)\n"}
        rows, failed = [good, good, bad], "Test 2 of 2 fails: the test raises NameError"
    path = write(tmp_path / "a.jsonl", *rows)
    split = "train" if name == "mbpp" else "test"
    said = refused(capsys, tmp_path / "out", name, f"--source={split}={path}")
    assert f"1 rows' own solutions fail their tests ({path}, line 3: {failed}" in said
    assert said.endswith("fix these rows, or leave them out with --drop_unsolved.")
    assert not (tmp_path / "out").exists()
    run(tmp_path / "out", name, f"--source={split}={path}", "--drop_unsolved")
    out, bars = capsys.readouterr()
    assert f"{name}, split {split}: 2 rows; 1 left out: its own solution fails its tests\ngraders: code (2)" in out
    assert "running the rows' own solutions" in bars
    assert len(problems(tmp_path / "out", name, split=split)) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_solutions_over_a_library_of_ones_own(tmp_path, capsys):
    code = "import hydro\ndef add(a, b): return hydro.poured(a, b)"
    path = write(tmp_path / "a.jsonl", {"task_id": 601, "text": "Add.", "code": code, "test_list": [ADD]})
    library = tmp_path / "hydro.py"
    library.write_text("import numpy\ndef poured(a, b): return int(numpy.add(a, b))\n")
    given = (tmp_path / "out", "mbpp", f"--source=train={path}")
    assert "gone.py' does not exist; give a file" in refused(capsys, *given, f"--modules={tmp_path / 'gone.py'}")
    assert "No module named 'hydro'" in refused(capsys, *given)
    run(*given, f"--modules={library}")
    assert "mbpp, split train: 1 rows\n" in capsys.readouterr().out


MBPP = {"task_id": 601, "text": "Add.", "code": "def add(a, b): return a + b", "test_list": [ADD]}


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
def test_rows_without_names(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", MBPP | {"code": None, "test_list": ["assert isclose(f(2), 1.41)"]})
    said = refused(capsys, tmp_path / "out", "mbpp", f"--source=train={path}")
    assert "its tests use f and isclose: say in `names` which come from the program, by grader 'code')" in said


@pytest.mark.parametrize("flags", [(), ("--drop_unsolved",)])
def test_a_sandbox_that_fails_is_no_wrong_solution(tmp_path, capsys, monkeypatch, flags):
    reason = "grader failed: SandboxError: the sandbox could not be set up: \nfork: no memory"
    failed = grader_lib.Pending(lambda: grader_lib.Grade(0.0, None, reason, failed=True))
    monkeypatch.setattr(grader_lib.Grader, "submit", lambda *_: failed)
    monkeypatch.setattr(grader_lib.Grader, "readable", lambda self, answers: [True] * len(answers))
    path = write(tmp_path / "a.jsonl", MBPP)
    said = refused(capsys, tmp_path / "out", "mbpp", f"--source=train={path}", *flags)
    told = f"{path}, line 1: its own solution could not be run ({' '.join(reason.split())}); nothing was written"
    assert told in said and not (tmp_path / "out").exists()


def test_own_solutions_have_the_time_that_training_gives(tmp_path, monkeypatch):
    given = []

    class Watched(grader_lib.Grader):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            given.append(self._timeout)

        def submit(self, *_):
            return grader_lib.Pending(lambda: grader_lib.Grade(1.0, "", ""))

        def readable(self, answers):
            return [True] * len(answers)

    monkeypatch.setattr(grader_lib, "Grader", Watched)
    run(tmp_path / "out", "mbpp", f"--source=train={write(tmp_path / 'a.jsonl', MBPP)}")
    assert set(given) == {tiny_run.config().grader.timeout} and len(given) == 2


@pytest.mark.parametrize(
    "name, rows, flags, message",
    [
        ("gsm8k", [GOOD, {"question": "1?"}], (), "line 2: column 'answer' is missing (there are: question)"),
        ("gsm8k", [GOOD, "{oops"], (), "line 2: not JSON"),
        ("gsm8k", [GOOD | {"answer": "4"}], (), "line 1: answer_pattern '####\\\\s*(.+)' is not found in '4'"),
        ("math", [{"problem": "1?", "solution": "so 1"}], (), "line 1: there is no column 'answer', and no \\boxed"),
        ("mmlu_pro", [{"question": "1?", "options": ["a", "b"], "answer": "C"}], (), "it must be the letter of one of"),
        ("mmlu_pro", [{"question": "1?", "options": "a", "answer": "A"}], (), "column 'options' is 'a'; it must hold"),
        ("humaneval", [{"prompt": "def f():"}], (), "line 1: column 'test' is missing"),
        ("mbpp", [{"task_id": 1, "text": "x", "test_list": ["assert 1"]}], (), "has no rows for split test"),
        ("gsm8k", [], (), "has no rows for split train"),
        ("gsm9k", [GOOD], (), "format 'gsm9k' of data set 'gsm9k' is unknown; give --format, one of openr1, gsm8k"),
        ("gsm8k", [GOOD], ("--answer_key=a",), "format gsm8k knows its columns; leave --answer_key out"),
        ("Gsm8K", [GOOD], ("--format=gsm8k",), "data set name 'Gsm8K' can't be used; use lower-case letters"),
        ("mine", [GOOD], ("--format=jsonl", "--answer_pattern=("), "answer_pattern '(' is no regular expression"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path, capsys, name, rows, flags, message):
    path = write(tmp_path / "a.jsonl", *rows)
    assert message in refused(capsys, tmp_path / "out", name, f"--source={path}", *flags)
    assert not (tmp_path / "out").exists()


def test_files_that_are_refused(tmp_path, capsys):
    source = tmp_path / "a.txt"
    assert "does not exist; check the path" in refused(capsys, tmp_path / "out", "gsm8k", f"--source={source}")
    write(source, GOOD)
    assert "is of no known kind; use .jsonl, .json" in refused(capsys, tmp_path / "out", "gsm8k", f"--source={source}")
    assert "holds no .jsonl" in refused(capsys, tmp_path / "out", "gsm8k", f"--source={tmp_path}")
    broken = tmp_path / "a.parquet"
    broken.write_bytes(b"PAR1 and no more")
    assert "can't be read as parquet" in refused(capsys, tmp_path / "out", "openr1", f"--source={broken}")
    (tmp_path / "a.jsonl.gz").write_bytes(b"no gzip")
    assert "can't be read (" in refused(capsys, tmp_path / "out", "gsm8k", f"--source={tmp_path / 'a.jsonl.gz'}")
    write(tmp_path / "a.csv", "question,answer", "1?,#### 1,too many")
    assert "row 1: another number of cells" in refused(
        capsys, tmp_path / "out", "gsm8k", f"--source={tmp_path / 'a.csv'}"
    )
    said = refused(capsys, tmp_path / "out", "gsm8k", f"--source=train={source},{source}")
    assert "is not clear; write --source=FILE, or --source=train=FILE,test=FILE" in said
    assert "'unpack' is unknown; write: prepare" in refused(
        capsys, tmp_path / "out", "gsm8k", f"--source={source}", command="unpack"
    )
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_nothing_and_a_set_that_is_there_stays(tmp_path, capsys, monkeypatch):
    path = write(tmp_path / "a.jsonl", GOOD)
    encode = array_record._encode

    def full(example):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(array_record, "_encode", full)
    said = refused(capsys, tmp_path / "out", "gsm8k", f"--source={path}")
    assert f"{tmp_path / 'out' / 'gsm8k'} can't be written: the disk is full" in said
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(array_record, "_encode", encode)
    run(tmp_path / "out", "gsm8k", f"--source={path}")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert "exists already; give another --out" in refused(capsys, tmp_path / "out", "gsm8k", f"--source={path}")
    assert {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()} == before


def test_help_says_where_the_files_are(capsys):
    with pytest.raises(SystemExit):
        run("out", "x", "--help")
    out = capsys.readouterr().out
    assert out.startswith("usage: cgrpo data COMMAND NAME --source=...")
    for name, one in data.formats.FORMATS.items():
        assert f"\n  {name} " in out and one.get in out


def test_a_prepared_set_is_written_and_read_without_tensorflow(tmp_path):
    """In a process of its own: what it imports must not depend on other tests."""
    path = write(tmp_path / "a.jsonl", GOOD)
    program = """
        import sys, warnings
        warnings.simplefilter("ignore")
        from cgrpo_jax import data
        from cgrpo_jax.datasets import readers
        from cgrpo_jax.runs import cli
        flags = dict(require=("source",), flags=data.FLAGS, arguments=("command", "name"))
        cli.run(data.main, argv=["prepare", "gsm8k", *sys.argv[1:]], **flags)
        keys = dict(data_dir=sys.argv[2].partition("=")[2], question_key="q", answer_key="a")
        (problem,) = readers.read_tfds("gsm8k", split="train", **keys)
        assert problem.answer == "1", problem
        assert "tensorflow" not in sys.modules
    """
    command = [sys.executable, "-c", textwrap.dedent(program), f"--source={path}", f"--out={tmp_path / 'out'}"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-3000:]


def test_sets_and_splits_that_are_not_there(tmp_path):
    def said(name, split="train"):
        with pytest.raises(UserError) as caught:
            problems(tmp_path, name, split=split)
        assert "\n" not in str(caught.value)
        return str(caught.value).replace("; name one of these, or prepare it there", "")

    assert said("nothing_here") == f"data set 'nothing_here' is not in '{tmp_path}' (there are: none)."
    run(tmp_path, "gsm8k", f"--source={write(tmp_path / 'a.jsonl', GOOD)}")
    for k in range(1, 11):
        shutil.copytree(tmp_path / "gsm8k" / "1.0.0", tmp_path / "other" / f"c{k:02}" / "1.0.0")
    several = ", ".join(f"other/c{k:02}" for k in range(1, 10))
    assert said("nothing_here").endswith(f"(there are: gsm8k, {several} and 1 more).")
    for name in ("gsm8k:2.0.0", "gsm8k/main"):
        assert said(name) == f"data set '{name}' is not in '{tmp_path}' (there are: gsm8k:1.0.0)."
    several = ", ".join(f"other/c{k:02}:1.0.0" for k in range(1, 11))
    for name in ("other", "other/c11", "other/c01:2.0.0"):
        assert said(name).endswith(f"(there are: {several}).")
    assert len(problems(tmp_path, "other/c01")) == 1
    assert "data set 'no name' can't be opened" in said("no name")
    told = said("gsm8k", "test")
    assert told.startswith("split 'test' of data set 'gsm8k' can't be opened (Unknown split 'test'")
    assert told.endswith("; there are: train.")
    assert said("gsm8k", "train[:x]").endswith("; there are: train.")
