"""Our parameters as a Hugging Face checkpoint: safetensors files written tensor by tensor, each at its place."""

import dataclasses
import functools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator

import jax
import numpy as np
import safetensors
from jax.experimental import multihost_utils

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.config import DTYPES
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runtime import files as files_lib
from cgrpo_jax.runtime import processes

_STORED_AS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_PIECE_BYTES = 64 * 2**20  # of a table (an embedding can be larger than any layer)


def save_params(
    folder: str | pathlib.Path,
    config: ModelConfig,
    read: Callable[[tuple[str, ...]], jax.Array],
    *,
    dtype: str = "bfloat16",
    max_shard_bytes: int = 5_000_000_000,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes a model's weights under Hugging Face's names: `model.safetensors`, or shards of it and their index.

    The files' sizes are known beforehand, so each tensor goes to its own place as soon as it is there: the host holds
    one layer's tensor or a piece of a table, whatever the order of our stacks. Every process must take part; process 0
    writes.

    Args:
      folder: an existing folder without weights.
      config: the model.
      read: gives the parameter (stacked, of any sharding) at a path into `params.param_shapes`; each is asked for once.
      dtype: of the files: float32, bfloat16 or float16.
      max_shard_bytes: of tensors in a file; a larger tensor gets a file of its own.
      progress: called with the parameters written so far and in all, after each stack.

    Raises:
      UserError: on every process, where process 0 can't write; its files are removed.

    Example:
      >>> save_params(folder, config, lambda path: functools.reduce(operator.getitem, path, params))
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} can't be written; use one of {', '.join(DTYPES)}.")
    rows = load.entries(config)
    files = _plan(config, rows, dtype=dtype, max_shard_bytes=max_shard_bytes)
    places = {name: (file, place) for file in files for name, place in file.places.items()}
    writer = _Writer(pathlib.Path(folder), files, active=jax.process_index() == 0)
    writer.attempt(writer.create)
    writer.agree()
    total, done = sum(math.prod(shape) for _, shape in rows), 0
    for entry, shape in rows:
        stack = read(entry.path)
        if stack.shape != shape:
            raise ValueError(f"parameter {entry.path} has shape {stack.shape}, the model's is {shape}.")
        for layer, start, ours in _pieces(stack, layered=entry.layered):  # by every process, whatever process 0 does
            name = entry.name.format(layer=layer)
            writer.attempt(writer.write, *places[name], name, start, entry.stored(ours), dtype)
            del ours
        del stack  # before the next is read
        writer.agree()
        done += math.prod(shape)
        if progress is not None:
            progress(done, total)
    writer.attempt(writer.finish)
    writer.agree()


@dataclasses.dataclass(frozen=True)
class _Place:
    shape: tuple[int, ...]
    start: int  # bytes from the end of the file's header
    stop: int


@dataclasses.dataclass(frozen=True)
class _File:
    """A file to write: its name, the dtype of its tensors as safetensors calls it, and where each of them goes."""

    name: str
    stored_as: str
    places: dict[str, _Place]

    @property
    def size(self) -> int:
        return max(place.stop for place in self.places.values())

    @functools.cached_property
    def header(self) -> bytes:
        """The length of the JSON that follows, and the JSON, padded so that the tensors start at a multiple of 8."""
        content: dict = {"__metadata__": {"format": "pt"}}
        for name, place in self.places.items():
            content[name] = {
                "dtype": self.stored_as,
                "shape": list(place.shape),
                "data_offsets": [place.start, place.stop],
            }
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _plan(config: ModelConfig, rows, *, dtype: str, max_shard_bytes: int) -> list[_File]:
    """Fills files with tensors, layer after layer, up to `max_shard_bytes` each."""
    shapes = {entry.path: entry.stored_shape(shape[entry.layered :]) for entry, shape in rows}
    groups: list[dict[str, _Place]] = [{}]
    end = 0
    for entry, _, name in load.checkpoint_names(config):
        shape = shapes[entry.path]
        size = math.prod(shape) * (4 if dtype == "float32" else 2)
        if groups[-1] and end + size > max_shard_bytes:
            groups.append({})
            end = 0
        groups[-1][name] = _Place(shape, end, end + size)
        end += size
    names = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    if len(groups) == 1:
        names = [load.SINGLE]
    return [_File(name, _STORED_AS[dtype], places) for name, places in zip(names, groups, strict=True)]


