"""Hugging Face folders to checkpoints and back, runs to folders, and every way in which that can fail."""

import json
import pathlib
import re
import shutil

import convert_cases
import ml_dtypes
import numpy as np
import pytest
from convert_cases import refused
from converted import made_up_lora_run, make_folder, same_bits, weights
from hf_folders import FAMILIES, LLAMA

from cgrpo_jax import convert
from cgrpo_jax.models import lora
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, unchanged
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runtime import digests

source = convert_cases.source  # the fixture
checkpoint = convert_cases.checkpoint  # the fixture


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
    for name in ("tokenizer.model", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    settings, given = (
        json.loads((where / "tokenizer_config.json").read_text()) for where in (tmp_path / "out", source)
    )
    assert settings == given | {"tokenizer_class": "PreTrainedTokenizerFast"}  # of tokenizer.json, which is new
    ours, theirs = load_tokenizer(source), load_tokenizer(tmp_path / "out")
    assert ours.encode("7*8=56, 12") == theirs.encode("7*8=56, 12") and theirs.eos_ids == ours.eos_ids
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["temperature"] == 0.7 and generation["top_k"] == 20
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == weights(source).keys() and len(set(index.values())) > 1
    assert {tensor.dtype for tensor in weights(tmp_path / "out").values()} == {np.dtype(np.float16)}
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: ") and "weights in float16" in card
    assert not list(tmp_path.glob(".*"))


# --- runs ---------------------------------------------------------------------------------------------------------


# --- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "it is not clear what to convert from nothing; give --from_hf and --to"),
        (["--from_hf=a"], "it is not clear what to convert from --from_hf"),
        (["--from_hf=a", "--to_hf=b"], "it is not clear what to convert from --from_hf, --to_hf"),
        (["--from=a", "--to_hf=b", "--to_peft=c"], "it is not clear what to convert"),
        (["--from_hf=a", "--to=b", "--step=1"], "--step means nothing to --to"),
        (["--from_hf=a", "--to=b", "--base=c"], "--base means nothing to --to"),
        (["--from_hf=a", "--to=b", "--of=critic"], "--of means nothing to --to"),
        (["--from=a", "--to_hf=b", "--of=judge"], "--of 'judge' is unknown; use one of policy, critic"),
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


@pytest.mark.parametrize(
    "config, message",
    [
        (None, "trains no critic (critic.train); leave --of out, which exports its policy"),
        ({"critic": {"train": False, "training": {"weights": "policy"}}}, "trains no critic"),
        ({"critic": {"train": True, "training": {"weights": "mine"}}}, "trains no critic"),
        ({"critic": {"train": True, "training": {"weights": "adapter", "rank": "2"}}}, "can't be read (digests.json"),
        ({"critic": {"train": True, "training": {"weights": "model"}}}, "run has no folder critic_model, which says"),
    ],
)
def test_critics_that_cannot_be_exported(tmp_path, checkpoint, capsys, config, message):
    run = shutil.copytree(checkpoint, tmp_path / "run")
    if config is not None:
        (run / "config.json").write_text(json.dumps(config))
    for way in ("--to_hf", "--to_peft"):
        assert message in refused(capsys, f"--from={run}", f"{way}={tmp_path / 'out'}", "--of=critic")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


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
        for target in (tmp_path / "file", tmp_path / "file" / "out"):
            said = f"{flags[1]} {target} can't be a folder, since {tmp_path / 'file'} is none; give another."
            assert said in refused(capsys, flags[0], f"{flags[1]}={target}")
        assert "error: / exists already" in refused(capsys, flags[0], f"{flags[1]}=/")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_damaged_folder_is_not_read(tmp_path, checkpoint, capsys):
    """Of an exported folder each file, and of a converted one its description, but for what people may edit."""
    convert.export_hf(checkpoint, tmp_path / "out")
    convert.import_hf(tmp_path / "out", tmp_path / "back")
    for folder in (tmp_path / "out", tmp_path / "back" / "model"):
        names = json.loads((folder / digests.FILE).read_text())["files"].keys()
        assert {path.name for path in folder.iterdir()} - names <= {"README.md", digests.FILE}
    for name in ("model.safetensors", "generation_config.json"):
        unchanged._check.cache_clear()  # another process has seen nothing yet
        path = tmp_path / "out" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-4] + bytes([whole[-4] ^ 1]) + whole[-3:])
        said = refused(capsys, f"--from_hf={tmp_path / 'out'}", f"--to={tmp_path / 'other'}")
        assert f"is damaged ({name} is not what was written); restore it" in said and digests.FILE in said
        path.write_bytes(whole)
    (tmp_path / "out" / "README.md").write_text("mine")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text() + " ")
    (tmp_path / "out" / digests.FILE).unlink()  # as it is told
    convert.import_hf(tmp_path / "out", tmp_path / "other")


def test_a_conversion_that_was_killed_is_done_again(tmp_path, checkpoint, source):
    """What a killed one leaves does not look whole, and is in nobody's way."""
    left = tmp_path / ".out.partial-0123456789abcdef"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
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
