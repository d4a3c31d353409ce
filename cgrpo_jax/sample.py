"""Asks a trained policy a question: its response, a critique of it, and the refinement.

    python -m cgrpo_jax.sample --config=configs/quickstart.py --workdir=runs/quickstart --question='7*8+6*3'

Without `--question` it reads one question a line from standard input.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import contextlib
import io
import sys
from collections.abc import Iterator

from cgrpo_jax import rollout
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.critic import Critic, critique
from cgrpo_jax.inference.generators import Generator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Problem, Rollout
from cgrpo_jax.runs import cli, open_run, stages
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import console, processes
from cgrpo_jax.runtime import text as text_lib


def main(
    config: Config,
    workdir: str,
    question: str | None,
    answer: str | None,
    distributed: bool = False,
    step: str | None = None,
) -> None:
    """Prints the three stages for each question. Without a gold answer the response is taken to be wrong."""
    command = {"the command": "sample", "--question": question, "--answer": answer, "--step": step}
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
            _show(opened, question, answer, number=0)
            return
        refused = 0
        for number, line in enumerate(_lines()):
            try:
                _show(opened, line, answer, number=number)
            except UserError as error:  # one bad line does not end the session
                console.write(f"error: {text_lib.one_line(str(error))}\n", sys.stderr)
                refused += 1
        if refused:
            raise UserError(f"{refused} questions were refused; see above.")


def _lines() -> Iterator[str]:
    interactive = sys.stdin.isatty()
    if interactive:
        sys.stderr.write("type a question and press return; an empty line ends\n")
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # bytes that are no text are refused with their line
    for line in sys.stdin:
        if line.strip():
            yield line.strip()
        elif interactive:
            return


def _show(opened: open_run.OpenRun, question: str, answer: str | None, *, number: int) -> None:
    problem = opened.problem(question, answer)
    policy = opened.policy(opened.params, iteration=number)
    critic = opened.critic(opened.critic_generator(policy), kind=opened.settings.stages.first_kind)
    with running_engines(policy, critic.generator) as engines:
        Orchestrator(opened.grader).run([_stages(opened, policy, critic, problem)], engines=engines)
    sys.stdout.flush()


async def _stages(opened: open_run.OpenRun, policy: Generator, critic: Critic, problem: Problem) -> None:
    """Prints each stage as it is written."""
    max_length = opened.settings.method.max_length
    (response,) = await rollout.respond(policy, problem, question=0, num_responses=1, max_length=max_length)
    if problem.answer:
        (response,) = await rollout.score([response], problem)
    else:
        response = response.replace(reward=0.0)
    _print("response", response.whole_text, _reward(response) if problem.answer else "no gold answer")
    (criticised,), _ = await critique(critic, [response], problem, encode=opened.model.tokenizer.encode)
    _print("critique", criticised.whole_text, criticised.author)
    (refinement,), _ = await rollout.refine(
        policy, [criticised], problem, max_length=max_length, show_critique=critic.kind != "none"
    )
    if problem.answer:
        (refinement,) = await rollout.score([refinement], problem)
    _print("refinement", refinement.whole_text, _reward(refinement) if problem.answer else "no gold answer")


def _reward(row: Rollout) -> str:
    return f"no verdict: {row.feedback}" if row.ungraded else f"reward {row.reward:.0f}"


def _print(stage: str, text: str, remark: str) -> None:
    console.say(f"{stage} ({remark}):\n{text}\n", sys.stdout)


if __name__ == "__main__":
    cli.run(
        main,
        require=("config", "workdir"),
        flags={
            "question": cli.Flag("the question; without it, one a line from standard input"),
            "answer": cli.Flag("its gold answer, where the data set's rule does not give it"),
            "distributed": cli.DISTRIBUTED,
            "step": cli.STEP,
        },
    )
