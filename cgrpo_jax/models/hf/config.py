"""Hugging Face's `config.json` and our `ModelConfig`, in both directions; what sets families apart is in `families`.

Reading fills in what a file leaves out with the family's own defaults, and takes the spellings of transformers 4 and 5.
Writing uses transformers 4's, which both read, and reads itself back: what it returns is the very same model. Only
windows at irregular layers need `layer_types`, which transformers knows from 4.53 on.
"""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.families import ACTIVATIONS, FAMILIES, LARGEST, SIZES, SOFTCAPS, Family
from cgrpo_jax.models.params import ModelConfig, RopeScaling
from cgrpo_jax.runtime.json_files import number, object_at, read_json_object, shown

DTYPES = ("float32", "bfloat16", "float16")
_FULL, _LOCAL = "full_attention", "sliding_attention"

# Keys that would change what is computed, and the one value of each that this model computes.
_ONLY = {
    "attention_bias": False,
    "mlp_bias": False,
    "use_bidirectional_attention": False,
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "attention_chunk_size": None,
    "num_experts": None,
    "num_local_experts": None,
}
# What a multimodal file says besides its text_config that holds for the text.
_SHARED = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "initializer_range",
    "quantization_config",
    "tie_word_embeddings",
    "transformers_version",
)

# Not of the model that is written: transformers 5's spelling of rope, a release's own code, where it once lay.
_DROPPED = ("rope_parameters", "auto_map", "_name_or_path")


def read_config(folder: str | pathlib.Path) -> ModelConfig:
    """The architecture of a Hugging Face model folder, from its `config.json`.

    Of a folder with weights these have a say: a head that is not the embedding is read, as transformers 5 reads it,
    whatever `tie_word_embeddings` says. transformers 4 drops it.

    Raises:
      UserError: the file is missing, or asks for something that this model can't compute; weights are damaged.

    Example:
      >>> read_config("SmolLM2-135M").num_layers
      30
    """
    path = pathlib.Path(folder) / "config.json"
    config = _parse(_read(path), path)
    if config.tie_embeddings and load.has_own_head(folder, (config.vocab_size, config.embed_dim)):
        return dataclasses.replace(config, tie_embeddings=False)
    return config


def read_architecture(path: str | pathlib.Path) -> ModelConfig:
    """The architecture that a file with the content of a `config.json` describes, wherever it lies.

    Raises:
      UserError: as `read_config`.
    """
    return _parse(read_json_object(pathlib.Path(path), missing="give the file of an architecture"), path)


def is_multimodal(folder: str | pathlib.Path) -> bool:
    """Whether a Hugging Face model folder is of a multimodal model, of which `read_config` reads the text part.

    Raises:
      UserError: its `config.json` is missing, or of no supported family.
    """
    path = pathlib.Path(folder) / "config.json"
    return bool(_family(_read(path), path)[1].text)


def _read(path: pathlib.Path) -> dict[str, Any]:
    """The content of a `config.json`; an error says what the folder is, if it is no Hugging Face model folder."""
    folder = path.parent
    missing = "give a Hugging Face model folder"
    if (folder / "checkpoints").is_dir():
        missing = f"{folder} holds checkpoints: convert it with --from={folder}, or train from it with model.init"
    elif (folder / "adapter_config.json").is_file():
        missing = f"{folder} holds adapters alone: merge them into their base first, and give the folder of that"
    elif not folder.exists() and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", str(folder)):
        missing = f"models are not fetched by name: download {folder} first, and give its folder"
    given = read_json_object(path, missing=missing)
    if "model_type" not in given and (folder / "checkpoints").is_dir():  # a run's own configuration
        raise UserError(f"{path} is not of a Hugging Face model; {missing}.")
    return given


