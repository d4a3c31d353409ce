"""Every method is a configuration of the one loop: baselines, critics, kinds of refinement, models of others."""

import json
import pathlib
import re

import numpy as np
import pytest
import tiny_run
from tiny_run import metrics, run, samples

from cgrpo_jax import convert, groups, train
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.rewards import grader
from cgrpo_jax.training.checkpoint import restore_params

DR = {"data.num_eval": 0, "refine.kind": "none", "objective.aggregate": "constant", "num_iterations": 1}
R1 = {
    "refine.kind": "none",
    "objective.scale_by_std": True,
    "objective.aggregate": "sequence_mean",
    "objective.kl_coef": 0.05,
}


@pytest.fixture
def seen(monkeypatch):
    return tiny_run.watch(monkeypatch)


def value_of(question):
    """Works a chain of one step out, without the code under test."""
    left, op, right = question
    return str(int(left) + int(right) if op == "+" else int(left) * int(right))


# --- methods: plain policy optimisation ---------------------------------------------------------------------------


def groups_of(rows):
    """Splits an update's rows by question (every question of the miniature's batches is another one)."""
    groups = {}
    for row in rows:
        groups.setdefault(row.context_ids.tobytes(), []).append(row)
    return list(groups.values())


def test_r1_grpo(tmp_path, seen):
    folder = run(tmp_path, {"data.num_eval": 0}, **R1)
    for rows in seen.updates:
        groups = groups_of(rows)
        assert [len(group) for group in groups] == [4] * 4
        spread = [np.std([row.advantage for row in group], ddof=1) for group in groups]
        assert all(s == 0 or s == pytest.approx(1, abs=1e-4) for s in spread) and max(spread) > 0
        assert all(len(row.ref_logp) == len(row.target_ids) for row in rows)
    first, second = metrics(folder)
    assert first["kl"] == pytest.approx(0, abs=1e-6) and second["kl"] > 1e-4
    assert first["rows_trained"] == second["rows_trained"] == 16  # a row of advantage 0 still has its KL term
    assert not any(key.startswith(("refine", "critic/")) for key in first)


@pytest.fixture(scope="module")
def dr_grpo(tmp_path_factory):
    return run(tmp_path_factory.mktemp("dr"), DR)


def test_dr_grpo(tmp_path, seen, dr_grpo):
    run(tmp_path, DR)
    reward = {row.token_ids.tobytes(): row for row in seen.of(Stage.RESPONSE)}
    for group in groups_of(seen.updates[0]):
        passed = [reward[row.target_ids.tobytes()] for row in group]
        decode = seen.generators[0].prompts.tokenizer.decode
        right = np.array([p.text.endswith(f"Answer: {value_of(decode(p.prompt_ids))}") for p in passed], float)
        np.testing.assert_allclose([row.advantage for row in group], right - right.mean(), atol=1e-6)
        assert not any(row.refined for row in group)
    assert not any(key.startswith(("refine", "critic/")) for key in metrics(dr_grpo)[0])
    assert all(row["refinement"] is None and row["critique"] is None for row in samples(dr_grpo))


def test_aggregations_weigh_as_the_paper_says(tmp_path, dr_grpo):
    """Without refinements `paper` is 1 / (Q n) a token and `constant` 1 / (Q n T): T = 16 times less."""
    paper = run(tmp_path, DR, **{"objective.aggregate": "paper"})
    assert metrics(paper)[0]["grad_norm"] == pytest.approx(16 * metrics(dr_grpo)[0]["grad_norm"], rel=1e-4)
    assert samples(paper) == samples(dr_grpo)


def test_an_entropy_bonus_keeps_every_row_and_lowers_the_loss(tmp_path, dr_grpo):
    folder = run(tmp_path, DR, **{"objective.entropy_coef": 0.01})
    (row,), (base,) = metrics(folder), metrics(dr_grpo)
    assert row["rows_trained"] == 16 > base["rows_trained"]
    tokens = row["completions/mean_length"] * 16
    bonus = 0.01 * row["entropy"] * tokens / (16 * 16)  # the mean over rows and places of what was sampled
    assert row["loss"] == pytest.approx(base["loss"] - bonus, abs=1e-6)


