"""Benchmarks on disk with a scripted engine: what each line holds, the summary, and how a killed run resumes."""

import json

import numpy as np
import pytest
from chain_prompts import CHAINS, arithmetic_tokenizer, make
from failing_grader import Failing
from fake_engine import FakeEngine

from cgrpo_jax.evaluation import benchmark, summary
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.evaluation.summary import CRITIC
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Stage, problem_id
from cgrpo_jax.rewards import grader as grader_lib

TOKENIZER = arithmetic_tokenizer()
PROBLEMS = [
    Problem(0, "7*8", "56", source="easy"),
    Problem(1, "2+3", "5", source="easy"),
    Problem(2, "9*9", "81", source="easy"),
    Problem(0, "6+6", "12", source="hard"),
    Problem(1, "3*3", "9", source="hard"),
]
WRONG, RIGHT, NONE = "Conclusion: wrong [END]", "Conclusion: right [END]", "Check."
# Of each question: its greedy answer, its critique, its refinement, and four samples.
SCRIPT = [
    ("56", RIGHT, None, ["56", "56", "0", "0"]),  # stays right
    ("0", WRONG, "5", ["5", "0", "0", "2"]),  # is fixed
    ("81", WRONG, "0", ["81", "81", "81", "81"]),  # is broken
    ("0", NONE, "12", ["0", "1", None, None]),  # malformed: keeps its wrong answer; the oracle fixes it
    ("9", NONE, "0", ["9", None, None, None]),  # malformed: keeps its right answer
]


def text(answer):
    return f"Answer: {answer}" if answer else "Try"


def say(index):
    greedy, critique, refinement, samples = SCRIPT[index.question]
    if index.stage == Stage.CRITIQUE:
        said = critique
    elif index.stage == Stage.REFINEMENT:
        said = text(refinement)
    else:
        said = text(samples[index.response] if engine_of["now"].runs[-1].settings["sampling"].temperature else greedy)
    ids = [*TOKENIZER.encode(said), TOKENIZER.end_of_turn_id]
    return Sampled(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), False)


engine_of = {}


def protocol(**changes):
    settings = dict(
        num_samples=4, ks=(1, 2, 4), temperature=0.6, top_p=0.95, max_length=20, pass_threshold=1.0,
        grader="trace", max_critique_length=30, texts_per_slot=1,
    )  # fmt: skip
    return benchmark.Protocol(**settings | changes)


def answer(folder, problems=PROBLEMS, *, on_tick=None, about=None, grading=None, **changes):
    """Returns the numbers and the engine."""
    # Not all at once, nor in order: six slots, and texts of different lengths.
    engine_of["now"] = engine = FakeEngine(say, steps=lambda i: 1 + (i.question + i.response) % 3, num_slots=6)
    policy = Generator(engine, "weights", make(TOKENIZER, **CHAINS), Author.POLICY, 0, 7, benchmark.STREAM)
    results, how = Results(folder), protocol(**changes)
    with results.open(about or {"started": "2026-01-01", "config": {}}):
        benchmark.answer_on_disk(
            policy, problems, results=results, protocol=how, on_tick=on_tick,
            orchestrator=Orchestrator(grading or grader_lib.Grader("trace")),
        )  # fmt: skip
        numbers = summary.summarize(results.lines("samples"), ks=how.ks, pass_threshold=1.0, seed=7)
    assert not engine.at_work
    return numbers, engine


def lines(folder, name="samples"):
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


# --- what is written ----------------------------------------------------------------------------------------------


def test_a_line_holds_all_of_a_question(tmp_path):
    answer(tmp_path)
    rows = lines(tmp_path)
    assert [(row["number"], row["source"], row["problem"]) for row in rows] == [
        (0, "easy", 0), (1, "easy", 1), (2, "easy", 2), (3, "hard", 0), (4, "hard", 1)
    ]  # fmt: skip
    length = len(TOKENIZER.encode("Answer: 0")) + 1
    assert rows[1] == {
        "number": 1,
        "source": "easy",
        "id": problem_id(PROBLEMS[1]),
        "problem": 1,
        "question": "2+3",
        "answer": "5",
        "greedy": "Answer: 0",
        "greedy_reward": 0.0,
        "greedy_extracted": "0",
        "greedy_length": length,
        "greedy_truncated": False,
        "samples": ["Answer: 5", "Answer: 0", "Answer: 0", "Answer: 2"],
        "rewards": [1.0, 0.0, 0.0, 0.0],
        "extracted": ["5", "0", "0", "2"],
        "lengths": [length] * 4,
        "truncated": [False] * 4,
        "votes": [0, 1, 1, 2],
        "ungraded": 0,
    }
    assert rows[3]["votes"] == [0, 1, None, None]


