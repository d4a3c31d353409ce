"""What a newcomer does first, in a fresh environment: every command with its seconds, and no override given twice.

    python tests/benchmarks/newcomer.py [--here] [--python=python3.12] [--workdir=DIR] [--json=FILE]

40 questions of one's own, a reward function as TRL has it, and a tiny Hugging Face folder that `transformers` has
written: `pip install` of this checkout into a new environment, then `cgrpo init`, two iterations of `train`, `sample`,
`evaluate` and `convert`, and the folder that comes out is loaded by `transformers`, whose logits change with training
and which continues a prompt. With `--here` nothing is installed: the commands are those of the Python that runs this.

This Python needs transformers and torch; the new environment has the package and what it requires, nothing else. It
ends with 1 at the first command that fails, prints a stack trace, or leaves out what it should leave behind.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUESTIONS, HELD_OUT, ITERATIONS = 40, 8, 2
REWARD = '''"""My reward."""


def score(prompts, completions, answer, **kwargs):
    """1 where the answer is the last number; else a little for digits, so that a model that knows nothing can start."""
    rewards = []
    for text, gold in zip(completions, answer):
        digits = sum(letter.isdigit() for letter in text)
        words = text.replace(".", " ").split()
        rewards.append(1.0 if words and words[-1] == gold else 0.5 * digits / (1 + len(text)))
    return rewards
'''
# What transformers writes, without a download: a Llama of two layers, a tokenizer of bytes with a chat template.
MODEL = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
special = ["<pad>", "<s>", "</s>"]
plain = Tokenizer(models.BPE({piece: i for i, piece in enumerate(special + letters)}, []))
plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
plain.decoder = decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
tokenizer.chat_template = (
    "{% for m in messages %}{{ '<s>' + m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant: ' }}{% endif %}"
)
config = LlamaConfig(
    vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer

before, after = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in sys.argv[1:])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
chat = [{"role": "user", "content": "What is 3 + 4?"}]
text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
given = tokenizer(text, return_tensors="pt", add_special_tokens=False)
with torch.no_grad():
    moved = (after(**given).logits - before(**given).logits).abs().max().item()
written = after.generate(**given, max_new_tokens=8, do_sample=False)
said = tokenizer.decode(written[0, given["input_ids"].shape[1]:])
print("logits moved by", moved, "and 8 more tokens are", repr(said))
sys.exit(0 if 0 < moved < 1 else "the exported model is the one before, or another one")
"""


class Failed(Exception):
    """A command did not do what it should."""


class Newcomer:
    """Gives commands in a folder, one after the other, and keeps what they took.

    Attributes:
      rows: of each command what was typed, its seconds, and its status.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.rows = folder, []
        self.environment = {name: os.environ[name] for name in os.environ if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        self.environment |= {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder / "cache")}

    def types(self, *command: str | os.PathLike, shown: str = "") -> str:
        """Gives a command; returns what it printed.

        Raises:
          Failed: its status is not 0, or it printed a stack trace.
        """
        words = [str(one) for one in command]
        began = time.monotonic()
        done = subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)
        seconds = round(time.monotonic() - began, 1)
        line = shown or " ".join([pathlib.Path(words[0]).name, *words[1:]])
        self.rows.append({"command": line, "seconds": seconds, "status": done.returncode})
        print(f"{seconds:7.1f} s  {line}", flush=True)
        said = done.stdout + done.stderr
        if done.returncode or "Traceback" in said:
            raise Failed(f"{line}: status {done.returncode}\n{said[-3000:]}")
        return said

    def has(self, path: str, holds: Callable[[str], bool] = bool) -> str:
        """Returns the text of a file that must be there and hold something."""
        file = self.folder / path
        text = file.read_text(encoding="utf-8") if file.is_file() else ""
        if not holds(text):
            raise Failed(f"{path} is not what it should be: {text[:300] or 'missing'}")
        return text


def write_own(folder: pathlib.Path) -> None:
    """Writes what a newcomer has: questions, and a reward function."""
    rows = [{"question": f"What is {a} + {a * a % 7}?", "answer": str(a + a * a % 7)} for a in range(QUESTIONS)]
    for name, some in (("train", rows), ("test", rows[:HELD_OUT])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "reward.py").write_text(REWARD)


def walk(one: Newcomer, cgrpo: Sequence[str | os.PathLike], transformers: str) -> None:
    """Gives the commands of a first day; what is given once is not given again."""
    write_own(one.folder)
    one.types(transformers, "-c", MODEL, "model", shown="(transformers writes a tiny model)")
    said = one.types(
        *cgrpo, "init", "--data=train.jsonl", "--eval=test.jsonl", "--model=model", "--reward=reward.py:score",
        "--out=my_run.py",
    )  # fmt: skip
    train = _next(said)
    one.types(*cgrpo, *train, f"--config.num_iterations={ITERATIONS}")
    one.has("runs/my_run/metrics.jsonl", lambda text: text.count("\n") == ITERATIONS)
    one.has("runs/my_run/summary.json", lambda text: json.loads(text)["iterations"] == ITERATIONS)
    one.types(*cgrpo, "sample", "--workdir=runs/my_run", "--question=What is 3 + 4?")
    one.types(*cgrpo, "evaluate", "--workdir=runs/my_run")
    one.has("runs/my_run/evaluation/summary.json", lambda text: "pass@1" in text)
    one.types(*cgrpo, "convert", "--from=runs/my_run", "--to_hf=exports/my_run")
    one.types(transformers, "-c", LOAD, "model", "exports/my_run", shown="(transformers loads exports/my_run)")


def _next(said: str) -> list[str]:
    """Returns the words of the command that `cgrpo init` says comes next."""
    found = re.search(r"next: cgrpo (train .*)", said)
    if not found:
        raise Failed(f"init does not say what comes next: {said[-500:]}")
    return found[1].split()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--here", action="store_true", help="install nothing")
    parser.add_argument("--python", default=sys.executable, help="of the new environment")
    parser.add_argument("--workdir", type=pathlib.Path, help="folder to work in, which must not be there")
    parser.add_argument("--json", type=pathlib.Path, help="where the seconds are kept")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = options.workdir or pathlib.Path(name) / "first"
        folder.mkdir(parents=True)
        one = Newcomer(folder)
        try:
            if options.here:
                one.environment["PYTHONPATH"] = str(ROOT)
                cgrpo = [sys.executable, "-m", "cgrpo_jax"]
            else:
                one.types(options.python, "-m", "venv", "venv")
                one.types(folder / "venv/bin/pip", "install", "--quiet", ROOT, shown="pip install .")
                cgrpo = [folder / "venv/bin/cgrpo"]
            walk(one, cgrpo, sys.executable)
        except Failed as error:
            print(error, flush=True)
            return 1
    total = sum(row["seconds"] for row in one.rows)
    print(f"{total:7.1f} s  in all, {len(one.rows)} commands", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"cores": os.cpu_count(), "rows": one.rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
