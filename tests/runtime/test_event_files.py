"""Event files are what TensorBoard reads, whose own protocol buffers and plugins say so."""

import struct

import numpy as np
import pytest

from cgrpo_jax.runtime import event_files


def records(folder):
    """Returns the events of the one file there, whose framing must be whole."""
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    (path,) = folder.iterdir()
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(event_pb2.Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_checksums_are_those_that_rfc_3720_prints():
    for data, expected in [(bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E)]:
        assert event_files._crc32c(data) == expected


def test_events_are_those_of_tensorflow(tmp_path):
    file = event_files.EventFile(tmp_path / "inner")
    values = np.array([1.0, 2.0, 2.0, 4.0])
    file.write(300, [event_files.scalar("a@1", 1 / 3), event_files.histogram("h", values), event_files.text("t", "é")])
    file.write(301, [event_files.scalar("a@1", 1e300)])
    version, start, first, second = records(tmp_path / "inner")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (300, start.session_log.START)
    number, histogram, text = first.summary.value
    assert (first.step, number.tag, number.simple_value) == (300, "a@1", np.float32(1 / 3))
    found = histogram.histo
    assert (found.min, found.max, found.num, found.sum, found.sum_squares) == (1, 4, 4, 9, 25)
    assert len(found.bucket) == len(found.bucket_limit) == 31 and sum(found.bucket) == 4
    assert (found.bucket[0], found.bucket_limit[0], found.bucket_limit[-1]) == (0, 1, 4)
    assert (text.tag, text.metadata.plugin_data.plugin_name) == ("t/text_summary", "text")
    assert text.tensor.string_val[0].decode() == "é" and [dim.size for dim in text.tensor.tensor_shape.dim] == [1]
    assert (second.step, second.summary.value[0].simple_value) == (301, np.inf)


@pytest.mark.parametrize("values", [[3.0], [7.0, 7.0], [0.0, 1e300]])
def test_any_finite_values_have_a_histogram(tmp_path, values):
    event_files.EventFile(tmp_path).write(0, [event_files.histogram("h", np.array(values))])
    found = records(tmp_path)[-1].summary.value[0].histo
    assert sum(found.bucket) == len(values) and found.max == max(values)


def test_files_of_one_instant_are_in_the_order_of_time(tmp_path, monkeypatch):
    for time in (10**9 + 5, 10**9 + 400, 2 * 10**9 + 1):
        monkeypatch.setattr(event_files.time, "time_ns", lambda time=time: time)
        event_files.EventFile(tmp_path).write(time, [])
    assert len(names := sorted(path.name for path in tmp_path.iterdir())) == 3
    assert [name.split(".")[3] for name in names] == ["0000000001", "0000000001", "0000000002"]
    assert [name.split(".")[-2] for name in names] == ["000000005", "000000400", "000000001"]


def test_a_file_that_can_not_be_written_is_an_error_of_the_caller(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError):
        event_files.EventFile(tmp_path / "taken").write(0, [])
