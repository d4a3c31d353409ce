"""Host memory that importing a Hugging Face checkpoint takes beyond the weights themselves.

    python tests/benchmarks/import_memory.py [--params=1.2e9] [--json=FILE]

Makes a random bfloat16 Llama of the shape of Llama 3.2 1B in a temporary folder (about 2.5 GB; the import needs 7 GB of
memory), then imports it in a fresh process as float32 onto 8 CPU devices that share every array's width. Reported is
the process's peak of resident memory (`VmHWM`: the interpreter, JAX and mapped pages of the files included) less the
bytes of the result. It should stay within the largest stacked array and a fifth. `--params` shrinks the model by its
number of layers and vocabulary, to try things out; the interpreter's own share then outgrows the target.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time

LLAMA_1B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
}
FULL_SIZE = 1.2358e9
DEVICES = 8


def make(folder: pathlib.Path, size: float) -> None:
    """Writes the random checkpoint, through our own export, one array at a time."""
    import jax.numpy as jnp
    import ml_dtypes
    import numpy as np

    from cgrpo_jax.models import params as params_lib
    from cgrpo_jax.models.hf import config as hf_config
    from cgrpo_jax.models.hf import export, load

    share = min(1.0, size / FULL_SIZE)
    settings = LLAMA_1B | {"num_hidden_layers": max(1, round(16 * share)), "vocab_size": max(8, round(128256 * share))}
    (folder / "config.json").write_text(json.dumps(settings))
    config = hf_config.read_config(folder)
    noise = np.random.default_rng(0).standard_normal(1 << 20, np.float32).astype(ml_dtypes.bfloat16)

    def read(path):
        shape = load.at(params_lib.param_shapes(config), path).shape
        count = math.prod(shape)
        return jnp.asarray(np.resize(noise, count).reshape(shape))

    export.save_params(folder, config, read, dtype="bfloat16")


def kilobytes(key: str) -> int:
    line = next(line for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def measure(folder: pathlib.Path) -> None:
    """Imports the checkpoint and writes what that took to standard output, as JSON."""
    import jax

    from cgrpo_jax import sharding
    from cgrpo_jax.models import params as params_lib
    from cgrpo_jax.models.hf import config as hf_config
    from cgrpo_jax.models.hf import load

    config = hf_config.read_config(folder)
    axes, shapes = params_lib.logical_axes(config), params_lib.param_shapes(config)
    shardings = sharding.param_shardings(axes, shapes, sharding.make_mesh())  # over the width, as in training
    before, began = kilobytes("VmRSS"), time.monotonic()
    params = load.load_params(folder, config, shardings=shardings)
    arrays = jax.tree.leaves(jax.block_until_ready(params))
    found = {
        "seconds": time.monotonic() - began,
        "devices": len(arrays[0].sharding.device_set),
        "parameters": sum(array.size for array in arrays),
        "result": sum(array.nbytes for array in arrays),
        "largest": max(array.nbytes for array in arrays),
        "peak": kilobytes("VmHWM"),
        "before": before,
        "after_anonymous": kilobytes("RssAnon"),
        "after_files": kilobytes("RssFile"),
    }
    sys.stdout.write(json.dumps(found))


def main(arguments: list[str]) -> int:
    options = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    if options.keys() - {"params", "json"}:
        print(__doc__)
        return 2
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
        "PYTHONPATH": os.pathsep.join([str(pathlib.Path(__file__).parents[2]), *filter(None, sys.path[1:])]),
    }
    with tempfile.TemporaryDirectory() as folder:
        for step in ("make", "measure"):
            command = [sys.executable, __file__, step, folder, options.get("params", str(FULL_SIZE))]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout)
    extra = found["peak"] - found["result"]
    ratio = extra / found["largest"]
    gigabytes = {key: found[key] / 1e9 for key in ("result", "peak", "before", "largest", "after_anonymous")}
    print(
        f"{found['parameters'] / 1e9:.2f} billion parameters onto {found['devices']} devices: {found['seconds']:.0f} s"
    )
    print(f"result                           {gigabytes['result']:.2f} GB")
    print(
        f"peak resident                    {gigabytes['peak']:.2f} GB ({gigabytes['before']:.2f} GB before the import)"
    )
    print(f"peak beyond the result           {extra / 1e9:.2f} GB")
    print(f"largest stacked array            {gigabytes['largest']:.2f} GB")
    print(f"ratio of the last two            {ratio:.2f} (target: at most 1.2)")
    print(
        f"afterwards: anonymous {gigabytes['after_anonymous']:.2f} GB, mapped files {found['after_files'] / 1e6:.0f} MB"
    )
    if "json" in options:
        row = {
            "name": "import: peak host memory beyond the weights / largest stacked array",
            "value": ratio,
            "target": 1.2,
            "met": ratio <= 1.2,
            "workload": f"{found['parameters'] / 1e9:.2f}B random Llama, bfloat16 on disk, float32 on 8 CPU devices",
        }
        pathlib.Path(options["json"]).write_text(json.dumps([row], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["make"]:
        make(pathlib.Path(sys.argv[2]), float(sys.argv[3]))
    elif sys.argv[1:2] == ["measure"]:
        measure(pathlib.Path(sys.argv[2]))
    else:
        sys.exit(main(sys.argv[1:]))
