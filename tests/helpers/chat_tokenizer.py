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


# Of another model: other ids, other tokens that frame a turn.
OTHER = {
    "template": "{% for m in messages %}{{ '[T]' + m.role + ': ' + m.content + '[/T]' }}{% endfor %}[T]bot: ",
    "special": ("[T]", "[/T]"),
    "backwards": True,
}


def write(folder, template=CHATML, *, special=("<|im_start|>", "<|im_end|>"), backwards=False):
    """Writes the files of the tokenizer, its bytes numbered from the last one if `backwards`; returns the folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), reverse=backwards)
    model = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(list(special))
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": special[1], "chat_template": template}))
    return folder


def make(folder, template=CHATML, **changes):
    return load_tokenizer(write(folder, template, **changes))
