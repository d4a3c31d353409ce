"""Collecting on scripted texts: which rows there are, what is taken from rows before, what refinements are worth."""

import dataclasses
from concurrent import futures

import chat_server
import numpy as np
import pytest
import scripted_rollouts
from chain_prompts import CHAINS, arithmetic_tokenizer, make
from chat_server import server  # noqa: F401 - a fixture
from failing_grader import Failing
from fake_engine import FakeEngine

from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.errors import Stopped
from cgrpo_jax.evaluation import collection
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Stage
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rewards.judge import Judge
from cgrpo_jax.runs.rollout_writer import RolloutWriter

TOKENIZER = arithmetic_tokenizer()
PROBLEMS = [
    Problem(i, question, answer, source="chains")
    for i, (question, answer) in enumerate([("7*8", "56"), ("2+3", "5"), ("9*9", "81")])
]
WRONG, RIGHT, NONE = "Conclusion: wrong [END]", "Conclusion: right [END]", "Check."
RESPONSES = [["56", "0"], ["0", "1"], ["81", "81"]]
PROTOCOL = collection.Protocol(
    num_responses=2,
    which="all",
    num_critiques=2,
    num_refinements=2,
    utility="verifier",
    max_length=20,
    pass_threshold=1.0,
    grader="trace",
)


def say(index):
    """A first critique calls all wrong, a second can't be read; of two refinements the second one is right."""
    if index.stage == Stage.CRITIQUE:
        said = [WRONG, NONE][index.critique]
    elif index.stage == Stage.RESPONSE:
        said = f"Answer: {RESPONSES[index.question][index.response]}"
    else:
        said = f"Answer: {[1, PROBLEMS[index.question].answer][index.refinement]}"
    ids = [*TOKENIZER.encode(said), TOKENIZER.end_of_turn_id]
    return Sampled(np.asarray(ids, np.int32), -np.ones(len(ids), np.float32), False)


@dataclasses.dataclass
class Collected:
    """What a collection wrote, and who was asked for what."""

    files: list[list[rollouts.Row]]
    engine: FakeEngine
    results: Results

    @property
    def rows(self):
        return [row.rollout for file in self.files for row in file]

    def of(self, stage, question=None):
        return [row for row in self.rows if row.stage == stage and question in (None, row.index.question)]

    def prompts(self, stage):
        requests = [request for run in self.engine.runs for request in run.requests if request.stage == stage]
        return [TOKENIZER.decode(request.prompt_ids) for request in requests]


def collect(folder, *, parts=None, kind="cot", grader=None, on_tick=None, refiner=None, **changes):
    engine = FakeEngine(say, steps=lambda i: 1 + (i.question + i.response) % 3, num_slots=3)
    policy = Generator(engine, "weights", make(TOKENIZER, **CHAINS), Author.POLICY, 9, 7, collection.STREAM)
    results, protocol = Results(folder), dataclasses.replace(PROTOCOL, **changes)
    writer = RolloutWriter(folder, every=1, grader="trace", reward_source="verifier", spell=TOKENIZER.spell)
    with writer, results.open({"started": "2026-01-01", "config": {}}):
        collection.collect_on_disk(
            policy,
            Critic(kind, generator=policy if kind == "cot" else None, max_length=30, corruption="inverted"),
            collection.parts_of(PROBLEMS, size=2) if parts is None else parts,
            results=results,
            writer=writer,
            protocol=protocol,
            encode=TOKENIZER.encode,
            orchestrator=Orchestrator(grader or grader_lib.Grader("trace")),
            refiner=refiner,
            on_tick=on_tick,
        )
    paths = sorted(folder.glob(rollouts.NAMES))
    return Collected([rollouts.read(path) for path in paths], engine, results)


def utilities(rows):
    return [dict(row.rewards)[collection.UTILITY] for row in rows]


def test_every_response_has_its_critiques_and_each_of_these_its_refinements(tmp_path):
    found = collect(tmp_path)
    assert [len({row.rollout.index.question for row in file}) for file in found.files] == [2, 1]
    counts = [len(found.of(stage)) for stage in Stage]
    assert counts == [3 * 2, 3 * 2 * 2, 3 * 2 * 2 * 2]
    assert [row.verdict for row in found.of(Stage.CRITIQUE, 1)] == [False, None, False, None]  # none is written again
    assert {(row.author, row.shown, row.weights_step) for row in found.of(Stage.CRITIQUE)} == {("policy", None, 9)}
    for row in found.of(Stage.REFINEMENT):
        assert row.parent.stage == Stage.CRITIQUE and row.parent.parent.stage == Stage.RESPONSE
        assert (row.parent.index.response, row.parent.index.critique) == (row.index.response, row.index.critique)
    first = found.prompts(Stage.REFINEMENT)[0]
    assert first.startswith("7*8\nTried: Answer: 56\nCritique: ") and first.endswith("Try again.")


