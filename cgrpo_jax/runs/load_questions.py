"""The questions of a run: from its configuration to problems whose prompts fit every stage that asks them."""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cgrpo_jax.critiques import schedule
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import filters, rollout_questions
from cgrpo_jax.datasets import mixture as mixture_lib
from cgrpo_jax.datasets.problems import (
    MADE_UP,
    Given,
    Limits,
    MadeUp,
    Problems,
    Stored,
    check_quotable,
    check_solutions,
    load_problems,
)
from cgrpo_jax.datasets.tasks import arithmetic, snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.records import Problem, has_system_turn, transcript
from cgrpo_jax.rewards import grader
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.stages import Stages
from cgrpo_jax.runtime import console, local_copies
from cgrpo_jax.runtime import text as text_lib


@dataclasses.dataclass(frozen=True)
class Questions:
    """The questions of a command.

    Attributes:
      training, held_out: what is learnt from or diagnosed, and what is measured on; empty where a command has none.
      skipped: of either, by these names ("training", "held-out"), how many were left out for their length.
      mixture: share of each source of the former; empty where all are one set.
      left_out: what is to be said of training questions that are too easy or too hard; empty without these.
    """

    training: list[Problem]
    held_out: list[Problem]
    skipped: Mapping[str, int]
    mixture: Mapping[str, float] = dataclasses.field(default_factory=dict)
    left_out: str = ""


Choose = Callable[[Config, Problems], Questions]


def load_questions(
    config: Config,
    stages: Stages,
    prompts: Prompts,
    choose: Choose,
    *,
    critic: Prompts | None,
    refiner: Prompts | None = None,
) -> Questions:
    """Returns the questions of a command.

    Args:
      config: the configuration.
      stages: that ask them.
      prompts: of the policy.
      critic: of the critic, None for one behind an endpoint.
      refiner: of a frozen refiner; None without one.
      choose: `to_train_on`, `to_evaluate_on`, `to_diagnose` or `to_collect`.

    Raises:
      UserError: there are none, a file or a row of it is damaged, a gold answer can't be read, or the longest question
        leaves no room for a critique in a refine prompt.
    """
    asked = _given(config, stages) if stages.rows else source(config)
    if isinstance(asked, Stored) and not stages.samples:
        asked = dataclasses.replace(asked, train=None)  # data.train may be of rows to learn from
    found = _load(asked, prompts, _limits(config, stages), learns_rows=not stages.samples)
    chosen = choose(config, found)
    if why := _why_solutions(config, stages):  # of those that are asked, which may be held out
        check_solutions(chosen.training, asked, why, whose="chosen")
    shown = chosen.training or found.training
    _check_refine_prompt(config, stages, prompts, shown, critic=critic, refiner=refiner)
    _say_system_turns(config, [*found.training, *found.held_out])
    return chosen


def _load(source: MadeUp | Stored | Given, prompts: Prompts, limits: Limits, *, learns_rows: bool) -> Problems:
    try:
        return load_problems(source, prompts, limits)
    except UserError as error:
        if not learns_rows or "data.question_key" not in str(error) and "data.answer_key" not in str(error):
            raise
        text = str(error).rstrip(".")
        hint = "data.eval is of questions to grade; rows to measure the loss on are finetune.eval_rows"
        raise UserError(f"{text} ({hint}).") from error


def _say_system_turns(config: Config, problems: Sequence[Problem]) -> None:
    """Says how many questions bring a system turn that stands in place of the configuration's."""
    own = sum(has_system_turn(problem.turns) for problem in problems)
    if own and config.prompts.system:
        console.say(
            f"{own} of {len(problems)} questions have a system turn of their own, which stands in place of "
            "prompts.system"
        )


def to_train_on(config: Config, found: Problems) -> Questions:
    """Returns the training questions that are neither too easy nor too hard, with their mixture, and the held-out ones.

    Raises:
      UserError: the file of pass rates can't be read, nothing is left, or the mixture is of other sources.
    """
    d, training, left_out = config.data, found.training, ""
    if d.pass_rates:
        rates = filters.read_pass_rates(local_copies.local(d.pass_rates))
        training, left = filters.by_pass_rate(training, rates, minimum=d.min_pass_rate, maximum=d.max_pass_rate)
        left_out = (
            f"{len(training)} of {left.total} training questions are left by data.pass_rates: {left.too_hard} have a "
            f"rate of at most {d.min_pass_rate:g}, {left.too_easy} of at least {d.max_pass_rate:g}; {left.unknown} "
            "without a rate were kept"
        )
    for kind in config.other_rewards:
        answers = [problem.answer for problem in training]
        grader.check_gold(kind, answers, timeout=config.grader.timeout, num_workers=1, numpy=config.grader.numpy)
    mixture = mixture_lib.parse_mixture(d.mixture)
    mixture_lib.check_mixture(mixture, [p.source for p in training])
    return Questions(training, found.held_out, found.skipped, mixture, left_out)


