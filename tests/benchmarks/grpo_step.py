"""Whole GRPO steps in a process of their own, for update.py: their seconds, and the most memory that they held.

    python tests/benchmarks/grpo_step.py --json=FILE [--shape=tiny] [--remat=none] [--realistic] [--steps=3]

A step is what `train` does in an iteration without critiques: the weights are laid out for generation, the engine
responds, responses are rewarded, the group's mean is the baseline, and one update follows. Prompts are random and new
in each step, the reward of a response is the share of its even tokens, no response ends early. With `--realistic`
responses are 20 to 64 tokens long, and in half of the groups all rewards are 0.
"""

import argparse
import json
import pathlib
import resource
import statistics
import time
from collections.abc import Sequence

import jax
import numpy as np
from report import progress
from workloads import UPDATES, UpdateWorkload

from cgrpo_jax import groups as groups_lib
from cgrpo_jax import sharding
from cgrpo_jax.groups import Grouping
from cgrpo_jax.inference import weights as weights_lib
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import Author, Rollout, RowIndex, TrainState
from cgrpo_jax.runtime import processes
from cgrpo_jax.training import optimizer, packing, train_step

_DTYPE = "float32"


class Steps:
    """What steps share.

    Args:
      work: what is computed.
      remat: what is computed again in the backward pass.
      realistic: uneven lengths, and half of the groups without a difference in reward.
    """

    def __init__(self, work: UpdateWorkload, *, remat: str, realistic: bool):
        self.work, self.remat, self.realistic = work, remat, realistic
        self.mesh = sharding.one_device()
        self.optimizer = optimizer.make_optimizer(learning_rate=1e-6)
        self.engine = Engine(
            work.config,
            eos_ids=(),
            num_slots=work.prompts * work.generations,
            length=work.prompt + work.new,
            longest_prompt=work.prompt,
            prompt_bucket=work.prompt,
            mesh=self.mesh,
        )

    def begin(self) -> TrainState:
        config = self.work.config
        shapes = sharding.placed(params_lib.logical_axes(config), params_lib.param_shapes(config), self.mesh)
        params = params_lib.init_params(config, seed=0, shardings=sharding.shardings_of(shapes))
        return optimizer.init_state(params, self.optimizer)

    def step(self, state: TrainState, number: int) -> tuple[TrainState, dict[str, float]]:
        """Returns the state after a step, and the seconds of its two parts."""
        began = time.monotonic()
        responses = self.respond(state, number)
        groups = groups_lib.train_rows(groups_lib.reanchor(responses, []), Grouping(self.work.generations))
        generated = time.monotonic()
        state, _ = train_step.update(
            state,
            [row for group in groups for row in group],
            optimizer=self.optimizer,
            config=self.work.config,
            settings=train_step.LossSettings(max_length=self.work.new),
            shape=shape(self.work, num_token_rows=1 if self.realistic else self.work.prompts),
            num_questions=len(groups),
            remat=self.remat,
            dtype=_DTYPE,
            mesh=self.mesh,
        )
        jax.block_until_ready(state)
        ended = time.monotonic()
        return state, {"step": ended - began, "generate": generated - began, "update": ended - generated}

    def respond(self, state: TrainState, number: int) -> list[list[Rollout]]:
        work, rng = self.work, np.random.default_rng(number)
        prompts = rng.integers(0, work.config.vocab_size, (work.prompts, work.prompt), dtype=np.int32)
        lengths = np.full((work.prompts, work.generations), work.new)
        if self.realistic:
            lengths = rng.integers(work.shortest, work.new + 1, lengths.shape)
            lengths.flat[rng.integers(lengths.size)] = work.new
        weights = weights_lib.to_generation(
            state.params, config=work.config, mesh=self.mesh, dtype=_DTYPE, split=weights_lib.splits(self.mesh)
        )
        self.engine.begin(weights, seed=0, iteration=number)
        for q, prompt in enumerate(prompts):
            indices = [RowIndex(question=q, response=n) for n in range(work.generations)]
            if not self.realistic:
                self.engine.add(Request(prompt, indices, work.new))
                continue
            for index in indices:  # each has its own length
                self.engine.add(Request(prompt, [index], int(lengths[q, index.response])))
        responses: list[list] = [[None] * work.generations for _ in prompts]
        while self.engine.busy:
            for request, i, sampled in self.engine.step():
                index = request.indices[i]
                uniform = self.realistic and index.question >= (work.prompts + 1) // 2
                responses[index.question][index.response] = Rollout(
                    index=index,
                    author=Author.POLICY,
                    weights_step=number,
                    prompt_ids=prompts[index.question],
                    token_ids=sampled.token_ids,
                    logp=sampled.logp,
                    text="",
                    reward=0.0 if uniform else float(np.mean(sampled.token_ids % 2 == 0)),
                )
        self.engine.end()
        return responses


def shape(work: UpdateWorkload, *, num_token_rows: int) -> packing.PackShape:
    """Returns packed batches of one group a token row, and room for its rows."""
    group = work.prompt - 1 + work.generations * work.new
    return packing.PackShape(num_token_rows, -(-group // 64) * 64, num_token_rows * work.generations)


def peak_gib() -> float:
    """Returns the most memory that this process has held."""
    try:
        # Of this program alone: ru_maxrss starts with what the process held that started it.
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii").split()
        return int(status[status.index("VmHWM:") + 1]) / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--shape", choices=tuple(UPDATES), default="smollm2-135m")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--realistic", action="store_true")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=2)
    given = parser.parse_args(arguments)
    processes.start()  # as `train` does: how memory is kept is part of what is measured
    steps = Steps(UPDATES[given.shape], remat=given.remat, realistic=given.realistic)
    state, rows = steps.begin(), []
    for number in range(given.warmup + given.steps):
        state, seconds = steps.step(state, number)
        progress(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
        rows.append(seconds)
    measured = rows[given.warmup :]
    medians = {f"median_{name}_s": statistics.median(row[name] for row in measured) for name in measured[0]}
    found = medians | {"ru_maxrss_gib": peak_gib(), "rows": rows}
    given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
