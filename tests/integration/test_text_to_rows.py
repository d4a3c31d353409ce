"""From text to train rows, asserted on the token ids: a chat with system turns, and programs that raise anything.

The policy says what a script says; data, graders, critics, prompts and rows are those of a run.
"""

import json
import sys

import chat_tokenizer
import numpy as np
import pytest
from chain_prompts import CHAINS, make
from data_cases import run as run_data
from fake_engine import FakeEngine

from cgrpo_jax import groups, rollout
from cgrpo_jax.critiques.step_check.equations import first_false_equation
from cgrpo_jax.datasets import problems as problems_lib
from cgrpo_jax.datasets import readers
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.critic import Critic, said_of
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator, Refiner, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Stage
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.rollout import Method
from cgrpo_jax.runtime import text

FORM = "{question}\nEnd in a box."
SYSTEM = {"role": "system", "content": "Think in steps."}
CHAT = [SYSTEM, {"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "5"},
        {"role": "user", "content": "And 7*8?"}]  # fmt: skip
TURNS = tuple((one["role"], one["content"]) for one in CHAT[:-1])


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return chat_tokenizer.make(tmp_path_factory.mktemp("tokenizer"))


def stages(tokenizer, problem, say, critic, *, grader, critic_writes=False):
    """Takes a question through all steps; returns its solved stages, its train rows, and the prompts asked for."""

    def sampled(index):
        ids = np.asarray([*tokenizer.encode(say(index)), tokenizer.end_of_turn_id], np.int32)
        return Sampled(ids, np.zeros(len(ids), np.float32), False)

    engine = FakeEngine(sampled)
    prompts = make(tokenizer, 4000, question=FORM, **CHAINS)
    policy = Generator(engine, {}, prompts, Author.POLICY, weights_step=0, seed=0, iteration=0)
    critic = Critic(generator=policy if critic_writes else None, grader=grader, max_length=400, max_retries=0, **critic)
    method = Method(num_responses=2, max_length=400)
    with Grader(grader, num_workers=1, timeout=20.0) as held, running_engines(policy) as engines:
        solving = rollout.solve(policy, critic, problem, question=0, method=method, tokenizer=tokenizer)
        (solved,) = Orchestrator(held).run([solving], engines=engines)
    kept = groups.select(solved.refinements, num_kept=1, seed=0, iteration=0)
    (rows,) = groups.train_rows(groups.reanchor([solved.responses], kept), groups.Grouping(2))
    asked = {request.indices[0].stage: request.prompt_ids for request in engine.runs[0].requests}
    return solved, rows, asked


# --- chats ----------------------------------------------------------------------------------------------------------


def stored(tmp_path, kind):
    """A problem of a chat, read from a file or from a set that was prepared of it."""
    path = tmp_path / "chats.jsonl"
    path.write_text(json.dumps({"messages": CHAT, "answer": 56}) + "\n")
    keys = dict(question_key="messages", answer_key="answer")
    if kind == "jsonl":
        return readers.read_jsonl(path, **keys)[0]
    flags = [f"--{name}={value}" for name, value in keys.items()]
    run_data(tmp_path / "out", "chats", f"--source={path}", "--format=jsonl", *flags)
    return readers.read_tfds("chats", split="train", data_dir=tmp_path / "out", **keys)[0]


@pytest.mark.parametrize("kind", ["jsonl", "tfds"])
def test_a_chat_with_a_system_turn_becomes_train_rows(tmp_path, tokenizer, kind):
    problem = stored(tmp_path, kind)
    assert (problem.question, problem.turns, problem.answer) == ("And 7*8?", TURNS, "56")
    said = {
        Stage.RESPONSE: "7*8=54, so 54",
        Stage.CRITIQUE: "No. Conclusion: wrong [END]",
        Stage.REFINEMENT: "7*8=56, so 56",
    }
    solved, rows, asked = stages(
        tokenizer, problem, lambda index: said[index.stage], dict(kind="cot"), grader="numeric", critic_writes=True
    )
    assert [row.reward for row in (*solved.responses, *solved.refinements)] == [0.0, 0.0, 1.0, 1.0]

    # By hand, from the template: nothing of the chat is missing, and the form is asked of y and of y' alike.
    before = "".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in TURNS)
    asks = "And 7*8?\nEnd in a box."
    question = f"{before}<|im_start|>user\n{asks}<|im_end|>\n<|im_start|>assistant\n"
    critique = f"\nTried: {said[Stage.RESPONSE]}\nCritique: {said[Stage.CRITIQUE]}\nTry again."
    refine = f"{before}<|im_start|>user\n{asks}{critique}<|im_end|>\n<|im_start|>assistant\n"
    chat = "System: Think in steps.\n\nUser: 2+3?\n\nAssistant: 5\n\nUser: And 7*8?"
    judged = f"<|im_start|>user\n{chat}\nTried: {said[Stage.RESPONSE]}\nCheck.<|im_end|>\n<|im_start|>assistant\n"
    for stage, prompt in zip(Stage, (question, judged, refine), strict=True):
        assert list(asked[stage]) == tokenizer.encode(prompt), stage

    end = tokenizer.end_of_turn_id
    assert [row.refined for row in rows] == [False, False, True]
    for row, stage in zip(rows, (Stage.RESPONSE, Stage.RESPONSE, Stage.REFINEMENT), strict=True):
        assert list(row.context_ids) == tokenizer.encode(question)
        assert list(row.target_ids) == [*tokenizer.encode(said[stage]), end]


