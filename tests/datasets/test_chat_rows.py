"""A user's own rows: what is learnt, token for token, by the templates of three families; what is refused."""

import json

import chain_prompts
import chat_families
import chat_tokenizer
import numpy as np
import pytest
from chats import QWEN3

from cgrpo_jax.datasets.chat_rows import Reader
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind

U, A = (lambda text: {"role": "user", "content": text}), (lambda text: {"role": "assistant", "content": text})
CHAT = [U("2+3?"), A("5"), U("And 4?"), A("It is 9.")]
END = "<|im_end|>"
# How two questions with their answers look in each family's template: what is learnt stands in brackets.
FAMILIES = {
    "chatml": (
        "<|im_start|>user\n2+3?<|im_end|>\n<|im_start|>assistant\n[5<|im_end|>]\n<|im_start|>user\nAnd 4?<|im_end|>\n"
        "<|im_start|>assistant\n[It is 9.<|im_end|>]"
    ),
    "llama3": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 1 Jan 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+3?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[5<|eot_id|>]"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd 4?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[It is 9.<|eot_id|>]"
    ),
    "gemma": (
        "<bos><start_of_turn>user\n2+3?<end_of_turn>\n<start_of_turn>model\n[5<end_of_turn>]\n"
        "<start_of_turn>user\nAnd 4?<end_of_turn>\n<start_of_turn>model\n[It is 9.<end_of_turn>]"
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {name: chat_families.make(tmp_path_factory.mktemp(name) / "model", name) for name in FAMILIES}


def reader(tokenizer, loss=LossKind.NLL, **changes):
    values = {"turns": "all", "max_target": 1000, "question_key": "question", "solution_key": ""} | changes
    return Reader(chain_prompts.make(tokenizer, **values.pop("prompts", {})), loss, **values)


def units(tmp_path, tokenizer, *rows, **changes):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(reader(tokenizer, **changes).units(path))


def marked(tokenizer, row):
    """Returns a row as text with what is learnt in brackets."""
    learnt = np.concatenate([np.zeros(len(row.context_ids), bool), counted(row)])
    ids, text = np.concatenate([row.context_ids, row.target_ids]), ""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learnt, [False]]).astype(int)))
    for start, end, inside in zip([0, *edges], [*edges, len(ids)], [False, *[True, False] * len(edges)], strict=False):
        text += f"[{tokenizer.spell(ids[start:end])}]" if inside else tokenizer.spell(ids[start:end])
    return text


def counted(row):
    return np.ones(len(row.target_ids), bool) if row.counted is None else row.counted


@pytest.mark.parametrize("family", FAMILIES)
def test_all_turns_of_the_assistant_are_learnt_and_nothing_else(family, tmp_path, tokenizers):
    tokenizer, text = tokenizers[family], FAMILIES[family]
    (unit,) = units(tmp_path, tokenizer, {"messages": CHAT, "id": 3})
    (row,) = unit.rows
    assert marked(tokenizer, row) == text
    assert row.target_ids[-1] == tokenizer.end_of_turn_id and row.loss == LossKind.NLL and row.advantage == 1
    # In two rows the same is learnt after the same: joined, what they share is there once.
    (apart,) = units(tmp_path, tokenizer, {"messages": CHAT}, max_target=12)
    first, second = apart.rows
    at = len(row.context_ids) + len(first.target_ids)
    both = np.concatenate([row.context_ids, row.target_ids])
    assert first.context_ids.tolist() == row.context_ids.tolist() and first.counted is None
    assert both[: len(second.context_ids)].tolist() == second.context_ids.tolist() and len(second.context_ids) > at
    assert [*first.target_ids, *second.target_ids] == row.target_ids[row.counted].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_turn_alone(family, tmp_path, tokenizers):
    tokenizer, text = tokenizers[family], FAMILIES[family]
    (unit,) = units(tmp_path, tokenizer, {"messages": CHAT}, turns="last")
    head, _, tail = text.rpartition("[")
    assert marked(tokenizer, unit.rows[0]) == head.replace("[", "").replace("]", "") + "[" + tail


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_with_its_completion_is_a_chat_of_one_turn(family, tmp_path, tokenizers):
    tokenizer = tokenizers[family]
    same = [
        {"messages": CHAT[:2]},
        {"conversations": [{"from": "human", "value": "2+3?"}, {"from": "gpt", "value": "5"}]},
        {"prompt": "2+3?", "completion": "5"},
        {"prompt": [U("2+3?")], "completion": [A("5")]},
        {"question": "2+3?", "solution": "5", "answer": "5"},
    ]
    found = units(tmp_path, tokenizer, *same, solution_key="solution")
    texts = {marked(tokenizer, row) for unit in found for row in unit.rows}
    assert texts == {FAMILIES[family].partition("]")[0] + "]"}
    assert [unit.where for unit in found] == [f"{tmp_path / 'rows.jsonl'}, line {n}" for n in range(1, 6)]
    assert len({unit.question for unit in found}) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_critique_that_is_given_is_learnt_after_the_prompt_that_asks_for_one(family, tmp_path, tokenizers):
    tokenizer = tokenizers[family]
    row = {"problem": "2+3?", "response": "six", "critique": "Less: wrong", "solution": "5"}
    (unit,) = units(
        tmp_path, tokenizer, row, question_key="problem", solution_key="solution", prompts=chain_prompts.CHAINS
    )
    asked = chat_families.ASKED[family].format("2+3?\nTried: six\nCheck.")
    assert marked(tokenizer, unit.rows[0]) == f"{asked}[Less: wrong{chat_families.END[family]}]"


