"""Numbers in data become text as they were written, whatever kind of file they come from; what is none is refused."""

import csv
import decimal
import gzip
import json

import ml_dtypes
import numpy as np
import pytest

from cgrpo_jax.datasets import cells, formats, readers, tables
from cgrpo_jax.errors import UserError

D = decimal.Decimal
KEYS = dict(question_key="q", answer_key="a")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (-7, "-7"),
        (10**30, "1" + "0" * 30),
        (np.int8(-3), "-3"),
        (np.uint64(2**64 - 1), "18446744073709551615"),
        (5.0, "5"),
        (145.0, "145"),
        (-0.0, "0"),
        (2.5, "2.5"),
        (0.1, "0.1"),
        (1e-5, "0.00001"),
        (2e-5, "0.00002"),
        (1.5e-7, "0.00000015"),
        (1e22, "10000000000000000000000"),
        (1.7976931348623157e308, "17976931348623157" + "0" * 292),
        (5e-324, "0." + "0" * 323 + "5"),
        (33.29999923706055, "33.29999923706055"),
        (np.float64(33.3), "33.3"),
        (np.float32(33.3), "33.3"),
        (np.float32(2e-5), "0.00002"),
        (np.float32(16777216.0), "16777216"),
        (np.float32(1e22), "10000000000000000000000"),
        (np.float32(-0.0), "0"),
        (np.float16(33.3), "33.3"),
        (np.float16(0.1), "0.1"),
        (np.longdouble(0.5), "0.5"),
        (ml_dtypes.bfloat16(0.1), "0.1"),
        (D("33.30"), "33.30"),
        (D("1E+3"), "1000"),
        (D("0.000000000020"), "0.000000000020"),
        (cells.Written("3.14159265358979323846"), "3.14159265358979323846"),
        (cells.Written("27.50"), "27.5"),
        (cells.Written("1e400"), "1" + "0" * 400),
        (float("nan"), None),
        (float("inf"), None),
        (np.float32("-inf"), None),
        (D("NaN"), None),
        (D("sNaN"), None),
        (D("-Infinity"), None),
        (cells.Written("1e99999"), None),
        (cells.Written("1e-99999"), None),
        (cells.Written("1e" + "9" * 400), None),
        (True, None),
        (np.bool_(False), None),
        (1j, None),
        (None, None),
        ("5", None),
    ],
)
def test_a_number_as_text(value, text):
    assert cells.number_text(value) == text
    if text is not None and not isinstance(value, D | cells.Written):
        assert type(value)(text) == value  # the same number of its own width


def test_every_narrow_float_is_the_shortest_text_that_reads_back():
    rng = np.random.default_rng(0)
    for value in rng.integers(0, 2**31, 500, dtype=np.uint32).view(np.float32):
        if np.isfinite(value):
            text = cells.number_text(value)
            assert np.float32(text) == value and "e" not in text
            assert len(text.replace(".", "").strip("0")) <= 9


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(33.3), 33.3),
        (np.array(33.3, np.float32), 33.3),
        (np.array([[33.3], [0.1]], np.float32), [[33.3], [0.1]]),
        (np.array([1, 2], np.int64), [1, 2]),
        (np.array([b"a", b"\xff"], object), ["a", "\ufffd"]),
        (np.array(b"a", object), "a"),
        ({"x": (np.bool_(True), None, D("1.50"))}, {"x": [True, None, "1.50"]}),
        ([np.float16(0.1), ml_dtypes.bfloat16(0.1), np.str_("s")], [0.1, 0.1, "s"]),
    ],
)
def test_other_columns_are_plain_values_with_the_same_digits(value, plain):
    assert cells.plain(value) == plain
    assert json.loads(json.dumps(cells.plain(value))) == plain


# --- each reader ----------------------------------------------------------------------------------------------------


def jsonl(folder, column):
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"q": "?", "a": value}) + "\n" for value in column))
    return path


def json_list(folder, column):
    path = folder / "a.json"
    path.write_text(json.dumps([{"q": "?", "a": value} for value in column]))
    return path


def json_gz(folder, column):
    path = folder / "a.jsonl.gz"
    path.write_bytes(gzip.compress(jsonl(folder, column).read_bytes()))
    return path


def csv_file(folder, column):
    path = folder / "a.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["q", "a"], *(["?", value] for value in column)])
    return path


def parquet_of(kind):
    def write(folder, column):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        cell = pyarrow.array([None if value is None else kind[1](value) for value in column], kind[0](pyarrow))
        parquet.write_table(pyarrow.table({"q": ["?"] * len(column), "a": cell}), folder / "a.parquet")
        return folder / "a.parquet"

    return write


