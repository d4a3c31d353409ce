"""SentencePiece models in `transformers` and here: ids of texts and chats, and the texts of ids.

Needs the extra `parity`, one of whose packages carries published models as files.
"""

import importlib.metadata
import io
import json
import os
import pathlib
import subprocess
import sys

import converted
import hf_folders
import pytest
import sentencepiece
import transformers
from chats import CONVERSATIONS, GEMMA2, LLAMA2, MISTRAL, compare_chats

from cgrpo_jax import convert
from cgrpo_jax.models.hf import fast_tokenizer
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer

# No text begins with a space, nor what follows a control symbol where each is followed by a mark of a word's start:
# SentencePiece puts its mark before that space, and `transformers` 5 lets the space stand for the mark.
TEXTS = [
    *("What is 12 + 30?", "two  spaces   and four    .", "a\n\nb\n  c\t\n", "naïve 東京 🙂 ﬁ", "12345 6.78", ""),
    *("trailing  ", "<think>\nso</think>\n"),
]
CORPUS = ["What is 12 + 30?", "The answer is 42.", "Add two spaces and four", "(done). Be brief. user model"] * 20
LLAMA_PIECES = {"<unk>": True, "<s>": True, "</s>": True, "<think>": False, "</think>": False}
LLAMA_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
GEMMA_PIECES = {"<pad>": True, "<eos>": True, "<bos>": True, "<unk>": True}
GEMMA_TURNS = {"<start_of_turn>": True, "<end_of_turn>": True}


def trained(model_type, **options):
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=proto, model_type=model_type, vocab_size=380, byte_fallback=True,
        hard_vocab_limit=False, normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
        allow_whitespace_only_pieces=True, minloglevel=2, **options,
    )  # fmt: skip
    return proto.getvalue()


def write_sentencepiece_folder(folder, proto, template, *, pieces, **settings):
    """`pieces` says what is special; a piece that the model does not have is added after its vocabulary."""
    (folder / "tokenizer.model").write_bytes(proto)
    (folder / "chat_template.jinja").write_text(template)
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    ids = {piece: model.piece_to_id(piece) for piece in pieces if model.id_to_piece(model.piece_to_id(piece)) == piece}
    ids |= {piece: model.vocab_size() + i for i, piece in enumerate(p for p in pieces if p not in ids)}
    flags = {"normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    added = {str(ids[piece]): {"content": piece, "special": special, **flags} for piece, special in pieces.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"added_tokens_decoder": added}))


def compare_texts(ours, theirs):
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("saying", [{}, {"legacy": False}, {"legacy": True}])
def test_sentencepiece_with_a_mark_before_a_text_like_llama_2(tmp_path, saying):
    """`legacy` says whether the mark is put after each control symbol too; files that do not say mean no."""
    write_sentencepiece_folder(tmp_path, trained("bpe"), LLAMA2, pieces=LLAMA_PIECES, **LLAMA_NAMES, **saying)
    ours, theirs = load_tokenizer(tmp_path), transformers.LlamaTokenizer.from_pretrained(tmp_path)
    compare_texts(ours, theirs)
    texts = compare_chats(ours, theirs)
    assert texts[0] == "<s>[INST] What is 12 + 30? [/INST]" and texts[1] is not None
    assert ours.eos_ids == (2,) and ours.end_of_turn_id == 2


def test_sentencepiece_without_a_mark_like_gemma(tmp_path):
    # Gemma has a symbol for every run of spaces and line ends that is likely; here for those in the texts.
    symbols = [*GEMMA_TURNS, "\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<think>", "</think>"]
    proto = trained(
        "bpe", add_dummy_prefix=False, user_defined_symbols=symbols, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        bos_piece="<bos>", eos_piece="<eos>",
    )  # fmt: skip
    names = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "unk", "pad")}
    write_sentencepiece_folder(tmp_path, proto, GEMMA2, pieces=GEMMA_PIECES | GEMMA_TURNS, **names)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    ours, theirs = load_tokenizer(tmp_path), transformers.GemmaTokenizer.from_pretrained(tmp_path)
    compare_texts(ours, theirs)
    texts = compare_chats(ours, theirs)
    assert texts[0].startswith("<bos><start_of_turn>user\nWhat is") and texts[1] is None
    assert ours.eos_ids == (1, 5) and ours.end_of_turn_id == 5 and ours.pad_id == 0


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("source", ["unigram", "tokenizer.model.v1", "mistral_instruct_tokenizer_240323.model.v3"])
def test_unigram_and_published_models_of_mistral(tmp_path, source, legacy):
    """Compared with the class of `transformers` that runs SentencePiece itself.

    Its other classes rebuild a `tokenizer.model` as merges in the order of ids. These models score otherwise, so runs
    of spaces come out otherwise there. Without `legacy`, the class compared with marks no word's start at all.
    """
    if source == "unigram":
        proto = trained("unigram")
    else:
        package = importlib.metadata.distribution("mistral-common")
        proto = pathlib.Path(package.locate_file(f"mistral_common/data/{source}")).read_bytes()
    saying = {"legacy": True} if legacy else {"legacy": False, "add_prefix_space": False}
    pieces = LLAMA_PIECES | ({"[INST]": True, "[/INST]": True} if source.endswith("v3") else {})
    write_sentencepiece_folder(tmp_path, proto, MISTRAL, pieces=pieces, **LLAMA_NAMES, **saying)
    ours = load_tokenizer(tmp_path)
    theirs = transformers.SentencePieceBackend.from_pretrained(tmp_path, vocab_file=str(tmp_path / "tokenizer.model"))
    chats = [ours.chat_text(messages) for messages in CONVERSATIONS[:6]]
    assert chats[0] == "<s>[INST] What is 12 + 30?[/INST]"
    for text in [*TEXTS, *chats, " leading", "<s> [INST]  two  [/INST]"]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    for text in TEXTS[:-1]:  # the last has added tokens, after which `legacy` puts a mark that reads as a space
        assert ours.decode(ours.encode(text)) == text
    assert ours.eos_ids == (2,) and ours.end_of_turn_id == 2
    if source != "unigram":
        assert len(ours.encode("<s>[INST]")) == (2 if source.endswith("v3") else 4)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2"])
