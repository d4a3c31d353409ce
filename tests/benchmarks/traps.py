"""Puts old mistakes back, one at a time, and sees that tests catch each.

    python tests/benchmarks/traps.py [--json=FILE] [--only=NAME,...] [--share=N [--seed=TEXT]]

Each trap is a mistake that the method's release, another trainer or this package once made (DESIGN, "Traps"): some text
of a module in the place of some other. It is put into a copy of the repository, in a temporary folder, and the tests
that are named with it must fail there, where they pass without it. A trap whose text is no longer in its module is an
error: the module has changed, and the trap with it.

With `--json`, results are written after every trap, and those that a file holds of the same modules and tests are not
computed again. With `--share`, N traps are drawn by the seed, which is by default the package's text. It ends with 1
where a trap is not caught.
"""

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPIED = ("cgrpo_jax", "configs", "launch", "tests", ".pytest.ini", "setup.py", "README.md")
# A trap may be slow, which is no way to be caught; and all the tests that it names are run, not a share of them.
ENVIRONMENT = {
    "CGRPO_TEST_SECONDS_FACTOR": "1000",
    "CGRPO_TEST_SHARE": "100",
    "CGRPO_TEST_AS_USERS": "",
    "PYTHONDONTWRITEBYTECODE": "1",
}


