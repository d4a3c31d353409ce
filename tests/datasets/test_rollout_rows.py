"""Rollouts as rows to learn: which of them, after what, with which tokens; utilities and pairs of critiques."""

import dataclasses

import chain_prompts
import chat_tokenizer
import made_rollouts
import pytest
import rollout_cases
from made_rollouts import CRITIQUE, REFINEMENT, RESPONSE, Made

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.datasets.rollout_rows import Reader, files_of
from cgrpo_jax.records import Author, LossKind

END = "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat_tokenizer.make(tmp_path_factory.mktemp("chatml") / "model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A wrong response with three critiques, a right one with two, and one that was cut off and is not graded."""
    return made_rollouts.write(tmp_path_factory.mktemp("rollouts"), tokenizer)


def read(folder, tokenizer, loss=LossKind.NLL, stages=(RESPONSE, REFINEMENT), **changes):
    values = {"which": "right", "context": "question", "pass_threshold": 1.0, "sees": "nothing"} | changes
    (file,) = files_of(folder)
    return list(Reader(chain_prompts.make(tokenizer), loss, stages=stages, **values).units(file))


def texts(units, tokenizer):
    return [
        [(tokenizer.spell(row.context_ids), tokenizer.spell(row.target_ids)) for row in unit.rows] for unit in units
    ]


def test_right_answers_and_right_refinements_after_the_question_alone(folder, tokenizer):
    asked = f"<|im_start|>user\n2+3?{END}\n<|im_start|>assistant\n"
    found = texts(read(folder, tokenizer), tokenizer)
    assert found[0] == [(asked, f"5{END}")]
    assert {context for ((context, _),) in found} == {asked}
    assert len(found) == 1 + 6 and all(target.startswith("so 5 ") for ((_, target),) in found[1:])
    assert len(read(folder, tokenizer, stages=(RESPONSE,))) == 1
    assert (
        len(read(folder, tokenizer, stages=(RESPONSE,), which="all")) == 2
    )  # without a verdict nothing is known of it


def test_a_refinement_as_it_was_written(folder, tokenizer):
    found = texts(read(folder, tokenizer, stages=(REFINEMENT,), context="prompt"), tokenizer)
    assert all("six" in context or "5" in context for ((context, _),) in found)
    assert "It is less: wrong" in found[0][0][0]


def test_critiques_whose_verdict_is_right(folder, tokenizer):
    targets = [target for ((_, target),) in texts(read(folder, tokenizer, stages=(CRITIQUE,)), tokenizer)]
    assert targets == [f"{text}{END}" for text in ("It is less: wrong", "wrong", "All right")]


def test_refinements_after_critiques_that_agree(folder, tokenizer):
    """That of the right response which a critique called wrong is right by itself, and left out."""
    found = texts(read(folder, tokenizer, stages=(REFINEMENT,), which="agreeing"), tokenizer)
    assert len(found) == 5 and not any("It is more" in target for ((_, target),) in found)
    assert texts(read(folder, tokenizer, stages=(RESPONSE, CRITIQUE), which="agreeing"), tokenizer) == texts(
        read(folder, tokenizer, stages=(RESPONSE, CRITIQUE)), tokenizer
    )


def test_a_refinement_without_a_critique_has_none_to_agree(tmp_path, tokenizer):
    made = Made(tokenizer)
    wrong = made.response(0, 0.0, "six")
    index = wrong.index.replace(stage=REFINEMENT)
    made.add(REFINEMENT, "so 5", made.prompts.for_question("2+3?"), wrong, reward=1.0, index=index)
    rollouts.write(tmp_path / rollouts.file_name(0), made.rows, iteration=0, spell=tokenizer.spell)
    assert len(read(tmp_path, tokenizer, stages=(REFINEMENT,), which="agreeing")) == 1


def test_utilities_are_what_refinements_made_of_it(folder, tokenizer):
    """1 where it was fixed, 0.5 where it is as before, 0 where it was broken."""
    units = read(folder, tokenizer, LossKind.RCO, stages=(CRITIQUE,))
    assert [unit.utility for unit in units] == [1.0, 0.75, 0.5, 0.5, 0.25]
    assert len({unit.group for unit in units}) == 2 and len({unit.question for unit in units}) == 1
    assert all(unit.rows[0].loss == LossKind.RCO for unit in units)


def test_a_utility_that_was_collected_is_taken_as_it_is(tmp_path, tokenizer):
    """By a judge, say; one that is not known counts for nothing."""
    made = Made(tokenizer)
    wrong = made.response(0, 0.0, "six")
    for number, utilities in enumerate([(0.25, 0.75, None), (None,), (1.0,)]):
        critique = made.critique(wrong, number, False, f"wrong {number}")
        for m, utility in enumerate(utilities):
            made.refinement(critique, m, 0.0, f"so {number} {m}", rewards=(("utility", utility),))
    rollouts.write(tmp_path / rollouts.file_name(0), made.rows, iteration=0, spell=tokenizer.spell)
    units = read(tmp_path, tokenizer, LossKind.RCO, stages=(CRITIQUE,))
    assert [unit.utility for unit in units] == [0.5, 1.0]


def test_the_best_and_the_worst_critique_of_a_response_are_a_pair(folder, tokenizer):
    units = read(folder, tokenizer, LossKind.DPO, stages=(CRITIQUE,))
    pairs = [tuple(tokenizer.spell(row.target_ids) for row in unit.rows) for unit in units]
    assert pairs == [(f"It is less: wrong{END}", f"right{END}"), (f"All right{END}", f"It is more: wrong{END}")]
    assert [[row.pair for row in unit.rows] for unit in units] == [[1, -1]] * 2


def test_a_right_and_a_wrong_answer_are_a_pair(folder, tokenizer):
    (unit,) = read(folder, tokenizer, LossKind.DPO, stages=(RESPONSE,))
    assert [tokenizer.spell(row.target_ids) for row in unit.rows] == [f"5{END}", f"six{END}"]


def test_sampled_tokens_stay_as_they_are(folder, tokenizer):
    """Also those that no text would be encoded as: nothing is decoded on the way."""
    (file,) = files_of(folder)
    sampled = [row.rollout for row in rollouts.read(file)]
    (unit,) = read(folder, tokenizer, stages=(RESPONSE,))
    assert unit.rows[0].target_ids.tolist() == sampled[1].token_ids.tolist()
    assert unit.rows[0].context_ids.tolist() == sampled[1].prompt_ids.tolist()


def test_the_prompt_of_a_frozen_refiner_is_written_again(folder, tokenizer, tmp_path):
    """Its ids are of another tokenizer, even where they end as prompts do here."""
    (file,) = files_of(folder)
    rows = rollouts.read(file)
    for number, row in enumerate(rows):
        if (one := row.rollout).stage == REFINEMENT:
            swapped = one.prompt_ids.copy()
            swapped[:2] = swapped[1::-1]
            rows[number] = dataclasses.replace(row, rollout=one.replace(author=Author.REFINER, prompt_ids=swapped))
    rollouts.write(tmp_path / rollouts.file_name(0), rows, iteration=0, spell=tokenizer.spell)
    as_prompted = {"stages": (REFINEMENT,), "context": "prompt"}
    found = texts(read(tmp_path, tokenizer, **as_prompted), tokenizer)
    assert found and found == texts(read(folder, tokenizer, **as_prompted), tokenizer)


def test_another_models_tokens_are_written_again(folder, tmp_path):
    """With its template, its end of turn where the text ended by itself, and its own prompts of critiques."""
    tokens = chat_tokenizer.GEMMA_TOKENS
    template = "{% for m in messages %}{{ '<start_of_turn>' + m.role + ' ' + m.content + '<end_of_turn>' }}{% endfor %}"
    template += "{% if add_generation_prompt %}{{ '<start_of_turn>model ' }}{% endif %}"
    other = chat_tokenizer.make(tmp_path / "other", template, tokens, eos=tokens[0])
    asked = "<start_of_turn>user 2+3?<end_of_turn><start_of_turn>model "
    ((first,), *_) = texts(read(folder, other), other)
    assert first == (asked, "5<end_of_turn>")
    ((critique,), *_) = texts(read(folder, other, stages=(CRITIQUE,), sees="answer"), other)
    assert critique[1] == "It is less: wrong<end_of_turn>"
    assert critique[0] == other.spell(chain_prompts.make(other).for_critique("2+3?", "six", "5")[0])


def test_other_files_are_no_rollouts(folder, tmp_path):
    (tmp_path / "chat.parquet").write_bytes(b"PAR1")
    (tmp_path / "chat.jsonl").write_text("{}\n")
    assert files_of(tmp_path) == files_of(tmp_path / "chat.jsonl") == []
    (file,) = files_of(folder)
    assert files_of(file) == [file]


def test_answers_to_verdict_problems_are_left_out(tmp_path, tokenizer):
    made = Made(tokenizer)
    made.response(0, 1.0, "5")
    made.rows.append(rollout_cases.verdict(1))
    rollouts.write(tmp_path / rollouts.file_name(0), made.rows, iteration=0, spell=tokenizer.spell)
    for which in ("right", "all"):
        assert len(read(tmp_path, tokenizer, stages=(RESPONSE,), which=which)) == 1
