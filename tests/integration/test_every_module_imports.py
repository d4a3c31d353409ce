"""Every module of the package, imported in a process of its own: none needs TensorFlow or torch."""

import os
import pkgutil
import subprocess
import sys

import cgrpo_jax

MODULES = sorted(module.name for module in pkgutil.walk_packages(cgrpo_jax.__path__, "cgrpo_jax."))


def run_python(code, path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), *filter(None, sys.path)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_no_module_imports_tensorflow_or_torch_even_where_they_are_installed(tmp_path):
    # Stand-ins that say when anything, a dependency included, imports them, and then act as if not installed.
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nsys.stdout.write('{name} ')\nraise ModuleNotFoundError('stand-in', name='{name}')\n"
        )
    assert run_python("try:\n    import torch\nexcept ImportError: pass", tmp_path).stdout == "torch "
    modules = [name for name in MODULES if not name.endswith("__main__")]
    assert len(modules) > 80
    assert run_python("".join(f"import {name}\n" for name in modules), tmp_path).stdout == ""
