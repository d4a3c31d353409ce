"""What runs in a process of its own: a chat template, which is a program, and the first reading of a tokenizer.

Jinja's sandbox keeps a template from files and from Python, not from working for ever or filling the memory; a
tokenizer's file holds regular expressions and rules that can do both, and what its library finds impossible may end the
process. So all this happens here, under limits of memory and processor time that the system holds. `folder_process`
starts the process and asks it.
"""

import datetime
import functools
import json
import os
import pickle
import resource
import signal
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_TEMPLATE_MEMORY, _TOKENIZER_MEMORY = 1 << 28, 1 << 30  # bytes of addresses, beyond those that are taken already
LENGTH = struct.Struct(">Q")  # before each request and each reply
# What a tokenizer is tried with: long runs, which expressions that go back and forth take for ever over.
TEXTS = (
    "a" * 3000 + "!", " " * 3000 + ".", "0" * 3000 + "x", "Ab1 " * 500, "\n\t " * 500 + "e", "\u00e9" * 500 + "a",
    "\u6771\u4eac \U0001f642" * 200, "<|x|></x>" * 200, "".join(map(chr, range(32, 127))) * 10,
)  # fmt: skip
_GROWTH, _FREE = 20, 256  # tokens of a character at most, as a normaliser's longest one has, and what is always allowed
_SHOWN = 500  # characters of what an exception says


class _LimitError(Exception):
    """What a request makes is too large; the message says of what."""


def main() -> None:
    """Answers requests until there are none."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    sys.dont_write_bytecode = True
    replies = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no reply
    while header := sys.stdin.buffer.read(LENGTH.size):
        kind, seconds, arguments = pickle.loads(sys.stdin.buffer.read(*LENGTH.unpack(header)))
        data = json.dumps(_answer(*KINDS[kind], seconds, arguments)).encode("ascii")
        left = memoryview(LENGTH.pack(len(data)) + data)
        while left:
            left = left[os.write(replies, left) :]


def _answer(function: Callable, memory: int, seconds: float, arguments: Sequence) -> list[Any]:
    resource.setrlimit(resource.RLIMIT_AS, (_taken() + memory, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the process, whatever it is at
    try:
        return ["value", function(*arguments)]
    except MemoryError:
        return ["limit", f"takes more than {memory >> 20} MiB of memory"]
    except _LimitError as error:
        return ["limit", str(error)]
    except BaseException as error:  # noqa: BLE001 - a panic of a library in Rust is no Exception
        return ["fault", _said(error)]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _taken() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _said(error: BaseException) -> str:
    named = isinstance(error, MemoryError | RecursionError | SyntaxError) or not isinstance(error, Exception)
    text = f"{type(error).__name__}: {error}" if named or not str(error).strip() else str(error)
    return " ".join(text.split())[:_SHOWN]


# --- chat templates -------------------------------------------------------------------------------------------------


def compile_template(source: str, now: str) -> list[str]:
    """Returns the names of the variables that a template reads.

    Args:
      source: in Jinja.
      now: what it takes for the time, as ISO 8601.
    """
    return _compiled(source, now)[1]


def render(
    source: str, now: str, variables: Mapping[str, Any], messages: Sequence, add_generation_prompt: bool, most: int
) -> str:
    """Returns what a template makes of messages, at most so many characters."""
    template, _ = _compiled(source, now)
    pieces, length = [], 0
    for piece in template.generate(variables, messages=messages, add_generation_prompt=add_generation_prompt):
        pieces.append(piece)
        length += len(piece)
        if length > most:
            raise _LimitError(f"writes more than {most:,} characters")
    return "".join(pieces)


@functools.lru_cache(maxsize=4)
def _compiled(source: str, now: str) -> tuple[Any, list[str]]:
    import jinja2
    import jinja2.ext
    import jinja2.meta
    import jinja2.nodes
    import jinja2.sandbox

    class GenerationTag(jinja2.ext.Extension):
        """`{% generation %} ... {% endgeneration %}` marks what a model says; for rendering it is only its content."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body).set_lineno(line)

    def refuse(message: str):
        raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    time = datetime.datetime.fromisoformat(now)
    environment.globals |= {"raise_exception": refuse, "strftime_now": time.strftime}
    try:
        reads = jinja2.meta.find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), sorted(reads - environment.globals.keys())
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error}") from None


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # Jinja's own filter escapes HTML, which models never saw.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


# --- tokenizers -----------------------------------------------------------------------------------------------------


def try_tokenizer(path: str) -> None:
    """Reads a `tokenizer.json`, or a SentencePiece model, and takes texts to tokens and back.

    Raises:
      Exception: it can't be read, or makes far more of a text than it holds.
    """
    if path.endswith(".json"):
        import tokenizers

        model = tokenizers.Tokenizer.from_file(path)
        model.no_padding()
        model.no_truncation()
        encode = lambda text: model.encode(text, add_special_tokens=False).ids  # noqa: E731
        decode = lambda ids: model.decode(ids, skip_special_tokens=False)  # noqa: E731
    else:
        import sentencepiece

        with open(path, "rb") as file:
            pieces = sentencepiece.SentencePieceProcessor(model_proto=file.read())
        encode, decode = pieces.encode, pieces.decode
    for text in TEXTS:
        try:
            ids = encode(text)
        except Exception:  # noqa: BLE001 - a vocabulary may not know a text: said where one is asked for
            continue
        most = _GROWTH * len(text) + _FREE
        if len(ids) > most:
            raise _LimitError(f"makes {len(ids)} tokens of {len(text)} characters")
        if len(said := decode(ids)) > most:
            raise _LimitError(f"makes {len(said)} characters of the tokens of {len(text)}")


# What can be asked for: a function, and the memory that it may take.
KINDS: dict[str, tuple[Callable, int]] = {
    "compile": (compile_template, _TEMPLATE_MEMORY),
    "render": (render, _TEMPLATE_MEMORY),
    "tokenizer": (try_tokenizer, _TOKENIZER_MEMORY),
}
