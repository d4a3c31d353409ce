"""SentencePiece models as `tokenizer.json`, and what a model card says of them; see tests/parity for transformers."""

import io
import json
import shutil

import pytest
import sentencepiece
import tokenizers

from cgrpo_jax.models.hf import fast_tokenizer
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runs import model_source

GEMMA = {"model_type": "bpe", "add_dummy_prefix": False, "remove_extra_whitespaces": False}
GEMMA |= {"user_defined_symbols": ["\u2581\u2581", "\n", "is\u2581", "What\u2581is"]}
CORPUS = ["What is 12 + 30?", "The answer is 42.", "Add two spaces and four", "(done). Be brief."] * 20
TEXTS = [
    "What is 12 + 30?",
    "two  spaces   and",
    "na\u00efve \u6771\u4eac\n",
    "<s>What</s> is<think>x",
    "trailing  ",
    "",
]


def trained(folder, *, settings=(), **options):
    """Writes a folder with a SentencePiece model."""
    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=proto, hard_vocab_limit=False, minloglevel=2,
        **{"vocab_size": 330, "byte_fallback": True, "normalization_rule_name": "identity"} | options,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(proto.getvalue())
    size = sentencepiece.SentencePieceProcessor(model_proto=proto.getvalue()).vocab_size()
    added = {str(size): {"content": "<think>", "special": False}}
    names = {"bos_token": "<s>", "eos_token": "</s>", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | dict(settings)))
    return folder


@pytest.mark.parametrize("settings", [{}, {"legacy": True}, {"legacy": False}, {"add_prefix_space": False}])
@pytest.mark.parametrize(
    "options",
    [
        {"model_type": "bpe"},
        {"model_type": "bpe", "remove_extra_whitespaces": False, "split_digits": True},
        {"model_type": "unigram", "vocab_size": 300},
        {"model_type": "bpe", "byte_fallback": False, "vocab_size": 90},
        {"model_type": "char", "byte_fallback": False, "vocab_size": 60},
        {"model_type": "bpe", "user_defined_symbols": ["\u2581\u2581", "\n"]},
        GEMMA,
    ],
    ids=["bpe", "spaces kept", "unigram", "unknown", "characters", "symbols", "gemma"],
)
def test_it_has_the_same_ids_and_texts_or_is_not_written(tmp_path, options, settings):
    folder = trained(tmp_path / "sp", settings=settings, **options)
    ours = load_tokenizer(folder)
    content = fast_tokenizer.tokenizer_json(folder)
    if content is None:
        assert options.get("remove_extra_whitespaces", True)  # which spaces go depends on what stands beside them
        return
    built = tokenizers.Tokenizer.from_str(content)
    for text in TEXTS:
        ids = ours.encode(text)
        assert built.encode(text, add_special_tokens=False).ids == ids
        assert built.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("name", ["arithmetic", "snippets"])
def test_those_of_the_package(tmp_path, name):
    folder = shutil.copytree(model_source.tokenizer_folder(name), tmp_path / name)
    ours = load_tokenizer(folder)
    assert fast_tokenizer.write(folder) and not fast_tokenizer.write(folder)
    theirs = load_tokenizer(folder)  # which reads tokenizer.json where there is one
    messages = [{"role": "user", "content": "7*8+6*3"}]
    assert theirs.chat_ids(messages) == ours.chat_ids(messages)
    assert (theirs.eos_ids, theirs.pad_id, theirs.vocab_size) == (ours.eos_ids, ours.pad_id, ours.vocab_size)
    for text in ("7*8=56, 6+6=12. Answer: 56 12", "f(a, b): a plus 3", "Step 1 is wrong: 7*8=56, not 54."):
        assert theirs.encode(text) == ours.encode(text) and theirs.decode(ours.encode(text)) == ours.decode(
            ours.encode(text)
        )


def test_what_would_differ_is_not_written(tmp_path, monkeypatch):
    folder = trained(tmp_path / "sp", model_type="bpe", remove_extra_whitespaces=False)
    assert fast_tokenizer.tokenizer_json(folder) is not None
    monkeypatch.setattr(fast_tokenizer, "_PROBES", (*fast_tokenizer._PROBES, " leading"))  # which it can't express
    assert not fast_tokenizer.write(folder) and not (folder / "tokenizer.json").exists()
    assert "tokenizer_class" not in (folder / "tokenizer_config.json").read_text()


def code_of(card):
    return card.partition("```python\n")[2].partition("```")[0]


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("kind", ["fast", "rebuilt", "given"])
def test_the_model_card_says_what_to_install_and_how_to_ask(tmp_path, monkeypatch, kind, adapter):
    folder = trained(tmp_path / "sp", model_type="bpe", remove_extra_whitespaces=False)
    if kind == "rebuilt":
        monkeypatch.setattr(fast_tokenizer, "_PROBES", (" leading",))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    folder_lib.export_tokenizer(folder, folder)
    if kind == "given":
        (folder / "tokenizer_config.json").write_text("{}")
    card = folder_lib.model_card(
        "out", folder=folder, step=3, dtype="float32", adapter=adapter, asked="{question}\nBox it.",
        config={"prompts": {"system": "Be brief."}}, template_arguments={"enable_thinking": False},
    )  # fmt: skip
    installed = card.partition("pip install ")[2].partition("\n")[0].split()
    wanted = ["transformers", "torch", *(["peft"] if adapter else [])]
    assert installed == wanted + (["sentencepiece", "protobuf"] if kind == "rebuilt" else [])
    code = code_of(card)
    compile(code, "card", "exec")
    tokenizer = "PreTrainedTokenizerFast" if kind == "fast" else "AutoTokenizer"
    assert f'tokenizer = {tokenizer}.from_pretrained("out")' in code and "tokenizer.apply_chat_template(" in code
    assert "return_dict=True, enable_thinking=False\n" in code
    said = json.loads(code.partition("messages = ")[2].partition("\n")[0])
    assert said == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "{question}\nBox it."}]


def test_the_card_of_a_model_without_a_chat_template_does_not_ask(tmp_path):
    folder = trained(tmp_path / "sp", model_type="bpe")
    card = folder_lib.model_card("out", folder=folder, step=0, dtype="float32", adapter=False)
    assert "apply_chat_template" not in card and "from_pretrained" in code_of(card)