def test_a_critique_that_is_given_is_of_the_whole_chat(tmp_path, tokenizers):
    row = {"question": [U("2+3?"), A("5"), U("And 4?")], "response": "10", "critique": "wrong"}
    (unit,) = units(tmp_path, tokenizers["chatml"], row, prompts=chain_prompts.CHAINS)
    said = tokenizers["chatml"].spell(unit.rows[0].context_ids)
    assert "User: 2+3?\n\nAssistant: 5\n\nUser: And 4?\nTried: 10\nCheck." in said


def test_thoughts_that_a_template_leaves_out_of_earlier_turns_part_the_chat(tmp_path):
    """Each turn is learnt as it is sampled: with its thoughts, after what the template then shows."""
    tokenizer = chat_tokenizer.make(tmp_path / "model", QWEN3)
    chat = [U("2+3?"), A("<think>\n2 and 3\n</think>\n\n5"), U("And 4?"), A("<think>\n5+4\n</think>\n\n9")]
    (unit,) = units(tmp_path, tokenizer, {"messages": chat})
    assert [marked(tokenizer, row) for row in unit.rows] == [
        f"<|im_start|>user\n2+3?{END}\n<|im_start|>assistant\n[<think>\n2 and 3\n</think>\n\n5{END}]",
        f"<|im_start|>user\n2+3?{END}\n<|im_start|>assistant\n5{END}\n<|im_start|>user\nAnd 4?{END}\n"
        f"<|im_start|>assistant\n[<think>\n5+4\n</think>\n\n9{END}]",
    ]


def test_a_greeting_answers_nothing(tmp_path, tokenizers):
    (unit,) = units(tmp_path, tokenizers["chatml"], {"messages": [A("Hello."), *CHAT[:2]]})
    assert marked(tokenizers["chatml"], unit.rows[0]).startswith(
        f"<|im_start|>assistant\nHello.{END}\n<|im_start|>user"
    )
    assert marked(tokenizers["chatml"], unit.rows[0]).endswith(f"[5{END}]")


def test_a_system_turn_of_the_configuration_gives_way_to_the_chats(tmp_path, tokenizers):
    own = {"messages": [{"role": "system", "content": "Own."}, *CHAT[:2]]}
    prompts = {"prompts": {"system": "Be brief."}}
    found = units(tmp_path, tokenizers["chatml"], own, {"messages": CHAT[:2]}, **prompts)
    texts = [marked(tokenizers["chatml"], unit.rows[0]) for unit in found]
    assert [text.partition(END)[0] for text in texts] == ["<|im_start|>system\nOwn.", "<|im_start|>system\nBe brief."]


def test_a_control_token_in_a_text_stays_text(tmp_path, tokenizers):
    tokenizer = tokenizers["chatml"]
    (unit,) = units(tmp_path, tokenizer, {"messages": [U(f"a{END}b"), A(f"c{END}d")]})
    (row,) = unit.rows
    assert row.target_ids.tolist().count(tokenizer.end_of_turn_id) == 1
    assert row.context_ids.tolist().count(tokenizer.end_of_turn_id) == 1


# --- pairs and critiques ------------------------------------------------------------------------------------------


def test_pairs(tmp_path, tokenizers):
    tokenizer = tokenizers["chatml"]
    same = [
        {"prompt": "2+3?", "chosen": "5", "rejected": "six"},
        {"prompt": [U("2+3?")], "chosen": [A("5")], "rejected": [A("six")]},
        {"chosen": CHAT[:2], "rejected": [CHAT[0], A("six")]},
    ]
    for unit in units(tmp_path, tokenizer, *same, loss=LossKind.DPO):
        chosen, rejected = unit.rows
        assert (chosen.pair, rejected.pair) == (1, -1) and chosen.loss == rejected.loss == LossKind.DPO
        assert chosen.context_ids.tolist() == rejected.context_ids.tolist()
        assert [tokenizer.spell(row.target_ids) for row in unit.rows] == [f"5{END}", f"six{END}"]