def config_json(
    config: ModelConfig, *, dtype: str, source: Mapping[str, Any] | None = None, token_ids: Mapping | None = None
) -> dict[str, Any]:
    """The content of a `config.json` that transformers (4.51 and later, 5) reads to the very same model.

    Args:
      config: the model.
      dtype: of the weights beside it: float32, bfloat16 or float16.
      source: the `config.json` that the model came from; keys that say nothing about the architecture (`eos_token_id`
        ...) are kept. None: the first family that can express `config`; its token ids are then null, not the defaults
        of a tokenizer that it was not made with.
      token_ids: `bos_token_id`, `eos_token_id`, `pad_token_id` to set.

    Raises:
      UserError: no family (or not that of `source`) can express `config`.

    Example:
      >>> config_json(config, dtype="bfloat16")["model_type"]
      'llama'
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} can't be written; use one of {', '.join(DTYPES)}.")
    names = [name for name, family in FAMILIES.items() if not family.text]
    kept: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if source is not None:
        names, kept = [_family(source, "the source")[0]], _text_part(source, "the source")
        names = [FAMILIES[name].text or name for name in names]
    kept = {key: value for key, value in kept.items() if key not in _DROPPED}
    for name in names:
        settings = kept | _settings(config, name) | {"dtype": dtype, "torch_dtype": dtype} | dict(token_ids or {})
        try:
            same = _parse(settings, "config.json") == config
        except UserError:
            same = False
        if same:
            return settings
    raise UserError(f"{config} can't be written as a Hugging Face model of {' or '.join(names)}; use a shape of these.")


def _family(given: Any, path: pathlib.Path | str) -> tuple[str, Family]:
    name = given.get("model_type") if isinstance(given, Mapping) else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{path}: model_type {shown(name)} is not supported; use one of {', '.join(FAMILIES)}.")
    family = FAMILIES[name]
    wanted = [family.architecture]
    found = given.get("architectures") or wanted
    if found != wanted:
        raise UserError(f"{path}: architectures {shown(found)} is not supported for {name}; it must be {wanted!r}.")
    return name, family


def _text_part(given: Mapping[str, Any], path: pathlib.Path | str) -> dict[str, Any]:
    """The settings of the text model: all of them, or a multimodal file's `text_config`."""
    name, family = _family(given, path)
    if not family.text:
        return dict(given)
    inner = object_at(given, "text_config", path)
    if inner.get("model_type", family.text) != family.text:
        raise UserError(
            f"{path}: text_config of model_type {shown(inner['model_type'])} is not supported for {name}; "
            f"it must be {family.text!r}."
        )
    # The outer token ids are those of the release ([end of text, end of turn]); the inner ones are a class's defaults.
    shared = {key: given[key] for key in _SHARED if given.get(key) is not None}
    return {**inner, **shared, "model_type": family.text, "architectures": [FAMILIES[family.text].architecture]}


def _parse(given: Mapping[str, Any], path: pathlib.Path | str) -> ModelConfig:
    text = _text_part(given, path)
    name, family = _family(text, path)
    settings = {**family.defaults, **text}
    _refuse_unsupported(settings, name, path)

    need = functools.partial(number, settings, where=path)
    for key in ("tie_word_embeddings", "use_sliding_window"):
        if not isinstance(settings.get(key, False), bool | None):
            raise UserError(f"{path}: {key} is {shown(settings[key])}; it must be true or false. Fetch the file again.")
    if settings.get("num_key_value_heads") is None:
        settings["num_key_value_heads"] = need("num_attention_heads")
    if settings.get("head_dim") is None:
        settings["head_dim"] = family.defaults.get("head_dim") or need("hidden_size") // need("num_attention_heads")
    fields = {field: need(key, most=LARGEST[key]) for key, field in SIZES.items()}
    fields |= {
        field: need(key, kind=float, zero=True) if settings[key] is not None else 0.0
        for key, field in SOFTCAPS.items()
        if key in family.defaults
    }
    if "query_pre_attn_scalar" in family.defaults:
        scalar = need("query_pre_attn_scalar", kind=float)
        fields["query_scale"] = None if scalar == fields["head_dim"] else scalar**-0.5
    theta, scaling, local_theta = _rope(settings, name, path)
    local = _local_layers(settings, name, path)
    fields |= {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local_theta,
        "norm_eps": need("rms_norm_eps", kind=float),
        "local_layers": local if any(local) else (),
        "window": need("sliding_window", most=LARGEST["max_position_embeddings"]) if any(local) else 0,
        "tie_embeddings": bool(settings["tie_word_embeddings"]),
    }
    try:
        return ModelConfig(**fields, **family.fixed)
    except UserError as error:  # numbers that don't fit each other
        raise UserError(f"{path}: {error}") from None