FLOAT64 = parquet_of((lambda pa: pa.float64(), float))
FLOAT32 = parquet_of((lambda pa: pa.float32(), float))
FLOAT16 = parquet_of((lambda pa: pa.float16(), np.float16))
DECIMAL = parquet_of((lambda pa: pa.decimal128(30, 6), lambda value: D(repr(value)).quantize(D("1e-6"))))
DICTIONARY = parquet_of((lambda pa: pa.dictionary(pa.int32(), pa.float32()), float))
FILES = {
    "jsonl": jsonl,
    "json": json_list,
    "jsonl.gz": json_gz,
    "float64": FLOAT64,
    "float32": FLOAT32,
    "dictionary": DICTIONARY,
}


def examples(path):
    """Yields what preparing a data set makes of each row."""
    convert = formats.generic(**KEYS, solution_key=None, answer_pattern=None)
    return [example for _, example in formats.examples(convert, path, "train")]


@pytest.mark.parametrize("kind", FILES)
def test_every_reader_writes_numbers_alike(tmp_path, kind):
    column = [33.3, 0.00002, 145.0, 1e22, -2.5]
    written = ["33.3", "0.00002", "145", "10000000000000000000000", "-2.5"]
    path = FILES[kind](tmp_path, column)
    assert [example.answer for example in examples(path)] == written
    if kind.startswith("json"):
        if kind == "jsonl":
            assert [problem.answer for problem in readers.read_jsonl(path, **KEYS)] == written
    else:
        problems = readers.read_parquet(path, **KEYS)
        assert [problem.answer for problem in problems] == written
        assert problems[0].columns == {"a": 33.3}  # a reward function gets the number, too


def test_float16_and_decimals(tmp_path):
    assert [example.answer for example in examples(FLOAT16(tmp_path, [33.3, 5.0]))] == ["33.3", "5"]
    assert [example.answer for example in examples(DECIMAL(tmp_path, [33.3, 0.00002]))] == ["33.300000", "0.000020"]


def test_narrow_floats_within_columns(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    small, half = pyarrow.float32(), pyarrow.float16()
    fields = pyarrow.struct([("x", small), ("deep", pyarrow.struct([("y", pyarrow.list_(small))])), ("s", "string")])
    columns = {
        "q": ["?", "?"],
        "a": pyarrow.array([{"x": 33.3, "deep": {"y": [0.1, None]}, "s": "t"}, None], fields),
        "lists": pyarrow.array([[[0.1]], []], pyarrow.list_(pyarrow.list_(small, 1))),
        "map": pyarrow.array([[("k", 0.1)], None], pyarrow.map_(pyarrow.string(), small)),
        "half": pyarrow.array(np.array([0.1, 0.2], np.float16), half),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    (_, first), (_, second) = tables.rows(tmp_path / "a.parquet")
    assert tables.column(first, "a.x", "row 1") == "33.3"
    assert tables.others(first, {"q"}, "row 1") == {
        "a": {"x": 33.3, "deep": {"y": [0.1, None]}, "s": "t"},
        "lists": [[0.1]],
        "map": [["k", 0.1]],
        "half": 0.1,
    }
    assert second == {"q": "?", "a": None, "lists": [], "map": None, "half": np.float16(0.2)}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
def test_what_is_no_number_is_no_gold_answer_of_any_reader(tmp_path, kind, value):
    path = FILES[kind](tmp_path, [1.5, value])
    good, bad = examples(path)
    assert good.answer == "1.5" and isinstance(bad, formats.NoAnswer)
    place = "line" if "jsonl" in kind else "row"
    assert f"{place} 2: column 'a' is {value}; it must hold text or a {'' if value is None else 'finite '}n" in str(bad)


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "+Inf", " nan "])
@pytest.mark.parametrize("write", [csv_file, jsonl], ids=["csv", "jsonl"])
def test_nor_is_the_text_that_programs_write_for_it(tmp_path, write, text):
    (bad,) = examples(write(tmp_path, [text]))
    assert isinstance(bad, formats.NoAnswer) and "1: the gold answer is" in str(bad)
    with pytest.raises(UserError, match=r"line 1: the gold answer is '.*', with which nothing can be compared"):
        readers.read_jsonl(jsonl(tmp_path, [text]), **KEYS)


@pytest.mark.parametrize("text", ["infinity", r"\infty", "nano", "information", "-1"])
def test_words_that_begin_alike_are_answers(tmp_path, text):
    assert [example.answer for example in examples(jsonl(tmp_path, [text]))] == [text]


@pytest.mark.parametrize("value", [True, [1], [[]], {"b": None}, []])
def test_what_holds_no_number_is_refused_with_its_row(tmp_path, value):
    with pytest.raises(UserError, match="a.jsonl, line 1: column 'a' is "):
        readers.read_jsonl(jsonl(tmp_path, [value]), **KEYS)