def to_evaluate_on(config: Config, found: Problems) -> Questions:
    """Returns the held-out questions; raises a `UserError` where there are none."""
    if not found.held_out:
        raise UserError("nothing to evaluate on: the configuration has no held-out problems; set data.eval.")
    return Questions([], found.held_out, found.skipped)


def of_finetuning(config: Config) -> Choose | None:
    """Returns what chooses the questions that `finetune` is graded on; None where the configuration has none."""
    d = config.data
    return _to_grade if (d.num_eval if d.kind in MADE_UP else d.eval) else None


def _to_grade(config: Config, found: Problems) -> Questions:
    return Questions([], found.held_out, found.skipped)


def to_diagnose(config: Config, found: Problems) -> Questions:
    """Returns the training questions to diagnose; all kinds of critiques must be possible of them.

    Raises:
      UserError: critiques of one kind would quote unit tests.
    """
    training = found.training[: config.diagnosis.num_questions or None]
    if "indicative_gt" in config.diagnosis.kinds:
        check_quotable(training, grader=config.gate_kind)
    return Questions(training, [], found.skipped)


def to_collect(config: Config, found: Problems) -> Questions:
    """Returns the questions to collect rows of, as the training ones; raises a `UserError` where there are none."""
    c = config.collect
    held_out = c.questions == "held_out" and not c.rows
    some = (found.held_out if held_out else found.training)[: c.num_questions or None]
    if not some:
        of_data = 'collect.questions "held_out" needs data.eval, of made-up questions data.num_eval'
        why = "collect.rows has no question" if c.rows else of_data if held_out else "all questions are too long"
        raise UserError(f"there is nothing to collect rows of: {why}.")
    return Questions(some, [], {"training": found.skipped["held-out" if held_out else "training"]})


def by_hand(
    config: Config, stages: Stages, prompts: Prompts, question: str, answer: str | None, columns: Mapping[str, Any]
) -> Problem:
    """Returns a question that a person asks as a problem; made-up tasks have their own rule for the answer.

    Args:
      config: the configuration.
      stages: that follow the question.
      prompts: of the policy.
      question, answer: as they were given; no answer where none is known.
      columns: other columns of its row. A row that is read has the gold answer under `data.answer_key` too.

    Raises:
      UserError: the question is too long or none of the task's, the answer can't be read, or a critic needs a solution.
    """
    text_lib.check(question, "the question")
    text_lib.check(answer or "", "the answer")
    made_up, sees, columns = source(config), _sees(config, stages), dict(columns)
    solution = None if isinstance(made_up, MadeUp) else columns.get(config.data.solution_key)
    if isinstance(made_up, MadeUp) and made_up.kind == "chains":
        question = question.replace(" ", "")
        answer = answer or arithmetic.answer(question)
        solution = arithmetic.solution(question) if sees == "solution" else None
    elif isinstance(made_up, MadeUp):
        words = made_up.glossary().words
        answer = answer or snippets.answer(question, words)
        solution = snippets.write(snippets.steps(question, words)) if sees == "solution" else None
    elif sees == "solution" and not isinstance(solution, str):
        raise UserError(
            "the critic of this configuration sees a reference solution; give it as --columns="
            f'\'{{"{config.data.solution_key}": "..."}}\', or set --config.critic.sees=answer, or nothing.'
        )
    elif answer:
        grader.check_gold(
            config.gate_kind, [answer], timeout=config.grader.timeout, num_workers=1, numpy=config.grader.numpy
        )
    length = len(prompts.for_question(question))
    if length > config.max_prompt_length:
        raise UserError(
            f"the question takes {length} tokens, more than max_prompt_length {config.max_prompt_length}; shorten it, "
            "or raise that."
        )
    if answer and isinstance(made_up, Stored):
        columns.setdefault(config.data.answer_key, answer)
    return Problem(0, question, answer or "", solution, columns=columns)


def source(config: Config) -> MadeUp | Stored:
    """Returns where the questions come from."""
    d = config.data
    if d.kind in MADE_UP:
        return MadeUp(
            kind=d.kind,
            seed=d.seed,
            num_train=d.num_train,
            num_eval=d.num_eval,
            length=d.chain_length,
            hard_share=d.hard_share,
            num_held_out=d.num_held_out,
        )
    return Stored(
        kind=d.kind,
        train=d.train,
        eval=d.eval,
        train_split=d.train_split,
        eval_split=d.eval_split,
        tfds_dir=d.tfds_dir or None,
        question_key=d.question_key,
        answer_key=d.answer_key,
        solution_key=d.solution_key or None,
        answer_pattern=d.answer_pattern or None,
        num_train=d.num_train,
        num_eval=d.num_eval,
    )