@dataclasses.dataclass(frozen=True)
class Trap:
    """A mistake.

    Attributes:
      name: what is wrong with it in place.
      file: the module, within the package.
      old, new: its text, once in the module, and the mistake; `more` are further pairs.
      tests: files, or tests in files, of which one must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    more: tuple[tuple[str, str], ...] = ()

    def put_into(self, text: str) -> str:
        """Returns a module's text with the mistake.

        Raises:
          ValueError: it does not hold what the mistake replaces exactly once.
        """
        for old, new in ((self.old, self.new), *self.more):
            if (found := text.count(old)) != 1:
                raise ValueError(
                    f"trap {self.name!r}: {self.file} holds {old!r} {found} times, not once; write it again"
                )
            text = text.replace(old, new)
        return text

    def put_in(self, package: pathlib.Path) -> None:
        """Changes the module of a package."""
        path = package / self.file
        try:
            text = self.put_into(path.read_text(encoding="utf-8") if path.exists() else "")
        except ValueError as error:
            raise SystemExit(str(error)) from None
        path.write_text(text, encoding="utf-8")

    def key(self) -> str:
        """Returns what a result depends on that this program can see."""
        files = [ROOT / "cgrpo_jax" / self.file, *(ROOT / test.partition("::")[0] for test in self.tests)]
        return hashlib.sha256(
            "\0".join([str(self), *(file.read_text(encoding="utf-8") for file in files)]).encode()
        ).hexdigest()[:16]


ADVANTAGES = ("tests/test_advantages.py",)
OBJECTIVE = ("tests/test_objective.py", "tests/test_objective_gradients.py")
RATIOS = ("tests/test_ratios.py", "tests/test_objective_gradients.py")
TRAPS = (
    # --- advantages -----------------------------------------------------------------------------------------------
    Trap(
        "a flag for the standard deviation that nothing reads",
        "objective.py",
        "    if scale_by_std:\n",
        "    if True:\n",
        ADVANTAGES,
    ),
    Trap(
        "a standard deviation of ddof 0",
        "objective.py",
        "jnp.maximum(count_B - 1, 1)",
        "count_B",
        ADVANTAGES,
    ),
    Trap(
        "advantages of equal rewards that are not exactly 0",
        "objective.py",
        "    reward_B = from_lowest(reward_B)\n",
        "",
        ADVANTAGES,
    ),
    Trap(
        "padding in the mean of a group",
        "objective.py",
        "    group_B = jnp.where(valid_B, group_B, num_groups)",
        "    group_B = jnp.where(valid_B, group_B, num_groups - 1)",
        ADVANTAGES,
    ),
    # --- ratios and clipping --------------------------------------------------------------------------------------
    Trap(
        "no gradient through the denominator of the shaped ratio",
        "ratios.py",
        "    return jax.nn.sigmoid(logp - jnp.log(gamma))\n",
        "    return jnp.exp(logp) / (jax.lax.stop_gradient(jnp.exp(logp)) + gamma)\n",
        OBJECTIVE,
    ),
    Trap(
        "refined rows with the policy that sampled in the denominator",
        "ratios.py",
        "shaped_ratio(logp_BT, bounds.gamma)",
        "shaped_ratio(logp_BT - old_logp_BT, bounds.gamma)",
        RATIOS,
    ),
    Trap(
        "a clip without the minimum",
        "ratios.py",
        "    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage)\n",
        "    return jnp.clip(ratio, 1 - clip_low, 1 + clip_high) * advantage\n",
        OBJECTIVE,
    ),
    Trap(
        "one bound for both sides of the clip",
        "ratios.py",
        "jnp.clip(ratio, 1 - clip_low, 1 + clip_high)",
        "jnp.clip(ratio, 1 - clip_low, 1 + clip_low)",
        OBJECTIVE,
    ),
    Trap(
        "a gradient through the weight of cispo",
        "ratios.py",
        "jax.lax.stop_gradient(jnp.minimum(ratio_BT, 1 + bounds.high))",
        "jnp.minimum(ratio_BT, 1 + bounds.high)",
        RATIOS,
    ),
    Trap(
        "a ratio of a whole response over the places of the array",
        "ratios.py",
        "jnp.maximum(mask_BT.sum(axis=1), 1)",
        "mask_BT.shape[1]",
        RATIOS,
    ),
    Trap(
        "a baseline of the first turn that nothing reads",
        "groups.py",
        'grouping.baseline == "group" or row.stage == Stage.RESPONSE',
        "True",
        ("tests/test_groups.py",),
    ),
    Trap(
        "masked rows that no longer count",
        "training/train_step.py",
        "    policy = [row for row in rows if row.loss in WEIGHED]\n",
        "    policy = [row for row in rows if row.loss in WEIGHED and not row.masked]\n",
        ("tests/training/test_train_step.py",),
    ),
    Trap(
        "the KL term the wrong way round",
        "ratios.py",
        "    difference = ref_logp - logp\n",
        "    difference = logp - ref_logp\n",
        OBJECTIVE,
    ),
    # --- masks and denominators -----------------------------------------------------------------------------------
    Trap(
        "infinities of padding in the gradient",
        "ratios.py",
        "    return jnp.exp(jnp.minimum(logp - old_logp, LARGEST_LOG_RATIO))\n",
        "    return jnp.exp(logp - old_logp)\n",
        OBJECTIVE,
    ),
    Trap(
        "the rows at hand for a divisor",
        "objective.py",
        "            return weight_BT / (num_rows * max_length)\n",
        "            return weight_BT / (mask_BT.shape[0] * max_length)\n",
        OBJECTIVE,
    ),
    Trap(
        "the longest row at hand for a divisor",
        "objective.py",
        "            return weight_BT / (num_rows * max_length)\n",
        "            return weight_BT / (num_rows * mask_BT.shape[1])\n",
        OBJECTIVE,
    ),
    Trap(
        "initial and refined rows averaged together where the equations part them",
        "objective.py",
        "jnp.where(refined_B, jnp.maximum(num_refinements, 1), num_responses)",
        "jnp.where(refined_B, num_responses, num_responses)",
        OBJECTIVE,
    ),
    Trap(
        "dropped rows that no longer count",
        "training/train_step.py",
        "    num_rows = len(policy) if num_rows is None else num_rows\n",
        "    num_rows = sum(row.advantage != 0 for row in policy) if num_rows is None else num_rows\n",
        ("tests/training/test_train_step.py",),
    ),
    Trap(
        "rows of advantage 0 dropped although the KL term needs them",
        "training/train_step.py",
        "    return regularised or (row.advantage",
        "    return (row.advantage",
        ("tests/training/test_train_step.py",),
    ),
    Trap(
        "a mask of what is not the padding token",
        "training/loss.py",
        "    mask_BT = jnp.arange(batch.target_BT.shape[1]) < batch.length_B[:, None]\n",
        "    mask_BT = batch.target_BT != 0\n",
        ("tests/training/test_train_step.py",),
    ),
    # --- packing --------------------------------------------------------------------------------------------------
    Trap(
        "packed rows that see their neighbour",
        "training/packing.py",
        "            segment += 1\n",
        "            segment = 1\n",
        ("tests/training/test_packing.py",),
    ),
    Trap(
        "positions that do not start again",
        "training/packing.py",
        "first_position + np.arange(len(ids))",
        "here.start + np.arange(len(ids))",
        ("tests/training/test_packing.py",),
    ),
    Trap(
        "tokens that see the future",
        "models/attention.py",
        "        seen_BST &= index_S[here, None] >= index_S[:end]\n",
        "",
        ("tests/models/test_params.py", "tests/integration/models/test_attention.py"),
    ),
    Trap(
        "a prompt that the second response does not see",
        "models/attention.py",
        "            seen_BST |= (prompt_BS1 > 0) & (prompt_BS1 == segments_BS[:, None, :end])\n",
        "            seen_BST |= (prompt_BS1 == 1) & (prompt_BS1 == segments_BS[:, None, :end])\n",
        ("tests/models/test_attention.py", "tests/training/test_packing.py"),
    ),
    # --- text -----------------------------------------------------------------------------------------------------
    Trap(
        "a form that is asked of responses and not of refinements",
        "critiques/prompts.py",
        'fields = {"question": asked} | ({"response"',
        'fields = {"question": question} | ({"response"',
        ("tests/critiques/test_prompts.py",),
    ),
    Trap(
        "turns of a chat that are dropped in silence",
        "rollout.py",
        "policy.prompts.for_question(problem.question, problem.turns)",
        "policy.prompts.for_question(problem.question)",
        ("tests/integration/test_text_to_rows.py",),
    ),
    Trap(
        "33.3 of a float32 column read as 33.29999923706055",
        "datasets/tables.py",
        "for row in arrow.rows(batch):",
        "for row in batch.to_pylist():",
        ("tests/datasets/test_cells.py",),
    ),
    Trap(
        "half of a surrogate pair that a program has raised in a grade",
        "rewards/answers.py",
        "object.__setattr__(self, name, text_lib.clean(value))",
        "pass",
        ("tests/rewards/test_answers.py",),
    ),
    # --- rubrics --------------------------------------------------------------------------------------------------
    Trap(
        "pitfalls in the denominator of the reward",
        "rewards/rubrics/rubric.py",
        "sum(max(item.weight, 0.0) for item in self.items)",
        "sum(abs(item.weight) for item in self.items)",
        ("tests/rewards/rubrics/test_rubric.py",),
    ),
    Trap(
        "a judgement that can't be read counts as a no",
        "rewards/judge.py",
        "                return _no_grade(next(one for one in found if one.value is None))\n",
        "                some = [Ruling(0.0)]\n",
        ("tests/rewards/test_judge.py",),
    ),
    Trap(
        "a quotation that nobody looks for",
        "rewards/rubrics/replies.py",
        "    if not stands:\n",
        "    if not shown:\n",
        ("tests/rewards/rubrics/test_replies.py",),
    ),
    # --- re-anchoring ---------------------------------------------------------------------------------------------
    Trap(
        "an end-of-turn token that is not trained",
        "groups.py",
        "                target_ids=row.token_ids,\n                old_logp=row.logp,\n",
        "                target_ids=row.token_ids[:-1],\n                old_logp=row.logp[:-1],\n",
        ("tests/integration/test_reanchor.py",),
    ),
    Trap(
        "texts decoded and tokenised again on their way to the update",
        "inference/generators.py",
        "                token_ids=row.token_ids,\n",
        "                token_ids=np.resize(\n"
        "                    self.prompts.tokenizer.encode(self.prompts.tokenizer.decode(row.token_ids)) or [0],\n"
        "                    len(row.token_ids),\n"
        "                ).astype(np.int32),\n",
        ("tests/integration/test_reanchor.py",),
    ),
    Trap(
        "refinements trained after the critique that they saw",
        "groups.py",
        "                context_ids=group.prompt_ids,\n",
        "                context_ids=row.prompt_ids,\n",
        ("tests/integration/test_reanchor.py",),
    ),
    Trap(
        "refinements trained as if they were responses",
        "groups.py",
        "                refined=row.stage == Stage.REFINEMENT,\n",
        "                refined=False,\n",
        ("tests/integration/test_reanchor.py",),
    ),
    Trap(
        "of equal refinements always the first",
        "groups.py",
        "        rng.shuffle(rows)\n",
        "",
        ("tests/integration/test_reanchor.py",),
    ),
    Trap(
        "an old policy that is never refreshed",
        "train.py",
        "            weights, trained = self._weights(), self.critic.writer(self.state)\n",
        '            weights = __import__("jax").tree.map(lambda x: x.copy(), self._weights())\n'
        '            weights, trained = vars(self).setdefault("first", weights), self.critic.writer(self.state)\n',
        ("tests/integration/test_train.py", "tests/integration/test_methods.py"),
    ),
    # --- batches --------------------------------------------------------------------------------------------------
    Trap(
        "questions that are rescued left out of the batch",
        "groups.py",
        "reanchor([solved.responses], kept, join=grouping.join)",
        "reanchor([solved.responses], [], join=grouping.join)",
        ("tests/test_batches.py",),
    ),
    Trap(
        "a batch of the questions that came first, whatever they teach",
        "batches.py",
        "sorted(solved, key=lambda one: not (is_verdict(one) or teaches(one)))[:num_groups]",
        "list(solved)[:num_groups]",
        ("tests/test_batches.py",),
    ),
    Trap(
        "questions that were drawn on and come again in the next iteration",
        "train.py",
        "before=self.progress.extra_questions",
        "before=0",
        ("tests/integration/test_named_methods.py::test_questions_are_drawn_on_and_the_run_resumes_where_it_was",),
    ),
    Trap(
        "verdicts that are rewarded where they praise",
        "batches.py",
        "Grade(float(verdict == right)",
        "Grade(float(verdict is True)",
        ("tests/test_batches.py",),
    ),
    # --- keys -----------------------------------------------------------------------------------------------------
    Trap(
        "the same noise in every iteration",
        "inference/sampling.py",
        "jax.random.fold_in(jax.random.key(seed), iteration)",
        "jax.random.key(seed)",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "a seed of None that is 0",
        "inference/running_slots.py",
        "np.uint32(seed), np.uint32(iteration)",
        "np.uint32(seed or 0), np.uint32(iteration)",
        ("tests/inference/test_engine.py::test_no_seed_is_an_error",),
    ),
    Trap(
        "a retry with the same key",
        "inference/sampling.py",
        "int(i.stage), i.attempt)",
        "int(i.stage), 0)",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "a question drawn twice with the same key",
        "inference/sampling.py",
        "(i.question, i.response,",
        "(0, i.response,",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "critique and response with the same key",
        "inference/sampling.py",
        "int(i.stage), i.attempt)",
        "0, i.attempt)",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "the same noise for all tokens of a text",
        "inference/sampling.py",
        "jax.vmap(jax.random.fold_in)(keys_B, jnp.broadcast_to(position_B, keys_B.shape))",
        "jax.vmap(jax.random.fold_in)(keys_B, jnp.zeros(keys_B.shape, int))",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "log-probabilities of the truncated distribution",
        "inference/sampling.py",
        "jnp.log(vocabulary.sum(jnp.exp(scaled - max_B1)))",
        "jnp.log(vocabulary.sum(jnp.exp((scaled if temperature == 0 else kept) - max_B1)))",
        ("tests/inference/test_sampling.py",),
    ),
    Trap(
        "a refinement's critique with the key of its response's",
        "inference/critic.py",
        "row.index.refinement + 1 if row.stage == Stage.REFINEMENT else 0",
        "row.index.refinement",
        ("tests/test_rollout.py",),
    ),
    Trap(
        "two responses to a question with the same key",
        "rollout.py",
        "RowIndex(question=question, response=i) for i in range(num_responses)",
        "RowIndex(question=question, response=0) for i in range(num_responses)",
        (
            "tests/integration/test_solving.py",
            "tests/integration/test_train.py::test_every_iteration_and_every_place_in_the_batch_has_noise_of_its_own",
        ),
    ),
    # --- checkpoints ----------------------------------------------------------------------------------------------
    Trap(
        "an optimiser that starts again",
        "training/checkpoint.py",
        "for name, tree in wanted.items()})\n\n    def",
        "for name, tree in wanted.items()}).replace(opt_state=template.opt_state)\n\n    def",
        ("tests/training/test_checkpoint.py",),
    ),
    Trap(
        "a count of updates that starts again",
        "training/checkpoint.py",
        "for name, tree in wanted.items()})\n\n    def",
        "for name, tree in wanted.items()}).replace(step=template.step)\n\n    def",
        ("tests/training/test_checkpoint.py",),
    ),
    Trap(
        "a checkpoint without the run's position",
        "training/checkpoint.py",
        "JsonSave(checkpoint_seal.sealed(extra,",
        "JsonSave(checkpoint_seal.sealed({},",
        ("tests/training/test_checkpoint.py",),
    ),
    Trap(
        "the oldest checkpoint in the place of the newest",
        "training/checkpoint.py",
        "sorted(self._manager.all_steps(), reverse=True)",
        "sorted(self._manager.all_steps())",
        ("tests/training/test_checkpoint.py",),
    ),
    Trap(
        "a run that leaves out the iteration it resumes at",
        "train.py",
        "        yield from range(first, number)\n",
        "        yield from range(first + bool(first), number)\n",
        ("tests/integration/test_train.py::test_a_longer_second_run_goes_on_as_if_it_had_been_one",),
    ),
    Trap(
        "a log that keeps an iteration that is run again",
        "runs/run_dir.py",
        'if record["step"] <= step)',
        'if record["step"] <= step + 1)',
        ("tests/runs/test_run_dir.py",),
    ),
    Trap(
        "the same questions in every iteration",
        "datasets/mixture.py",
        "    first = step * batch_size + before\n",
        "    first = before\n",
        ("tests/datasets/test_mixture.py",),
    ),
    Trap(
        "every epoch in the same order",
        "datasets/mixture.py",
        "np.random.default_rng([seed, epoch]).permutation(num_problems)",
        "np.random.default_rng([seed]).permutation(num_problems)",
        ("tests/datasets/test_mixture.py",),
    ),
)


def copy(into: pathlib.Path) -> pathlib.Path:
    """Returns a copy of what tests need of the repository."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, into / name, ignore=ignored, symlinks=True)
        else:
            shutil.copy(source, into / name)
    return into


