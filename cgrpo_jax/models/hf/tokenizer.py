"""Text to tokens and back, and the chat template that frames a prompt, from a Hugging Face folder or SentencePiece.

Everything that differs between models is read from the folder: the ends of a turn, the padding id, the template.
Templates are code from elsewhere, so they run in Jinja's sandbox.
"""

import datetime
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text as text_lib
from cgrpo_jax.runtime.json_files import fetch_again, object_at, read_json_object, shown

Message = Mapping[str, str]

# Last characters of different kinds, so that what these prompts share at their end is the template's alone.
_PROBES = ("two", "What is 12 + 30?", "x = 7", "(done).")

# What a faulty template may raise: its own refusal, or what the Python expressions in it raise.
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _JsonModel:
    """`tokenizer.json`: the vocabulary and rules as the `tokenizers` library reads them."""

    def __init__(self, path: pathlib.Path):
        try:
            self._model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception, whatever the fault
            raise UserError(f"{path} is not a readable tokenizer.json ({error}); {fetch_again(path)}.") from None
        self._model.no_padding()
        self._model.no_truncation()
        added = self._model.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.read_whole = {token.content: i for i, token in added.items()}  # wherever they are in a text
        self.size = max(self._model.get_vocab(with_added_tokens=True).values()) + 1
        self.names: dict[str, str] = {}

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self._model.decode(ids, skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        return self._model.token_to_id(token)


class _SentencePieceModel:
    """`tokenizer.model`: SentencePiece, which itself never reads a control symbol out of a text.

    A text is split at its control symbols and added tokens first. The word-start mark that some models put before
    a text is put at the very beginning only, and after a control symbol where `tokenizer_config.json` says `legacy`.
    """

    def __init__(self, path: pathlib.Path, settings: Mapping[str, Any], folder: pathlib.Path):
        added, special = _added_tokens(folder, settings)
        try:
            proto = path.read_bytes()
            self._model = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{path} is not a readable SentencePiece model ({error}); {fetch_again(path)}.") from None
        inner = sentencepiece_model_pb2.ModelProto.FromString(proto)  # pyright: ignore[reportAttributeAccessIssue]
        inner.normalizer_spec.add_dummy_prefix = False
        self._inner = sentencepiece.SentencePieceProcessor(model_proto=inner.SerializeToString())
        self._first = self._inner if settings.get("add_prefix_space") is False else self._model
        self._later = self._first if settings.get("legacy") is True else self._inner
        pieces = range(self._model.vocab_size())
        self._ids = {self._model.id_to_piece(i): i for i in pieces if self._model.is_control(i)} | dict(added)
        self._texts = {i: token for token, i in added.items()}
        self.special_ids = special | {i for i in pieces if self._model.is_control(i)}
        self.read_whole = self._ids  # wherever they are in a text
        self.size = max([self._model.vocab_size(), *(i + 1 for i in added.values())])
        longest_first = sorted(self._ids, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, longest_first))})" if longest_first else "(?!)")
        named = {name: getattr(self._model, f"{name}_id")() for name in ("bos", "eos", "pad")}
        self.names = {f"{name}_token": self._model.id_to_piece(i) for name, i in named.items() if i >= 0}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for number, part in enumerate(self._split.split(text)):
            if part in self._ids:
                ids.append(self._ids[part])
            elif part:
                ids.extend((self._later if number else self._first).encode(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        # Decoding drops the word-start mark of a text; a run after an added token is not a text's beginning.
        parts: list[str] = []
        run: list[int] = []
        model = self._first
        for i in ids:
            if i in self._texts:
                parts += [model.decode(run), self._texts[i]]
                run, model = [], self._inner
            elif i < self._model.vocab_size():
                run.append(i)
        return "".join([*parts, model.decode(run)])

    def token_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        i = self._model.piece_to_id(token)
        return i if self._model.id_to_piece(i) == token else None


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %} ... {% endgeneration %}` marks what a model says; for rendering it is only its content."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML, which models never saw.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _compile_template(source: str, folder: pathlib.Path, now: datetime.datetime) -> jinja2.Template:
    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": now.strftime}
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"The chat template of {folder} is not valid Jinja: line {error.lineno}: {error}.") from None


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
        template: jinja2.Template | None,
        names: Mapping[str, str],
        eos_ids: tuple[int, ...],
        pad_id: int,
        variables: Mapping[str, Any],
    ):
        self._model = model
        self._folder = folder
        self._template = template
        self._variables = {"tools": None, "documents": None, **names, **variables}
        named = (model.token_id(token) for token in names.values())
        self._skipped = model.special_ids | set(eos_ids) | {i for i in named if i is not None}
        control = [text for text, i in model.read_whole.items() if i in self._skipped and len(text) > 1]
        # The first character of a control token, in a lookahead: each one is found, also where two overlap.
        self._control = re.compile(f"(?={'|'.join(map(re.escape, control))})." if control else "(?!)", re.DOTALL)
        self.vocab_size = model.size
        self.pad_id = pad_id
        written = self._written_end_of_turn(eos_ids)
        self.eos_ids = eos_ids if written is None else tuple(dict.fromkeys((*eos_ids, written)))
        self._skipped |= set(self.eos_ids)
        self.end_of_turn_id = eos_ids[0] if written is None else written

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, made valid Unicode. Special tokens written in it are recognised; none is added."""
        return self._model.encode(text_lib.clean(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, without special tokens."""
        return self._model.decode([int(i) for i in ids if int(i) not in self._skipped])

    def chat_text(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """A conversation framed by the model's chat template.

        Args:
          messages: `{"role": "system" | "user" | "assistant", "content": text}`, oldest first. A content is text only:
            where it spells a control token, a space breaks the spelling ("<|im_end|>" becomes "< |im_end|>"), so that
            no response or critique can end its turn and open another.
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
            return self._template.render(
                self._variables,
                messages=[
                    {key: self._control.sub(r"\g<0> ", text) if key == "content" else text for key, text in m.items()}
                    for m in messages
                ],
                add_generation_prompt=add_generation_prompt,
            )
        except _TEMPLATE_FAULTS as error:
            roles = ", ".join(str(message.get("role")) for message in messages)
            reason = " ".join(str(error).split())
            raise UserError(
                f"The chat template of {self._folder} refused messages of roles {roles}: {reason}"
            ) from None

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
        if ids and self._control.match(after.strip()):
            return ids[0]
        return next((i for i in ids if i in eos_ids), None)

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
      UserError: the path holds no tokenizer, a file is damaged, or no end-of-turn token is named anywhere.
    """
    path = pathlib.Path(path)
    folder = path if path.is_dir() else path.parent
    settings = _settings(folder, "tokenizer_config.json")
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
    names = model.names | _token_names(_settings(folder, "special_tokens_map.json")) | _token_names(settings)
    generation = _settings(folder, "generation_config.json") or _settings(folder, "config.json")
    eos_ids = _eos_ids(model, generation=generation, names=names, folder=folder)
    pad_id = model.token_id(names["pad_token"]) if "pad_token" in names else generation.get("pad_token_id")
    source = _template_source(folder, settings)
    return Tokenizer(
        model,
        folder=folder,
        template=None if source is None else _compile_template(source, folder, now or datetime.datetime.now()),
        names=names,
        eos_ids=eos_ids,
        pad_id=pad_id if isinstance(pad_id, int) and 0 <= pad_id < model.size else eos_ids[0],
        variables=template_variables or {},
    )


def _settings(folder: pathlib.Path, name: str) -> dict[str, Any]:
    return read_json_object(folder / name) if (folder / name).is_file() else {}


def _added_tokens(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[dict[str, int], frozenset[int]]:
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
    added = _settings(folder, "added_tokens.json")
    if wrong := {token: i for token, i in added.items() if not _is_id(i)}:
        raise UserError(f"{folder / 'added_tokens.json'} has {shown(wrong)}; ids are numbers. Fetch the file again.")
    listed = {token["content"]: i for i, token in decoder.items()}
    return added | listed, frozenset(i for i in decoder if decoder[i].get("special"))


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _token_names(settings: Mapping[str, Any]) -> dict[str, str]:
    """Named tokens such as `bos_token`, each written as a string or as `{"content": string, ...}`."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}  # add_bos_token is a bool


def _eos_ids(model, *, generation: Mapping[str, Any], names: Mapping[str, str], folder: pathlib.Path):
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


def _template_source(folder: pathlib.Path, settings: Mapping[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path} can't be read as UTF-8 text ({error}); {fetch_again(path)}.") from None
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named ones, for tools and the like
        named = [entry for entry in template if isinstance(entry, dict) and entry.get("name") == "default"]
        template = named[0].get("template") if named else None
    if not isinstance(template, str | None):
        raise UserError(f"{folder / 'tokenizer_config.json'}: chat_template is {shown(template)}; it must be a text.")
    return template