def _or_default(settings: Mapping[str, Any], key: str, name: str, path: pathlib.Path | str, **kw) -> Any:
    """A number, or what a family takes where it is null."""
    if settings[key] is None:
        return FAMILIES[name].defaults[key]
    return number(settings, key, path, **kw)


def _refuse_unsupported(settings: Mapping[str, Any], name: str, path: pathlib.Path | str) -> None:
    family = FAMILIES[name]
    # Gemma's early files also have a hidden_act, which nothing reads.
    activation = "hidden_activation" if "hidden_activation" in family.defaults else "hidden_act"
    only = _ONLY | {activation: ACTIVATIONS[family.fixed.get("activation", "silu")]}
    for key, supported in only.items():
        value = settings.get(key)
        # Biases on q, k and v are all that a family with them has; the key would mean them in other places.
        if value is not None and value != supported and key not in family.fixed:
            raise UserError(f"{path}: {key} {shown(value)} is not supported for {name}; it must be {supported!r}.")


def _local_layers(settings: Mapping[str, Any], name: str, path: pathlib.Path | str) -> tuple[bool, ...]:
    """One bool a layer: does it see a window only?"""
    known, count = FAMILIES[name].defaults, settings["num_hidden_layers"]
    uses = settings.get("sliding_window") is not None and settings.get("use_sliding_window", True)
    if "max_window_layers" in known:
        first = _or_default(settings, "max_window_layers", name, path, zero=True)
        local = tuple(uses and layer >= first for layer in range(count))
    elif "sliding_window_pattern" in known:
        period = _or_default(settings, "sliding_window_pattern", name, path)
        local = tuple((layer + 1) % period != 0 for layer in range(count))
    else:
        local = (uses and "sliding_window" in known,) * count
    kinds = settings.get("layer_types")
    if kinds is None:
        return local
    if not isinstance(kinds, list):
        raise UserError(f"{path}: layer_types is {shown(kinds)}; it must name each of {count} layers.")
    unknown = [kind for kind in kinds if kind not in (_FULL, _LOCAL)]
    if unknown or len(kinds) != count:
        found = unknown[0] if unknown else f"of {len(kinds)} layers"
        raise UserError(
            f"{path}: layer_types {shown(found)} is not supported for {name}; it must name each of {count} layers "
            f"{_FULL} or {_LOCAL}."
        )
    named = tuple(kind == _LOCAL for kind in kinds)
    if named != local and "layer_types" not in known:  # transformers does not read it for this family either
        raise UserError(f"{path}: layer_types contradicts sliding_window for {name}; remove one of them.")
    if any(named) and not uses:
        raise UserError(f"{path}: layer_types names {_LOCAL}, but sliding windows are off; set sliding_window.")
    return named


def _rope(settings: Mapping[str, Any], name: str, path) -> tuple[float, RopeScaling | None, float | None]:
    """Rotary base and scaling, and the base of local layers where the family has one of its own."""
    known = FAMILIES[name].defaults
    by_kind = "rope_local_base_freq" in known  # transformers 5 nests its parameters by kind of layer
    old, new = object_at(settings, "rope_scaling", path), object_at(settings, "rope_parameters", path)
    if new and by_kind != any(isinstance(value, Mapping) for value in new.values()):
        wanted = f"one set each for {_FULL} and {_LOCAL}" if by_kind else "one set for all layers"
        raise UserError(f"{path}: rope_parameters {shown(new)} is not supported for {name}; it must be {wanted}.")
    theta = _or_default(settings, "rope_theta", name, path, kind=float)
    if not by_kind:
        return *_rope_of(old or new, theta, settings, path), None
    full, local = ({**object_at(new, kind, f"{path}: rope_parameters")} for kind in (_FULL, _LOCAL))
    theta, scaling = _rope_of({**full, **old}, theta, settings, path)
    local_theta = _or_default(settings, "rope_local_base_freq", name, path, kind=float)
    local_theta, local_scaling = _rope_of(local, local_theta, settings, path)
    if local_scaling is not None:
        raise UserError(f"{path}: rope scaling of {_LOCAL} is not supported for {name}; it must be 'default'.")
    return theta, scaling, local_theta


