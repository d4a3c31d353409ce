"""Asks a trained policy a question: its response, a critique of it, and the refinement.

    python -m cgrpo_jax.sample --workdir=runs/quickstart --question='7*8+6*3'

Without `--question` it reads one question a line from standard input. Only what fails is refined; without a gold answer
it is not known whether a response does. The configuration is the run's own, which `--config.KEY=VALUE` changes.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    import sys

    from cgrpo_jax.runtime import first_line, signals

    signals.end_while_importing()
    first_line.say_start("sample", sys.argv[1:])

import contextlib
import io
import json
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

from cgrpo_jax import rollout
from cgrpo_jax.errors import GradingError, UserError
from cgrpo_jax.inference.critic import Critic, critique, said_of
from cgrpo_jax.inference.generators import Generator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Rollout
from cgrpo_jax.runs import cli, open_run, stages
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import console, processes, watchdog
from cgrpo_jax.runtime import text as text_lib

FLAGS = {
    "question": cli.Flag("the question; without it, one a line from standard input"),
    "answer": cli.Flag("its gold answer, where the data set's rule does not give it"),
    "columns": cli.Flag('other columns of its row, for a reward function, as JSON: \'{"unit": "km"}\''),
    "distributed": cli.DISTRIBUTED,
    "step": cli.STEP,
}
_NO_ANSWER = "no gold answer: give it with --answer"


def main(
    config: Config,
    workdir: str,
    question: str | None,
    answer: str | None,
    distributed: bool = False,
    step: str | None = None,
    columns: str | None = None,
) -> None:
    """Prints the three stages for each question, or why there are fewer."""
    others = _columns(columns)
    command = {
        "the command": "sample",
        "--question": question,
        "--answer": answer,
        "--step": step,
        "--columns": columns,
    }
    processes.start(distributed=distributed, command=command)
    if distributed and question is None:
        raise UserError("several processes can't share standard input; give the question with --question.")
    with contextlib.ExitStack() as held:
        opened = open_run.open_run(
            config,
            workdir,
            held,
            stages=stages.of_sample,
            questions=None,
            load_weights=True,
            writes={},
            num_slots=1,  # one text is written at a time
            num_graders=1,
            step=cli.step_of(step),
        )
        if question is not None:
            _show(opened, question, answer, others, number=0)
            return
        refused = 0
        for number, line in enumerate(_lines()):
            try:
                _show(opened, line, answer, others, number=number)
            except UserError as error:  # one bad line does not end the session
                console.write(f"error: {text_lib.one_line(str(error))}\n", sys.stderr)
                refused += 1
        if refused:
            raise UserError(f"{refused} questions were refused; see above.")


def _columns(given: str | None) -> dict[str, Any]:
    """Returns the columns that the flag gives.

    Raises:
      UserError: it is no JSON object.
    """
    try:
        found = json.loads(given or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f'--columns {given!r} is no JSON object; write one such as \'{{"unit": "km"}}\'.')
    return found


def _lines() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    if interactive:
        sys.stderr.write("type a question and press return; an empty line ends\n")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused with their line
    while True:
        with watchdog.limits(stall=0.0, compile=0.0):  # whoever asks may take any time
            line = sys.stdin.readline()
        if not line or (interactive and not line.strip()):
            return
        if line.strip():
            yield line.strip()


def _show(
    opened: open_run.OpenRun, question: str, answer: str | None, columns: Mapping[str, Any], *, number: int
) -> None:
    problem = opened.problem(question, answer, columns)
    policy = opened.policy(opened.params, iteration=number)
    critic = opened.critic(opened.critic_generator(policy), kind=opened.settings.stages.first_kind)
    orchestrator = Orchestrator(opened.grader)
    with running_engines(policy, critic.generator) as engines:
        _stages(opened, policy, critic, problem, lambda stage: orchestrator.run([stage], engines=engines)[0])
    sys.stdout.flush()


def _stages(
    opened: open_run.OpenRun, policy: Generator, critic: Critic, problem: Problem, run: Callable[[Coroutine], Any]
) -> None:
    """Prints each stage as it is written, those that the response needs."""
    method = opened.settings.method
    graded = bool(problem.answer) or opened.grader.takes_groups()  # a user's function may need no gold answer
    responses = run(rollout.respond(policy, problem, question=0, num_responses=1, max_length=method.max_length))
    response, remark = _score(responses[0], problem, run) if graded else (responses[0], _NO_ANSWER)
    _print("response", response.whole_text, remark)
    passed = None if response.reward is None else response.reward >= method.pass_threshold
    if method.refine != "policy":
        return _note(f"no critique, no refinement: refine.kind is {method.refine!r}")
    if not problem.answer and (critic.kind == "indicative_gt" or critic.see_answer):
        needs = f"a critique of kind {critic.kind!r} shows or sees the gold answer"
        return _note(f"no critique, no refinement: {needs}; give it with --answer")
    if passed is None and critic.kind not in ("cot", "none"):
        needs = f"a critique of kind {critic.kind!r} needs to know whether the response is right"
        return _note(f"no critique, no refinement: {needs}{'' if graded else '; give its gold answer with --answer'}")
    (criticised,), _ = run(critique(critic, [response], problem, encode=opened.model.tokenizer.encode))
    if passed is None and critic.kind == "cot" and criticised.author == Author.RULE:
        return _note("no critique, no refinement: the critic gave no verdict that can be read")
    if critic.kind != "none":
        _print("critique", criticised.whole_text, criticised.author)
        if (shown := said_of(criticised)) != criticised.whole_text:
            _print("what the refinement sees of it", shown, _why_other(criticised))
    if criticised.verdict if passed is None else passed:
        return _note(f"no refinement: {'the critic calls the response right' if passed is None else 'it passes'}")
    (refinement,), _ = run(
        rollout.refine(policy, [criticised], problem, max_length=method.max_length, shows=critic.shows)
    )
    refinement, remark = _score(refinement, problem, run) if graded else (refinement, _NO_ANSWER)
    _print("refinement", refinement.whole_text, remark)


def _why_other(critique: Rollout) -> str:
    return "without its thinking" if critique.shown is None else "wrong on purpose, by critique.corruption"


def _score(row: Rollout, problem: Problem, run: Callable[[Coroutine], Any]) -> tuple[Rollout, str]:
    """Returns a text with its reward, and what is said of that; without one where its grader fails."""
    try:
        (scored,) = run(rollout.score([row], problem))
    except GradingError as error:
        return row, f"no verdict: {text_lib.one_line(str(error))}"
    if scored.ungraded:
        return row, f"no verdict: {scored.feedback}"
    return scored, f"reward {scored.reward:g}"


def _print(stage: str, text: str, remark: str) -> None:
    console.say(f"{stage} ({remark}):\n{text}\n", sys.stdout)


def _note(text: str) -> None:
    console.say(f"{text}\n", sys.stdout)


if __name__ == "__main__":
    cli.run(main, require=("config", "workdir"), flags=FLAGS, trains=False)
