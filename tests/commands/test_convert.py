"""Hugging Face folders to checkpoints and back, runs to folders, and every way in which that can fail."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import paths
import pytest
import tiny_run
from converted import made_up_lora_run, make_folder, same_bits, weights
from hf_folders import FAMILIES, LLAMA, stored_tensors

from cgrpo_jax import convert, train
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora, params
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.runs import cli
from cgrpo_jax.training.checkpoint import restore_params

REPOSITORY = paths.ROOT


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("source") / "llama", LLAMA, dtype=ml_dtypes.bfloat16, shards=2)


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    target = tmp_path_factory.mktemp("checkpoint") / "llama"
    convert.import_hf(source, target)
    return target


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_there_and_back_to_the_last_bit(tmp_path, family, dtype):
    source = make_folder(tmp_path / "source", FAMILIES[family], dtype=dtype)
    convert.import_hf(source, tmp_path / "checkpoint")
    convert.export_hf(tmp_path / "checkpoint", tmp_path / "back")
    same_bits(weights(tmp_path / "back"), weights(source))
    assert hf_config.read_config(tmp_path / "back") == hf_config.read_config(source)
    settings = json.loads((tmp_path / "back" / "config.json").read_text())
    assert settings["dtype"] == settings["torch_dtype"] == np.dtype(dtype).name


def test_a_folder_is_complete(source, checkpoint, tmp_path):
    convert.export_hf(checkpoint, tmp_path / "out", dtype="float16", max_shard_bytes=4000)
    for name in ("tokenizer.model", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.7 and generation["top_k"] == 20
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == weights(source).keys() and len(set(index.values())) > 1
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {np.dtype(np.float16)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ") and "weights in float16" in card
    assert not list(tmp_path.glob(".*"))


# --- runs ---------------------------------------------------------------------------------------------------------


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


LORA = {"lora.rank": 2, "lora.alpha": 4.0, "data.num_eval": 0, "num_iterations": 1, "learning_rate": 1e-2}


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


# --- what goes wrong ----------------------------------------------------------------------------------------------


def refused(capsys, *arguments):
    """Returns the one line that a command ends with."""
    with pytest.raises(SystemExit) as caught:
        cli.run(convert.main, flags=convert.FLAGS, argv=[str(argument) for argument in arguments])
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert caught.value.code == 2 and error.startswith("error: ")
    return error


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "it is not clear what to convert from nothing; give --from_hf and --to"),
        (["--from_hf=a"], "it is not clear what to convert from --from_hf"),
        (["--from_hf=a", "--to_hf=b"], "it is not clear what to convert from --from_hf, --to_hf"),
        (["--from=a", "--to_hf=b", "--to_peft=c"], "it is not clear what to convert"),
        (["--from_hf=a", "--to=b", "--step=1"], "--step means nothing to --to"),
        (["--from_hf=a", "--to=b", "--base=c"], "--base means nothing to --to"),
        (["--from=a", "--to_peft=b", "--dtype=float32"], "--dtype means nothing to --to_peft"),
        (["--from=a", "--to_hf=b", "--dtype=int8"], "--dtype 'int8' is unknown; use one of float32, bfloat16"),
        (["--from_hf=a", "--to=b", "--dtype=float16"], "--dtype float16 may lack the values"),
        (["--from=a", "--to_hf=b", "--max_shard_gb=0"], "--max_shard_gb 0.0 is no size of a file; use a positive one"),
        (["--from=a", "--to_hf=b", "--max_shard_gb=nan"], "--max_shard_gb nan is no size"),
        (["--from=a", "--to_hf=b", "--max_shard_gb=1e300"], "--max_shard_gb 1e+300 is no size"),
        (["--from=a", "--to_hf=b", "--max_shard_gb=inf"], "--max_shard_gb inf is no size"),
        (["--from_hf=a", "--to=b", "--max_shard_gb=5"], "--max_shard_gb means nothing to --to; leave it out"),
        (["--from=a", "--to_peft=b", "--max_shard_gb=5"], "--max_shard_gb means nothing to --to_peft"),
        (["--from_hf=nowhere", "--to=b"], "nowhere/config.json does not exist"),
        (["--from_hf=Qwen/Qwen2.5-7B", "--to=b"], "models are not fetched by name: download Qwen/Qwen2.5-7B first"),
        ([f"--from_hf={__file__}", "--to=b"], "test_convert.py is a file; give the folder that holds config.json"),
        (["--from=nowhere", "--to_hf=b"], "nowhere holds no checkpoints; give the --workdir of a run"),
    ],
)
def test_commands_that_make_no_sense(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.iterdir())


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(folder):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:-7])


def pickle_only(folder):
    for file in folder.glob("*.safetensors*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def only_adapters(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def lfs_pointer(folder):
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")


@pytest.mark.parametrize(
    "spoil, message",
    [
        (truncate, "is truncated or not a safetensors file"),
        (lambda f: sorted(f.glob("*.safetensors"))[0].unlink(), "which is not in"),
        (lambda f: change_config(f, model_type="gpt2"), "model_type 'gpt2' is not supported; use one of llama"),
        (lambda f: change_config(f, vocab_size=20), "the model embeds 20; use the tokenizer that came with the model"),
        (lambda f: (f / "config.json").unlink(), "config.json does not exist; give a Hugging Face model folder"),
        (only_adapters, "holds adapters alone: merge them into their base first"),
        (lfs_pointer, "it is a pointer of Git LFS, so run `git lfs pull` in its folder"),
        (pickle_only, "only pickled weights (pytorch_model.bin), which can run code when read; convert them"),
    ],
    ids=["truncated", "missing shard", "model_type", "vocabulary", "no config", "adapters", "LFS", "pickle"],
)
def test_folders_that_cannot_be_read(tmp_path, source, capsys, spoil, message):
    folder = tmp_path / "spoilt"
    shutil.copytree(source, folder)
    spoil(folder)
    assert message in refused(capsys, f"--from_hf={folder}", f"--to={tmp_path / 'out'}")
    assert [path.name for path in tmp_path.iterdir()] == ["spoilt"]


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


def test_folders_given_by_the_wrong_flag(tmp_path, checkpoint, capsys):
    out = f"--to={tmp_path / 'out'}"
    for settings in (None, {"num_iterations": 3}):  # a converted checkpoint; a run
        folder = shutil.copytree(checkpoint, tmp_path / "given")
        if settings:
            (folder / "config.json").write_text(json.dumps(settings))
        assert f"given holds checkpoints: convert it with --from={folder}" in refused(
            capsys, f"--from_hf={folder}", out
        )
        shutil.rmtree(folder)


def test_a_checkpoint_may_have_any_name(tmp_path, checkpoint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(checkpoint, "checkpoints")
    (tmp_path / "checkpoints" / "checkpoints" / "²").mkdir()  # a digit, though no number
    for number, name in enumerate(("checkpoints", "checkpoints/checkpoints", "./checkpoints/")):
        convert.export_hf(pathlib.Path(name), pathlib.Path(f"out{number}"))
    monkeypatch.chdir("checkpoints/checkpoints")
    convert.export_hf(pathlib.Path("."), tmp_path / "out3")
    assert {"out0", "out1", "out2", "out3"} < {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", "[]", "config.json holds [] where an object, {...}, must be; restore it from a copy"),
        ("config.json", json.dumps(LLAMA), "config.json is not the configuration of a run; restore it from a copy"),
        ("config.json", "{", "config.json is not valid JSON (.*); restore it from a copy, or remove it"),
        ("summary.json", "{", "summary.json is not valid JSON (.*); restore it from a copy, or remove it"),
        ("model/config.json", None, "model has no config.json, which says what model it is; restore it"),
        ("model/generation_config.json", None, "model has no generation_config.json"),
    ],
)
def test_runs_with_a_broken_file(tmp_path, checkpoint, capsys, file, content, message):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    (run / file).unlink() if content is None else (run / file).write_text(content)
    error = refused(capsys, f"--from={run}", f"--to_hf={tmp_path / 'out'}")
    assert re.search(re.escape(message).replace(r"\.\*", ".*"), error), error
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_adapters_that_cannot_be_exported(tmp_path, source, capsys):
    run = tmp_path / "run"
    made_up_lora_run(run, source)
    whole = json.loads((run / "config.json").read_text())

    def check(message, *flags, way="--to_hf", **changes):
        given = {key: value for key, value in (whole | changes).items() if value is not ...}
        (run / "config.json").write_text(json.dumps(given))
        assert message in refused(capsys, f"--from={run}", f"{way}={tmp_path / 'out'}", *flags)

    for way in ("--to_hf", "--to_peft"):
        other = "config.json is not the configuration of a run that trained the adapters in"
        for change in (..., None, [], {"rank": 2}, whole["lora"] | {"rank": "2"}, whole["lora"] | {"targets": 3}):
            check(other, way=way, lora=change)
        for change in ({"model": 3}, {"model": ...}, {"warm_start": ...}, {"a.b": 1, "lora": ...}):
            check(other, way=way, **change)
        for base, message in (
            (run / "config.json", "config.json is not a folder; name the folder that holds it with --base"),
            (tmp_path / "nowhere", "nowhere does not exist; name the folder that now holds it with --base"),
            (tmp_path, "is no Hugging Face folder and holds no checkpoint; name the folder that holds it with --base"),
        ):
            check(message, f"--base={base}", way=way)
    (run / "config.json").unlink()
    assert "config.json does not exist; restore it from a copy" in refused(
        capsys, f"--from={run}", f"--to_hf={tmp_path / 'out'}"
    )


def test_adapters_of_a_multimodal_base(tmp_path, monkeypatch):
    """peft finds them by the names of the whole model, and its own new ones must not go into the vision tower."""
    base = make_folder(tmp_path / "base", FAMILIES["gemma3"])
    monkeypatch.chdir(tmp_path)
    adapters, _ = made_up_lora_run(tmp_path / "run", pathlib.Path("base"))
    convert.export_peft(tmp_path / "run", tmp_path / "peft")
    settings = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)  # also for who stands elsewhere
    alone = {name.replace("model.layers", "model.language_model.layers"): x for name, x in lora.peft_tensors(adapters)}
    same_bits(weights(tmp_path / "peft"), alone)
    layer = "layers.0.self_attn.q_proj"
    assert re.fullmatch(settings["target_modules"], f"model.language_model.{layer}")
    assert not re.fullmatch(settings["target_modules"], f"model.vision_tower.encoder.{layer}")
    assert not re.fullmatch(settings["target_modules"], f"model.language_model.{layer}"[:-6] + "k_proj")
    base.rename(tmp_path / "moved")
    convert.export_peft(tmp_path / "run", tmp_path / "again", base="moved")
    again = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert again == settings | {"base_model_name_or_path": str(tmp_path / "moved")}


def test_targets_that_cannot_be_written(tmp_path, checkpoint, source, capsys):
    (tmp_path / "file").write_text("")
    for flags in ((f"--from={checkpoint}", "--to_hf"), (f"--from_hf={source}", "--to")):
        assert "exists already; give a new folder" in refused(capsys, flags[0], f"{flags[1]}={tmp_path / 'file'}")
        assert "can't be written" in refused(capsys, flags[0], f"{flags[1]}={tmp_path / 'file' / 'out'}")
        assert "error: / exists already" in refused(capsys, flags[0], f"{flags[1]}=/")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


LIMITED = """
    import resource, sys
    from cgrpo_jax import convert
    from cgrpo_jax.runs import cli
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
    cli.run(convert.main, flags=convert.FLAGS, argv=sys.argv[2:])
