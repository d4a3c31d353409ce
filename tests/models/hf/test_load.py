"""Model folders made here from random parameters: what is read back is what was written, and every fault is named."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hf_folders import FAMILIES, GEMMA3, LLAMA, multimodal, random_params, shardings_of, stored_tensors, write_folder
from jax.sharding import SingleDeviceSharding

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load


@pytest.fixture
def folder(tmp_path):
    """A small untied Llama in one file, and what is in it."""
    write_folder(tmp_path / "config", LLAMA, {})
    config = hf_config.read_config(tmp_path / "config")
    tensors = stored_tensors(random_params(config), config)
    return write_folder(tmp_path / "model", LLAMA, tensors), config, tensors


@pytest.mark.parametrize("settings", FAMILIES.values(), ids=FAMILIES)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_tensor_is_read_back(tmp_path, settings, shards):
    (tmp_path / "config.json").write_text(json.dumps(settings))
    config = hf_config.read_config(tmp_path)
    params = random_params(config)
    write_folder(tmp_path, settings, stored_tensors(params, config), shards=shards)
    loaded = load.load_params(tmp_path, config)
    assert {*loaded} == {*params} and {*loaded["layers"]} == {*params["layers"]}
    ours, read = params | params["layers"], loaded | loaded["layers"]
    for name in ours.keys() - {"layers"}:
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], ours[name], err_msg=name)


@pytest.mark.parametrize("length", [2**22 + 1, 100_000_000, 2**40, 2**64 - 1])
def test_a_header_that_lies_about_its_length(folder, length):
    path, config, _ = folder
    data = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(length.to_bytes(8, "little") + data[8:])
    for function in (lambda: load.load_params(path, config), lambda: hf_config.read_config(path)):
        with pytest.raises(
            UserError, match=f"not a safetensors file .its header would have {length:,} bytes, of at most"
        ):
            if function() and config.tie_embeddings is False:
                load.check_weights(path, config)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "..", "a" * 5000, "a\x00b", "x\x1b[2J"])
def test_an_index_that_names_what_is_not_in_the_folder(folder, name):
    path, config, _ = folder
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
    with pytest.raises(UserError, match="which is not in .*; fetch the missing file") as caught:
        load.check_weights(path, config)
    assert len(str(caught.value)) < 500 and "\x1b" not in str(caught.value)


def test_tables_without_a_shape_are_not_compared(folder):
    path, config, tensors = folder
    scalars = {"model.embed_tokens.weight": np.float32(1), "lm_head.weight": np.float32(2)}
    safetensors.numpy.save_file(tensors | {k: np.asarray(v) for k, v in scalars.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(LLAMA | {"tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"has shape \(\), config.json asks for"):
        load.check_weights(path, hf_config.read_config(path))


def test_layout_by_hand(folder):
    path, config, tensors = folder
    layers = load.load_params(path, config)["layers"]
    q, o = (tensors[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qo")  # [H * Dh, D], [D, H * Dh]
    assert layers["q"][1, 7, 5, 3] == q[5 * 4 + 3, 7]
    assert layers["o"][1, 5, 3, 7] == o[7, 5 * 4 + 3]
    assert layers["down"][0, 9, 7] == tensors["model.layers.0.mlp.down_proj.weight"][7, 9]


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
def test_half_precision_checkpoints(folder, stored, wanted):
    path, config, tensors = folder
    write_folder(path, LLAMA, {name: tensor.astype(stored) for name, tensor in tensors.items()})
    embed = load.load_params(path, config, dtype=wanted)["embed"]
    assert embed.dtype == wanted
    np.testing.assert_array_equal(embed, tensors["model.embed_tokens.weight"].astype(stored).astype(wanted))


def test_old_exports_keep_the_frequencies_of_rope(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2, np.float32)})
    np.testing.assert_array_equal(load.load_params(path, config)["embed"], tensors["model.embed_tokens.weight"])


# What a folder's two tables are: E and H differ, E' is E in another dtype.
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TABLES = {
    "embedding alone": ({EMBED: "E"}, ("E", None)),
    "head alone": ({HEAD: "H"}, ("H", None)),
    "head repeats it": ({EMBED: "E", HEAD: "E"}, ("E", None)),
    "in another dtype": ({EMBED: "E", HEAD: "E'"}, ("E", None)),
    "head of its own": ({EMBED: "E", HEAD: "H"}, ("E", "H")),
    "last row differs": ({EMBED: "E", HEAD: "L"}, ("E", "L")),
}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("settings", [LLAMA, GEMMA3], ids=["text", "multimodal"])
@pytest.mark.parametrize(("stored", "wanted"), TABLES.values(), ids=TABLES)
def test_a_tied_config_is_read_as_its_weights_have_it(tmp_path, monkeypatch, settings, stored, wanted, shards):
    """As transformers 5 reads it; see tests/parity/test_parity.py."""
    monkeypatch.setattr(load, "_COMPARED_BYTES", 100)  # two rows at a time
    tied = settings | {"tie_word_embeddings": True}
    config = hf_config.read_config(write_folder(tmp_path / "config", tied, {}))
    tensors = stored_tensors(random_params(config), config)
    embed = tensors.pop(EMBED).astype(ml_dtypes.bfloat16)
    last = embed.copy()
    last[-1, -1] += 1
    tables = {"E": embed, "E'": embed.astype(np.float32), "H": embed[::-1].copy(), "L": last}
    tensors |= {name: tables[which] for name, which in stored.items()}
    if "text_config" in settings:
        tensors = {f"language_model.{name}": tensor for name, tensor in tensors.items()}
    path = write_folder(tmp_path / "model", tied, tensors, shards=shards)
    read = hf_config.read_config(path)
    params = load.load_params(path, read)
    assert read == dataclasses.replace(config, tie_embeddings=wanted[1] is None)
    for name, which in zip(("embed", "unembed"), wanted, strict=True):
        assert (name in params) is (which is not None)
        if which is not None:
            np.testing.assert_array_equal(params[name], tables[which].astype(np.float32))


@pytest.mark.parametrize(
    ("tied", "tables", "message"),
    [
        (True, {HEAD: np.ones((13, 12), np.float32)}, r"lm_head.weight has shape \(13, 12\), config.json asks for"),
        (True, {HEAD: np.ones((11, 12), np.int8)}, "lm_head.weight is I8; .* not quantised"),
        (True, {EMBED: None, HEAD: None}, "has no tensor model.embed_tokens.weight"),
        (False, {EMBED: None}, "has no tensor model.embed_tokens.weight; .* must be of one model.$"),
        (False, {HEAD: None}, "has no tensor lm_head.weight; .* of one model, or tie_word_embeddings be true.$"),
    ],
)
def test_tables_that_no_model_has(folder, tied, tables, message):
    path, _, tensors = folder
    given = {name: tensor for name, tensor in (tensors | tables).items() if tensor is not None}
    write_folder(path, LLAMA | {"tie_word_embeddings": tied}, given)
    with pytest.raises(UserError, match=message):
        load.check_weights(path, hf_config.read_config(path))


@pytest.mark.parametrize("shards", [1, 2])
def test_missing_tensor(folder, shards):
    path, config, tensors = folder
    (path / "model.safetensors").unlink()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_folder(path, LLAMA, tensors, shards=shards)
    with pytest.raises(UserError, match="has no tensor model.layers.1.mlp.up_proj.weight"):
        load.load_params(path, config)


def test_wrong_shape(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"model.norm.weight": np.ones(13, np.float32)})
    with pytest.raises(UserError, match=r"model.norm.weight has shape \(13,\), config.json asks for \(12,\)"):
        load.load_params(path, config)


def test_transposed_weight_is_not_taken(folder):
    path, config, tensors = folder
    name = "model.layers.0.mlp.gate_proj.weight"
    write_folder(path, LLAMA, tensors | {name: np.ascontiguousarray(tensors[name].T)})
    with pytest.raises(UserError, match=r"gate_proj.weight has shape \(12, 10\), config.json asks for \(10, 12\)"):
        load.load_params(path, config)


@pytest.mark.parametrize("name", ["model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.bias"])
def test_superfluous_tensor(folder, name):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {name: np.ones(3, np.float32)})
    with pytest.raises(UserError, match=f"holds {name}, which config.json does not account for"):
        load.load_params(path, config)


def test_quantised_tensor(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"model.norm.weight": np.ones(12, np.int8)})
    with pytest.raises(UserError, match="model.norm.weight is I8; .* not quantised"):
        load.load_params(path, config)


@pytest.mark.parametrize("keep", [4, 200, -3])
def test_truncated_file(folder, keep):
    path, config, _ = folder
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="model.safetensors is truncated or not a safetensors file") as caught:
        load.load_params(path, config)
    assert "\n" not in str(caught.value)


def test_index_that_names_a_missing_file(folder):
    path, config, tensors = folder
    (path / "model.safetensors").unlink()
    write_folder(path, LLAMA, tensors, shards=2)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="index.json names model-00002-of-00002.safetensors, which is not in"):
        load.load_params(path, config)
    outside = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (path / "model.safetensors.index.json").write_text(json.dumps(outside))
    (path.parent / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="names ../model.safetensors, which is not in"):
        load.load_params(path, config)


@pytest.mark.parametrize("content", [[], {}, {"weight_map": None}, {"weight_map": ["a"]}, {"weight_map": {"a": 3}}, 3])
def test_index_that_is_none(folder, content):
    path, config, _ = folder
    (path / "model.safetensors").unlink()
    (path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="index.json.* (holds|is|names no file)"):
        load.load_params(path, config)


@pytest.mark.parametrize("other", ["model.norm.weight", "language_model.model.norm.weight"])
def test_a_tensor_that_is_there_twice(folder, other):
    path, config, tensors = folder
    (path / "model.safetensors").unlink()
    write_folder(path, LLAMA, tensors, shards=2)
    for file in path.glob("*.safetensors"):
        held = safetensors.numpy.load_file(file)
        if "model.norm.weight" not in held:
            safetensors.numpy.save_file(held | {other: np.ones(12, np.float32)}, file)
    with pytest.raises(UserError, match="holds model.norm.weight twice, as .*norm.weight of model-0000. *"):
        load.load_params(path, config)


def test_weights_of_other_kinds(folder):
    path, config, _ = folder
    (path / "model.safetensors").unlink()
    for name, message in (
        ("a.gguf", "has only a.gguf; GGUF is not read"),
        ("pytorch_model.bin.index.json", r"only pickled weights \(pytorch_model.bin.index.json\)"),
    ):
        (path / name).write_bytes(b"")
        with pytest.raises(UserError, match=message):
            load.load_params(path, config)


def test_pickled_weights_are_refused(folder):
    path, config, _ = folder
    (path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no weights; it must hold model.safetensors"):
        load.load_params(path, config)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"only pickled weights \(pytorch_model.bin\).* convert them to safetensors"):
        load.load_params(path, config)
    with pytest.raises(UserError, match="is not a folder; give a Hugging Face model folder"):
        load.load_params(path / "absent", config)


def test_headers_are_enough_to_refuse(folder, monkeypatch):
    path, config, tensors = folder
    monkeypatch.setattr(load._Checkpoint, "read", None)  # no data is asked for
    load.check_weights(path, config)
    write_folder(path, LLAMA, tensors | {"model.norm.weight": np.ones(13, np.float32)})
    with pytest.raises(UserError, match=r"model.norm.weight has shape \(13,\), config.json asks for \(12,\)"):
        load.check_weights(path, config)


# --- multimodal releases ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [False, True])
def test_text_of_a_multimodal_checkpoint(tmp_path, new):
    write_folder(tmp_path, GEMMA3, {})
    config = hf_config.read_config(tmp_path)
    params = random_params(config)
    tensors = multimodal(stored_tensors(params, config), new=new)
    write_folder(tmp_path, GEMMA3, tensors)
    jax.tree.map(np.testing.assert_array_equal, load.load_params(tmp_path, config), params)
    write_folder(tmp_path, GEMMA3, tensors | {"audio_tower.weight": np.ones(5, np.float32)})
    with pytest.raises(UserError, match="holds audio_tower.weight, which config.json does not account for"):
        load.load_params(tmp_path, config)


def test_a_text_checkpoint_has_no_vision_tower(folder):
    path, config, tensors = folder
    write_folder(path, LLAMA, tensors | {"vision_tower.weight": np.ones(5, np.float32)})
    with pytest.raises(UserError, match="holds vision_tower.weight, which config.json does not account for"):
        load.load_params(path, config)


# --- onto devices -------------------------------------------------------------------------------------------------


MESHES = {
    "replicated": ({"a": 8}, {}),
    "width": ({"a": 4, "b": 2}, {"embed": "a"}),
    "width and heads": ({"a": 2, "b": 3}, {"embed": "a", "heads": "b"}),
    "mlp": ({"a": 2}, {"mlp": "a"}),
    "layers and width": ({"a": 2, "b": 4}, {"layers": "a", "embed": "b"}),
}


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_sharded_load(tmp_path, monkeypatch, mesh, family):
    sizes, rules = MESHES[mesh]
    (tmp_path / "config.json").write_text(json.dumps(FAMILIES[family]))
    config = hf_config.read_config(tmp_path)
    params = random_params(config)
    write_folder(tmp_path, FAMILIES[family], stored_tensors(params, config), shards=2)
    devices = np.array(jax.devices()[: np.prod([*sizes.values()])]).reshape(*sizes.values())
    shardings = shardings_of(config, jax.sharding.Mesh(devices, (*sizes,)), rules)

    read, counts, reported = load._Checkpoint.read, [], []

    def counted(self, name, block):
        stored = read(self, name, block)
        counts.append(stored.size)
        return stored

    monkeypatch.setattr(load._Checkpoint, "read", counted)
    loaded = load.load_params(tmp_path, config, shardings=shardings, progress=lambda *at: reported.append(at))

    def same(got, wanted, sharding):
        assert got.sharding == sharding and got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted)
        for shard in got.addressable_shards:
            np.testing.assert_array_equal(shard.data, wanted[shard.index])

    jax.tree.map(same, loaded, params, shardings)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert sum(counts) == total  # every number once, whether sharded or replicated
    assert reported[-1] == (total, total) and reported == sorted(set(reported))


def test_only_the_needed_part_is_read(folder, monkeypatch):
    path, config, tensors = folder
    checkpoint = load._Checkpoint(path)
    q = next(entry for entry in load.TABLE if entry.path == ("layers", "q"))
    shard = [slice(0, 2), slice(0, 12), slice(2, 4), slice(0, 4)]
    blocks = []
    monkeypatch.setattr(checkpoint, "read", lambda name, block: blocks.append((name, block)) or tensors[name][block])
    block = load._read_block(checkpoint, q, (2, 12, 6, 4), shard, np.dtype(np.float32))
    assert blocks == [
        (f"model.layers.{layer}.self_attn.q_proj.weight", (slice(8, 16), slice(0, 12))) for layer in (0, 1)
    ]
    np.testing.assert_array_equal(block, np.asarray(load.load_params(path, config)["layers"]["q"])[:, :, 2:4])


def test_a_block_that_is_no_rectangle():
    q = next(entry for entry in load.TABLE if entry.path == ("layers", "q"))
    with pytest.raises(ValueError, match="not contiguous in a checkpoint"):
        q.stored_block([slice(0, 12), slice(0, 6), slice(0, 2)], (12, 6, 4))


def test_loaded_parameters_can_be_donated(folder):
    path, config, tensors = folder
    params = load.load_params(path, config)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: 2 * x, tree), donate_argnums=0)(params)
    np.testing.assert_array_equal(doubled["embed"], 2 * tensors["model.embed_tokens.weight"])
    assert params["embed"].is_deleted()
    assert doubled["embed"].sharding == SingleDeviceSharding(jax.devices()[0])


def test_check_vocab(folder):
    @dataclasses.dataclass
    class Vocabulary:
        vocab_size: int

    _, config, _ = folder
    load.check_vocab(Vocabulary(10), config)
    load.check_vocab(Vocabulary(11), config)
    with pytest.raises(UserError, match="The tokenizer has 12 tokens, the model embeds 11"):
        load.check_vocab(Vocabulary(12), config)
