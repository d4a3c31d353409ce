"""The page of the study of SmolLM2-135M on word problems, from its metrics in configs/results, in seconds.

    python configs/studies/word_problems_page.py --out=runs/word_problems.html

Six runs, GRPO and Critique-GRPO with three seeds each. What they wrote was not kept, so the page has curves alone.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

from cgrpo_jax.report import page, run_folder
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import console

CONFIGS = pathlib.Path(__file__).resolve().parents[1]
ARMS = {
    "grpo": ("GRPO, n = 8", {"refine.kind": "none", "num_responses": 8}),
    "critique_grpo": ("Critique-GRPO, n = 7, k = 1", {}),
}
SEEDS = {0: "", 1: ".seed1", 2: ".seed2"}


def runs(folder: pathlib.Path) -> list[RunFolder]:
    """Returns the six runs, of folders that are written with what was kept of them.

    Args:
      folder: in which they are made.
    """
    found = []
    for arm, (words, changes) in ARMS.items():
        for seed, suffix in SEEDS.items():
            kept = CONFIGS / "results" / f"smollm2_words.{arm}{suffix}.jsonl"
            config = config_lib.load(CONFIGS / "smollm2_words.py")
            config.update_from_flattened_dict({"seed": seed, "model.folder": "SmolLM2-135M-Instruct"} | changes)
            run = folder / f"{arm}, seed {seed}"
            run.mkdir()
            (run / "config.json").write_text(json.dumps(config_lib.to_json(config_lib.freeze(config))))
            shutil.copy(kept, run / "metrics.jsonl")
            found.append(run_folder.read(run, arm=words))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the page")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        written = page.write(runs(pathlib.Path(folder)), out, max_groups=0)
    console.say(f"wrote {written.path} ({written.bytes / 1e6:.1f} MB)", sys.stdout)


if __name__ == "__main__":
    main()
