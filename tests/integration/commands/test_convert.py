"""What takes longer than a unit test may, of tests/commands/test_convert.py."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import convert_cases
import numpy as np
import paths
import patience
import pytest
import tiny_run
from convert_cases import refused
from converted import same_bits, weights
from hf_folders import stored_tensors

from cgrpo_jax import convert, train
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora, params
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.training.checkpoint import restore_params

source = convert_cases.source  # the fixture
checkpoint = convert_cases.checkpoint  # the fixture


REPOSITORY = paths.ROOT


def test_a_run_goes_out_and_comes_in_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    start = pathlib.Path(tiny_run.start())
    convert.export_hf(start, tmp_path / "hf")
    card = (tmp_path / "hf" / "README.md").read_text()
    assert json.loads((start / "config.json").read_text()) == json.loads(
        card.partition("## Training configuration")[2].partition("```json")[2].partition("```")[0]
    )
    assert all(b"sk-secret" not in file.read_bytes() for file in (tmp_path / "hf").iterdir())
    convert.import_hf(tmp_path / "hf", tmp_path / "checkpoint")
    nothing = {f"model.{key}": 0 for key in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim")}
    nothing |= {"model.tokenizer": "", "model.max_context": 0, "warm_start.num_updates": 0, "data.num_eval": 0}
    whole = tiny_run.run(tmp_path / "run", {"data.num_eval": 0}, num_iterations=1)
    for number, place in enumerate(("folder", "init")):
        given = tmp_path / ("hf" if place == "folder" else "checkpoint")
        changes = nothing | {f"model.{place}": str(given), "num_iterations": 1}
        train.main(tiny_run.config(changes), str(tmp_path / f"again{number}"))
        assert tiny_run.samples(tmp_path / f"again{number}") == tiny_run.samples(whole)


LORA = {"lora.rank": 2, "lora.alpha": 4.0, "data.num_eval": 0, "num_iterations": 1, "optimizer.learning_rate": 1e-2}


def lora_run(folder):
    """Trains adapters of `base`, in `run`."""
    convert.export_hf(pathlib.Path(tiny_run.start()), folder / "base")
    changes = LORA | {"model.folder": str(folder / "base"), "model.tokenizer": "", "warm_start.num_updates": 0}
    train.main(tiny_run.config(changes), str(folder / "run"))
    return folder / "run"


def test_adapters_go_out_merged_or_alone(tmp_path):
    lora_run(tmp_path)
    config = hf_config.read_config(tmp_path / "base")
    settings = lora.LoraSettings(2, 4.0, ("q", "k", "v", "o", "gate", "up", "down"))
    adapters = restore_params(tmp_path / "run", lora.adapter_shapes(config, settings))
    base = restore_params(tiny_run.start(), params.param_shapes(config))
    merged = stored_tensors({k: _numpy(v) for k, v in lora.Base(base, 2.0).merge(adapters).items()}, config)
    convert.export_hf(tmp_path / "run", tmp_path / "merged")
    out = weights(tmp_path / "merged")
    assert out.keys() == merged.keys()
    for name, tensor in out.items():
        np.testing.assert_allclose(tensor, merged[name], atol=1e-6)
    assert not np.array_equal(
        out["model.layers.0.mlp.up_proj.weight"], weights(tmp_path / "base")["model.layers.0.mlp.up_proj.weight"]
    )

    convert.export_peft(tmp_path / "run", tmp_path / "peft")
    same_bits(weights(tmp_path / "peft"), dict(lora.peft_tensors(adapters)))
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["r"] == 2

    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="the adapters' base .* does not exist; name the folder .* with --base"):
        convert.export_hf(tmp_path / "run", tmp_path / "again")
    convert.export_hf(tmp_path / "run", tmp_path / "again", base=str(tmp_path / "moved"))
    same_bits(weights(tmp_path / "again"), out)


def _numpy(tree):
    return {k: _numpy(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree)


def test_checkpoints_that_cannot_be_read(tmp_path, checkpoint, capsys):
    out = f"--to_hf={tmp_path / 'out'}"
    assert "has no checkpoint of step 7; it has 0" in refused(capsys, f"--from={checkpoint}", out, "--step=7")
    assert "so it has no adapters" in refused(capsys, f"--from={checkpoint}", f"--to_peft={tmp_path / 'out'}")
    assert "holds whole weights, no adapters; leave --base out" in refused(
        capsys, f"--from={checkpoint}", out, "--base=x"
    )
    spoilt = tmp_path / "spoilt"
    shutil.copytree(checkpoint, spoilt)
    for file in (spoilt / "checkpoints" / "0" / "params").rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:100])
    # In a process of its own: Orbax drops the tasks that read the other arrays, which Python reports at a later time.
    command = [sys.executable, "-m", "cgrpo_jax.convert", f"--from={spoilt}", out]
    process = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    errors = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert process.returncode == 2 and len(errors) == 1 and "can't be read" in errors[0], process.stderr
    shutil.rmtree(spoilt / "model")
    assert "has no folder model, which says what model its checkpoints are of" in refused(
        capsys, f"--from={spoilt}", out
    )
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


LIMITED = """
    import resource, sys
    from cgrpo_jax import convert
    from cgrpo_jax.runs import cli
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    cli.run(convert.main, flags=convert.FLAGS, argv=sys.argv[2:])
"""


@pytest.mark.parametrize("limit", [3000, 5000])  # met by the tokenizer, and by the weights
@pytest.mark.parametrize("way", ["import", "export"])
def test_a_disk_that_takes_no_more(tmp_path, checkpoint, source, way, limit):
    """The kernel refuses to let a file grow, as it does where a disk is full: no folder is left."""
    flags = [f"--from={checkpoint}", f"--to_hf={tmp_path / 'out'}"]
    if way == "import":
        flags = [f"--from_hf={source}", f"--to={tmp_path / 'out'}"]
    path = paths.python_path()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), str(limit), *flags],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "c")},
        capture_output=True,
        text=True,
        timeout=patience.seconds(120),
    )
    assert done.returncode == 2, done.stderr
    # Nothing is printed but the progress bar, which redraws its line, and what went wrong.
    (error,) = [line for line in done.stderr.splitlines() if line and "param/s]" not in line]
    assert error.startswith(f"error: {tmp_path / 'out'}") and "can't be written: a file would be larger" in error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


KILLED = """
    import os, signal, sys
    from cgrpo_jax import convert
    from cgrpo_jax.models.hf import export
    from cgrpo_jax.runs import cli
    export._Writer.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    cli.run(convert.main, flags=convert.FLAGS, argv=sys.argv[1:])
"""


def test_a_killed_export_looks_like_none(tmp_path, checkpoint, source):
    path = paths.python_path()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), f"--from={checkpoint}", f"--to_hf={tmp_path / 'out'}"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=patience.seconds(120),
    )
    assert done.returncode == -9 and sorted(path.name[:13] for path in tmp_path.iterdir()) == [
        ".out.lock",
        ".out.partial-",
    ]
    convert.export_hf(checkpoint, tmp_path / "out")
    same_bits(weights(tmp_path / "out"), weights(source))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
