"""What the files of a model folder say of its tokens: added ones, named ones, ends of a turn."""

import contextlib
import pathlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.families import LARGEST
from cgrpo_jax.models.hf.folder_process import PROCESS, LimitError
from cgrpo_jax.runtime import reading
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.runtime.json_files import fetch_again, object_at, read_json_object, shown

LARGEST_FILE = 1 << 27  # bytes; Gemma 3's tokenizer.json has 33 million
_LONGEST_TOKEN, _MOST_ADDED = 4096, 20_000  # characters; tokens that are read whole wherever they stand
_TRYING = 8.0  # seconds of processor time; Gemma 3's takes about two


def is_fault(error: BaseException) -> bool:
    """Whether a library has raised it of a file or a text: a panic of one in Rust is no `Exception`."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


@contextlib.contextmanager
def readable(path: pathlib.Path, kind: str) -> Iterator[None]:
    """Reads a tokenizer's file in a process of its own first; says whatever goes wrong then, or within the block.

    Raises:
      UserError: it can't be read, fails at a text, or takes too long or too much memory.
    """
    try:
        reading.check_size(path, most=LARGEST_FILE)
        PROCESS.ask("tokenizer", str(path.absolute()), seconds=_TRYING)
        yield
    except LimitError as error:
        raise UserError(f"{path} {error} when it is tried; no {kind} does, so {fetch_again(path)}.") from None
    except UserError:
        raise
    except BaseException as error:
        if not is_fault(error):
            raise
        why = text_lib.one_line(str(error))[:500]
        raise UserError(f"{path} is not a readable {kind} ({why}); {fetch_again(path)}.") from None


@contextlib.contextmanager
def faults_said(path: pathlib.Path) -> Iterator[None]:
    """Turns what a library raises at a text into a `UserError`: also a panic in Rust, which is no `Exception`."""
    try:
        yield
    except BaseException as error:
        if not is_fault(error):
            raise
        why = text_lib.one_line(str(error))[:500]
        raise UserError(f"{path} fails at a text ({why}); {fetch_again(path)}.") from None


def check_vocabulary(path: pathlib.Path, ids: Mapping[str, int], *, whole: Collection[str]) -> int:
    """Returns the size of a vocabulary: its largest id, and one.

    Args:
      path: of the file.
      ids: of all tokens.
      whole: those that are read as one wherever they stand.

    Raises:
      UserError: it is empty or too large, or a token is too long.
    """
    size = max(ids.values(), default=-1) + 1
    if not 0 < size <= LARGEST["vocab_size"]:
        raise UserError(f"{path} has {size} tokens; a vocabulary has 1 to {LARGEST['vocab_size']}. Fetch it again.")
    if len(whole) > _MOST_ADDED:
        raise UserError(f"{path} adds {len(whole)} tokens; a tokenizer adds at most {_MOST_ADDED}. Fetch it again.")
    longest = max(ids, key=len)
    if len(longest) > _LONGEST_TOKEN:
        raise UserError(
            f"{path} has a token of {len(longest)} characters, {shown(longest)}; a token has at most {_LONGEST_TOKEN}. "
            "Fetch it again."
        )
    return size


def read_settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns what a file of a folder holds; nothing where it is not there."""
    return read_json_object(folder / name) if (folder / name).is_file() else {}


def added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[dict[str, int], frozenset[int]]:
    """Returns the ids of added tokens, and which of them are special."""
    where = folder / "tokenizer_config.json"
    decoder = {}
    for i, token in object_at(settings, "added_tokens_decoder", where).items():
        if not (
            i.isascii()
            and i.isdecimal()
            and len(i) < 10
            and isinstance(token, dict)
            and isinstance(token.get("content"), str)
        ):
            raise UserError(
                f"{where}: added_tokens_decoder has {shown({i: token})}; it must name tokens by their ids, as "
                '{"3": {"content": "text"}}. Fetch the file again.'
            )
        decoder[int(i)] = token
    added = read_settings(folder, "added_tokens.json")
    if wrong := {token: i for token, i in added.items() if not is_id(i)}:
        raise UserError(
            f"{folder / 'added_tokens.json'} has {shown(wrong)}; ids are numbers below {LARGEST['vocab_size']}. Fetch "
            "the file again."
        )
    listed = {token["content"]: i for i, token in decoder.items()}
    return added | listed, frozenset(i for i in decoder if decoder[i].get("special"))


def is_id(value: Any) -> bool:
    """Is a value of JSON a token's id?"""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST["vocab_size"]


def token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Named tokens such as `bos_token`, each written as a string or as `{"content": string, ...}`."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}  # add_bos_token is a bool


def eos_ids(model, *, generation: Mapping[str, Any], names: Mapping[str, str], folder: pathlib.Path):
    """Returns the ids of what ends a turn, without repetitions."""
    given = generation.get("eos_token_id")
    ids = list(given) if isinstance(given, list) else [] if given is None else [given]
    if wrong := [i for i in ids if not isinstance(i, int) or isinstance(i, bool)]:
        raise UserError(f"eos_token_id of {folder} holds {shown(wrong[0])}; it must be a token's id, or a list of ids.")
    if "eos_token" in names:
        ids.append(model.token_id(names["eos_token"]))
        if ids[-1] is None:
            raise UserError(
                f"eos_token {shown(names['eos_token'])} of {folder} is not in its vocabulary; correct the name."
            )
    outside = [i for i in ids if not 0 <= i < model.size]
    if outside:
        raise UserError(
            f"eos_token_id {shown(outside[0])} of {folder} is outside the vocabulary of {model.size} tokens."
        )
    if not ids:
        raise UserError(
            f"{folder} names no end-of-turn token; add eos_token_id to generation_config.json or eos_token to "
            "tokenizer_config.json."
        )
    return tuple(dict.fromkeys(ids))