def test_critiques_with_utilities_are_compared_where_their_prompts_are_one(tmp_path, tokenizers):
    rows = [{"prompt": prompt, "completion": str(n), "utility": n / 4} for n, prompt in enumerate(["a", "b", "a"])]
    found = units(tmp_path, tokenizers["chatml"], *rows, loss=LossKind.RCO)
    assert [unit.utility for unit in found] == [0, 0.25, 0.5]
    assert found[0].group == found[2].group != found[1].group
    assert all(unit.rows[0].loss == LossKind.RCO for unit in found)


REFUSED = {
    "no turn of the assistant": (
        LossKind.NLL,
        {"messages": [U("2+3?")]},
        r"no turn of the assistant that answers .*user",
    ),
    "a greeting alone": (LossKind.NLL, {"messages": [A("Hi."), U("2+3?")]}, "no turn of the assistant that answers"),
    "an empty turn": (LossKind.NLL, {"messages": [U("2+3?"), A(" ")]}, "turn 2, the assistant's, is empty"),
    "an empty completion": (LossKind.NLL, {"prompt": "a", "completion": ""}, "column 'completion' is empty"),
    "an empty prompt": (LossKind.NLL, {"prompt": " ", "completion": "b"}, "column 'prompt' is empty"),
    "no content": (
        LossKind.NLL,
        {"messages": [U("a"), {"role": "assistant", "content": None}]},
        "turn 2 .* has no text",
    ),
    "no role": (LossKind.NLL, {"messages": [{"content": "a"}]}, "turn 1 .* has no role"),
    "no chat": (LossKind.NLL, {"messages": "2+3?"}, "column 'messages' holds no chat"),
    "unknown columns": (
        LossKind.NLL,
        {"text": "a", "label": 1},
        "its columns are 'text', 'label'; finetune.loss 'nll' needs messages, or prompt and completion, or data.quest",
    ),
    "a prompt that asks nothing": (LossKind.NLL, {"prompt": CHAT[:2], "completion": "b"}, "so nothing is asked"),
    "a completion of several turns": (LossKind.NLL, {"prompt": "a", "completion": CHAT}, "has 4 turns after a prompt"),
    "half a pair": (
        LossKind.DPO,
        {"prompt": "a", "chosen": "b"},
        "a pair with one row: it has 'chosen', but no 'rejected'",
    ),
    "equal rows": (
        LossKind.DPO,
        {"prompt": "a", "chosen": "b", "rejected": "b"},
        "are the same, which prefers nothing",
    ),
    "a pair that parts early": (LossKind.DPO, {"chosen": CHAT[:2], "rejected": [U("x"), A("y")]}, "part before"),
    "a pair without an answer": (
        LossKind.DPO,
        {"chosen": CHAT[:1], "rejected": CHAT[:2]},
        "'chosen' does not end with",
    ),
    "chats for pairs": (LossKind.DPO, {"messages": CHAT}, "'dpo' needs chosen and rejected"),
    "no utility": (LossKind.RCO, {"prompt": "a", "completion": "b"}, "'rco' needs prompt, completion and utility"),
    "a utility that is none": (LossKind.RCO, {"prompt": "a", "completion": "b", "utility": 2}, "from 0 to 1"),
    "half a surrogate pair": (LossKind.NLL, {"prompt": "a", "completion": "\ud800"}, "Unicode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_teaches_nothing_is_refused_in_a_line_that_names_the_row(name, tmp_path, tokenizers):
    loss, row, message = REFUSED[name]
    good = {
        LossKind.NLL: {"messages": CHAT},
        LossKind.DPO: {"prompt": "a", "chosen": "b", "rejected": "c"},
        LossKind.RCO: {"prompt": "a", "completion": "b", "utility": 1},
    }[loss]
    with pytest.raises(UserError, match=message) as caught:
        units(tmp_path, tokenizers["chatml"], good, row, loss=loss)
    text = str(caught.value)
    assert text.startswith(f"{tmp_path / 'rows.jsonl'}, line 2: ") and "\n" not in text
    assert text.count("line 2") == 1


def test_what_a_template_refuses_is_said_of_the_row(tmp_path, tokenizers):
    with pytest.raises(UserError, match=r"rows.jsonl, line 1: The chat template of .* refused messages"):
        units(tmp_path, tokenizers["gemma"], {"messages": [{"role": "system", "content": "x"}, *CHAT]})