"""


@pytest.mark.slow
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
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    # Nothing is printed but the progress bar, which redraws its line, and what went wrong.
    (error,) = [line for line in done.stderr.splitlines() if line and "param/s]" not in line]
    assert error.startswith(f"error: {tmp_path / 'out'}") and "can't be written: a file would be larger" in error
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_conversion_that_was_killed_is_done_again(tmp_path, checkpoint, source):
    """What a killed one leaves does not look whole, and is in no one else's way."""
    left = tmp_path / ".out.partial-0123456789abcdef"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    convert.export_hf(checkpoint, tmp_path / "out")
    same_bits(weights(tmp_path / "out"), weights(source))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
    import os, signal, sys
    from cgrpo_jax import convert
    from cgrpo_jax.models.hf import export
    from cgrpo_jax.runs import cli
    export._Writer.finish = lambda self: os.kill(os.getpid(), signal.SIGKILL)
    cli.run(convert.main, flags=convert.FLAGS, argv=sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_export_looks_like_none(tmp_path, checkpoint, source):
    path = paths.python_path()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), f"--from={checkpoint}", f"--to_hf={tmp_path / 'out'}"],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -9 and sorted(path.name[:13] for path in tmp_path.iterdir()) == [
        ".out.lock",
        ".out.partial-",
    ]
    convert.export_hf(checkpoint, tmp_path / "out")
    same_bits(weights(tmp_path / "out"), weights(source))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["plain", 'a: "b" # c', "- [x]", "ü\u0085\x07\udce9", "yes", "#", "two\nlines"])
def test_any_name_makes_a_valid_card(name):
    text = folder_lib.model_card(
        name, step=3, dtype="float32", adapter=False, base=f"somewhere/{name}", config={"model": {}}
    )
    text.encode()
    _, head, _ = text.split("---\n", 2)
    values = dict(line.split(": ", 1) for line in head.strip("\n").split("\n"))
    assert values.keys() == {"library_name", "pipeline_tag", "base_model", "tags"}
    # JSON strings, which YAML reads as they are as long as every character may stand in it.
    assert json.loads(values["base_model"]).isprintable() and text.isascii() == name.isascii()


def test_ctrl_c_leaves_nothing(tmp_path, checkpoint, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "save_params", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert.export_hf(checkpoint, tmp_path / "out")
    assert not list(tmp_path.iterdir())