def limits(**changes):
    return problems_lib.Limits(**(dict(
        grader="numeric", grader_timeout=20.0, grader_workers=1, has_judge=False, quotes_answers=False,
        max_prompt_length=4000, on_long_question="skip", max_solution_length=None,
    ) | changes))  # fmt: skip


def source(path):
    return problems_lib.Stored(
        kind="jsonl", train=str(path), eval="", train_split="train", eval_split="test", tfds_dir=None,
        question_key="messages", answer_key="answer", solution_key=None, answer_pattern=None, num_train=0, num_eval=0,
    )  # fmt: skip


def test_turns_count_for_the_longest_prompt(tmp_path, tokenizer):
    (tmp_path / "chats.jsonl").write_text("".join(
        json.dumps({"messages": chat, "answer": 56}) + "\n" for chat in (CHAT, CHAT[-1:])
    ))  # fmt: skip
    prompts = make(tokenizer, **CHAINS)
    alone, whole = (len(prompts.for_question("And 7*8?", turns)) for turns in ((), TURNS))
    for limit, kept in ((whole, 2), (whole - 1, 1), (alone, 1)):
        found = problems_lib.load_problems(source(tmp_path / "chats.jsonl"), prompts, limits(max_prompt_length=limit))
        assert (len(found.training), found.skipped["training"]) == (kept, 2 - kept)


def test_a_template_that_knows_no_system_turn_refuses_the_problem_in_one_line(tmp_path):
    tokenizer = chat_tokenizer.make(tmp_path / "gemma", chat_tokenizer.NO_SYSTEM + chat_tokenizer.CHATML)
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": chat, "answer": 56}) + "\n" for chat in (CHAT[-1:], CHAT)))
    with pytest.raises(UserError) as caught:
        problems_lib.load_problems(source(path), make(tokenizer, **CHAINS), limits())
    said = str(caught.value)
    assert said.startswith("training questions: problem 1 of chats: The chat template of ") and "\n" not in said
    assert said.endswith("refused messages of roles system, user, assistant, user: System role not supported")


# --- a frozen refiner ---------------------------------------------------------------------------------------------


OPENS = chat_tokenizer.CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n'")


