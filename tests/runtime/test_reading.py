"""Files of others: regular ones of a bounded size, and JSON in them that is valid."""

import os

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import reading
from cgrpo_jax.runtime.json_files import read_json


def test_a_file_is_read_up_to_its_limit(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    assert (
        reading.read_bytes(tmp_path / "file", most=5) == b"12345" and reading.check_size(tmp_path / "file", most=5) == 5
    )
    for function in (reading.read_bytes, reading.check_size):
        with pytest.raises(UserError, match="file has 5 bytes, and no such file has more than 4; it is damaged or"):
            function(tmp_path / "file", most=4)


def test_a_sparse_file_takes_no_memory(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="has 1,099,511,627,776 bytes"):
        read_json(tmp_path / "file")


@pytest.mark.parametrize("function", [reading.read_bytes, reading.check_size])
def test_what_has_no_end_is_no_file(tmp_path, function):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        with pytest.raises(UserError, match=f"{name} is a device or a pipe; give a file"):
            function(tmp_path / name, most=100)
    with pytest.raises(IsADirectoryError):
        function(tmp_path, most=100)
    with pytest.raises(FileNotFoundError):
        function(tmp_path / "none", most=100)


def test_a_file_that_says_it_is_empty_is_read_no_further_than_its_limit():
    with pytest.raises(UserError, match="no such file has more than 10"):
        reading.read_bytes("/proc/self/status", most=10)


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a": "\\ud800"}', "is not valid JSON .*surrogates not allowed"),
        ('{"\\uDFFF": 1}', "is not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("9" * 5000, "a number of too many digits"),
    ],
)
def test_json_that_no_file_should_hold(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "a.json")
    assert str(tmp_path / "a.json") in str(caught.value) and len(str(caught.value)) < 500


def test_a_whole_surrogate_pair_is_a_character(tmp_path):
    (tmp_path / "a.json").write_text('"\\ud83d\\ude00"')
    assert read_json(tmp_path / "a.json") == "\U0001f600"
