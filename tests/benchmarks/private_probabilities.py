"""How likely are the tokens of a private library to a model that has never seen it? That says where gamma must lie.

    python tests/benchmarks/private_probabilities.py --model=FOLDER [--tasks=112]
        [--json=configs/results/private_probabilities.json]

A refined token of probability pi learns by `gamma pi / (pi + gamma)^2`, the gradient of `pi / (pi + gamma)` by
`log pi`: a quarter at pi = gamma, and about `pi / gamma` far below it. So the right programs of the tasks over the two
libraries that no result is reported of (configs/studies/private_libraries.py) are scored as answers to the question
alone, in float32 at temperature 1. The table has the tokens of a program by their probability, and for each gamma the
mean weight of such a token.
"""

import argparse
import json
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import private_gate

from cgrpo_jax.models import params as params_lib
from cgrpo_jax.runs import build_model
from cgrpo_jax.runs import settings as settings_lib
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.scoring import score_rows
from cgrpo_jax.training.sft import lesson

EDGES = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
GAMMAS = (0.1, 0.01, 0.001)


def probabilities(model_folder: str, tasks: int) -> list[np.ndarray]:
    """Returns of each task the probability of each token of its right program."""
    with tempfile.TemporaryDirectory() as folder:
        private_gate.MADE["main"](f"{folder}/data")
        config = private_gate.Trial(model_folder, pathlib.Path(folder), tasks, 1).config()
        rows = [json.loads(line) for line in (pathlib.Path(folder) / "data" / "tune.jsonl").open()][:tasks]
        config = settings_lib.with_lengths(config)
        mesh = build_model.make_mesh(config)
        model = build_model.load_policy(config, settings_lib.run_settings(config, mesh))
    params = build_model.load_weights(model, model.placed(params_lib.param_shapes(model.config)))
    lessons = [lesson(model.prompts, model.prompts.for_question(row["question"]), row["solution"]) for row in rows]
    shape = PackShape(1, config.packing.length, config.packing.slots)
    scored = score_rows(
        params, lessons, config=model.config, shape=shape, max_length=config.max_response_length, mesh=mesh
    )
    return [np.exp(logp) for logp in scored]


def report(tokens: Sequence[np.ndarray]) -> dict:
    """Returns the bins: tokens of a program in each, and their mean weights.

    Example:
      >>> report([np.array([0.001, 0.5])])["bins"][3]
      {'from': 0.001, 'to': 0.01, 'tokens': 1.0, 'weights': {'0.1': 0.0098, '0.01': 0.0826, '0.001': 0.25}}
    """
    pi, bins = np.concatenate(tokens), []
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        here = pi[(pi >= low) & ((pi < high) | (high == 1.0))]
        weights = {
            str(gamma): round(float(np.mean(gamma * here / (here + gamma) ** 2)), 4) if here.size else None
            for gamma in GAMMAS
        }
        bins.append({"from": low, "to": high, "tokens": round(here.size / len(tokens), 2), "weights": weights})
    return {"programs": len(tokens), "tokens": round(pi.size / len(tokens), 1), "bins": bins}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder")
    parser.add_argument("--tasks", type=int, default=112)
    parser.add_argument("--json", type=pathlib.Path)
    given = parser.parse_args(arguments)
    found = report(probabilities(given.model, given.tasks))
    print("| probability | tokens a program | " + " | ".join(f"weight, gamma {gamma}" for gamma in GAMMAS) + " |")
    print("|---" * (len(GAMMAS) + 2) + "|")
    for one in found["bins"]:
        print(
            f"| {one['from']:g} to {one['to']:g} | {one['tokens']} | "
            + " | ".join(map(str, one["weights"].values()))
            + " |"
        )
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