@pytest.mark.parametrize(
    "template, said, ended, expected, text",
    [
        (chat_tokenizer.CHATML, "7*8=56, 6+6=12. Answer: 56 12", True, "7*8=56, 6+6=12. Answer: 56 12", None),
        (chat_tokenizer.CHATML, "7*8=56, 6+6=1", False, "7*8=56, 6+6=1", None),
        # What the policy's template has opened: it thinks there, or has not thought.
        (OPENS, "<think>\nhm.</think>\n56", True, "hm.</think>\n56", None),
        (OPENS, "56", True, "\n</think>\n\n56", None),
        (OPENS, "<think>\nhm", False, "hm", None),
        # Its spelling of the policy's end of turn is text.
        (chat_tokenizer.CHATML, "5<|im_end|>6", True, "5< |im_end|>6", "5< |im_end|>6"),
    ],
)
def test_what_a_refiner_writes_becomes_the_policys_tokens(tmp_path, template, said, ended, expected, text):
    """Both have tokenizers and chat templates of their own."""
    ours = chat_tokenizer.make(tmp_path / "policy", template)
    own = chat_tokenizer.make(tmp_path / "refiner", **chat_tokenizer.OTHER)
    problem = Problem(0, "7*8+6", "56 12")

    def by(tokenizer, words, author, ends=True):
        ids = np.asarray([*tokenizer.encode(words), *[tokenizer.end_of_turn_id] * ends], np.int32)
        engine = FakeEngine(lambda index: Sampled(ids, -np.ones(len(ids), np.float32), not ends))
        return Generator(engine, {}, make(tokenizer, 4000, **CHAINS), author, weights_step=3, seed=0, iteration=0)

    policy = by(ours, "7*8=54. Answer: 54 10", Author.POLICY)
    refiner = Refiner(by(own, said, Author.REFINER, ended), ours)
    with Grader("trace", num_workers=1, timeout=20.0) as held, running_engines(policy, refiner) as engines:
        solving = rollout.solve(
            policy, Critic(kind="indicative"), problem, question=0, method=Method(num_responses=1, max_length=400),
            tokenizer=ours, refiner=refiner,
        )  # fmt: skip
        (solved,) = Orchestrator(held).run([solving], engines=engines)
    kept = groups.select(solved.refinements, num_kept=1, seed=0, iteration=0)
    (rows,) = groups.train_rows(groups.reanchor([solved.responses], kept), groups.Grouping(1))
    context = ours.chat_ids([{"role": "user", "content": "7*8+6"}])
    end = [ours.end_of_turn_id] if ended else []
    assert [row.refined for row in rows] == [False, True]
    assert all(list(row.context_ids) == context for row in rows)
    assert list(rows[1].target_ids) == [*ours.encode(expected), *end]
    (refinement,) = solved.refinements
    assert (refinement.author, refinement.truncated, refinement.weights_step) == (Author.REFINER, not ended, 3)
    assert refinement.text == (text or expected) and not refinement.logp.any()
    # It was asked by its own template and in its own tokens, about the policy's response.
    asked, _ = refiner.prompts.for_refinement(problem.question, solved.responses[0].whole_text, said_of(kept[0].parent))
    np.testing.assert_array_equal(refinement.prompt_ids, asked)
    assert refinement.asked == own.spell(asked) and refinement.asked.startswith("[T]user: 7*8+6\nTried: ")
    assert not set(ours.encode("56")) & set(own.encode("56"))


# --- programs -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")
@pytest.mark.parametrize(
    "body",
    [
        "raise ValueError(chr(0xd800))",
        "raise ValueError('\\ud83d', {'\\ude00': 1})",
        "raise type('E' + chr(0xdfff), (Exception,), {})('x')",
        "assert False, chr(0xd800) + '\\x1b[2J'",
        "return chr(0xd800)",
        "return {chr(0xd800): [chr(0xdc00)]}",
        "print(chr(0xd800)); return 1",
        "exec(chr(0xd800))",
        "return globals()[chr(0xd800)]",
    ],
)
def test_a_program_that_raises_anything_is_critiqued_refined_and_trained_on(tokenizer, body):
    problem = Problem(0, "Write f.", json.dumps({"setup": "", "asserts": ["assert f(1) == 2"]}), grader="code")
    wrong = f"```python\ndef f(x):\n    {body}\n```"
    right = "```python\ndef f(x):\n    return x + 1\n```"
    solved, rows, _ = stages(
        tokenizer, problem, lambda index: wrong if index.stage == Stage.RESPONSE else right,
        dict(kind="execution"), grader="code",
    )  # fmt: skip
    assert [row.reward for row in solved.responses] == [0.0, 0.0]
    for refinement in solved.refinements:
        critique = refinement.parent
        assert "Test 1 of 1" in critique.text and critique.text.endswith("Conclusion: wrong [END]")
        for one in (critique.text, critique.parent.feedback, refinement.feedback):
            assert text.is_valid(one)
        assert list(critique.token_ids) == tokenizer.encode(critique.text)
    assert solved.refinements[0].reward == 1.0
    question = tokenizer.encode("<|im_start|>user\nWrite f.\nEnd in a box.<|im_end|>\n<|im_start|>assistant\n")
    for row, written in zip(rows, (wrong, wrong, right), strict=True):
        assert list(row.context_ids) == question
        assert list(row.target_ids) == [*tokenizer.encode(written), tokenizer.end_of_turn_id]


def test_steps_that_quote_a_response_are_valid(tokenizer):
    """The same of steps: what a response holds is sampled, and so valid, already."""
    problem = Problem(0, "7*8?", "56", grader="numeric")
    solved, _, _ = stages(
        tokenizer, problem, lambda index: "7*8=54 \x1b[2J\u202e so 54",
        dict(kind="execution", check_steps=lambda question, said: first_false_equation(said)), grader="numeric",
    )  # fmt: skip
    assert solved.refinements[0].parent.text == "Step 1 is wrong: 7*8=56, not 54. Conclusion: wrong [END]"
