"""Text to tokens and back, and the chat template that frames a prompt, from a Hugging Face folder or SentencePiece.

Everything that differs between models is read from the folder: the ends of a turn, the padding id, the template.
"""

import datetime
import functools
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from sentencepiece.sentencepiece_pb2 import SentencePieceText  # pyright: ignore[reportAttributeAccessIssue]

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import chat_template, thinking_tags
from cgrpo_jax.models.hf import tokenizer_files as files
from cgrpo_jax.models.hf.chat_template import ChatTemplate
from cgrpo_jax.models.hf.control_tokens import ControlTokens, written_by
from cgrpo_jax.runtime import reading
from cgrpo_jax.runtime import text as text_lib

Message = Mapping[str, str]

# Last characters of different kinds, so that what these prompts share at their end is the template's alone.
_PROBES = ("two", "What is 12 + 30?", "x = 7", "(done).")
_END = 64  # tokens of a prompt among which its template's last words are


class _JsonModel:
    """`tokenizer.json`: the vocabulary and rules as the `tokenizers` library reads them."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        with files.readable(path, "tokenizer.json"):
            self._model = tokenizers.Tokenizer.from_file(str(path))
        self._model.no_padding()
        self._model.no_truncation()
        added = self._model.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.read_whole = {token.content: i for i, token in added.items()}  # wherever they are in a text
        vocabulary = self._model.get_vocab(with_added_tokens=True)
        self.size = files.check_vocabulary(path, vocabulary, whole=self.read_whole)
        self.names: dict[str, str] = {}

    def encode(self, text: str) -> list[int]:
        with files.faults_said(self._path):
            return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        with files.faults_said(self._path):
            return self._model.decode(ids, skip_special_tokens=False)

    spell = decode

    def spans(self, text: str, ids: Collection[int]) -> list[tuple[int, int]]:
        """Where a text produces one of some tokens."""
        normalizer = self._model.normalizer
        with files.faults_said(self._path):
            if normalizer is None or normalizer.normalize_str(text) == text:
                return []  # what it produces, it spells
            encoded = self._model.encode(text, add_special_tokens=False)
        return [span for i, span in zip(encoded.ids, encoded.offsets, strict=True) if i in ids]

    def token_id(self, token: str) -> int | None:
        return self._model.token_to_id(token)


class _SentencePieceModel:
    """`tokenizer.model`: SentencePiece, which itself never reads a control symbol out of a text.

    A text is split at its control symbols and added tokens first. The word-start mark that some models put before
    a text is put at the very beginning only, and after a control symbol where `tokenizer_config.json` says `legacy`.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], folder: pathlib.Path):
        added, special = files.added_tokens(folder, settings)
        with files.readable(path, "SentencePiece model"):
            proto = reading.read_bytes(path, most=files.LARGEST_FILE)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
            inner = sentencepiece_model_pb2.ModelProto.FromString(proto)  # pyright: ignore[reportAttributeAccessIssue]
            inner.normalizer_spec.add_dummy_prefix = False
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=inner.SerializeToString())
        self._path = path
        self._first = self._inner if settings.get("add_prefix_space") is False else self._model
        self._later = self._first if settings.get("legacy") is True else self._inner
        pieces = range(self._model.vocab_size())
        self._ids = {self._model.id_to_piece(i): i for i in pieces if self._model.is_control(i)} | dict(added)
        shown = {token: i for token, i in self._ids.items() if token in added or token in thinking_tags.ALL}
        self._texts = {i: token for token, i in shown.items()}
        self._all_texts = {i: token for token, i in self._ids.items()}
        self.special_ids = special | {i for i in pieces if self._model.is_control(i)}
        defined = {piece.piece: i for i, piece in enumerate(inner.pieces) if piece.type == piece.USER_DEFINED}
        self._defined_ids = frozenset(defined.values())
        self.read_whole = defined | self._ids  # wherever they are in a text
        vocabulary = {piece.piece: i for i, piece in enumerate(inner.pieces)} | dict(added)
        self.size = files.check_vocabulary(path, vocabulary, whole=self.read_whole)
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")
        named = {name: getattr(self._model, f"{name}_id")() for name in ("bos", "eos", "pad")}
        self.names = {f"{name}_token": self._model.id_to_piece(i) for name, i in named.items() if i >= 0}

    def encode(self, text: str) -> list[int]:
        with files.faults_said(self._path):
            return self._encode(text)

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._split.split(text)):
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids.extend((self._later if number else self._first).encode(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        return self._decoded(ids, self._texts)

    def spell(self, ids: list[int]) -> str:
        return self._decoded(ids, self._all_texts)

    def _decoded(self, ids: list[int], texts: Mapping[int, str]) -> str:
        with files.faults_said(self._path):
            return self._joined(ids, texts)

    def _joined(self, ids: list[int], texts: Mapping[int, str]) -> str:
        # Decoding drops the word-start mark of a text; a run after an added token is not a text's beginning.
        parts: list[str] = []
        run: list[int] = []
        model, size = self._first, self._model.vocab_size()
        for i in ids:
            if i in texts:
                parts += [model.decode(run), texts[i]]
                run, model = [], self._inner
            elif i < size:
                run.append(i)
        return "".join([*parts, model.decode(run)])

    def spans(self, text: str, ids: Collection[int]) -> list[tuple[int, int]]:
        """Where a text produces one of some tokens: SentencePiece itself reads those that its model defines."""
        found: list[Any] = []
        if self._defined_ids.isdisjoint(ids):
            return found
        at = 0
        for part in self._split.split(text):
            if part not in self._ids:
                data = part.encode()  # whose bytes are counted
                said = SentencePieceText.FromString(self._inner.encode(part, out_type="serialized_proto"))
                spans = [(piece.begin, piece.end) for piece in said.pieces if piece.id in ids]
                found += [tuple(at + len(data[:end].decode()) for end in span) for span in spans]
            at += len(part)
        return found

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        i = self._model.piece_to_id(token)
        return i if self._model.id_to_piece(i) == token else None


class Tokenizer:
    """A vocabulary, its ends of turn and its chat template; made by `load_tokenizer`.

    Attributes:
      vocab_size: number of ids; the model's embedding must have at least as many rows.
      pad_id: what fills unused positions. Padding is known by lengths, never by this id.
      eos_ids: every id that ends a generation: those that the folder names, then `end_of_turn_id` if it is another.
      end_of_turn_id: the control token that the chat template writes right after an assistant's text (spaces and line
        ends apart); else the first id after that text that the folder names; else the first id that the folder names.
        A base model's files often name the end of a text alone, while its template ends turns by a token of their own.
    """

    def __init__(
        self,
        model: _JsonModel | _SentencePieceModel,
        *,
        folder: pathlib.Path,
        template: ChatTemplate | None,
        names: Mapping[str, str],
        eos_ids: tuple[int, ...],
        pad_id: int,
        variables: Mapping[str, Any],
    ):
        self._model = model
        self._folder = folder
        self._template = template
        self._variables = {"tools": None, "documents": None, **names, **variables}
        named = {i for i in map(model.token_id, names.values()) if i is not None}
        # What a model says of its thinking is text, also where a file calls it special: graders read it.
        tags = {model.token_id(tag) for tag in thinking_tags.ALL}
        self._skipped = (model.special_ids | named) - tags | set(eos_ids)
        self.vocab_size = model.size
        self.pad_id = pad_id
        self._find_control(model.special_ids | named | set(eos_ids))
        written = self._written_end_of_turn(eos_ids)
        self.eos_ids = eos_ids if written is None else tuple(dict.fromkeys((*eos_ids, written)))
        self._skipped |= set(self.eos_ids)
        self.end_of_turn_id = eos_ids[0] if written is None else written

    def _find_control(self, special: Collection[int]) -> None:
        """Finds which tokens no content may produce: special ones, and those that the template can write."""
        known, source = self._model.read_whole, ""
        rendered: list[str] = []
        if self._template is not None:
            render = functools.partial(self._template.render, self._variables, trying=True)
            source, rendered = self._template.source, chat_template.rendered_probes(render)
        written = written_by(source, rendered, known)
        self._tags = thinking_tags.pairs_of(written_by(source, rendered, thinking_tags.ALL))
        ids = {text: i for text, i in known.items() if i in special or text in written or text in self._tags}
        framing = {text: i for text, i in ids.items() if text not in thinking_tags.ALL}
        self._framing = ControlTokens(framing, self._model.spans)
        # A tag that is no token of its own is broken likewise: what the template has opened must be told from contents.
        self._control = ControlTokens({**{tag: -1 for tag in self._tags}, **ids}, self._model.spans)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, made valid Unicode. Special tokens written in it are recognised; none is added."""
        return self._model.encode(text_lib.clean(text))

    def encode_turn(self, text: str) -> list[int]:
        """Token ids of a text that is an assistant's turn: a token that frames turns, spelled in it, stays text."""
        return self._model.encode(self._framing.broken(text_lib.clean(text)))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._model.decode([int(i) for i in ids if int(i) not in self._skipped])

    def spell(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens included: a prompt as its model sees it."""
        return self._model.spell([int(i) for i in ids])

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A conversation framed by the model's chat template.

        Args:
          messages: `{"role": "system" | "user" | "assistant", "content": text}`, oldest first. A content is text only:
            where it spells a control token, a space breaks the spelling ("<|im_end|>" becomes "< |im_end|>"), so that
            no response or critique can end its turn and open another (control_tokens.py). Thinking tags stay in what
            an assistant has said: templates leave out what it thought.
          add_generation_prompt: end with the words that open the assistant's turn.

        Raises:
          UserError: the folder has no chat template, or the template refuses the messages.
        """
        if self._template is None:
            raise UserError(
                f"{self._folder} has no chat template; add chat_template.jinja, or chat_template to "
                "tokenizer_config.json, from the instruct model of the same family."
            )
        try:
            texts = [self._as_text(message) for message in messages]
            return self._template.render(self._variables, texts, add_generation_prompt)
        except chat_template.FaultError as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = chat_template.shown_fault(error)
            raise UserError(
                f"The chat template of {self._folder} refused messages of roles {roles}: {reason}"
            ) from None

    def _as_text(self, message: Message) -> Message:
        control = self._framing if message.get("role") == "assistant" else self._control
        return {key: text if key == "role" else control.broken(text) for key, text in message.items()}

    def chat_ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of `chat_text`, the template's special tokens each as one id.

        Example (SmolLM2; the end of the user's turn, then `<|im_start|>assistant` and a newline):
          >>> tokenizer.chat_ids([{"role": "user", "content": "What is 2 + 3?"}])[-6:]
          [2, 198, 1, 520, 9531, 198]
        """
        return self.encode(self.chat_text(messages, add_generation_prompt))

    def _written_end_of_turn(self, eos_ids: tuple[int, ...]) -> int | None:
        if self._template is None:
            return None
        messages = [{"role": "user", "content": _PROBES[0]}, {"role": "assistant", "content": _PROBES[1]}]
        try:
            _, said, after = self.chat_text(messages, add_generation_prompt=False).rpartition(_PROBES[1])
        except UserError:  # reported where the template is asked for a prompt
            return None
        if not said:
            return None
        ids = self.encode(after.strip())
        if ids and self._framing.begins(after.strip()):
            return ids[0]
        return next((i for i in ids if i in eos_ids), None)

    def thinking_opened_by(self, prompt_ids: Sequence[int] | np.ndarray) -> str:
        r"""Returns the end of a prompt from the tag on by which its template has opened a thinking part; "" for none.

        Example (DeepSeek-R1-Distill):
          >>> tokenizer.thinking_opened_by(tokenizer.chat_ids([{"role": "user", "content": "What is 2 + 3?"}]))
          '<think>\n'
        """
        if not self._tags:
            return ""
        end = self._framing.after_last(self._model.decode([int(i) for i in prompt_ids[-_END:]]))
        opening = thinking_tags.opening_of(end, self._tags)
        # In the words that end every prompt: what an earlier turn has opened is its own.
        return opening if len(opening) <= len(self._prefix) else ""

    @functools.cached_property
    def _prefix(self) -> str:
        """The words by which every prompt ends."""
        return self._model.decode(list(self.generation_prefix_ids()))

    @property
    def may_think(self) -> bool:
        """Whether its template knows of thinking, and has not closed it before a text begins."""
        if self._template is None or not self._tags:
            return False
        return not self._prefix.rstrip().endswith(self._tags[1::2])

    def generation_prefix_ids(self) -> tuple[int, ...]:
        """The ids by which every rendered prompt ends, whatever was asked.

        A refinement is sampled after one prompt and trained after another; both must end alike, here.
        """
        prompts = [self.chat_ids([{"role": "user", "content": probe}]) for probe in _PROBES]
        shared: list[int] = []
        for column in zip(*(reversed(prompt) for prompt in prompts), strict=False):
            if len(set(column)) > 1:
                break
            shared.append(column[0])
        return tuple(reversed(shared))


def load_tokenizer(
    path: str | pathlib.Path,
    *,
    template_variables: Mapping[str, Any] | None = None,
    now: datetime.datetime | None = None,
) -> Tokenizer:
    """The tokenizer of a model folder, or of a SentencePiece file with the settings that lie beside it.

    Args:
      path: a folder with `tokenizer.json` (Hugging Face) or `tokenizer.model` (SentencePiece), or a `.model` file.
      template_variables: more variables for the chat template, such as `{"enable_thinking": False}`.
      now: what a template that writes the date (`strftime_now`) takes for it; the time of loading if not given. It is
        read once, so that a run that passes midnight keeps one prompt. Give a resumed run the time of its first start.

    Raises:
      UserError: the path holds no tokenizer, a file is damaged, no end-of-turn token is named anywhere, or the chat
        template does not read one of the variables.
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    settings = files.read_settings(folder, "tokenizer_config.json")
    if path.is_file() and path.suffix == ".model":
        model = _SentencePieceModel(path, settings, folder)
    elif (path / "tokenizer.json").is_file():
        model = _JsonModel(path / "tokenizer.json")
    elif (path / "tokenizer.model").is_file():
        model = _SentencePieceModel(path / "tokenizer.model", settings, folder)
    else:
        raise UserError(
            f"{path} holds no tokenizer; give a folder with tokenizer.json or tokenizer.model, or a .model file."
        )
    names = (
        model.names
        | files.token_names(files.read_settings(folder, "special_tokens_map.json"))
        | files.token_names(settings)
    )
    generation = files.read_settings(folder, "generation_config.json") or files.read_settings(folder, "config.json")
    eos_ids = files.eos_ids(model, generation=generation, names=names, folder=folder)
    pad_id = model.token_id(names["pad_token"]) if "pad_token" in names else generation.get("pad_token_id")
    source, arguments = chat_template.template_source(folder, settings), template_variables or {}
    template = None
    if source is not None:
        template = chat_template.compile_template(source, folder, now or datetime.datetime.now())
    chat_template.check_arguments(template, arguments, names, folder)
    return Tokenizer(
        model,
        folder=folder,
        template=template,
        names=names,
        eos_ids=eos_ids,
        pad_id=pad_id if isinstance(pad_id, int) and 0 <= pad_id < model.size else eos_ids[0],
        variables=arguments,
    )
