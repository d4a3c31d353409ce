"""TensorBoard's event files, written in the calling thread: what is written is on the disk, and an error is raised.

A file is a sequence of TFRecords: length (8 bytes), its checksum (4), an `Event`, its checksum (4), little-endian. The
checksum is CRC-32C, rotated and moved. `Event`, `Summary` and `HistogramProto` are protocol buffers, spelt out here
from TensorFlow's `event.proto`, `summary.proto` and `tensor.proto`, as far as a run needs them.
"""

import os
import pathlib
import socket
import struct
import time
from collections.abc import Sequence

import numpy as np

from cgrpo_jax.runtime import files

_VERSION = b"brain.Event:2"
_START = 1  # SessionLog.START: events of its step and later ones, in earlier files, no longer count
_STRING = 7  # DataType.DT_STRING
_BINS = 30


class EventFile:
    """A file of events. It is made by the first of them.

    Args:
      folder: of the file, on a disk or in a bucket.

    Example:
      >>> file = EventFile(folder)
      >>> file.write(0, [scalar("reward", 0.5), text("sample", "question: ...")])
    """

    def __init__(self, folder: pathlib.Path):
        seconds, rest = divmod(time.time_ns(), 10**9)
        # Files are read in the order of their names: two of one second must be in the order of time.
        name = f"events.out.tfevents.{seconds:010d}.{socket.gethostname()}.{rest:09d}.{os.getpid()}"
        self._path = folder / name
        self._began = False

    def write(self, step: int, values: Sequence[bytes]) -> None:
        """Appends all values of a step at once.

        Before the first it says that what earlier files have of this step and later ones no longer counts.

        Raises:
          OSError: the file can't be written.
        """
        records = [_record(_event(step, 5, b"".join(_bytes(1, value) for value in values)))]
        if not self._began:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            records = [_record(_event(0, 3, _VERSION)), _record(_event(step, 7, _int(1, _START))), *records]
        files.append(self._path, b"".join(records))
        self._began = True


def scalar(tag: str, value: float) -> bytes:
    """Returns a number as a `Summary.Value`; it becomes a float32."""
    with np.errstate(over="ignore"):
        number = np.asarray(value).astype("<f4").tobytes()
    return _bytes(1, tag.encode()) + _key(2, 5) + number


def histogram(tag: str, values: np.ndarray) -> bytes:
    """Returns finite values, at least one, as a `Summary.Value` with 30 equally wide bins."""
    values = np.asarray(values, np.float64).ravel()
    counts, edges = np.histogram(values, _BINS)
    with np.errstate(over="ignore"):
        of_all = (values.min(), values.max(), values.size, values.sum(), np.square(values).sum())
    found = b"".join(_double(number, float(value)) for number, value in enumerate(of_all, start=1))
    # A bin is given by its right edge alone: an empty one has the leftmost edge.
    found += _bytes(6, edges.astype("<f8").tobytes()) + _bytes(7, np.append(0, counts).astype("<f8").tobytes())
    return _bytes(1, tag.encode()) + _bytes(5, found)


def text(tag: str, markdown: str) -> bytes:
    """Returns a text, which is shown as Markdown, as a `Summary.Value`. Its tag is `TAG/text_summary`, as elsewhere."""
    shape = _bytes(2, _int(1, 1))
    tensor = _int(1, _STRING) + _bytes(2, shape) + _bytes(8, markdown.encode())
    plugin = _bytes(1, _bytes(1, b"text"))
    return _bytes(1, f"{tag}/text_summary".encode()) + _bytes(8, tensor) + _bytes(9, plugin)


# --- protocol buffers -------------------------------------------------------------------------------------------------


def _event(step: int, what: int, value: bytes) -> bytes:
    return _double(1, time.time()) + _int(2, step) + _bytes(what, value)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _int(number: int, value: int) -> bytes:
    return _key(number, 0) + _varint(value)


def _double(number: int, value: float) -> bytes:
    return _key(number, 1) + struct.pack("<d", value)


def _bytes(number: int, value: bytes) -> bytes:
    return _key(number, 2) + _varint(len(value)) + value


# --- records ----------------------------------------------------------------------------------------------------------


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _table() -> list[int]:
    found = []
    for number in range(256):
        value = number
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        found.append(value)
    return found


_TABLE = _table()


def _crc32c(data: bytes) -> int:
    found = 0xFFFFFFFF
    for byte in data:
        found = found >> 8 ^ _TABLE[(found ^ byte) & 0xFF]
    return found ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    found = _crc32c(data)
    return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF)
