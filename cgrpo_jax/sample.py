"""Asks a trained policy a question: its response, a critique of it, and the refinement.

    python -m cgrpo_jax.sample --config=configs/quickstart.py --workdir=runs/quickstart --question='7*8+6*3'

Without `--question` it reads one question a line from standard input.
"""

import contextlib
import datetime
import functools
import sys

from cgrpo_jax import rollout
from cgrpo_jax.critiques import schedule
from cgrpo_jax.datasets import problems
from cgrpo_jax.datasets.tasks import arithmetic, snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import generators
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Rollout
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.runs import build_inference, build_model, cli, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, processes


def main(config, workdir: str, question: str | None, answer: str | None, distributed: bool = False) -> None:
    """Prints the three stages for each question. Without a gold answer the response is taken to be wrong."""
    processes.start(distributed=distributed)
    if distributed and question is None:
        raise UserError("several processes can't share standard input; give the question with --question.")
    started = processes.decide(lambda: RunDir(workdir).started().isoformat(), f"reading {workdir}")
    now = datetime.datetime.fromisoformat(started)
    with processes.agree("loading models"):
        validate.check(config)
        last = schedule.kind_at(
            config.num_iterations, critique=config.critique, schedule=config.critique_schedule
        )  # the kind that a run of a curriculum ends with
        config = config_lib.replaced(config, {"critique": last, "critique_schedule": ()})
        config = config_lib.replaced(config, {"num_slots": 1, "kv_cache_gib": 0.0})  # one text is written at a time
        mesh = build_model.make_mesh(config)
        model = build_model.load_model(config, mesh, now=now)
        critic_model = build_model.load_critic(config, mesh, now=now)
    params, _ = build_model.trained_params(config, model, workdir)
    with contextlib.ExitStack() as held:
        http_critic = build_inference.open_http_critic(config, held)
        grader = build_inference.open_grader(config, held, num_workers=1)
        show = functools.partial(_show, config, model, params, critic_model, http_critic, grader, answer=answer)
        if question is not None:
            show(question, number=0)
            return
        refused = 0
        for number, line in enumerate(_lines()):
            try:
                show(line, number=number)
            except UserError as error:  # one bad line does not end the session
                sys.stderr.write(f"error: {error}\n")
                refused += 1
        if refused:
            raise UserError(f"{refused} questions were refused; see above.")


def _lines():
    interactive = sys.stdin.isatty()
    if interactive:
        sys.stderr.write("type a question and press return; an empty line ends\n")
    for line in sys.stdin:
        if line.strip():
            yield line.strip()
        elif interactive:
            return


def _show(config, model, params, critic_model, http_critic, grader, question, *, answer, number) -> None:
    if config.data.kind == "chains":
        question = question.replace(" ", "")
        answer = answer or arithmetic.answer(question)
    elif config.data.kind == "snippets":
        answer = answer or snippets.answer(question, problems.glossary(config).words)
    elif answer:
        grader_lib.check_gold(config.grader, [answer], timeout=config.grader_timeout, num_workers=1)
    elif config.critique == "indicative_gt" or (config.critique == "cot" and config.critic_sees_answer):
        raise UserError("the critique of this configuration tells or sees the gold answer; give it with --answer.")
    problem = Problem(0, question, answer or "")
    length = len(model.prompts.for_question(question))
    if length > config.max_prompt_length:
        raise UserError(
            f"the question takes {length} tokens, more than max_prompt_length {config.max_prompt_length}; shorten it, "
            "or raise that."
        )
    policy = build_inference.make_generator(
        config, model, params, author=Author.POLICY, weights_step=0, iteration=number
    )
    generator = policy
    if critic_model:
        generator = build_inference.make_generator(
            config, *critic_model, author=Author.CRITIC, weights_step=0, iteration=number
        )
    elif config.http_critic.url:
        generator = build_inference.make_remote_generator(config, model, http_critic, iteration=number)
    critic = build_inference.make_critic(config, generator, kind=config.critique)
    show = _stages(config, model, policy, critic, problem)
    with generators.running_engines(policy, critic.generator) as engines:
        Orchestrator(grader).run([show], engines=engines)
    sys.stdout.flush()


async def _stages(config, model, policy, critic, problem: Problem) -> None:
    """Prints each stage as it is written."""
    (response,) = await rollout.respond(
        policy, problem, question=0, num_responses=1, max_length=config.max_response_length
    )
    if problem.answer:
        (response,) = await rollout.score([response], problem)
    else:
        response = response.replace(reward=0.0)
    _print("response", response.text, _reward(response) if problem.answer else "no gold answer")
    (critique,), _ = await rollout.critique(critic, [response], problem, encode=model.tokenizer.encode)
    _print("critique", critique.text, critique.author)
    (refinement,), _ = await rollout.refine(
        policy, [critique], problem, max_length=config.max_response_length, show_critique=config.critique != "none"
    )
    if problem.answer:
        (refinement,) = await rollout.score([refinement], problem)
    _print("refinement", refinement.text, _reward(refinement) if problem.answer else "no gold answer")


def _reward(row: Rollout) -> str:
    return f"no verdict: {row.feedback}" if row.ungraded else f"reward {row.reward:.0f}"


def _print(stage: str, text: str, note: str) -> None:
    console.say(f"{stage} ({note}):\n{text}\n", sys.stdout)


if __name__ == "__main__":
    cli.run(
        main,
        require=("config", "workdir"),
        flags={
            "question": cli.Flag("the question; without it, one a line from standard input"),
            "answer": cli.Flag("its gold answer, where the data set's rule does not give it"),
            "distributed": cli.DISTRIBUTED,
        },
    )
