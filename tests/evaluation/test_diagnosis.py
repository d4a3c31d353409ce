"""The diagnosis on scripted texts: who fails persistently, which critiques count, and the summary."""

import json
import types

import numpy as np
import pytest
import scripted_rollouts
from chain_prompts import CHAINS, arithmetic_tokenizer, make
from failing_grader import Failing
from fake_engine import FakeEngine

from cgrpo_jax.evaluation import diagnosis
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.critic import Critic, said_of
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Stage, problem_id
from cgrpo_jax.rewards import grader as grader_lib

TOKENIZER = arithmetic_tokenizer()
PROBLEMS = [
    Problem(i, question, answer, source="chains")
    for i, (question, answer) in enumerate([("7*8", "56"), ("2+3", "5"), ("9*9", "81"), ("6+6", "12")])
]
WRONG, RIGHT, NONE = "Conclusion: wrong [END]", "Conclusion: right [END]", "Check."
RESPONSES = [["56", "0"], ["0", "1"], ["0", "80"], ["13", "14"]]  # all but the first question fail
CRITIQUES = [[], [WRONG, WRONG], [RIGHT, WRONG], [NONE, RIGHT]]
REFINEMENTS = [[], ["5", "0"], ["80", "81"], ["13", "12"]]


def say(index):
    texts = {Stage.RESPONSE: RESPONSES, Stage.CRITIQUE: CRITIQUES, Stage.REFINEMENT: REFINEMENTS}[index.stage]
    said = texts[index.question][index.response]
    ids = TOKENIZER.encode(said if index.stage == Stage.CRITIQUE else f"Answer: {said}") + [TOKENIZER.end_of_turn_id]
    return Sampled(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), False)


def diagnose(folder, kinds=("indicative_gt", "cot"), *, on_tick=None, see_answer=False, grader=None, **changes):
    """Returns the numbers and the engine."""
    engine = FakeEngine(say, steps=lambda i: 1 + (i.question + i.response) % 3, num_slots=3)
    policy = Generator(engine, "weights", make(TOKENIZER, **CHAINS), Author.POLICY, 0, 7, diagnosis.STREAM)
    results = Results(folder)
    settings = dict(
        num_responses=2,
        num_critiques=1,
        refinements_per_critique=1,
        max_length=20,
        pass_threshold=1.0,
        texts_per_slot=1,
    )
    how = {
        "results": results,
        "protocol": diagnosis.Protocol(**settings | changes),
        "orchestrator": Orchestrator(grader or grader_lib.Grader("trace")),
        "on_tick": on_tick,
    }
    with results.open({"started": "2026-01-01", "config": {}}):
        diagnosis.respond_on_disk(policy, PROBLEMS, **how)
        for kind in kinds:
            critic = Critic(kind, generator=policy if kind == "cot" else None, see_answer=see_answer, max_length=30)
            diagnosis.critique_on_disk(kind, policy, critic, PROBLEMS, encode=TOKENIZER.encode, **how)
        lines = {kind: results.lines(kind) for kind in kinds}
        summary = diagnosis.summarize(results.lines("responses"), lines, pass_threshold=1.0)
    return summary, engine


def lines(folder, name):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def prompts_of(engine, stage):
    requests = [request for run in engine.runs for request in run.requests if request.stage == stage]
    return [TOKENIZER.decode(request.prompt_ids) for request in requests]


def test_numbers_by_hand(tmp_path):
    summary, _ = diagnose(tmp_path)
    assert summary["questions"] == 4 and summary["accuracy"] == 1 / 8
    assert summary["persistent_failures"] == pytest.approx({"value": 3 / 4, "low": 0.30064, "high": 0.95441}, abs=1e-5)
    told, cot = summary["kinds"]["indicative_gt"], summary["kinds"]["cot"]
    # A critique by rule is always valid. Refined are all six responses: 5, 81 and 12 are right.
    assert (told["critiques"], told["valid_critiques"]) == (6, 1)
    assert (told["refinements"], told["successful_refinements"]) == (6, 1 / 2)
    assert told["critiqued_questions"]["value"] == told["questions_refined"]["value"] == 1
    # Three of six call wrong answers wrong; after them come 5, 0 and 81.
    assert (cot["critiques"], cot["valid_critiques"]) == (6, 1 / 2)
    assert (cot["refinements"], cot["successful_refinements"]) == (3, pytest.approx(2 / 3))
    assert cot["critiqued_questions"]["value"] == cot["questions_refined"]["value"] == pytest.approx(2 / 3)