def failing(root: pathlib.Path, tests: Sequence[str]) -> str | None:
    """Returns the first of some tests that fails, None where all pass; raises where they can't be run.

    A mistake that only raises, such as a name that is not there, is none that anybody needs a test for.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--no-header", "-p", "no:cacheprovider", *tests]
    environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not found or (found.group(2) or "").startswith(("NameError", "SyntaxError", "Import")):
        raise SystemExit(f"pytest can't run {' '.join(tests)} in {root}:\n{done.stdout[-3000:]}{done.stderr[-2000:]}")
    return found.group(1)


def spring(trap: Trap, root: pathlib.Path) -> dict:
    """Puts a trap into a copy, runs its tests there, and takes it out again; returns its line of the results."""
    package, began = root / "cgrpo_jax", time.monotonic()
    before = (package / trap.file).read_bytes() if (package / trap.file).exists() else b""
    trap.put_in(package)
    try:
        caught_by = failing(root, trap.tests)
    finally:
        (package / trap.file).write_bytes(before)
    return {"name": trap.name, "file": trap.file, "caught_by": caught_by, "seconds": round(time.monotonic() - began, 1)}


def package_text() -> str:
    """Returns a digest of the package's text."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "cgrpo_jax").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=pathlib.Path, help="where results are kept")
    parser.add_argument("--only", default="", help="names of traps, with commas between")
    parser.add_argument("--share", type=int, help="how many are drawn")
    parser.add_argument("--seed", default=package_text(), help="by which they are drawn")
    options = parser.parse_args(argv)
    traps = [trap for trap in TRAPS if not options.only or trap.name in options.only.split(",")]
    if options.share is not None:
        traps = random.Random(options.seed).sample(traps, options.share)
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    results = {row["name"]: row for row in kept}
    with tempfile.TemporaryDirectory() as folder:
        root = copy(pathlib.Path(folder))
        for trap in TRAPS:  # all, also those that are not drawn: each must still be one
            before = (root / "cgrpo_jax" / trap.file).read_bytes()
            trap.put_in(root / "cgrpo_jax")
            (root / "cgrpo_jax" / trap.file).write_bytes(before)
        left = [trap for trap in traps if results.get(trap.name, {}).get("key") != trap.key()]
        tests = sorted({test for trap in left for test in trap.tests})
        if tests and (broken := failing(root, tests)):
            raise SystemExit(f"{broken} fails without any trap; fix it first")
        for trap in left:
            results[trap.name] = spring(trap, root) | {"key": trap.key()}
            print(f"{results[trap.name]['caught_by'] or 'NOT CAUGHT'}: {trap.name}", flush=True)
            if options.json:
                rows = [results[trap.name] for trap in TRAPS if trap.name in results]
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    missed = [trap.name for trap in traps if not results[trap.name]["caught_by"]]
    print(
        f"{len(traps) - len(missed)} of {len(traps)} traps are caught"
        + "".join(f"\nnot caught: {one}" for one in missed)
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
