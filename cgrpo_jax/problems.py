"""The problems of a run: made up or read, with gold answers that the grader can read and prompts that fit."""

import functools

from cgrpo_jax import arithmetic, data, rewards
from cgrpo_jax.errors import UserError
from cgrpo_jax.prompts import Prompts
from cgrpo_jax.records import Problem


def load_problems(config, prompts: Prompts) -> tuple[list[Problem], list[Problem], dict[str, int]]:
    """Returns (training problems, held-out problems, number of problems of either kind left out for their length).

    Raises:
      UserError: there are none, a file or a row of it is damaged, a gold answer can't be read, or the longest question
        leaves no room for a critique in a refine prompt.
    """
    d = config.data
    if d.kind == "chains":
        held_out = held_out_facts(config)
        make = functools.partial(
            arithmetic.make_problems, length=d.chain_length, held_out=held_out, hard_share=d.hard_share
        )
        train = make(d.num_train, seed=d.seed)
        test = make(d.num_eval, seed=d.seed + 1, exclude=[p.question for p in train])
    else:
        if not d.train:
            raise UserError("no training data: set data.train to a file or a TFDS name.")
        train = _read(d, d.train, d.train_split)
        test = _read(d, d.eval, d.eval_split) if d.eval else []
    train = train[: d.num_train or None]
    test = test[: d.num_eval or None]
    if not train:
        raise UserError(f"no training questions: data.num_train is {d.num_train}; use at least 1.")
    kept, skipped = {}, {}
    for kind, problems in (("training", train), ("held-out", test)):
        try:
            kept[kind], skipped[kind] = _usable(config, prompts, problems)
        except UserError as error:
            raise UserError(f"{kind} questions: {error}") from error
    _check_room(config, prompts, kept["training"])
    return kept["training"], kept["held-out"], skipped


def _check_room(config, prompts: Prompts, problems: list[Problem]) -> None:
    """Checks that the longest question fits the prompts that hold more, lest a run end at the first that does not."""
    longest = max(problems, key=lambda problem: len(prompts.for_question(problem.question)))
    criticises = config.critique == "cot" and (config.refine == "policy" or config.critique_when == "all")
    if criticises and not config.critic_folder:
        prompts.for_critique(longest.question, "", longest.answer if config.critic_sees_answer else None)
    if config.refine != "policy":
        return
    ids, _ = prompts.for_refinement(longest.question, "", None if config.critique == "none" else "")
    critique = config.max_critique_length if config.critique == "cot" else 0
    if len(ids) + critique > config.max_refinement_prompt_length:
        raise UserError(
            f"the refine prompt of problem {longest.index} takes {len(ids)} tokens, a critique up to {critique}, more "
            f"than max_refinement_prompt_length {config.max_refinement_prompt_length} without the response; raise it."
        )


def _usable(config, prompts: Prompts, problems: list[Problem]) -> tuple[list[Problem], int]:
    """Returns the problems whose prompts fit and how many don't; every gold answer and solution must be usable."""
    if not problems:
        return [], 0
    rewards.check_gold(config.grader, [p.answer for p in problems])
    lengths = [len(prompts.for_question(p.question)) for p in problems]
    problems, skipped = data.skip_or_fail_long(
        problems, lengths, limit=config.max_prompt_length, on_long=config.on_long_question
    )
    if config.refine == "solution":
        for p in problems:
            length = len(prompts.tokenizer.encode(p.solution)) + 1  # and the end of the turn
            if length > config.max_response_length:
                raise UserError(
                    f"the solution of problem {p.index} has {length} tokens, more than max_response_length "
                    f"{config.max_response_length}; raise it."
                )
    return problems, skipped


def _read(d, source: str, split: str) -> list[Problem]:
    columns = dict(
        question_key=d.question_key,
        answer_key=d.answer_key,
        solution_key=d.solution_key or None,
        answer_pattern=d.answer_pattern or None,
    )
    if d.kind == "tfds":
        return data.read_tfds(source, split=split, data_dir=d.tfds_dir or None, **columns)
    return data.read_jsonl(source, **columns)


def held_out_facts(config) -> frozenset[arithmetic.Fact]:
    """Returns the facts that the quickstart's warm start never shows."""
    return arithmetic.held_out_facts(config.data.num_held_out, seed=config.data.seed)