def test_greedy_texts_first_and_samples_by_the_numbers_of_the_questions(tmp_path):
    _, engine = answer(tmp_path)
    temperatures = [run.settings["sampling"].temperature for run in engine.runs]
    assert temperatures == [0.0] + [0.6] * 3  # six slots: six greedy texts a part, two questions of four samples
    assert [[request.indices[0].question for request in run.requests] for run in engine.runs] == [
        [0, 1, 2, 3, 4], [0, 1], [2, 3], [4]
    ]  # fmt: skip
    assert {(run.settings["seed"], run.settings["iteration"]) for run in engine.runs} == {(7, 2**31)}


def test_greedy_alone_is_one_stage(tmp_path):
    numbers, engine = answer(tmp_path, ks=(1,))
    assert {run.settings["sampling"].temperature for run in engine.runs} == {0.0}
    assert not (tmp_path / "greedy.jsonl").exists() and "samples" not in lines(tmp_path)[0]
    assert list(numbers["benchmarks"]["easy"]) == ["pass@1", "questions", "mean_length", "truncated", "ungraded"]


# --- the summary --------------------------------------------------------------------------------------------------


def test_numbers_by_hand(tmp_path):
    numbers, _ = answer(tmp_path)
    easy, hard = (numbers["benchmarks"][name] for name in ("easy", "hard"))
    value = {name: one["value"] for name, one in easy.items() if isinstance(one, dict)}
    assert value == pytest.approx(
        {
            "pass@1": 2 / 3,
            "pass@2": (5 / 6 + 3 / 6 + 1) / 3,
            "pass@4": 1,
            "mean@4": (2 + 1 + 4) / 12,
            # Pairs of [r, r, w, w]: one right, four ties of which half; of [r, w, w, v]: three ties.
            "maj@2": (3 / 6 + 1.5 / 6 + 1) / 3,
            "maj@4": (1 / 2 + 0 + 1) / 3,
        }
    )
    # Wilson's interval of 2 of 3, and the bootstrap's of three questions.
    assert (easy["pass@1"]["low"], easy["pass@1"]["high"]) == pytest.approx((0.20766, 0.93851), abs=1e-5)
    assert (easy["maj@4"]["low"], easy["maj@4"]["high"]) == (0, 1)
    assert hard["maj@4"]["value"] == 1 / 2  # of [0, 1] none is right; [9] alone has votes
    mean = numbers["mean"]
    assert mean["pass@1"]["value"] == pytest.approx((2 / 3 + 1 / 2) / 2) and mean["questions"] == 5
    assert mean["maj@4"]["value"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert 0 <= mean["pass@1"]["low"] < mean["pass@1"]["value"] < mean["pass@1"]["high"] <= 1


def test_refinement_by_hand(tmp_path):
    numbers, _ = answer(tmp_path, refine=True, oracle=True, ks=(1,))
    easy, hard = (numbers["benchmarks"][name] for name in ("easy", "hard"))
    assert [easy[name]["value"] for name in ("pass@1", "refined@1", "oracle")] == pytest.approx([2 / 3, 2 / 3, 1])
    assert [hard[name]["value"] for name in ("pass@1", "refined@1", "oracle")] == [0.5, 0.5, 1]
    wanted = ("questions", "critiqued_wrong", "malformed", "fixed", "broken")
    assert [easy[name] for name in wanted] == [3, pytest.approx(2 / 3), 0, 1, 1]
    assert [hard[name] for name in wanted] == [2, 0, 1, 0, 0]
    assert [numbers["mean"][name] for name in wanted] == [5, pytest.approx(1 / 3), 0.5, 1, 1]


def test_what_a_critic_is_worth_by_hand(tmp_path):
    """Of three answers a wrong one is called wrong and fixed, of two right ones one is called wrong and broken."""
    numbers, _ = answer(tmp_path, refine=True, ks=(1,))
    easy, hard = (numbers["benchmarks"][name] for name in ("easy", "hard"))
    assert {name: easy[name]["value"] for name in CRITIC} == pytest.approx(
        {
            "verdict_accuracy": 2 / 3,
            "false_right": 0,
            "false_wrong": 1 / 2,
            "fix_rate": 1,
            "break_rate": 1 / 2,
            "utility": 1 / 2,
        }
    )
    assert easy["false_right"]["low"] is None  # one wrong answer says nothing of how questions differ
    assert 0 <= easy["verdict_accuracy"]["low"] < 2 / 3 < easy["verdict_accuracy"]["high"] <= 1
    assert "utility" not in hard and hard["fix_rate"]["value"] == 0  # of two answers none was called wrong
    assert not CRITIC.keys() & numbers["mean"].keys()  # of several benchmarks, each has its own


@pytest.mark.parametrize("missing, accuracy", [(0, 1 / 2), (1, 1 / 2), (2, 1)])
def test_a_critique_that_its_endpoint_left_out_has_no_wrong_verdict(tmp_path, missing, accuracy):
    """Of the verdicts of three answers two are right; the answer keeps as it is without one."""
    answer(tmp_path, refine=True, ks=(1,))
    rows = [row for row in lines(tmp_path) if row["source"] == "easy"]
    rows[missing] |= {"critique": None, "verdict": None, "refined_reward": rows[missing]["greedy_reward"]}
    found = summary.summarize(rows, ks=(1,), pass_threshold=1.0, seed=0)["benchmarks"]["easy"]
    assert found["verdict_accuracy"]["value"] == accuracy and found["malformed"] == 1 / 3
    wrong = [row for row in rows if row["greedy_reward"] < 1]
    assert ("false_right" in found) == any(row["critique"] is not None for row in wrong) and "fix_rate" in found


def test_texts_without_a_verdict_count_as_wrong_and_are_told(tmp_path):
    """They are: greedy, the refinement of the oracle and two samples of 6+6, and a refinement of 2+3."""
    failing = Failing("Answer: 12", "Answer: 0", "Try")
    numbers, _ = answer(tmp_path, refine=True, oracle=True, grading=failing)
    failed = {"Answer: 12", "Answer: 0", "Try"}

    def number(row):
        texts = [row["greedy"], row.get("refinement"), row.get("oracle_refinement"), *row["samples"]]
        return sum(text in failed for text in texts)

    rows = lines(tmp_path)
    assert [row["ungraded"] for row in rows] == [number(row) for row in rows] == [2, 3, 1, 5, 3]
    assert [numbers["benchmarks"][name]["ungraded"] for name in ("easy", "hard")] == [6, 8]
    assert numbers["mean"]["ungraded"] == 14 and numbers["benchmarks"]["hard"]["oracle"]["value"] == 0.5
    said = "14 texts have no verdict, because their grader failed (easy: 6, hard: 8); they count as wrong"
    assert summary.table(numbers).splitlines()[-1] == said
    whole, _ = answer(tmp_path / "whole", refine=True, oracle=True)
    assert "no verdict" not in summary.table(whole) and "ungraded" not in summary.table(whole)


def test_what_refinement_changes_is_counted_where_there_is_a_verdict_before_and_after(tmp_path):
    """Answers to 2+3 are fixed and to 9*9 broken, with "0" before and after."""
    numbers, _ = answer(tmp_path / "one", refine=True, ks=(1,), grading=Failing("Answer: 5"))  # would be fixed
    assert [numbers["benchmarks"]["easy"][name] for name in ("fixed", "broken")] == [0, 1]
    numbers, _ = answer(tmp_path / "other", refine=True, ks=(1,), grading=Failing("Answer: 0"))
    assert [numbers["benchmarks"]["easy"][name] for name in ("fixed", "broken")] == [0, 0]
    assert [row["refined_ungraded"] for row in lines(tmp_path / "other")] == [False, True, True, True, False]
    numbers, _ = answer(tmp_path / "samples", refine=True, grading=Failing("Answer: 2"))  # one of its samples
    assert [numbers["benchmarks"]["easy"][name] for name in ("fixed", "broken")] == [1, 1]


def test_code_has_no_vote(tmp_path):
    numbers, _ = answer(tmp_path, grader="code")
    assert "maj@4" not in numbers["mean"] and {row["votes"] for row in lines(tmp_path)} == {None}


def test_the_mean_has_what_all_benchmarks_have(tmp_path):
    answer(tmp_path)
    rows = [row | {"votes": None} if row["source"] == "easy" else row for row in lines(tmp_path)]
    numbers = summary.summarize(rows, ks=(1, 4), pass_threshold=1.0, seed=0)
    assert "maj@4" not in numbers["benchmarks"]["easy"] and "maj@4" in numbers["benchmarks"]["hard"]
    assert "maj@4" not in numbers["mean"] and "pass@4" in numbers["mean"]
    (row,) = [line for line in summary.table(numbers).splitlines() if line.startswith("maj@4")]
    assert row.split()[1] == "-" and row.split()[-1] == "-"


def test_the_table(tmp_path):
    table = summary.table(answer(tmp_path)[0]).splitlines()
    assert table[0].split() == ["easy", "hard", "mean"]
    assert table[1].split() == ["questions", "3", "2", "5"]
    assert table[2].startswith("pass@1") and "0.667 (0.208 to 0.939)" in table[2]
    assert len({len(line) for line in table[1:]}) == 1


def test_a_wide_table_is_several():
    number = {"value": 0.5, "low": 0.25, "high": 0.75}
    benchmarks = {f"set{i}": {"questions": 4, "pass@1": number} for i in range(7)}
    blocks = summary.table({"benchmarks": benchmarks, "mean": {"questions": 28, "pass@1": number}}).split("\n\n")
    assert [block.splitlines()[0].split() for block in blocks] == [
        ["set0", "set1", "set2", "set3", "set4"], ["set5", "set6", "mean"]
    ]  # fmt: skip


def test_one_benchmark_needs_no_mean():
    number = {"value": 0.5, "low": 0.25, "high": 0.75}
    table = summary.table({"benchmarks": {"aime": {"questions": 4, "pass@1": number}}, "mean": {}})
    assert table == "                             aime\nquestions                       4\n" + (
        "pass@1     0.500 (0.250 to 0.750)\n"
    )


# --- test-time refinement -----------------------------------------------------------------------------------------


def test_the_critics_own_verdict_decides(tmp_path):
    answer(tmp_path, refine=True, ks=(1,))
    rows = lines(tmp_path)
    assert [row["verdict"] for row in rows] == [True, False, False, None, None]
    assert [row.get("refinement") for row in rows] == [None, "Answer: 5", "Answer: 0", None, None]
    assert [row["refined_reward"] for row in rows] == [1, 1, 0, 0, 1]
    assert [row["critique"] for row in rows] == [script[1] for script in SCRIPT]


def prompts_of(engine):
    return [TOKENIZER.decode(request.prompt_ids) for run in engine.runs for request in run.requests]


def test_wrong_golds_change_no_text(tmp_path):
    """Nothing that is asked or answered depends on what the answers are said to be."""
    solved = [problem.replace(solution="Answer: 56", columns={"answer": "56"}) for problem in PROBLEMS]
    _, with_golds = answer(tmp_path / "a", solved, refine=True)
    wrong = [problem.replace(answer="77", columns={"answer": "77"}) for problem in PROBLEMS]
    _, without = answer(tmp_path / "b", wrong, refine=True)
    assert prompts_of(with_golds) == prompts_of(without)
    assert with_golds.added == without.added
    texts = ("greedy", "critique", "verdict", "refinement", "samples")
    told = [[[row.get(name) for name in texts] for row in lines(tmp_path / name)] for name in "ab"]
    assert told[0] == told[1] and told[0][1][3] == "Answer: 5"
    assert {row["refined_reward"] for row in lines(tmp_path / "b")} == {0.0}  # and the golds are wrong indeed


def test_the_oracle_adds_a_column_and_changes_nothing_else(tmp_path):
    answer(tmp_path / "a", refine=True)
    _, engine = answer(tmp_path / "b", refine=True, oracle=True)
    plain, more = lines(tmp_path / "a"), lines(tmp_path / "b")
    oracle = [{key: row.pop(key) for key in list(row) if key.startswith("oracle")} for row in more]
    assert more == plain
    assert [row["oracle_reward"] for row in oracle] == [1, 1, 1, 1, 1]
    assert oracle[3]["oracle_refinement"] == "Answer: 12" and len(oracle[2]) == 1
    assert "6+6\nTried: Answer: 0\nCritique: Check.\nTry again." in prompts_of(engine)[-8:]


# --- votes --------------------------------------------------------------------------------------------------------


def votes(extracted, kind, answer="1/2", rewards_=None):
    rewards_ = rewards_ or [0.0] * len(extracted)
    rows = [
        benchmark.text_row("", benchmark.RowIndex(question=0), extracted=one, reward=reward)
        for one, reward in zip(extracted, rewards_, strict=True)
    ]
    with grader_lib.Grader("math", num_workers=1) as grader:
        asked = benchmark.votes(rows, Problem(0, "?", answer), kind, 1.0)
        (voted,) = Orchestrator(grader).run([asked])
    return voted


def test_mathematics_votes_by_equivalence():
    forms = ["\\frac{1}{3}", "x+1", "1/3", "2", "1+x", "2.0", None, "0.5"]
    assert votes(forms, "math", rewards_=[0.0] * 7 + [1.0]) == [0, 1, 0, 2, 1, 2, None, 3]


def test_right_answers_are_one():
    assert votes(["1/2", "0", "0.5", "\\frac12"], "math", rewards_=[1.0, 0.0, 1.0, 1.0]) == [0, 1, 0, 0]


def test_other_kinds_vote_by_text():
    assert votes(["1/3", "0.5", "\\frac{1}{3}", "1/3"], "exact") == [0, 1, 2, 0]
    assert votes(["A", "b", "a"], "choice") == [0, 1, 0]


# --- killed, and resumed ------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def killed_after(ticks):
    left = iter(range(ticks))

    def tick(progress):
        if next(left, None) is None:
            raise Killed

    return tick


@pytest.mark.parametrize("killed", [False, True])
def test_the_same_command_grades_what_was_not(tmp_path, killed):
    """The judge was down for a while; what came before it stays, and all is as if it had never been."""
    how = dict(refine=True, oracle=True)
    whole, _ = answer(tmp_path / "whole", **how)
    failing = Failing("Answer: 81", "Answer: 12")
    seen = []
    if killed:
        answer(tmp_path / "counted", grading=failing, on_tick=seen.append, **how)
        with pytest.raises(Killed):
            answer(tmp_path / "a", grading=failing, on_tick=killed_after(len(seen) - 1), **how)
    else:
        assert answer(tmp_path / "a", grading=failing, **how)[0] != whole
    now, engine = answer(tmp_path / "a", **how)
    assert now == whole and answer(tmp_path / "a", **how)[1].added == []
    for name in ("greedy", "oracle", "samples"):
        assert lines(tmp_path / "a", name) == lines(tmp_path / "whole", name)
    runs = [run for run in engine.runs if run.settings["sampling"].temperature]
    asked = {request.indices[0].question for run in runs for request in run.requests}
    assert asked == {2, 3, 4}  # the first part had its verdicts


@pytest.mark.parametrize("refine", [False, True])
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, refine):
    seen = []
    numbers, _ = answer(tmp_path / "whole", refine=refine, oracle=refine, on_tick=seen.append)
    assert [progress.total for progress in seen] == [5] * len(seen) and len(seen) > 12
    for ticks in range(len(seen)):
        folder = tmp_path / str(ticks)
        with pytest.raises(Killed):
            answer(folder, refine=refine, oracle=refine, on_tick=killed_after(ticks))
        if ticks % 2 and (folder / "samples.jsonl").exists():
            with (folder / "samples.jsonl").open("a") as file:
                file.write('{"number": ')  # half a line
        again, engine = answer(folder, refine=refine, oracle=refine)
        assert again == numbers
        for name in ("greedy.jsonl", "samples.jsonl", *(["oracle.jsonl"] if refine else [])):
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_done_is_not_done_again(tmp_path):
    _, engine = answer(tmp_path)
    assert len(engine.added) == 5 * (1 + 4)
    _, engine = answer(tmp_path)
    assert engine.added == []
    rows = (tmp_path / "samples.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "samples.jsonl").write_text("".join(rows[:3]))  # killed within the second part of two questions
    _, engine = answer(tmp_path)
    assert sorted({key[0] for key in engine.added}) == [2, 3, 4]
    assert (tmp_path / "samples.jsonl").read_text() == "".join(rows)


def test_lines_are_written_as_questions_end(tmp_path):
    seen = []

    def look(progress):
        path = tmp_path / "samples.jsonl"
        seen.append(path.read_text().count("\n") if path.exists() else 0)

    answer(tmp_path, on_tick=look, ks=(1,))
    assert seen == sorted(seen) and len(set(seen)) > 2