def test_two_updates_share_one_old_policy(tmp_path, seen):
    changes = {"data.num_eval": 0, "refine.kind": "none", "optimizer.updates_per_batch": 2}
    folder = run(tmp_path, changes | {"sampling.temperature": 1.5}, num_iterations=2)  # hot, so that each half learns
    assert json.loads((folder / "summary.json").read_text())["updates"] == 4
    assert [len(groups_of(rows)) for rows in seen.updates] == [2] * 4
    prompts = [{row.context_ids.tobytes() for row in rows} for rows in seen.updates]
    assert not prompts[0] & prompts[1]
    assert {row.weights_step for row in seen.rollouts[:16]} == {0}
    assert {row.weights_step for row in seen.rollouts[16:]} == {2}
    # The second half of a batch was sampled one update ago.
    ratios = [row["ratio"] for row in metrics(folder)]
    assert all(abs(ratio - 1) > 1e-4 for ratio in ratios), ratios


def test_truncated_sampling_takes_the_trainers_log_probabilities(tmp_path, seen):
    folder = run(
        tmp_path, {"data.num_eval": 0, "refine.kind": "none", "objective.old_logp": "trainer", "sampling.top_p": 0.9}
    )
    assert {generator.sampling.top_p for generator in seen.generators} == {0.9}
    sampled = {row.token_ids.tobytes(): row.logp for row in seen.rollouts}
    for row in seen.updates[0]:
        assert row.old_logp is not sampled[row.target_ids.tobytes()]
        np.testing.assert_allclose(row.old_logp, sampled[row.target_ids.tobytes()], atol=1e-4)
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-5 for row in metrics(folder))


# --- methods: critics ---------------------------------------------------------------------------------------------


HOLDS = "Every step that can be checked holds, but the answer is wrong"


@pytest.mark.parametrize(
    "kind, pattern, solvable",
    [
        ({"critique.kind": "indicative"}, r"The answer is wrong\. Conclusion: wrong \[END\]", False),
        (
            {"critique.kind": "indicative_gt"},
            r"The answer is wrong\. The correct answer is (?P<answer>\d+)\. Conclusion: wrong \[END\]",
            True,
        ),
        (
            {"critique.kind": "execution"},
            rf"(Step 1 is wrong: .*=(?P<answer>\d+), not \w+|{HOLDS})\. Conclusion: wrong \[END\]",
            True,
        ),
        (
            {"critique.kind": "execution", "critique.reveals_value": False},
            rf"(Step 1 is wrong: (.*=\w+) does not hold|{HOLDS})\. Conclusion: wrong \[END\]",
            False,
        ),
    ],
    ids=["indicative", "indicative_gt", "execution", "execution without values"],
)
def test_critiques_by_rule(tmp_path, seen, kind, pattern, solvable):
    folder = run(tmp_path, {"data.num_eval": 0}, num_iterations=2, **kind)
    asked = seen.asked(Stage.REFINEMENT)
    assert asked and not seen.of(Stage.CRITIQUE)  # a rule samples nothing
    told = set()
    for text in asked:
        shown = re.fullmatch(r"(.*)\nTried: .*\nCritique: (.*)\nTry again\.", text, re.DOTALL)
        question, critique = shown.groups()
        match = re.fullmatch(pattern, critique)
        assert match, critique
        told.add(match.groupdict().get("answer"))
        if match.groupdict().get("answer"):
            assert match["answer"] == value_of(question)
    assert bool(told - {None}) == solvable
    assert not any(key.startswith("critic/") for row in metrics(folder) for key in row)


def test_refining_without_a_critique(tmp_path, seen):
    folder = run(tmp_path, {"data.num_eval": 0, "critique.kind": "none"})
    asked = seen.asked(Stage.REFINEMENT)
    assert asked and all("Tried: " in text and "Critique: " not in text for text in asked)
    refined = [row for row in samples(folder) if row["refinement"] is not None]
    assert refined and all(row["critique"] is None for row in refined)


WITH_SOLUTION = "{question}\nTried: {response}\nThe answer is {answer}. {solution}\nCheck."


