"""Folders of byte-level tokenizers whose role tokens no file calls special, as those of DeepSeek-R1-Distill."""

import json

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from cgrpo_jax.models.hf.tokenizer import load_tokenizer

USER, BOT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
BOS, EOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"
R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '"
    + BOT
    + "' + m['content'] + '"
    + EOS
    + "' }}"
    "{% else %}{{ '" + USER + "' + m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + BOT + "<think>\n' }}{% endif %}"
)


def write_folder(
    folder, template, *, special=(BOS, EOS), added=(USER, BOT, "<think>", "</think>"), normalizer=None, **token
):
    """A byte-level vocabulary; `token` is how the added tokens, which no file calls special, are matched."""
    model = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    if normalizer is not None:
        model.normalizer = normalizer
    model.add_special_tokens(list(special))
    model.add_tokens([AddedToken(text, special=False, **({"normalized": False} | token)) for text in added])
    model.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": special[0], "eos_token": special[-1], "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)
