"""All modules imported by one process: none needs TensorFlow or torch."""

import os
import pathlib
import subprocess
import sys

import paths

import cgrpo_jax

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent
MODULES = [
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.stem not in ("__init__", "__main__")
]


def run_python(code, *path):
    environment = os.environ | {"PYTHONPATH": paths.python_path(*path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_no_module_imports_tensorflow_or_torch_even_where_they_are_installed(tmp_path):
    # Stand-ins that tell when anything, a dependency included, imports them, and then act as if not installed.
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").write_text(
            f"import sys\nsys.stdout.write('{name} ')\nraise ModuleNotFoundError('stand-in', name='{name}')\n"
        )
    assert run_python("try:\n    import torch\nexcept ImportError: pass", tmp_path).stdout == "torch "
    modules = "".join(f"import cgrpo_jax.{name}\n" for name in MODULES)
    assert run_python(modules, tmp_path).stdout == ""
