"""The files of weights in a model folder: which there are, and reading them; safetensors only."""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import safetensors

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.runtime.json_files import fetch_again, object_at, read_json_object, shown

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Kinds of weights that are not read, for a message that names what was found.
_OTHER_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.bin.index.json", "*.gguf")
# A header takes fifty times its bytes when it is read; one of a thousand tensors has 100,000. The library takes 100 MB.
_LARGEST_HEADER = 1 << 22


@contextlib.contextmanager
def opened(path: pathlib.Path) -> Iterator[Any]:
    """Opens a file of weights; its header has been found to be of the file.

    Raises:
      UserError: it is no whole safetensors file.
    """
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except (safetensors.SafetensorError, OSError) as error:
        why = text_lib.one_line(str(error))[:300]
        raise UserError(f"{path} is truncated or not a safetensors file ({why}); {fetch_again(path)}.") from None


def _check_header(path: pathlib.Path) -> None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise safetensors.SafetensorError(f"its header would have {length:,} bytes, of at most {_LARGEST_HEADER:,}")


def of_folder(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files of a folder's weights: one, or those that its index names.

    Raises:
      UserError: there are none that can be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder; give a Hugging Face model folder.")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        files = object_at(read_json_object(folder / INDEX), "weight_map", folder / INDEX)
        if not files or not all(isinstance(file, str) for file in files.values()):
            raise UserError(f"{folder / INDEX}: weight_map names no file for each tensor; fetch the file again.")
        shards = sorted(set(files.values()))
        for shard in shards:
            if pathlib.Path(shard).name != shard or not _is_file(folder / shard):
                raise UserError(
                    f"{folder / INDEX} names {shown(shard)[1:-1]}, which is not in {folder}; fetch the missing file."
                )
        return [folder / shard for shard in shards]
    others = [path.name for pattern in _OTHER_WEIGHTS for path in sorted(folder.glob(pattern))]
    if others and others[0].endswith(".gguf"):
        raise UserError(f"{folder} has only {others[0]}; GGUF is not read, so fetch the model's safetensors files.")
    if others:
        raise UserError(
            f"{folder} has only pickled weights ({others[0]}), which can run code when read; "
            "convert them to safetensors first."
        )
    raise UserError(f"{folder} has no weights; it must hold {SINGLE}, or {INDEX} and its shards.")


def _is_file(path: pathlib.Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system has
        return False
