"""Model folders that are meant to do harm: crafted ones, and valid ones with changes, each a function of a number."""

import json
import os
import pathlib
import random
import shutil
import struct
import tempfile
from collections.abc import Callable

import chat_tokenizer
import hf_folders
import tokenizers

import cgrpo_jax
from cgrpo_jax.models.hf import config as hf_config

VOCABULARY = 258
SETTINGS = hf_folders.LLAMA | {"vocab_size": VOCABULARY, "eos_token_id": 1}
ASSETS = pathlib.Path(cgrpo_jax.__file__).parent / "assets" / "arithmetic"
Files = dict[str, bytes]


def valid() -> list[Files]:
    """Returns valid folders as their files: one of weights, several with an index, a SentencePiece tokenizer."""
    folders = []
    with tempfile.TemporaryDirectory() as temporary:
        for shards, pieces in ((1, False), (2, False), (1, True)):
            folder = pathlib.Path(temporary) / f"{shards}{pieces}"
            config = hf_config.config_json
            folder.mkdir()
            (folder / "config.json").write_text(json.dumps(SETTINGS))
            config = hf_config.read_config(folder)
            tensors = hf_folders.stored_tensors(hf_folders.random_params(config), config)
            hf_folders.write_folder(folder, SETTINGS, tensors, shards=shards)
            if pieces:
                for path in ASSETS.iterdir():
                    shutil.copyfile(path, folder / path.name)
            else:
                chat_tokenizer.write(folder)
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1], "pad_token_id": 0}))
            folders.append({path.name: path.read_bytes() for path in folder.iterdir()})
    return folders


def write(folder: pathlib.Path, number: int, seed: str, bases: list[Files]) -> None:
    """Writes the folder of a number: the crafted ones first."""
    rng = random.Random(f"{seed}/folder/{number}")
    files = dict(bases[number % len(bases)])
    crafted = list(CRAFTED)
    change: Callable | None = None
    if number < len(crafted):
        change = crafted[number]
        files = dict(bases[0])
    else:
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            name = rng.choice(sorted(files))
            files[name] = mutated(rng, name, files[name])
            if rng.random() < 0.03:
                del files[name]
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    if change:
        change(folder)


# --- changes of valid files -----------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    10**9,
    10**300,
    10**4000,
    -(10**9),
    0.5,
    1e-320,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "\ud800",
    "\x00",
    "\x1b[2J\u202e",
    "../../etc/passwd",
    "/etc/passwd",
    "a" * 100_000,
    [],
    [[]],
    {},
    {"": {}},
    [None] * 1000,
    {"content": "\ud800"},
    {"content": 3},
    "<|im_end|>",
    "{{ 'x' }}",
    "llama",
    "gemma3",
    "silu",
    [0, 1, 2**40],
    ["sliding_attention"],
    {"rope_type": "llama3"},
    {"factor": -1},
    "ByteLevel",
    "float8",
]