@pytest.mark.parametrize("sees", ["nothing", "answer", "solution"])
def test_self_critique(tmp_path, seen, sees):
    folder = run(
        tmp_path,
        {
            "data.num_eval": 0,
            "critique.kind": "cot",
            "critic.sees": sees,
            "prompts.critique_with_solution": WITH_SOLUTION,
            "critique.max_retries": 1,
        },
    )
    critiques = seen.of(Stage.CRITIQUE)
    assert {row.author for row in critiques} == {Author.POLICY}
    assert {row.index.attempt for row in critiques} == {0, 1}
    for text in seen.asked(Stage.CRITIQUE):
        question = text.partition("\n")[0]
        assert text.endswith("Check.") and (f"The answer is {value_of(question)}." in text) == (sees != "nothing")
        # Cut where the critic has no room for it, as the response is.
        assert f". {arithmetic.solution(question)}\nCheck." in text or "[...]" in text or sees != "solution"
    rows = metrics(folder)
    assert sum(row["critic/attempts"] for row in rows) == len(critiques)
    assert sum(row["num_tokens"] for row in rows[-1:]) == sum(len(row.token_ids) for row in seen.rollouts)
    assert all(0 <= row["critic/malformed_rate"] + row["critic/valid"] <= 1 for row in rows)
    assert "critic/false_wrong_rate" not in rows[0]
    # Whatever was shown agrees with the verifier: a critique that called a failure right was replaced.
    assert all("Conclusion: right" not in text.rpartition("Critique: ")[2] for text in seen.asked(Stage.REFINEMENT))


def test_critiques_of_all_responses_show_wrong_accusations(tmp_path, seen):
    folder = run(
        tmp_path,
        {"data.num_eval": 0, "critique.kind": "cot", "critique.when": "all", "critique.max_retries": 0},
        num_iterations=1,
    )
    (row,) = metrics(folder)
    assert row["critic/attempts"] == len(seen.of(Stage.CRITIQUE)) == 16
    assert {"critic/false_wrong_rate", "critic/false_right_rate"} <= row.keys()
    assert len(seen.of(Stage.REFINEMENT)) == row["refine/attempted"] == 4 * round(4 * row["frac_all_wrong"])