def test_what_a_refinement_is_worth_by_hand(tmp_path):
    found = collect(tmp_path)
    # Of each critique's two refinements the first is wrong and the second right.
    assert utilities(found.of(Stage.REFINEMENT, 1)) == [0.5, 1.0] * 4  # all responses are wrong
    assert utilities(found.of(Stage.REFINEMENT, 2)) == [0.0, 0.5] * 4  # all are right
    assert [row.reward for row in found.of(Stage.REFINEMENT, 2)] == [0.0, 1.0] * 4
    assert [collection.verifier_utility(before, after) for before in (0, 1) for after in (0, 1)] == [0.5, 1, 0, 0.5]


def test_rows_are_in_no_group_and_have_trained_nothing(tmp_path):
    (rows, _) = collect(tmp_path).files
    assert all((row.train_row, row.place, row.dropped) == (None, None, "") for row in rows)
    assert {row.grader for row in rows if row.rollout.stage != Stage.CRITIQUE} == {"trace"}


def test_failed_responses_alone(tmp_path):
    found = collect(tmp_path, which="failed", num_critiques=1, num_refinements=1)
    assert [(row.index.question, row.index.response) for row in found.of(Stage.CRITIQUE)] == [(0, 1), (1, 0), (1, 1)]
    assert len(found.of(Stage.REFINEMENT)) == 3


def test_responses_alone_and_critiques_alone(tmp_path):
    found = collect(tmp_path / "a", num_critiques=0, num_refinements=0)
    assert [len(found.of(stage)) for stage in Stage] == [6, 0, 0]
    found = collect(tmp_path / "b", num_refinements=0)
    assert [len(found.of(stage)) for stage in Stage] == [6, 12, 0]


def test_a_refinement_that_sees_no_critique_answers_its_response(tmp_path):
    found = collect(tmp_path, kind="none", num_critiques=1, num_refinements=1)
    assert [len(found.of(stage)) for stage in Stage] == [6, 0, 6]
    assert all(row.parent.stage == Stage.RESPONSE for row in found.of(Stage.REFINEMENT))
    assert found.prompts(Stage.REFINEMENT)[0] == "7*8\nTried: Answer: 56\nTry again."


def test_another_may_refine(tmp_path):
    engine = FakeEngine(say, num_slots=2)
    refiner = Generator(engine, "others", make(TOKENIZER, **CHAINS), Author.CRITIC, 0, 7, collection.STREAM)
    found = collect(tmp_path, refiner=refiner)
    assert not found.prompts(Stage.REFINEMENT) and len(engine.added) == len(found.of(Stage.REFINEMENT)) == 24
    assert {row.author for row in found.of(Stage.REFINEMENT)} == {Author.CRITIC}


def test_a_response_without_a_verdict_has_no_critique(tmp_path):
    found = collect(tmp_path, grader=Failing("Answer: 0"))
    ungraded = [(row.index.question, row.index.response) for row in found.of(Stage.RESPONSE) if row.ungraded]
    assert ungraded == [(0, 1), (1, 0)]
    assert not {(row.index.question, row.index.response) for row in found.of(Stage.CRITIQUE)} & set(ungraded)


def test_a_refinement_without_a_verdict_has_no_utility(tmp_path):
    found = collect(tmp_path, grader=Failing("Answer: 1"))  # the second response to 2+3, and all first refinements
    for row in found.of(Stage.REFINEMENT):
        # A file has no rewards at all of what has no verdict.
        assert row.ungraded == (row.index.refinement == 0)
        assert bool(row.rewards) == (not row.ungraded)


# --- rows that were collected before ------------------------------------------------------------------------------


