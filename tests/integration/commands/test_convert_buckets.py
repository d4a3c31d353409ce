"""`convert` from and to a bucket writes what it writes from and to a disk."""

import convert_cases
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from convert_cases import refused
from converted import made_up_lora_run

from cgrpo_jax import convert
from cgrpo_jax.runs import cli

source = convert_cases.source  # the fixture


def run(*arguments):
    cli.run(convert.main, flags=convert.FLAGS, argv=[str(argument) for argument in arguments])


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_converted_in_a_bucket_is_what_is_on_a_disk(source, bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket.load("mine", "hf", source)
    run("--from_hf=gs://mine/hf", "--to=gs://mine/checkpoint")
    run("--from=gs://mine/checkpoint", "--to_hf=gs://mine/out", "--max_shard_gb=0.0001")
    run(f"--from_hf={source}", f"--to={tmp_path / 'checkpoint'}")
    run(f"--from={tmp_path / 'checkpoint'}", f"--to_hf={tmp_path / 'out'}", "--max_shard_gb=0.0001")
    bucket.save("mine", "out", tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "out")
    assert not any(name.endswith(".partial") for name in bucket.names("mine"))
    assert "exists already" in refused(capsys, "--from=gs://mine/checkpoint", "--to_hf=gs://mine/out")
    assert "gs://mine/none holds no checkpoints" in refused(capsys, "--from=gs://mine/none", "--to_hf=gs://mine/o")
    # A checkpoint that was copied from a disk lacks the mark of a bucket's.
    bucket.load("mine", "copied", tmp_path / "checkpoint")
    line = refused(capsys, "--from=gs://mine/copied", "--to_hf=gs://mine/o")
    assert "have no commit_success.txt, which is written last" in line and "write an empty file" in line
    bucket.write("mine", "copied/checkpoints/0/commit_success.txt", b"")
    run("--from=gs://mine/copied", "--to_hf=gs://mine/o")


def test_adapters_in_a_bucket(source, bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made_up_lora_run(tmp_path / "run", source)
    bucket.load("mine", "run", tmp_path / "run")
    bucket.write("mine", "run/checkpoints/0/commit_success.txt", b"")
    bucket.load("mine", "base", source)
    for place, base in ((tmp_path, source), ("gs://mine", "gs://mine/base")):
        run(f"--from={place}/run", f"--to_peft={place}/peft", f"--base={base}")
        run(f"--from={place}/run", f"--to_hf={place}/merged", f"--base={base}")
    bucket.save("mine", "merged", tmp_path / "copy")
    assert files(tmp_path / "copy") == files(tmp_path / "merged")
    bucket.save("mine", "peft", tmp_path / "copied")
    ours, theirs = files(tmp_path / "copied"), files(tmp_path / "peft")
    assert ours.keys() == theirs.keys()
    assert b'"gs://mine/base"' in ours["adapter_config.json"]
    assert ours["adapter_model.safetensors"] == theirs["adapter_model.safetensors"]
