"""The code task from end to end, in miniature: programs that are sampled, run in the real sandbox and refined."""

import re
import sys

import paths
import pytest
from tiny_run import SMALL, metrics, samples

from cgrpo_jax import sample as sample_lib
from cgrpo_jax import train
from cgrpo_jax.critiques import texts
from cgrpo_jax.datasets.tasks import snippets
from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import load_questions, model_source, validate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")

CONFIG = paths.CONFIGS / "code_quickstart.py"
OWN = ("data.chain_length", "max_prompt_length", "max_response_length", "refine.max_prompt_length", "packing.length")
MINIATURE = {key: value for key, value in SMALL.items() if not key.startswith(OWN)} | {
    "data.chain_length": 1,
    "data.num_eval": 0,
    "data.hard_share": 0.5,
    "model.max_context": 96,
    "warm_start.num_updates": 60,
    "warm_start.rows_per_update": 32,
    "num_iterations": 1,
    "num_responses": 3,
}


def config(**changes):
    c = config_lib.load(CONFIG)
    c.update_from_flattened_dict(MINIATURE | changes)
    return config_lib.freeze(c)


def operation_of(program):
    """Returns the operation that a program of one argument applies; None if it is no such program."""
    return next((step for step in snippets.operations() if snippets.write([step]) == program), None)


def test_a_run_with_execution_critiques(tmp_path, capsys):
    c = config()
    train.main(c, str(tmp_path))
    words, seen = load_questions.source(c).glossary().words, 0
    for sample in samples(tmp_path):
        (right,) = snippets.steps(sample["question"], words)
        if attempt := operation_of(sample["response"]):
            assert sample["reward"] == float(attempt == right)
            if sample["critique"]:
                said = snippets.feedback([attempt], [right], snippets.pick_inputs(sample["question"]))
                assert sample["critique"] == texts.of_tests(False, said)
                seen += 1
        if refined := operation_of(sample["refinement"]):
            assert sample["refinement_reward"] == float(refined == right)
    assert seen
    (row,) = metrics(tmp_path)
    assert row["refine/attempted"] > 0 and row["grade/timeouts"] == 0
    capsys.readouterr()
    sample_lib.main(c, str(tmp_path), "f(a): a plus 3", None)  # whose tests follow from the question
    assert re.search(r"^refinement \(reward [01]\):$", capsys.readouterr().out, re.MULTILINE)


def test_the_configuration_leaves_room():
    c = config_lib.freeze(config_lib.load(CONFIG))
    validate.check(c)
    tokenizer = load_tokenizer(model_source.tokenizer_folder("snippets"))
    longest = snippets.write([("+", 20)] * c.data.chain_length)
    assert len(tokenizer.encode(longest)) < c.max_response_length


def test_a_run_with_a_library_of_ones_own_is_resumed_with_that_alone(tmp_path):
    library = tmp_path / "hydro.py"
    library.write_text("def level(n): return n\n")
    c = config(**{"code.modules": (str(library),), "num_iterations": 0, "warm_start.num_updates": 0})
    train.main(c, str(tmp_path / "run"))
    library.write_text("def level(n): return n + 1\n")
    with pytest.raises(UserError, match="changed since .* began: the module hydro; restore the files"):
        train.main(c, str(tmp_path / "run"))
    library.unlink()
    with pytest.raises(UserError, match="hydro.py' does not exist; give a file"):
        train.main(c, str(tmp_path / "run"))
