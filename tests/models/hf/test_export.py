"""What is exported is, to the last bit, what was imported; where it can't be written, nothing is left behind."""

import functools
import json
import operator

import export_cases
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from export_cases import file_contents, run_python
from hf_folders import (
    FAMILIES,
    QWEN3,
    multimodal,
    random_params,
    shardings_of,
    stored_tensors,
    write_folder,
)

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, load
from cgrpo_jax.runtime import files as files_lib

folder = export_cases.folder  # the fixture


def reader(params):
    return lambda path: functools.reduce(operator.getitem, path, params)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stored, dtype", [(ml_dtypes.bfloat16, "bfloat16"), (np.float16, "float16")])
def test_export_is_bit_exact(tmp_path, family, stored, dtype):
    write_folder(tmp_path, FAMILIES[family], {})
    config = hf_config.read_config(tmp_path)
    tensors = {name: t.astype(stored) for name, t in stored_tensors(random_params(config), config).items()}
    subnormal = tensors["model.norm.weight"].view(np.uint16)
    subnormal[:3] = (1, 0x8000, 0x8001)  # the smallest number, and two that a sloppy conversion makes 0
    write_folder(tmp_path, FAMILIES[family], multimodal(tensors, new=False) if family == "gemma3" else tensors)
    (tmp_path / "out").mkdir()
    export.save_params(tmp_path / "out", config, reader(load.load_params(tmp_path, config)), dtype=dtype)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.safetensors"]
    assert file_contents(tmp_path / "out") == {n: (dtype, t.shape, t.tobytes()) for n, t in tensors.items()}
    start = int.from_bytes((tmp_path / "out" / "model.safetensors").read_bytes()[:8], "little")
    assert start % 8 == 0  # tensors are aligned


@pytest.mark.parametrize("sharded", [False, True])
def test_export_in_shards(folder, tmp_path, monkeypatch, sharded):
    monkeypatch.setattr(export, "_PIECE_BYTES", 200)  # tables of 11 rows in pieces of 4
    path, config, tensors = folder
    shardings = None
    if sharded:
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("a",))
        shardings = shardings_of(config, mesh, {"embed": "a"})
    params = load.load_params(path, config, shardings=shardings)
    out, reported = tmp_path / "out", []
    out.mkdir()
    limit = 2 * tensors["model.layers.0.mlp.up_proj.weight"].nbytes
    export.save_params(
        out, config, reader(params), dtype="float32", max_shard_bytes=limit, progress=lambda *at: reported.append(at)
    )
    index = json.loads((out / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3 and {*index["weight_map"].values()} == {*files}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
    for file in files:
        held = safetensors.numpy.load_file(out / file)
        assert {name for name, at in index["weight_map"].items() if at == file} == {*held}
        assert len(held) == 1 or sum(t.nbytes for t in held.values()) <= limit
    # Layer after layer, as others write them: a layer's tensors lie in neighbouring files.
    order = [
        name.split(".")[2] for name in sorted(index["weight_map"], key=index["weight_map"].get) if "layers" in name
    ]
    assert order == sorted(order)
    assert file_contents(out) == {name: ("float32", t.shape, t.tobytes()) for name, t in tensors.items()}
    jax.tree.map(np.testing.assert_array_equal, load.load_params(out, config), params)
    assert reported[-1][0] == reported[-1][1] and reported == sorted(set(reported))


def test_tied_models_have_no_head(tmp_path):
    write_folder(tmp_path, QWEN3, {})
    config = hf_config.read_config(tmp_path)
    (tmp_path / "out").mkdir()
    export.save_params(tmp_path / "out", config, reader(jax.tree.map(jax.numpy.asarray, random_params(config))))
    assert "lm_head.weight" not in file_contents(tmp_path / "out")


def test_values_that_float16_lacks(folder, tmp_path):
    path, config, _ = folder
    params = load.load_params(path, config)
    # A NaN, which stays one, hides nothing.
    params["layers"]["up"] = params["layers"]["up"].at[1, 2, 3].set(7e4).at[1, 0, 0].set(np.nan)
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="layers.1.mlp.up_proj.weight has values beyond float16's range"):
        export.save_params(tmp_path / "out", config, reader(params), dtype="float16")
    assert not [*(tmp_path / "out").iterdir()]


def test_export_beside_other_weights(folder):
    path, config, _ = folder
    before = (path / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already holds weights \(model.safetensors\); export to an empty folder"):
        export.save_params(path, config, reader(load.load_params(path, config)))
    assert (path / "model.safetensors").read_bytes() == before
    with pytest.raises(UserError, match="absent is not a folder"):
        export.save_params(path / "absent", config, reader(load.load_params(path, config)))
    with pytest.raises(UserError, match="dtype 'int8' can't be written"):
        export.save_params(path, config, reader({}), dtype="int8")


EXPORT = """
    import functools, operator, resource, sys
    from cgrpo_jax.models.hf import config as hf_config, export, load
    from cgrpo_jax.errors import UserError

    config = hf_config.read_config(sys.argv[1])
    params = load.load_params(sys.argv[1], config)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
    try:
        export.save_params(sys.argv[2], config, lambda path: functools.reduce(operator.getitem, path, params))
    except UserError as error:
        sys.stdout.write(str(error))
"""


def test_export_where_the_kernel_refuses(folder, tmp_path):
    path, _, _ = folder
    out = tmp_path / "out"
    out.mkdir()
    message = run_python(EXPORT, path, out, 2000)
    assert message == (
        f"{out}/model.safetensors can't be written: a file would be larger than is allowed; "
        "raise the limit (ulimit -f), or lower --max_shard_gb."
    )
    assert not [*out.iterdir()]  # nothing that looks like weights


@pytest.mark.parametrize("step", ["create", "write", "finish"])
def test_a_full_disk_in_mid_export(folder, tmp_path, monkeypatch, step):
    path, config, _ = folder
    (tmp_path / "out").mkdir()
    original, calls = getattr(export._Writer, step), []

    def fails(self, *args):
        calls.append(args)
        original(self, *args)
        with files_lib.checked(tmp_path / "out" / "model.safetensors"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(export._Writer, step, fails)
    with pytest.raises(UserError, match="model.safetensors can't be written: the disk is full; free space there"):
        export.save_params(tmp_path / "out", config, reader(load.load_params(path, config)))
    assert len(calls) == 1 and not [*(tmp_path / "out").iterdir()]