class _Writer:
    """Process 0's files. What fails is kept until `agree`, where all processes learn of it and raise together."""

    def __init__(self, folder: pathlib.Path, files: list[_File], *, active: bool):
        self._folder, self._files, self._active = folder, files, active
        self._failure: UserError | None = None
        self._created: list[pathlib.Path] = []

    def attempt(self, action: Callable, *args) -> None:
        """Runs a step of writing; after a failure, and on other processes, it is left out."""
        if not self._active or self._failure:
            return
        try:
            action(*args)
        except UserError as error:
            self._failure = error
        if self._failure:
            for path in self._created:
                path.unlink(missing_ok=True)

    def agree(self) -> None:
        """Raises what went wrong on every process: none is left waiting for the others."""
        with processes.agree(f"writing {self._folder}"):
            if self._failure:
                raise self._failure

    def create(self) -> None:
        """Makes the files at their full size, so that a limit on file sizes is met at once."""
        if not self._folder.is_dir():
            raise UserError(f"{self._folder} is not a folder; make it before weights are written there.")
        present = sorted(path.name for path in self._folder.glob("*.safetensors*"))
        if present:
            raise UserError(f"{self._folder} already holds weights ({present[0]}); export to an empty folder.")
        for file in self._files:
            path = self._folder / file.name
            with files_lib.checked(path):
                self._created.append(path)
                with open(path, "wb") as out:
                    out.write(file.header)
                    out.truncate(len(file.header) + file.size)

    def write(self, file: _File, place: _Place, name: str, start: int, tensor: np.ndarray, dtype: str) -> None:
        """Puts a tensor, or what of it begins at its number `start`, to its place."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(tensor, dtype=dtype)
        if dtype == "float16" and (np.isinf(stored) & np.isfinite(tensor)).any():
            raise UserError(f"{name} has values beyond float16's range (65504); use bfloat16 or float32.")
        path = self._folder / file.name
        with files_lib.checked(path), open(path, "r+b") as out:
            out.seek(len(file.header) + place.start + start * stored.itemsize)
            out.write(stored.reshape(-1).view(np.uint8).data)

    def finish(self) -> None:
        """Makes what was written durable, adds the index, and opens every file once as a reader would."""
        for file in self._files:
            path = self._folder / file.name
            with files_lib.checked(path), open(path, "r+b") as out:
                os.fsync(out.fileno())
            try:
                with safetensors.safe_open(path, framework="numpy") as written:
                    complete = {*written.keys()} == {*file.places}
            except (safetensors.SafetensorError, OSError):
                complete = False
            if not complete:
                raise UserError(f"{path} can't be read back as it was written; check the disk and export again.")
        if len(self._files) > 1:
            self._write_index(self._folder / load.INDEX)
        with files_lib.checked(self._folder):
            directory = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)

    def _write_index(self, path: pathlib.Path) -> None:
        weight_map = {name: file.name for file in self._files for name in file.places}
        content = {"metadata": {"total_size": sum(file.size for file in self._files)}, "weight_map": weight_map}
        with files_lib.checked(path):
            self._created.append(path)
            with open(path, "w", encoding="utf-8") as out:
                out.write(json.dumps(content, indent=2) + "\n")
                out.flush()
                os.fsync(out.fileno())


@jax.jit
def _one_layer(stack: jax.Array, layer) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)


@functools.partial(jax.jit, static_argnames="count")
def _some_rows(table: jax.Array, start, count: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(table, start, count)


def _pieces(stack: jax.Array, *, layered: bool) -> Iterator[tuple[int | None, int, np.ndarray]]:
    """One of our parameters on the host, a piece at a time: each layer of a stack, or some rows of a table.

    Pieces are arrays of their own, since JAX keeps the host's copy of an array for as long as the array lives.

    Yields:
      (layer or None, numbers of the tensor before this piece, the piece)
    """
    if layered:
        for layer in range(stack.shape[0]):
            yield layer, 0, _on_host(_one_layer(stack, np.int32(layer)))
        return
    row = math.prod(stack.shape[1:])
    rows = max(1, _PIECE_BYTES // (row * stack.dtype.itemsize))
    for start in range(0, stack.shape[0], rows):
        count = min(rows, stack.shape[0] - start)
        yield None, start * row, _on_host(_some_rows(stack, np.int32(start), count=count))


def _on_host(piece: jax.Array) -> np.ndarray:
    if not piece.is_fully_addressable:
        piece = multihost_utils.process_allgather(piece, tiled=True)
    return np.asarray(piece)
