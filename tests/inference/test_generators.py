"""What a critic is shown, and how its reply is read where its template is not known."""

import types
from concurrent import futures

import chain_prompts
import chat_tokenizer
import pytest
from scripted_stages import run

from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.chat_client import Answer
from cgrpo_jax.inference.generators import RemoteGenerator
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import Problem, RowIndex, Stage

HINT = {"hint": "{question}\nThe answer is {answer}.\nHint?"}


def remote(tmp_path, reply, *, truncated):
    """Returns a remote generator that gets this reply, and the messages that ask for it."""
    asked = []

    def submit(message, **_):
        asked.append(message)
        done = futures.Future()
        done.set_result(Answer(reply, truncated, 5, 11, 1, None))
        return done

    prompts = chain_prompts.make(chat_tokenizer.make(tmp_path / "model"), **chain_prompts.CHAINS, **HINT)
    return RemoteGenerator(types.SimpleNamespace(submit=submit), prompts, 0, 0, Sampling()), asked


def criticised(tmp_path, reply, *, truncated=False, solution=None, hint=False):
    """Returns a remote critique of a response, or a hint, and the message that asked for it."""
    critic, asked = remote(tmp_path, reply, truncated=truncated)
    index = RowIndex(0, 0, stage=Stage.CRITIQUE)
    row = types.SimpleNamespace(whole_text="2+3=6")
    problem = Problem(0, "2+3?", "5", solution)
    if hint:
        ((written, _),) = run(critic.write_hint(problem, row, index, max_length=64))
        return written, asked[0]
    ((written, _),) = run(
        critic.write_critique(problem, row, index, see_answer=True, see_solution=bool(solution), max_length=64)
    )
    return written, asked[0]


VERDICT = "Conclusion: wrong [END]"


@pytest.mark.parametrize(
    "reply, truncated, failure",
    [
        ("Add.", False, None),
        (" ", False, "its text is empty"),
        ("Add", True, "its text was cut off"),
        ("Hm.</think>Add", True, None),
    ],
)
def test_a_hint_that_says_nothing_is_a_reply_that_cannot_be_used(tmp_path, monkeypatch, reply, truncated, failure):
    found = []

    async def record(problem, *, failure):
        found.append(failure)

    monkeypatch.setattr(orchestrator, "record_reply", record)
    critic, _ = remote(tmp_path, reply, truncated=truncated)
    row, index = types.SimpleNamespace(whole_text="2+3=6"), RowIndex(0, 0, stage=Stage.CRITIQUE)
    run(critic.write_hint(Problem(0, "2+3?", "5"), row, index, max_length=64))
    assert found == [failure]


@pytest.mark.parametrize(
    "reply, truncated, verdict",
    [
        (VERDICT, False, False),
        (f"Perhaps {VERDICT}</think>Conclusion: right [END]", False, True),
        # Cut off: it may never have ended to think, so that only what follows the end of a thinking part counts.
        (VERDICT, True, None),
        (f"Hm.</think>{VERDICT} And", True, False),
    ],
)
def test_a_reply_that_was_cut_off_is_read_after_its_thinking_alone(tmp_path, reply, truncated, verdict):
    written, _ = criticised(tmp_path, reply, truncated=truncated)
    assert written.verdict is verdict
    assert bool(written.opening) == truncated


@pytest.mark.parametrize(
    "solution, shown, hidden",
    [
        ("2+3=5", "2+3=5", "<think>"),
        ("<think>Is it 7?</think>2+3=5", "2+3=5", "Is it 7?"),
        ("<think>Is it 5?</think>", "Is it 5?", "{solution}"),  # nothing but thoughts: better than nothing
    ],
)
def test_a_critic_sees_a_solution_without_its_thoughts(tmp_path, solution, shown, hidden):
    _, message = criticised(tmp_path, VERDICT, solution=solution)
    assert shown in message and hidden not in message


@pytest.mark.parametrize("reply", ["Carry nothing.", VERDICT])
def test_a_hint_of_an_endpoint_has_no_verdict_and_no_response_before_it(tmp_path, reply):
    written, message = criticised(tmp_path, reply, hint=True)
    assert message == "2+3?\nThe answer is 5.\nHint?" and written.asked == message
    assert written.text == reply and written.verdict is None and not written.ungraded


def test_a_hint_that_an_endpoint_does_not_write(tmp_path):
    failed = Answer(None, False, 0, 0, 3, "timeout")
    prompts = chain_prompts.make(chat_tokenizer.make(tmp_path / "model"), **chain_prompts.CHAINS, **HINT)

    def submit(message, **_):
        done = futures.Future()
        done.set_result(failed)
        return done

    critic = RemoteGenerator(types.SimpleNamespace(submit=submit), prompts, 0, 0, Sampling())
    index, row = RowIndex(0, 0, stage=Stage.CRITIQUE), types.SimpleNamespace(whole_text="2+3=6")
    ((written, cut),) = run(critic.write_hint(Problem(0, "2+3?", "5"), row, index, max_length=64))
    assert written is None and not cut
