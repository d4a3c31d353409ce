"""What the tests of commands/test_convert share with those that take longer."""

import ml_dtypes
import pytest
from converted import make_folder
from hf_folders import LLAMA

from cgrpo_jax import convert
from cgrpo_jax.runs import cli


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("source") / "llama", LLAMA, dtype=ml_dtypes.bfloat16, shards=2)


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("checkpoint") / "llama"
    convert.import_hf(source, target)
    return target


def refused(capsys, *arguments):
    """Returns the one line that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.run(convert.main, flags=convert.FLAGS, argv=[str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert caught.value.code == 2 and error.startswith("error: ")
    return error