def test_digits_beyond_those_of_a_float_are_kept(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "?", "a": 3.14159265358979323846, "x": [2.50, {"y": 1e-3}]}\n')
    (problem,) = readers.read_jsonl(path, **KEYS)
    assert problem.answer == "3.14159265358979323846"
    assert json.dumps(problem.columns) == '{"a": 3.141592653589793, "x": [2.5, {"y": 0.001}]}'
    assert {type(one) for one in (problem.columns["a"], *problem.columns["x"][:1])} == {float}


# --- bounds ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"q": "?", "a": ' + b"9" * 5000 + b"}", "line 1: not JSON (a number of too many digits)"),
        (b'{"q": "?", "a": 1, "x": ' + b"9" * 5000 + b"}", "line 1: not JSON (a number of too many digits)"),
        (b"[" * 100_000, "line 1: not JSON (nested too deeply)"),
        (b'{"q": "?", "a": 1, "x": ' + b"[" * 300 + b"]" * 300 + b"}", "line 1: a column is nested more than 64 deep"),
        (b'{"q": "?", "a": ' + b"[" * 300 + b"]" * 300 + b"}", "line 1: column 'a' is [[["),
        (b'{"q": "?", "a": 1e1001}', "line 1: column 'a' is a number that has more than 1000 digits"),
        (b'{"q": "?", "a": "' + b"x" * 17_000_000 + b'"}', "line 1: column 'a' has 17000000 characters; use at most"),
        (b'{"q": "?", "a": "\\ud800"}', "line 1: column 'a' is not valid Unicode: character 1 of 1 is U+D800"),
        (b'{"q": "\\ude00", "a": "1"}', "line 1: column 'q' is not valid Unicode"),
    ],
    ids=["digits", "digits elsewhere", "depth", "depth of a column", "depth of an answer", "exponent", "length",
         "surrogate", "surrogate in a question"],
)  # fmt: skip
def test_what_no_row_should_hold_is_one_line_with_its_place(tmp_path, line, message):
    (tmp_path / "a.jsonl").write_bytes(line + b"\n")
    with pytest.raises(UserError) as caught:
        readers.read_jsonl(tmp_path / "a.jsonl", **KEYS)
    assert message in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"[" * 100_000, r"a.json can't be read as JSON \(nested too deeply\)"),
        ("a.json", b"[" + b"9" * 5000 + b"]", r"a.json can't be read as JSON \(a number of too many digits\)"),
        ("a.json", b'[{"q": 1},\n{"q": "\xff"}]', "a.json, line 2: not UTF-8"),
        ("a.csv", b"q,a\n1,2\n\xff,3\n", "a.csv, line 3: not UTF-8"),
        ("a.jsonl.gz", gzip.compress(b"{}\n" * 9999, mtime=0)[:40] + b"\0" * 40, "can't be read"),
    ],
)
def test_files_that_are_damaged(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(tables.rows(tmp_path / name))


def test_text_in_parquet_that_is_no_utf8_is_refused_by_its_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    broken = pyarrow.array([b"good", b"\xff\xfe"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"q": broken, "a": ["1", "2"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="a.parquet, row 2: not UTF-8"):
        readers.read_parquet(tmp_path / "a.parquet", **KEYS)
    raw = pyarrow.array([b"good", b"\xff\xfe"], pyarrow.binary())
    parquet.write_table(pyarrow.table({"q": raw, "a": ["1", "2"]}), tmp_path / "b.parquet")
    with pytest.raises(UserError, match="b.parquet, row 2: column 'q' is not UTF-8"):
        readers.read_parquet(tmp_path / "b.parquet", **KEYS)


def test_other_columns_are_made_valid(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "?", "a": "1", "x\\ud800": ["\\ud83d", {"y": "\\ud83d\\ude00"}]}\n')
    (problem,) = readers.read_jsonl(path, **KEYS)
    assert problem.columns == {"a": "1", "x?": ["?", {"y": "\U0001f600"}]}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm8k", {"question": "?\ud800", "answer": "#### 1"}),
        ("math", {"problem": "?", "answer": "1", "solution": "\ud800"}),
        ("mmlu_pro", {"question": "?", "options": ["a", "\ud800"], "answer": "A"}),
        ("humaneval", {"prompt": "def f(): ...\ud800", "test": "def check(c): ...", "entry_point": "f"}),
        ("olympiadbench", {"question": "?", "final_answer": ["1"], "solution": ["\ud800"]}),
        ("openr1", {"prompt": [{"role": "system", "content": "\ud800"}, {"role": "user", "content": "?"}],
                    "reward_model": {"ground_truth": "1"}}),
    ],
)  # fmt: skip
def test_a_format_names_the_row_whose_text_is_damaged(tmp_path, name, row):
    (tmp_path / "a.jsonl").write_text(json.dumps(row) + "\n")
    ((where, found),) = formats.examples(formats.FORMATS[name].convert, tmp_path / "a.jsonl", "test")
    assert isinstance(found, UserError) and str(found).startswith(where) and "is not valid Unicode" in str(found)