def test_what_is_written(tmp_path):
    diagnose(tmp_path)
    first = lines(tmp_path, "responses")[1]
    assert first["responses"] == ["Answer: 0", "Answer: 1"] and first["rewards"] == [0, 0]
    assert first["extracted"] == ["0", "1"] and first["feedback"] == ["not equal", "not equal"]
    rows = lines(tmp_path, "cot")
    assert [row["number"] for row in rows] == [1, 2, 3]
    assert [[one["verdict"] for one in row["critiques"]] for row in rows] == [
        [False, False],
        [True, False],
        [None, True],
    ]
    length = len(TOKENIZER.encode("Answer: 81")) + 1
    assert rows[1]["refinements"] == [
        {
            "response": 1, "critique": 0, "text": "Answer: 81", "length": length, "truncated": False,
            "reward": 1.0, "extracted": "81",
        }
    ]  # fmt: skip
    assert rows[2]["refinements"] == [] and rows[2]["critiques"][0]["text"] == NONE
    told = lines(tmp_path, "indicative_gt")[0]["critiques"][0]["text"]
    assert told == "The answer is wrong. The correct answer is 5. Conclusion: wrong [END]"


def test_what_is_asked(tmp_path):
    _, engine = diagnose(tmp_path, ("cot",))
    assert prompts_of(engine, Stage.CRITIQUE)[0] == "2+3\nTried: Answer: 0\nCheck."
    assert prompts_of(engine, Stage.REFINEMENT)[0] == f"2+3\nTried: Answer: 0\nCritique: {WRONG}\nTry again."
    assert {(run.settings["seed"], run.settings["iteration"]) for run in engine.runs} == {(7, 2**31 + 1)}
    _, engine = diagnose(tmp_path / "told", ("cot",), see_answer=True)
    assert prompts_of(engine, Stage.CRITIQUE)[0] == "2+3\nTried: Answer: 0\nThe answer is 5.\nCheck."


def test_without_a_critique_each_response_is_refined_alone(tmp_path):
    """The control: 5, 81 and 12 of six are right, as after the answer; nothing was critiqued."""
    summary, engine = diagnose(tmp_path, ("none",))
    found = summary["kinds"]["none"]
    assert (found["critiques"], found["valid_critiques"]) == (0, None)
    assert (found["refinements"], found["successful_refinements"]) == (6, 1 / 2)
    assert found["critiqued_questions"] is None and found["questions_refined"]["value"] == 1
    assert lines(tmp_path, "none")[0]["critiques"] == []
    assert prompts_of(engine, Stage.REFINEMENT)[0] == "2+3\nTried: Answer: 0\nTry again."


def test_execution_looks_at_every_failed_response(tmp_path):
    checked = []
    results = Results(tmp_path)
    engine = FakeEngine(say, num_slots=3)
    policy = Generator(engine, "weights", make(TOKENIZER, **CHAINS), Author.POLICY, 0, 7, diagnosis.STREAM)
    how = {
        "results": results,
        "protocol": diagnosis.Protocol(2, 1, 1, 20, 1.0, 1),
        "orchestrator": Orchestrator(grader_lib.Grader("trace")),
    }
    critic = Critic("execution", check_steps=lambda question, response: checked.append((question, response)))
    with results.open({"started": "2026-01-01", "config": {}}):
        diagnosis.respond_on_disk(policy, PROBLEMS, **how)
        diagnosis.critique_on_disk("execution", policy, critic, PROBLEMS, encode=TOKENIZER.encode, **how)
    assert ("2+3", "Answer: 0") in checked and len(checked) == 6
    assert "Every step that can be checked holds" in lines(tmp_path, "execution")[0]["critiques"][0]["text"]


def test_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(diagnosis, "fails", lambda line, pass_threshold: False)
    summary, engine = diagnose(tmp_path)
    assert {key[4] for key in engine.added} == {Stage.RESPONSE}
    assert summary["kinds"]["cot"] == {
        "critiques": 0, "valid_critiques": None, "refinements": 0, "successful_refinements": None,
        "critiqued_questions": None, "questions_refined": None, "ungraded": 0,
    }  # fmt: skip
    assert diagnosis.table(summary).splitlines()[3].split() == ["cot", "-", "-", "-", "-"]


def test_the_table_has_the_papers_columns(tmp_path):
    table = diagnosis.table(diagnose(tmp_path)[0]).splitlines()
    assert table[0] == "4 questions, persistent failures 0.750 (0.301 to 0.954)"
    assert table[1].split("  ")[0] == "critique" and table[1].endswith("questions refined")
    assert table[2].startswith("indicative_gt            1.000") and table[3].startswith("cot ")
    assert [line.split()[0] for line in table[4:]] == ["pass@1", "pass@2"]


def test_pass_at_k_of_all_responses():
    """For powers of two below their number, and for that: 1, 2, 4 and 6 of six."""
    rights = (0, 1, 6)
    lines = [{"rewards": [1.0] * right + [0.0] * (6 - right), "ungraded": 0} for right in rights]
    found = diagnosis.summarize(lines, {}, pass_threshold=1.0)["pass@k"]
    assert list(found) == ["1", "2", "4", "6"]
    values = [found[k]["value"] for k in found]
    assert values == pytest.approx([7 / 18, (0 + 2 / 6 + 1) / 3, (0 + 4 / 6 + 1) / 3, 2 / 3])
    assert all(one["low"] <= one["value"] <= one["high"] for one in found.values())
    lines.append({"rewards": [1.0], "ungraded": 0})  # fewer responses: of no such curve
    assert diagnosis.summarize(lines, {}, pass_threshold=1.0)["pass@k"] == found


