"""A SentencePiece model as a `tokenizer.json`, which loads in transformers without further packages.

transformers itself rebuilds a `tokenizer.model` when it loads one, needs sentencepiece and protobuf for that, and marks
words otherwise where a folder's settings leave it open. What is written here gives the same ids as `tokenizer`.
"""

import json
import pathlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import tokenizer_files
from cgrpo_jax.models.hf.tokenizer import Tokenizer, load_tokenizer
from cgrpo_jax.runtime import files
from cgrpo_jax.runtime.json_files import read_json_object

_CONFIG = "tokenizer_config.json"
_UNIGRAM, _BPE, _CHARACTERS = 1, 2, 4
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6
_MARK = "\u2581"
# Texts of which both must have the same ids, or nothing is written. None begins with a space: the mark of a word's
# start is put before it here, while `tokenizer.json` can only let it stand for the mark.
_PROBES = (
    "What is 12 + 30?", "two  spaces   and four    .", "a\n\nb\n  c\t\n", "na\u00efve \u6771\u4eac \U0001f642 \ufb01",
    "trailing  ", "x = [(1, 2.5), -3]\n    return x / 7**2  # why?", "<s>four </s>", "\\frac{1}{2} \u2264 \\pi",
    "7*8+6=62", "<think>\n12 + 30\n</think>\n\n42",
)  # fmt: skip


_LONGEST = 1024  # characters of a piece, which is cut at each of them
_MIXED, _PIECES = 20, 30  # texts of random pieces, and how many of them each has


def write(folder: pathlib.Path) -> bool:
    """Writes `tokenizer.json` into a folder that has a `tokenizer.model` alone, and says in its settings to read that.

    Returns:
      Whether it did; see `tokenizer_json`.
    """
    content = tokenizer_json(folder)
    if content is None:
        return False
    files.write_atomically(folder / "tokenizer.json", content)
    settings = _settings(folder, _CONFIG) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    files.write_atomically(folder / _CONFIG, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
    return True


def tokenizer_json(folder: pathlib.Path) -> str | None:
    """Returns the content of a `tokenizer.json` with the ids of a folder's `tokenizer.model`.

    None where there is none, where a `tokenizer.json` is there already, and where the two would differ in a text, or
    in a chat, of some that are tried.
    """
    if not (folder / "tokenizer.model").is_file() or (folder / "tokenizer.json").is_file():
        return None
    ours = load_tokenizer(folder)  # which checks its settings too
    model = sentencepiece_model_pb2.ModelProto.FromString(  # pyright: ignore[reportAttributeAccessIssue]
        (folder / "tokenizer.model").read_bytes()
    )
    settings, added = (_settings(folder, name) for name in (_CONFIG, "added_tokens.json"))
    try:
        built = _build(model, settings, added)
        same = _same(built, ours, _mixed(model))
    except BaseException as error:
        if not tokenizer_files.is_fault(error):  # the library raises bare Exception for what it can't express
            raise
        return None
    return built.to_str(pretty=True) + "\n" if same else None


def _settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    return read_json_object(folder / name) if (folder / name).is_file() else {}


def _build(model: Any, settings: dict[str, Any], added: dict[str, int]) -> tokenizers.Tokenizer:
    kinds = {piece.type for piece in model.pieces}
    spec = model.normalizer_spec
    if not kinds <= {_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE} or not spec.escape_whitespaces:
        raise ValueError("a kind of piece, or of spaces, that tokenizer.json has not")
    if spec.remove_extra_whitespaces and _USER_DEFINED in kinds:  # the library can't find these where spaces go
        raise ValueError("symbols in a text whose spaces are removed")
    built = tokenizers.Tokenizer(_model(model))
    marks = spec.add_dummy_prefix and settings.get("add_prefix_space") is not False
    each = marks and settings.get("legacy") is True  # a mark before each run of text, or before the first alone
    steps: list[Any] = [normalizers.Precompiled(spec.precompiled_charsmap)] if spec.precompiled_charsmap else []
    if spec.remove_extra_whitespaces:
        for gone, kept in ((r"\A +| +\z", ""), (" {2,}", " ")):
            steps.append(normalizers.Replace(tokenizers.Regex(gone), kept))
    steps += [normalizers.Prepend(_MARK)] if each else []
    built.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _MARK)])
    if marks and not each:
        built.pre_tokenizer = pre_tokenizers.Metaspace(replacement=_MARK, prepend_scheme="first", split=False)
    unknown = [piece.piece for piece in model.pieces if piece.type == _UNKNOWN]
    first = [decoders.Replace(piece, model.trainer_spec.unk_surface) for piece in unknown]
    last = [decoders.Strip(" ", 1, 0)] if marks else []
    built.decoder = decoders.Sequence(
        [*first, decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    )
    listed = {int(i): token for i, token in settings.get("added_tokens_decoder", {}).items()}
    special = {i for i, piece in enumerate(model.pieces) if piece.type == _CONTROL}
    special |= {i for i, token in listed.items() if token.get("special")}
    whole = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type == _CONTROL}
    whole |= added | {token["content"]: i for i, token in listed.items()}
    defined = {piece.piece: i for i, piece in enumerate(model.pieces) if piece.type == _USER_DEFINED}
    _add_tokens(built, whole, special, normalized=False)
    # Found in the text as it is read, in which marks stand for spaces; where one is put first, they would have it too.
    _add_tokens(built, {text: i for text, i in defined.items() if text not in whole}, special, normalized=not marks)
    bos = settings.get("bos_token")
    bos = bos.get("content") if isinstance(bos, dict) else bos
    if settings.get("add_bos_token") is True and bos:
        built.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos}:1 $B:1", special_tokens=[(bos, built.token_to_id(bos))]
        )
    return built