@pytest.mark.parametrize("saying", [{}, {"legacy": True}, {"tokenizer_class": "LlamaTokenizer", "legacy": False}])
@pytest.mark.parametrize("source", ["bpe", "unigram", "tokenizer.model.v1", "gemma"])
def test_an_exported_tokenizer_is_the_same_in_transformers(tmp_path, source, saying, model_type):
    """Whatever the family: by its own rules transformers would build others, with other ids in runs of spaces."""
    template, pieces, names = MISTRAL, LLAMA_PIECES, LLAMA_NAMES
    if source == "gemma":
        symbols = [*GEMMA_TURNS, "\n", "\n\n", "\u2581\u2581", "<think>", "</think>"]
        proto = trained("bpe", add_dummy_prefix=False, user_defined_symbols=symbols)
        pieces |= GEMMA_TURNS
    elif source.startswith("tokenizer"):
        package = importlib.metadata.distribution("mistral-common")
        proto = pathlib.Path(package.locate_file(f"mistral_common/data/{source}")).read_bytes()
    else:
        proto = trained(source)
    write_sentencepiece_folder(tmp_path, proto, template, pieces=pieces, **names, **saying)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    ours = load_tokenizer(tmp_path)
    folder_lib.export_tokenizer(tmp_path, tmp_path)
    for kind in (transformers.AutoTokenizer, transformers.PreTrainedTokenizerFast):
        theirs = kind.from_pretrained(tmp_path)
        compare_texts(ours, theirs)
        assert compare_chats(ours, theirs)[0] == "<s>[INST] What is 12 + 30?[/INST]"


# Refuses what a model card does not say to install.
WITHOUT = """
import importlib.abc, importlib.util, sys

def is_absent(name):
    return any(name == one or name.startswith(one + ".") for one in ABSENT)

class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if is_absent(name):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if is_absent(name) else found(name, *args)
sys.meta_path.insert(0, Absent())
"""


@pytest.mark.parametrize("kind", ["fast", "rebuilt"])
def test_the_program_of_a_model_card_runs_with_what_the_card_installs(tmp_path, kind):
    source = converted.make_folder(tmp_path / "source", hf_folders.QWEN3)
    convert.import_hf(source, tmp_path / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        if kind == "rebuilt":
            patch.setattr(fast_tokenizer, "tokenizer_json", lambda folder: None)
        convert.export_hf(tmp_path / "checkpoint", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    installed = card.partition("pip install ")[2].partition("\n")[0].split()
    assert installed == ["transformers", "torch", *(["sentencepiece", "protobuf"] if kind == "rebuilt" else [])]
    absent = ["tiktoken", *(["sentencepiece", "google.protobuf"] if kind == "fast" else [])]
    code = card.partition("```python\n")[2].partition("```")[0].replace("max_new_tokens=512", "max_new_tokens=8")
    code = f"ABSENT = {absent}\n{WITHOUT}\n{code}\nprint(prompt['input_ids'][0].tolist())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    ids = load_tokenizer(source).chat_ids([{"role": "user", "content": "What is 2 + 3?"}])
    if kind == "fast":  # rebuilt by the rules of Qwen3, it loads, and says what it will
        assert json.loads(done.stdout.strip().split("\n")[-1]) == ids
