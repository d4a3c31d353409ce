"""Eight fake CPU devices for every test, chosen before JAX is imported."""

import importlib.util
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

collect_ignore_glob = []
# Comparisons with transformers need the extra `parity`.
if not all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft")):
    collect_ignore_glob.append("*_parity.py")
# Compiling for TPUs needs the extra `tpu`, no TPU.
if not importlib.util.find_spec("libtpu"):
    collect_ignore_glob.append("*_tpu.py")
