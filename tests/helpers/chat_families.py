"""Tokenizers of single bytes with the chat templates of three families."""

import chat_tokenizer
from chats import GEMMA2, LLAMA3

TODAY = LLAMA3.replace('strftime_now("%d %b %Y") if strftime_now is defined else ', "")
FAMILIES = {
    "chatml": (chat_tokenizer.CHATML, chat_tokenizer.CHATML_TOKENS),
    "llama3": (TODAY, chat_tokenizer.LLAMA3_TOKENS),
    "gemma": (GEMMA2, chat_tokenizer.GEMMA_TOKENS),
}
# A question as each shows it, up to where the assistant's turn begins; and how that ends.
ASKED = {
    "chatml": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 1 Jan 2024\n\n<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n",
}
END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>"}


def make(folder, family):
    """Returns the tokenizer of a family, whose files are written to a folder."""
    template, tokens = FAMILIES[family]
    bos = {"bos_token": tokens[1]} if family != "chatml" else {}
    return chat_tokenizer.make(folder, template, tokens, eos=tokens[0], **bos)