def test_responses_of_rows_are_taken_as_they_are(tmp_path):
    before = collect(tmp_path / "a", num_critiques=0, num_refinements=0)
    parts = collection.parts_of_files(rollout_questions.files(tmp_path / "a"))
    assert [(part.first, part.size) for part in parts] == [(0, 2), (2, 1)]
    found = collect(tmp_path / "b", parts=parts)
    assert not found.prompts(Stage.RESPONSE)
    for row, other in zip(found.of(Stage.RESPONSE), before.of(Stage.RESPONSE), strict=True):
        assert (row.index, row.text, row.reward, row.author) == (other.index, other.text, other.reward, other.author)
        np.testing.assert_array_equal(row.logp, other.logp)
    whole = collect(tmp_path / "c")
    for name in ("step_00000000.parquet", "step_00000001.parquet"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    assert [row.index for row in found.rows] == [row.index for row in whole.rows]


def test_critiques_of_rows_are_refined_by_another(tmp_path):
    collect(tmp_path / "a", num_refinements=0)
    parts = collection.parts_of_files(rollout_questions.files(tmp_path / "a"))
    found = collect(tmp_path / "b", parts=parts, num_critiques=0, num_refinements=1)
    assert not found.prompts(Stage.RESPONSE) and not found.prompts(Stage.CRITIQUE)
    assert [len(found.of(stage)) for stage in Stage] == [6, 12, 12]
    assert [row.text for row in found.of(Stage.CRITIQUE, 1)] == [WRONG, NONE] * 2
    assert all(row.parent.parent.reward is not None for row in found.of(Stage.REFINEMENT))


def test_questions_of_several_files_keep_apart_and_may_be_limited(tmp_path):
    """Files of a run number their questions from 0 each."""
    collect(tmp_path / "a", num_critiques=0, num_refinements=0)
    (tmp_path / "a" / "step_00000001.parquet").write_bytes((tmp_path / "a" / "step_00000000.parquet").read_bytes())
    paths = rollout_questions.files(tmp_path / "a")
    parts = collection.parts_of_files(paths, limit=3)
    assert [(part.first, part.size) for part in parts] == [(0, 2), (2, 1)]
    found = collect(tmp_path / "b", parts=parts, num_critiques=1, num_refinements=0)
    assert [row.index.question for row in found.of(Stage.RESPONSE)] == [0, 0, 1, 1, 2, 2]
    assert found.of(Stage.RESPONSE, 2)[0].text == found.of(Stage.RESPONSE, 0)[0].text
    assert [part.size for part in collection.parts_of_files(paths, limit=2)] == [2]


def test_what_had_no_verdict_is_graded_again(tmp_path):
    before = collect(tmp_path / "a", num_critiques=0, num_refinements=0, grader=Failing("Answer: 0"))
    assert sum(row.ungraded for row in before.rows) == 2
    parts = collection.parts_of_files(rollout_questions.files(tmp_path / "a"))
    graded = []
    grader = grader_lib.Grader("trace")
    submit = grader.submit
    grader.submit = lambda response, *args, **kw: graded.append(response) or submit(response, *args, **kw)
    found = collect(tmp_path / "b", parts=parts, grader=grader, num_critiques=1, num_refinements=0)
    assert not any(row.ungraded for row in found.rows) and graded == ["Answer: 0", "Answer: 0"]


def test_another_graders_verdicts_are_not_taken(tmp_path):
    """Such as those of a critic, whose verdicts were the rewards."""
    collect(tmp_path / "a", num_critiques=0, num_refinements=0)
    path = tmp_path / "a" / "step_00000001.parquet"
    rows = [dataclasses.replace(row, grader="critic", rollout=row.rollout.replace(reward=0.0))
            for row in rollouts.read(path)]  # fmt: skip
    rollouts.write(path, rows, iteration=1, spell=TOKENIZER.spell)
    parts = collection.parts_of_files(rollout_questions.files(tmp_path / "a"))
    found = collect(tmp_path / "b", parts=parts, num_critiques=1, num_refinements=0)
    assert [row.reward for row in found.of(Stage.RESPONSE, 2)] == [1.0, 1.0]


# --- judged -------------------------------------------------------------------------------------------------------


class Judging(grader_lib.Grader):
    """Grades by a trace, and judges by a script: `(refinement, response) -> score`."""

    def __init__(self, prefers):
        super().__init__("trace")
        self.prefers, self.asked = prefers, []

    @property
    def judge(self):
        return self

    @judge.setter
    def judge(self, _):
        pass

    def compare(self, question, response, reference):
        self.asked.append((response, reference))
        future = futures.Future()
        score = self.prefers(response, reference)
        future.set_result(grader_lib.Grade(score or 0.0, None, "compared", failed=score is None))
        return future


def test_a_judge_compares_each_refinement_with_its_response(tmp_path):
    grader = Judging(lambda refinement, response: None if refinement == "Answer: 1" else 0.75)
    found = collect(tmp_path, utility="judge", num_critiques=1, grader=grader)
    assert utilities(found.of(Stage.REFINEMENT, 1)) == [None, 0.75] * 2
    assert ("Answer: 5", "Answer: 0") in grader.asked and len(grader.asked) == len(found.of(Stage.REFINEMENT))
    assert [row.reward for row in found.of(Stage.REFINEMENT, 1)] == [0.0, 1.0] * 2  # by the verifier all the same


@pytest.mark.parametrize("says, worth", [("Better: A", 0.5), ("Better: same", 0.5)])
def test_a_judge_that_prefers_a_place_can_not_decide(tmp_path, server, says, worth):  # noqa: F811
    server.replies({"body": chat_server.good(says)})
    with chat_server.make(server, name="judge") as endpoint:
        grader = grader_lib.Grader("trace", judge=Judge(endpoint))
        few = {"which": "failed", "num_critiques": 1, "num_refinements": 1}
        found = collect(tmp_path, utility="judge", grader=grader, **few)
    assert utilities(found.of(Stage.REFINEMENT)) == [worth] * 3
    asked = [server.seen.get()[2]["messages"][-1]["content"] for _ in range(6)]
    # Each of three pairs in both orders; one is of the same text twice.
    assert server.seen.empty() and len(set(asked)) == 5


def test_a_judges_other_settings_and_the_length_of_a_response_play_no_part(server):  # noqa: F811
    server.replies({"body": chat_server.good("Better: same")})
    response = scripted_rollouts.response(0, 0).replace(text="x" * 200_000)
    refinement = scripted_rollouts.row(response.index, "Answer: 62")
    with chat_server.make(server, name="judge") as endpoint:
        judge = Judge(endpoint, mode="implicit", universal='[{"criterion": "rambles", "weight": -1}]')
        orchestrator = Orchestrator(grader_lib.Grader("trace", judge=judge))
        assert orchestrator.run([collection._judged([refinement], response, PROBLEMS[0])]) == [[0.5]]
    asked = [server.seen.get()[2]["messages"][-1]["content"] for _ in range(2)]
    assert server.seen.empty() and all(response.text in one and "rambles" not in one for one in asked)


def test_beside_a_response_that_never_ends_to_think_any_answer_is_better():
    thinking = scripted_rollouts.response(0, 0).replace(opening="<think>\n", text="hm")
    answered = scripted_rollouts.row(thinking.index, "Answer: 62")
    refinements = [answered, scripted_rollouts.row(thinking.index, "hm").replace(opening="<think>\n")]
    assert Orchestrator().run([collection._judged(refinements, thinking, PROBLEMS[0])]) == [[1.0, 0.5]]


# --- killed and stopped -------------------------------------------------------------------------------------------


class Killed(BaseException):
    pass


def test_a_collection_that_was_killed_goes_on_to_the_same_bytes(tmp_path):
    seen = []
    collect(tmp_path / "whole", on_tick=seen.append)
    names = sorted(path.name for path in (tmp_path / "whole").glob(rollouts.NAMES))
    assert len(names) == 2 and [seen[-1].done, seen[-1].total] == [2, 3]  # the third ends after the last tick
    for ticks in range(0, len(seen), 3):
        left = iter(range(ticks))

        def tick(progress, left=left):
            if next(left, None) is None:
                raise Killed

        with pytest.raises(Killed):
            collect(tmp_path / str(ticks), on_tick=tick)
        collect(tmp_path / str(ticks))
        for name in names:
            assert (tmp_path / str(ticks) / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_there_is_not_done_again_and_what_is_missing_is(tmp_path):
    collect(tmp_path)
    whole = (tmp_path / "step_00000000.parquet").read_bytes()
    (tmp_path / "step_00000000.parquet").unlink()
    found = collect(tmp_path)
    assert {index.question for run in found.engine.runs for one in run.requests for index in one.indices} == {0, 1}
    assert (tmp_path / "step_00000000.parquet").read_bytes() == whole
    assert not collect(tmp_path).engine.runs


def test_a_signal_leaves_what_is_whole(tmp_path):
    def tick(progress):
        if progress.done == 2:
            raise Stopped(15)

    with pytest.raises(Stopped):
        collect(tmp_path, on_tick=tick)
    results = Results(tmp_path)
    assert results.started() == "2026-01-01"
    assert [path.name for path in tmp_path.glob("*.parquet")] == ["step_00000000.parquet"]


def test_the_random_keys_are_of_a_question_among_all(tmp_path):
    one, two = collect(tmp_path / "1", parts=collection.parts_of(PROBLEMS, size=1)), collect(tmp_path / "2")
    assert [row.index for row in one.rows] == [row.index for row in two.rows] and len(one.files) == 3
    assert {(run.settings["seed"], run.settings["iteration"]) for run in one.engine.runs} == {(7, 2**31 + 2)}