def test_the_verdict_as_the_reward(tmp_path, seen, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the unsupervised variant asked the verifier")

    monkeypatch.setattr(grader.Grader, "submit", refuse)
    changes = {"reward_source": "critic", "critique.kind": "cot", "critique.when": "all", "critique.max_retries": 0}
    folder = run(tmp_path, {"data.num_eval": 0}, num_iterations=1, **changes)
    verdict = {
        row.index.response + 4 * row.index.question: "Conclusion: right" in row.text
        for row in seen.of(Stage.CRITIQUE)
        if row.parent.stage == Stage.RESPONSE
    }
    assert metrics(folder)[0]["reward"] == np.mean([verdict[i] for i in range(16)])
    # The questions with a refinement come first, so the lines are matched by what they hold.
    assert sorted(row["rewards"] for row in samples(folder)) == sorted(
        [float(verdict[4 * q + i]) for i in range(4)] for q in range(4)
    )
    judged = [row for row in seen.of(Stage.CRITIQUE) if row.parent.stage == Stage.REFINEMENT]
    assert len(judged) == len(seen.of(Stage.REFINEMENT)) == metrics(folder)[0]["refine/attempted"]


# --- methods: refinements -----------------------------------------------------------------------------------------


def test_refinements_train_as_answers_to_the_question_alone(tmp_path, seen):
    folder = run(tmp_path, {"data.num_eval": 0}, num_iterations=1)
    sampled = {row.token_ids.tobytes(): row for row in seen.of(Stage.REFINEMENT)}
    prompts = {row.index.question: row.prompt_ids.tobytes() for row in seen.of(Stage.RESPONSE)}
    refined = [row for rows in seen.updates for row in rows if row.refined]
    assert len(refined) == round(4 * metrics(folder)[0]["frac_all_wrong"]) > 0
    for row in refined:
        source = sampled[row.target_ids.tobytes()]
        assert row.context_ids.tobytes() == prompts[source.index.question] != source.prompt_ids.tobytes()
        assert row.target_ids[-1] in seen.generators[0].prompts.tokenizer.eos_ids  # it learns where to stop


def test_inserted_solutions(tmp_path, seen):
    folder = run(tmp_path, {"data.num_eval": 0, "refine.kind": "solution", "critique.kind": "cot"})
    assert not seen.of(Stage.REFINEMENT) and not seen.of(Stage.CRITIQUE)  # a critique would be read by nobody
    refined = [row for rows in seen.updates for row in rows if row.refined]
    decode = seen.generators[0].prompts.tokenizer.decode
    assert refined
    for row in refined:
        question, answer = decode(row.context_ids), decode(row.target_ids)
        value = value_of(question)
        assert answer == f"{question}={value}. Answer: {value}"
    assert {row["refine/success"] for row in metrics(folder) if row["refine/attempted"]} == {1.0}
    assert metrics(folder)[-1]["num_tokens"] == sum(len(row.token_ids) for row in seen.rollouts)  # of responses alone


def test_several_critiques_and_refinements(tmp_path, seen):
    changes = {
        "critique.kind": "cot",
        "critique.max_retries": 0,
        "critique.num_per_response": 2,
        "refine.per_critique": 2,
        "refine.num_kept": 2,
    }
    folder = run(tmp_path, {"data.num_eval": 0}, num_iterations=1, **changes)
    (row,) = metrics(folder)
    all_wrong = round(4 * row["frac_all_wrong"])
    assert row["critic/attempts"] == all_wrong * 4 * 2
    refinements = seen.of(Stage.REFINEMENT)
    assert row["refine/attempted"] == len(refinements) == all_wrong * 4 * 2 * 2 > 0
    places = {(r.index.question, r.index.response, r.index.critique, r.index.refinement) for r in refinements}
    assert len(places) == len(refinements)
    kept = {}
    for r in seen.updates[0]:
        kept.setdefault(r.context_ids.tobytes(), []).append(r.refined)
    assert sorted(sum(flags) for flags in kept.values()) == [0] * (4 - all_wrong) + [2] * all_wrong


def test_questions_that_are_half_right_can_be_refined_too(tmp_path, seen):
    folder = run(tmp_path, {"data.num_eval": 0, "refine.max_pass": 0.5}, num_iterations=1)
    wanted = sum(r["rewards"].count(0.0) for r in samples(folder) if np.mean(r["rewards"]) <= 0.5)
    (row,) = metrics(folder)
    assert row["refine/attempted"] == wanted > 4 * 4 * row["frac_all_wrong"]
    assert {r.parent.parent.index for r in seen.of(Stage.REFINEMENT)} <= {r.index for r in seen.of(Stage.RESPONSE)}


def test_refinements_that_mention_the_critique_can_be_dropped(tmp_path, seen, monkeypatch):
    monkeypatch.setattr(groups, "mentions_critique", lambda text: True)
    folder = run(tmp_path, {"data.num_eval": 0, "refine.drop_critique_mentions": True}, num_iterations=1)
    (row,) = metrics(folder)
    assert row["refine/dropped_mentions"] == row["refine/attempted"] == len(seen.of(Stage.REFINEMENT)) > 0
    assert not any(r.refined for r in seen.updates[0])
    assert row["num_tokens"] == sum(len(r.token_ids) for r in seen.rollouts)  # they were sampled all the same


# --- models of others ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The miniature's weights as a Hugging Face folder, its tokenizer beside them."""
    folder = tmp_path_factory.mktemp("llama") / "exported"
    convert.export_hf(pathlib.Path(tiny_run.start()), folder)
    return folder


def test_a_policy_from_a_hugging_face_folder(tmp_path, llama, dr_grpo):
    nothing = {key: 0 for key in tiny_run.SMALL if key.startswith("model.")}
    folder = {"model.folder": str(llama), "model.tokenizer": ""}
    train.main(tiny_run.config(nothing | DR | folder), str(tmp_path))
    assert samples(tmp_path) == samples(dr_grpo)  # the same weights, read from another place
    assert metrics(tmp_path)[0]["grad_norm"] == metrics(dr_grpo)[0]["grad_norm"]


def test_a_frozen_critic(tmp_path, llama, seen):
    changes = {
        "critique.kind": "cot",
        "critique.when": "all",
        "critique.max_retries": 0,
        "critic.kind": "folder",
        "critic.folder": str(llama),
    }
    folder = run(tmp_path, {"data.num_eval": 0, "optimizer.learning_rate": 1e-2}, **changes)
    written = {(row.stage, row.author) for row in seen.rollouts}
    assert written == {
        (Stage.RESPONSE, Author.POLICY),
        (Stage.CRITIQUE, Author.CRITIC),
        (Stage.REFINEMENT, Author.POLICY),
    }
    weights = {id(generator.params["embed"]) for generator in seen.generators if generator.author == Author.CRITIC}
    assert len(weights) == 1  # in every iteration the same, while the policy's move
    critic = next(generator.params for generator in seen.generators if generator.author == Author.CRITIC)
    np.testing.assert_array_equal(critic["embed"], restore_params(tiny_run.start(), tiny_run.template())["embed"])
    assert not np.array_equal(critic["embed"], restore_params(folder, tiny_run.template())["embed"])
    assert {row.weights_step for row in seen.of(Stage.CRITIQUE)} == {0}
