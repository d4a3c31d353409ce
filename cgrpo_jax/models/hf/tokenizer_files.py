"""What the files of a model folder say of its tokens: added ones, named ones, ends of a turn."""

import pathlib
from collections.abc import Mapping
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime.json_files import object_at, read_json_object, shown


def read_settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns what a file of a folder holds; nothing where it is not there."""
    return read_json_object(folder / name) if (folder / name).is_file() else {}


def added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[dict[str, int], frozenset[int]]:
    """Returns the ids of added tokens, and which of them are special."""
    where = folder / "tokenizer_config.json"
    decoder = {}
    for i, token in object_at(settings, "added_tokens_decoder", where).items():
        if not (i.isascii() and i.isdecimal() and isinstance(token, dict) and isinstance(token.get("content"), str)):
            raise UserError(
                f"{where}: added_tokens_decoder has {shown({i: token})}; it must name tokens by their ids, as "
                '{"3": {"content": "text"}}. Fetch the file again.'
            )
        decoder[int(i)] = token
    added = read_settings(folder, "added_tokens.json")
    if wrong := {token: i for token, i in added.items() if not is_id(i)}:
        raise UserError(f"{folder / 'added_tokens.json'} has {shown(wrong)}; ids are numbers. Fetch the file again.")
    listed = {token["content"]: i for i, token in decoder.items()}
    return added | listed, frozenset(i for i in decoder if decoder[i].get("special"))


def is_id(value: Any) -> bool:
    """Is a value of JSON a token's id?"""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


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
            raise UserError(f"eos_token {names['eos_token']!r} of {folder} is not in its vocabulary; correct the name.")
    outside = [i for i in ids if not 0 <= i < model.size]
    if outside:
        raise UserError(f"eos_token_id {outside[0]} of {folder} is outside the vocabulary of {model.size} tokens.")
    if not ids:
        raise UserError(
            f"{folder} names no end-of-turn token; add eos_token_id to generation_config.json or eos_token to "
            "tokenizer_config.json."
        )
    return tuple(dict.fromkeys(ids))