def _given(config: Config, stages: Stages) -> Given:
    """Returns the questions of the rows that stages begin with.

    Raises:
      UserError: there are no such rows, or they lack critiques that are to be refined.
    """
    paths = rollout_questions.files(stages.rows)
    if not config.collect.num_critiques and not any(map(rollout_questions.has_critiques, paths)):
        raise UserError(
            f"collect.num_critiques 0 takes the critiques of collect.rows {stages.rows}, which has none; set it, or "
            "give rows that have some."
        )
    problems = [one for path in paths for one in rollout_questions.problems(path)]
    if verdicts := sum(rollout_questions.num_verdicts(path)[0] for path in paths):
        console.say(f"collect.rows {stages.rows}: {verdicts} verdict problems are left out")
    return Given(problems[: config.collect.num_questions or None])


def _limits(config: Config, stages: Stages) -> Limits:
    return Limits(
        grader=config.gate_kind,
        grader_timeout=config.grader.timeout,
        grader_workers=config.grader.num_workers,
        has_judge=bool(config.judge.endpoint.url),
        quotes_answers="indicative_gt" in stages.kinds,
        max_prompt_length=config.max_prompt_length,
        on_long_question=config.prompts.on_long_question,
        max_solution_length=config.max_response_length if stages.refine == "solution" else None,
        needs_solutions=_why_solutions(config, stages),
        grader_numpy=config.grader.numpy,
        needs_rubrics="checklist" in stages.kinds and (stages.refine == "policy" or stages.critique_when == "all"),
    )


def _sees(config: Config, stages: Stages) -> str:
    """Returns what a critic that writes sees of the data; nothing where none writes."""
    return config.critic.sees if schedule.WRITTEN & stages.kinds else "nothing"


def _why_solutions(config: Config, stages: Stages) -> str:
    """Returns what needs the data's solutions; empty where nothing does."""
    if stages.refine == "solution":
        return 'refine.kind "solution" inserts'
    sees = stages.asks_critic and _sees(config, stages) == "solution"
    return 'the critic sees (critic.sees "solution")' if sees else ""


def _check_refine_prompt(
    config: Config,
    stages: Stages,
    prompts: Prompts,
    questions: Sequence[Problem],
    *,
    critic: Prompts | None,
    refiner: Prompts | None = None,
) -> None:
    """Checks that the longest question fits the prompts that hold more, lest a run end at the first that does not.

    A critique is shown whole; how much is left of one without its thinking is not known, and what is too long is cut.
    """
    if not questions:
        return
    longest = max(questions, key=lambda problem: len(prompts.for_question(problem.question, problem.turns)))
    if stages.judges:
        prompts.for_verdict(transcript(longest), "")
    if stages.critique.num_texts and stages.critic != "folder":
        answer = None if config.critic.sees == "nothing" else longest.answer
        solution = "" if config.critic.sees == "solution" else None
        if "cot" in stages.kinds:
            (critic or prompts).for_critique(transcript(longest), "", answer, solution)
        if "hint" in stages.kinds:
            (critic or prompts).for_hint(transcript(longest), longest.answer)
    if stages.refine != "policy" and config.distil.kind == "none":  # by default a teacher sees what a refinement sees
        return
    asked = [(refiner or prompts, "")] if stages.refine == "policy" else []
    if config.distil.kind != "none":
        teacher = dataclasses.replace(prompts, refine=prompts.teacher or prompts.refine)
        if teacher != prompts or refiner or not asked:  # else that is the prompt of a refinement
            asked.append((teacher, "of the teacher, "))
    for whose, name in asked:
        _check_room(config, stages, whose, longest, critic=critic, name=name)


def _check_room(
    config: Config, stages: Stages, prompts: Prompts, longest: Problem, *, critic: Prompts | None, name: str
) -> None:
    """Checks that a refine prompt has room for what it shows beside the longest question."""
    unlimited = dataclasses.replace(prompts, max_refinement_prompt_length=sys.maxsize)
    thinks = critic is None or critic.tokenizer.may_think
    for kind in sorted(stages.kinds):
        shows = Critic(kind=kind).shows
        ids, _ = _EMPTY[shows](unlimited, longest)
        shown = config.critic.max_length if kind in schedule.WRITTEN and not thinks else 0
        if len(ids) + shown > config.refine.max_prompt_length:
            raise UserError(
                f"the refine prompt {name}of the longest question, problem {longest.index}, needs {len(ids) + shown} "
                f"tokens, {shown} of them for a {shows if shows == 'hint' else 'critique, without the response'}; "
                f"refine.max_prompt_length is {config.refine.max_prompt_length}; raise it."
            )


# The prompt of a refinement with nothing of what it shows: by names of `rollout.SHOWN`.
_EMPTY: dict[str, Callable[[Prompts, Problem], tuple[Any, bool]]] = {
    "critique": lambda prompts, problem: prompts.for_refinement(problem.question, "", "", problem.turns),
    "nothing": lambda prompts, problem: prompts.for_refinement(problem.question, "", None, problem.turns),
    "hint": lambda prompts, problem: prompts.for_hinted(problem.question, "", problem.turns),
}