def _model(model: Any) -> Any:
    unknown = next((i for i, piece in enumerate(model.pieces) if piece.type == _UNKNOWN), None)
    if model.trainer_spec.model_type == _UNIGRAM:
        scored = [(piece.piece, piece.score) for piece in model.pieces]
        return models.Unigram(scored, unknown, model.trainer_spec.byte_fallback)
    if model.trainer_spec.model_type not in (_BPE, _CHARACTERS):  # of characters is one without merges
        raise ValueError("a kind of model that tokenizer.json has not")
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    return models.BPE(
        ids,
        [merge for _, merge in sorted(_merges(model, ids), key=lambda found: found[0])],
        unk_token=None if unknown is None else model.pieces[unknown].piece,
        fuse_unk=True,
        byte_fallback=model.trainer_spec.byte_fallback,
    )


def _merges(model: Any, ids: dict[str, int]) -> Iterator[tuple[tuple, tuple[str, str]]]:
    """Yields pairs that make a piece, with what sorts them: SentencePiece makes that of the highest score first."""
    for i, piece in enumerate(model.pieces):
        if piece.type != _NORMAL:
            continue
        if len(piece.piece) > _LONGEST:
            raise ValueError("a piece that is no word")
        for cut in range(1, len(piece.piece)):
            left, right = piece.piece[:cut], piece.piece[cut:]
            if left in ids and right in ids:
                yield (-piece.score, i, ids[left], ids[right]), (left, right)


def _add_tokens(built: tokenizers.Tokenizer, whole: dict[str, int], special: set[int], *, normalized: bool) -> None:
    """Adds what is read as one token wherever it stands, in the text as it is written or as it is `normalized`."""
    for text, i in sorted(whole.items(), key=lambda item: item[1]):
        token = tokenizers.AddedToken(text, special=i in special, normalized=normalized)
        (built.add_special_tokens if i in special else built.add_tokens)([token])
        if built.token_to_id(text) != i:
            raise ValueError(f"{text} has another id")


def _mixed(model: Any) -> list[str]:
    """Returns texts of the model's own pieces in random order."""
    pieces = [piece.piece for piece in model.pieces if piece.type in (_NORMAL, _USER_DEFINED)]
    rng = random.Random(0)
    return ["".join(rng.choices(pieces, k=_PIECES)).replace(_MARK, " ").lstrip() for _ in range(_MIXED)]


def _same(built: tokenizers.Tokenizer, ours: Tokenizer, mixed: list[str]) -> bool:
    """Whether both give texts, and what the chat template makes of them, the same ids, and these the same text."""
    encode: Callable[[str], list[int]] = lambda text: built.encode(text, add_special_tokens=False).ids  # noqa: E731
    texts = [*_PROBES, *mixed]
    try:
        texts += [ours.chat_text([{"role": "user", "content": probe}]) for probe in _PROBES]
    except UserError:  # there is no template
        pass
    found = [ours.encode(text) for text in texts]
    return all(
        encode(text) == ids and built.decode(ids, skip_special_tokens=True) == ours.decode(ids)
        for text, ids in zip(texts, found, strict=True)
    )
