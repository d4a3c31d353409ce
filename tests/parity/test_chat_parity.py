"""Rendered chats and their ids in `transformers` and here: templates of every family.

Needs the extra `parity`, whose packages carry published templates as files. With CGRPO_TEMPLATES naming a folder, the
templates in its `*.jinja` and `tokenizer_config.json` files are compared too; with CGRPO_SMOLLM2 naming a
SmolLM2-135M-Instruct folder, its tokenizer is.
"""

import ast
import datetime
import importlib.metadata
import json
import os
import pathlib

import pytest
import tokenizers
import transformers
from chats import (
    CHATML,
    CONVERSATIONS,
    CORNERS,
    GEMMA2,
    GEMMA3,
    LLAMA2,
    LLAMA3,
    MISTRAL,
    NOW,
    QUESTION,
    QWEN3,
    compare_chats,
)
from tokenizers import decoders, pre_tokenizers, trainers
from transformers.utils import chat_template_utils

from cgrpo_jax.models.hf.tokenizer import load_tokenizer

# Turns are framed by these in one family or another. `<think>` is a token that a model may say as text.
SPECIAL = [
    *("<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>", "[INST]"),
    *("[/INST]", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|endoftext|>"),
]


@pytest.fixture(scope="module")
def byte_level_bpe():
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([m["content"] for chat in CONVERSATIONS for m in chat], trainer)
    bpe.add_tokens(["<think>", "</think>"])
    return bpe


@pytest.fixture
def fixed_now(monkeypatch):
    """`transformers` offers no way to say what day it is."""

    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return NOW

    monkeypatch.setattr(chat_template_utils, "datetime", Fixed)


def write_folder(folder, bpe, template, *, bos=None, eos):
    names = {"eos_token": eos} | ({} if bos is None else {"bos_token": bos})
    backend = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, **names)
    backend.chat_template = template
    backend.save_pretrained(folder)


def compare_template(folder, bpe, template, *, bos, eos, **variables):
    write_folder(folder, bpe, template, bos=bos, eos=eos)
    ours = load_tokenizer(folder, template_variables=variables, now=NOW)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return ours, compare_chats(ours, theirs, **variables)


S, CHAT, GEMMA = ("<s>", "</s>"), ("<|endoftext|>", "<|im_end|>"), ("<bos>", "<eos>")
LLAMA = ("<|begin_of_text|>", "<|eot_id|>")
OWN = {
    "llama-2": (LLAMA2, S, {}),
    "llama-3.2": (LLAMA3, LLAMA, {}),
    "llama-3.1, given a day": (LLAMA3, LLAMA, {"day": "26 Jul 2024"}),
    "mistral": (MISTRAL, S, {}),
    "smollm2": (CHATML.replace("SYSTEM", "You help."), CHAT, {}),
    "qwen2.5-math": (CHATML.replace("SYSTEM", "Reason, then answer in \\\\\\\\boxed{}."), CHAT, {}),
    "qwen3": (QWEN3, CHAT, {}),
    "qwen3, no thinking": (QWEN3, CHAT, {"enable_thinking": False}),
    "gemma-2": (GEMMA2, GEMMA, {}),
    "gemma-3": (GEMMA3, GEMMA, {}),
    "corners": (CORNERS, S, {}),
}


@pytest.mark.parametrize("name", OWN)
def test_constructs_of_every_family_render_alike(tmp_path, byte_level_bpe, fixed_now, name):
    template, (bos, eos), variables = OWN[name]
    _, texts = compare_template(tmp_path, byte_level_bpe, template, bos=bos, eos=eos, **variables)
    assert texts[0] is not None and "12 + 30" in texts[0]


# Published templates, as packages carry them. What they do with a system turn says that they are the right ones.

TRL = "trl/chat_templates/{}.jinja"
PUBLISHED = {
    "llama-2": ("guidance", "llama2_template", S, "[INST] <<SYS>>\n Be brief. \n<</SYS>>\n\nWhat is 12"),
    "llama-3.1": ("trl", "llama3_1", LLAMA, "Today Date: 26 Jul 2024\n\nBe brief.<|eot_id|>"),
    "llama-3.2": ("trl", "llama3_2", LLAMA, "Today Date: 29 Feb 2024\n\nBe brief.<|eot_id|>"),
    "mistral-7b": ("guidance", "mistral_7b_instruct_template", S, "<s> [INST]  Be brief. \n\nWhat is 12"),
    "qwen2.5": ("trl", "qwen2_5", CHAT, "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nWhat"),
    "qwen3": ("trl", "qwen3", CHAT, "<|im_start|>system\n Be brief. <|im_end|>\n<|im_start|>user\nWhat"),
    "gemma-2": ("trl", "gemma", GEMMA, None),
    "gemma-3": ("trl", "gemma3", GEMMA, "<start_of_turn>user\n Be brief. \n\nWhat is 12"),
}


def published_template(package, name):
    files = importlib.metadata.distribution(package)  # PackageNotFoundError names what to install
    if package == "trl":
        return pathlib.Path(files.locate_file(TRL.format(name))).read_text(encoding="utf-8")
    for node in ast.parse(pathlib.Path(files.locate_file("guidance/chat.py")).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise LookupError(f"{package} has no {name}")


@pytest.mark.parametrize("family", PUBLISHED)
def test_published_templates_render_alike(tmp_path, byte_level_bpe, fixed_now, family):
    package, name, (bos, eos), system_turn = PUBLISHED[family]
    template = published_template(package, name)
    ours, texts = compare_template(tmp_path, byte_level_bpe, template, bos=bos, eos=eos)
    assert "12 + 30" in texts[0] and texts[0] == ours.chat_text([QUESTION])
    if system_turn is None:
        assert texts[1] is None
    else:
        assert system_turn in texts[1]
    if family == "qwen3":
        for thinking in (True, False):
            compare_template(tmp_path, byte_level_bpe, template, bos=bos, eos=eos, enable_thinking=thinking)


if "CGRPO_TEMPLATES" in os.environ:
    FOLDER = pathlib.Path(os.environ["CGRPO_TEMPLATES"])
    FILES = sorted(p for p in FOLDER.rglob("*") if p.suffix == ".jinja" or p.name == "tokenizer_config.json")

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(FOLDER)))
    def test_templates_of_a_given_folder_render_alike(tmp_path, byte_level_bpe, fixed_now, path):
        template = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            template = json.loads(template).get("chat_template")
        if template is not None:
            _, texts = compare_template(tmp_path, byte_level_bpe, template, bos="<s>", eos="</s>")
            assert any(texts)  # not all refused


if "CGRPO_SMOLLM2" in os.environ:

    def test_smollm2_chats(fixed_now):
        folder = pathlib.Path(os.environ["CGRPO_SMOLLM2"])
        compare_chats(load_tokenizer(folder, now=NOW), transformers.AutoTokenizer.from_pretrained(folder))
