"""A tokenizer of single bytes with ChatML, in the manner of a Hugging Face folder: every text is known to it."""

import json

import tokenizers
from tokenizers import decoders, pre_tokenizers

from cgrpo_jax.models.hf.tokenizer import load_tokenizer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Gemma's and others do it.
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"


# Control tokens of three families, the end of a turn first.
CHATML_TOKENS = ("<|im_end|>", "<|im_start|>")
LLAMA3_TOKENS = ("<|eot_id|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>")
GEMMA_TOKENS = ("<end_of_turn>", "<bos>", "<start_of_turn>")
# Of another model: other ids, other tokens that frame a turn.
OTHER = {
    "template": "{% for m in messages %}{{ '[T]' + m.role + ': ' + m.content + '[/T]' }}{% endfor %}[T]bot: ",
    "tokens": ("[T]", "[/T]"),
    "eos": "[/T]",
    "backwards": True,
}


def write(folder, template=CHATML, tokens=CHATML_TOKENS[::-1], *, eos="<|im_end|>", backwards=False, **names):
    """Writes the files of the tokenizer, with such control tokens, and returns the folder.

    Its bytes are numbered from the last one if `backwards`.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=backwards)
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(tokens))
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": eos, "chat_template": template} | names
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def make(folder, template=CHATML, *args, **kw):
    return load_tokenizer(write(folder, template, *args, **kw))