def places(value, path=()):
    """Yields the path of every value in a JSON value, its own included."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for i, inner in enumerate(value[:50]):
            yield from places(inner, (*path, i))


def mutated(rng: random.Random, name: str, content: bytes) -> bytes:
    """Returns a file with a value, or with bytes, changed."""
    if name.endswith(".json") and rng.random() < 0.75:
        try:
            value = json.loads(content)
        except ValueError:
            return content
        return json.dumps(changed(rng, value)).encode()
    if name.endswith(".safetensors") and rng.random() < 0.6:
        length = int.from_bytes(content[:8], "little")
        try:
            header = json.dumps(changed(rng, json.loads(content[8 : 8 + length]))).encode()
        except ValueError:
            return content
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    start, end = sorted(rng.randint(0, len(content)) for _ in range(2))
    before, inner, after = content[:start], content[start:end], content[end:]
    flipped = bytearray(content)
    for _ in range(rng.choice((1, 8, 64))):
        if flipped:
            flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    changes = [
        before,
        before + after,
        before + inner * 2 + after,
        before + bytes(len(inner)) + after,
        bytes(flipped),
        bytes(flipped),
        before + rng.randbytes(rng.choice((1, 8, 1000))) + inner + after,
        before + inner[:10] * 5000 + after,
        b"",
    ]
    return rng.choice(changes)


def changed(rng: random.Random, value):
    """Returns a JSON value in which one is replaced, left out or put in."""
    at = rng.choice(list(places(value)))
    if not at:
        return rng.choice(VALUES)
    inner = value
    for key in at[:-1]:
        inner = inner[key]
    how = rng.random()
    if how < 0.15:
        del inner[at[-1]]
    elif how < 0.3 and isinstance(inner, dict):
        inner[rng.choice(("rope_scaling", "layer_types", "text_config", "quantization_config", "x" * 1000))] = (
            rng.choice(VALUES)
        )
    else:
        inner[at[-1]] = rng.choice(VALUES)
    return value


# --- crafted ones ---------------------------------------------------------------------------------------------------


def sparse(name: str, size: int = 1 << 42) -> Callable:
    def change(folder):
        with (folder / name).open("ab") as file:
            file.truncate(size)

    return change


def content(name: str, data: bytes | str) -> Callable:
    def change(folder):
        (folder / name).write_bytes(data.encode(errors="surrogatepass") if isinstance(data, str) else data)

    return change


def link(name: str, target: str) -> Callable:
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return change


def pipe(name: str) -> Callable:
    def change(folder):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return change


def settings(**keys) -> Callable:
    return content("config.json", json.dumps(SETTINGS | keys))


def header(value, length: int | None = None, rest: bytes = b"") -> Callable:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return content("model.safetensors", struct.pack("<Q", len(data) if length is None else length) + data + rest)


def index(weight_map) -> Callable:
    def change(folder):
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return change


def tokenizer(edit: Callable[[dict], None]) -> Callable:
    def change(folder):
        value = json.loads((folder / "tokenizer.json").read_text())
        edit(value)
        (folder / "tokenizer.json").write_text(json.dumps(value))

    return change


def splitting(pattern: str) -> Callable:
    rule = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return tokenizer(lambda value: value.update(pre_tokenizer=rule))


def replacing(pattern: dict, by: str) -> Callable:
    return tokenizer(lambda value: value.update(normalizer={"type": "Replace", "pattern": pattern, "content": by}))


def added(number: int, **more) -> Callable:
    def edit(value):
        plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        value["added_tokens"] += [plain | {"id": 258 + i, "content": f"<{i}>"} | more for i in range(number)]

    return tokenizer(edit)


TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
JSON_FILES = ("config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json")
CRAFTED = [
    *(
        settings(**{key: value})
        for key in (
            "num_hidden_layers",
            "vocab_size",
            "hidden_size",
            "num_attention_heads",
            "max_position_embeddings",
            "intermediate_size",
        )
        for value in (10**9, 10**30, 2**63)
    ),
    settings(layer_types=["full_attention"] * 100_000),
    settings(rope_scaling={"rope_type": ["x"] * 10**5}),
    settings(architectures=["x" * 10**6]),
    settings(model_type="x" * 10**6),
    settings(model_type={"a": 1}),
    settings(quantization_config={"a": "x" * 10**6}),
    settings(text_config=[1]),
    settings(torch_dtype=["float32"]),
    settings(eos_token_id=[10**4000]),
    settings(eos_token_id=["1"] * 10**5),
    settings(model_type="qwen2", max_window_layers=10**12),
    settings(model_type="gemma2", sliding_window_pattern=10**18, hidden_activation="gelu_pytorch_tanh"),
    *(content(name, "[" * 4_000_000) for name in JSON_FILES),
    *(content(name, '{"a":' * 100_000 + "1" + "}" * 100_000) for name in JSON_FILES),
    *(content(name, "[" + "[],{}," * 650_000 + "0]") for name in JSON_FILES),
    *(content(name, '{"vocab_size": ' + "9" * 4_000_000 + "}") for name in JSON_FILES),
    *(content(name, '{"eos_token": "\\ud800", "model_type": "\\udfff"}') for name in JSON_FILES),
    *(sparse(name) for name in (*JSON_FILES, "model.safetensors")),
    sparse("config.json", 9 << 20),
    sparse("vocab.json"),
    sparse("merges.txt"),
    link("vocab.json", "/dev/zero"),
    *(pipe(name) for name in (*JSON_FILES, "model.safetensors", "chat_template.jinja")),
    *(link(name, "/dev/zero") for name in (*JSON_FILES, "model.safetensors", "chat_template.jinja")),
    *(link(name, name) for name in JSON_FILES),
    link("chat_template.jinja", "/etc"),
    *(header({}, length) for length in (2**63, 2**64 - 1, 2**40, 2**31, 100_000_000, 0, 1)),
    header({"x": TENSOR | {"shape": [2**32, 2**32]}}),
    header({"x": TENSOR | {"shape": [-1]}}),
    header({"x": TENSOR}, rest=b"abc"),
    header({"x": TENSOR | {"data_offsets": [4, 0]}}),
    header({"x": TENSOR | {"data_offsets": [0, 2**60]}}),
    header({"x": TENSOR, "y": TENSOR}, rest=b"abcd"),
    header({"x": TENSOR | {"dtype": "PICKLE"}}, rest=b"abcd"),
    header({"x" * 10**6: TENSOR}, rest=b"abcd"),
    header({"\x1b[2J": TENSOR}, rest=b"abcd"),
    header(b'{"a":' * 10**5),
    header(b"[" * 10**6),
    header({"__metadata__": {"a": "x" * 10**6}}),
    header({f"t{i}": TENSOR | {"shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}),
    header({"x": TENSOR | {"shape": [1] * 50_000}}, rest=b"abcd"),
    header(
        {
            "model.embed_tokens.weight": TENSOR | {"shape": []},
            "lm_head.weight": TENSOR | {"shape": [], "data_offsets": [4, 8]},
        },
        rest=b"abcdefgh",
    ),
    *(
        index({"x": name})
        for name in ("../../../etc/passwd", "/etc/passwd", "..", "", "a" * 5000, "a\x00b", "\ud800", "config.json", 3)
    ),
    index({f"t{i}": f"{i}.safetensors" for i in range(50_000)}),
    index([]),
    index({}),
    splitting("(a+)+$"),
    splitting("(a|a)*b"),
    splitting("(?:" * 5000),
    splitting("(x{0,30000}){0,30000}"),
    splitting("\\"),
    splitting(""),
    replacing({"String": "a"}, "b" * 10**6),
    replacing({"Regex": "(a*)*c"}, "b"),
    replacing({"String": ""}, "b" * 1000),
    replacing({"Regex": "a"}, "a" * 100),
    added(1, id=2**32 - 1),
    added(1, id=2**31),
    added(30_000),
    added(1, content="x" * 10**6),
    added(1, content=""),
    added(1, id=5),
    tokenizer(lambda value: value["model"].update(vocab={})),
    tokenizer(lambda value: value["model"].update(vocab={"a": 2**32 - 1})),
    tokenizer(lambda value: value["model"].update(merges=[["a", "b"]] * 1000)),
    tokenizer(lambda value: value["model"].update(dropout=2.0)),
    tokenizer(lambda value: value["model"].update(unk_token="none")),
    tokenizer(lambda value: value.update(decoder={"type": "Strip", "content": "a", "start": 2**63, "stop": 2**63})),
    tokenizer(lambda value: value.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"})),
    tokenizer(
        lambda value: value.update(
            pre_tokenizer={"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}] * 10_000}
        )
    ),
    tokenizer(
        lambda value: value.update(
            decoder={
                "type": "Sequence",
                "decoders": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60,
            }
        )
    ),
    tokenizer(lambda value: value.update(model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 9})),
    tokenizer(
        lambda value: value.update(
            model={
                "type": "WordPiece",
                "vocab": {"a": 0},
                "max_input_chars_per_word": 2**60,
                "continuing_subword_prefix": "",
                "unk_token": "a",
            }
        )
    ),
    content(
        "tokenizer_config.json",
        json.dumps({"eos_token": "<|im_end|>", "added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
    ),
    content("tokenizer_config.json", json.dumps({"eos_token": "x" * 10**6})),
    content("tokenizer_config.json", json.dumps({"chat_template": {"a": 1}})),
    content("added_tokens.json", json.dumps({"x": 2**40})),
    content("added_tokens.json", json.dumps({f"<{i}>": i for i in range(100_000)})),
    content("chat_template.jinja", "x" * 10**7),
    content("chat_template.jinja", b"\xff\xfe"),
    content("chat_template.jinja", ""),
    content("chat_template.jinja", "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"),
    content("tokenizer.json", "version https://git-lfs.github.com/spec/v1\n"),
    content("model.safetensors", b""),
    content("model.safetensors", b"\x80\x04\x95" * 100),
]
assert tokenizers.__version__  # what the crafted files are for