def test_texts_without_a_verdict_are_told_and_make_no_question_a_failure(tmp_path):
    """One response to 9*9 and both to 6+6 have none, nor has the refinement of 2+3 that is right."""
    summary, engine = diagnose(tmp_path, grader=Failing("Answer: 80", "Answer: 13", "Answer: 14", "Answer: 5"))
    assert [row["ungraded"] for row in lines(tmp_path, "responses")] == [0, 0, 1, 2]
    assert (summary["ungraded"], summary["accuracy"]) == (3, 1 / 8)
    assert summary["persistent_failures"]["value"] == 1 / 4  # 2+3 alone is known to fail
    for numbers in summary["kinds"].values():
        assert (numbers["critiques"], numbers["refinements"]) == (2, 2)
        assert (numbers["ungraded"], numbers["successful_refinements"]) == (1, 0)
    assert diagnosis.table(summary).splitlines()[-1] == (
        "5 texts have no verdict, because their grader failed (responses: 3, refinements, indicative_gt: 1, "
        "refinements, cot: 1); they count as wrong"
    )
    text = diagnosis.pass_rates(lines(tmp_path, "responses"), pass_threshold=1.0)
    rates = [json.loads(line) for line in text.splitlines()]
    assert [(rate["pass_rate"], rate["num_samples"]) for rate in rates] == [(0.5, 2), (0, 2), (0, 1)]


def test_pass_rates(tmp_path):
    diagnose(tmp_path)
    text = diagnosis.pass_rates(lines(tmp_path, "responses"), pass_threshold=1.0)
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows[0] == {"source": "chains", "id": problem_id(PROBLEMS[0]), "pass_rate": 0.5, "num_samples": 2}
    assert [row["pass_rate"] for row in rows] == [0.5, 0, 0, 0]


def test_the_id_of_a_problem():
    # printf 'chains\n7*8' | sha256sum
    assert problem_id(PROBLEMS[0]) == problem_id(PROBLEMS[0].replace(index=9, answer="1")) == "c3c87c11f3e73857"
    assert problem_id(PROBLEMS[0].replace(source="")) != problem_id(PROBLEMS[0])


class Killed(BaseException):
    pass


def test_a_run_that_was_killed_goes_on_by_question_and_kind(tmp_path):
    seen = []
    whole, _ = diagnose(tmp_path / "whole", on_tick=seen.append)
    names = ("responses", "indicative_gt", "cot")
    for ticks in range(len(seen)):
        left = iter(range(ticks))

        def tick(progress, left=left):
            if next(left, None) is None:
                raise Killed

        with pytest.raises(Killed):
            diagnose(tmp_path / str(ticks), on_tick=tick)
        assert diagnose(tmp_path / str(ticks))[0] == whole
        for name in names:
            assert lines(tmp_path / str(ticks), name) == lines(tmp_path / "whole", name)


def test_a_kind_more_does_not_do_the_others_again(tmp_path):
    diagnose(tmp_path, ("indicative_gt",))
    summary, engine = diagnose(tmp_path)
    assert {key[4] for key in engine.added} == {Stage.CRITIQUE, Stage.REFINEMENT} and len(engine.added) == 9
    assert summary == diagnose(tmp_path / "both")[0]


def test_questions_that_fail_once_their_responses_are_graded_are_criticised_in_their_places(tmp_path):
    whole, _ = diagnose(tmp_path / "whole")
    before, _ = diagnose(tmp_path / "a", grader=Failing("Answer: 80"))  # of the second of three that fail
    assert before["ungraded"] == 1 and [line["number"] for line in lines(tmp_path / "a", "cot")] == [1, 3]
    assert diagnose(tmp_path / "a")[0] == whole
    for name in ("responses", "indicative_gt", "cot"):
        assert lines(tmp_path / "a", name) == lines(tmp_path / "whole", name)


@pytest.mark.parametrize("kind", ["indicative", "cot"])
def test_critiques_are_not_made_wrong_on_purpose(kind):
    generator = scripted_rollouts.ScriptedGenerator(scripted_rollouts.WRONG)
    critic = Critic(kind, generator=generator, corruption="inverted")
    wanted = types.SimpleNamespace(num_critiques=1)
    row, problem = scripted_rollouts.response(0, 0), scripted_rollouts.PROBLEMS[0]
    ((one,),) = Orchestrator().run([diagnosis._critiques(critic, [row], problem, TOKENIZER.encode, wanted)])
    assert said_of(one) == one.text and "Conclusion: wrong [END]" in one.text