def _rope_of(parameters: Mapping[str, Any], theta: float, settings, path) -> tuple[float, RopeScaling | None]:
    if parameters.get("rope_theta") is not None:
        theta = number(parameters, "rope_theta", path, float)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    if kind not in ("default", "linear", "llama3"):
        raise UserError(f"{path}: rope scaling {shown(kind)} is not supported; use 'default', 'linear' or 'llama3'.")
    part = parameters.get("partial_rotary_factor")
    if part not in (None, 1.0):
        raise UserError(f"{path}: partial_rotary_factor {shown(part)} is not supported; it must be 1.0.")
    if kind == "default":
        return theta, None
    need = functools.partial(number, parameters, where=f"{path}: {kind} rope scaling")
    factor = need("factor", kind=float)
    if kind == "linear":
        return theta, RopeScaling(factor=factor)
    low, high = need("low_freq_factor", kind=float), need("high_freq_factor", kind=float)
    if low >= high:
        raise UserError(f"{path}: low_freq_factor {low} is not below high_freq_factor {high}; fetch the file again.")
    original = settings["max_position_embeddings"]
    if parameters.get("original_max_position_embeddings") is not None:
        original = need("original_max_position_embeddings", most=LARGEST["max_position_embeddings"])
    return theta, RopeScaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_max_position=original)


def _settings(config: ModelConfig, name: str) -> dict[str, Any]:
    """The architecture as config.json says it for a family, in transformers 4's spelling."""
    c, family = config, FAMILIES[name]
    known = family.defaults
    settings = {key: getattr(c, field) for key, field in SIZES.items()}
    settings |= {
        "model_type": name,
        "architectures": [family.architecture],
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_embeddings,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "hidden_activation" if "hidden_activation" in known else "hidden_act": ACTIVATIONS[c.activation],
    }
    s = c.rope_scaling
    if s is not None:
        settings["rope_scaling"] = {"rope_type": "linear", "factor": s.factor}
        if s.original_max_position:
            settings["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position,
            }
    settings |= {key: getattr(c, field) or None for key, field in SOFTCAPS.items() if key in known}
    if "query_pre_attn_scalar" in known:
        # An integer, as transformers 5 insists; a scale that is of none is found when the settings are read back.
        settings["query_pre_attn_scalar"] = c.head_dim if c.query_scale is None else round(c.query_scale**-2)
    if "rope_local_base_freq" in known:
        settings["rope_local_base_freq"] = c.local_rope_theta
    return settings | _window_settings(c, known)


def _window_settings(config: ModelConfig, known: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers are local: as `layer_types` where it is read, and as releases before it (4.53) spell it."""
    count = config.num_layers
    local = config.local_layers or (False,) * count
    settings: dict[str, Any] = {}
    if "layer_types" in known:
        settings["layer_types"] = [_LOCAL if one else _FULL for one in local]
    if "use_sliding_window" in known:
        settings["use_sliding_window"] = any(local)
    if "sliding_window" in known and (config.window or "layer_types" not in known):
        settings["sliding_window"] = config.window or None
    if "max_window_layers" in known and any(local):
        settings["max_window_layers"] = local.index(True)
    if "sliding_window_pattern" in known:
        for period in range(1, count + 2):
            if local == tuple((layer + 1) % period != 0 for layer in range(count)):
                settings["sliding_window_pattern"] = period
                break
    return settings
