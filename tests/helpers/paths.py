"""Where the repository, its configurations and its test helpers lie."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
LOCAL_POD = ROOT / "launch" / "local_pod.sh"


def python_path(*first: str | pathlib.Path) -> str:
    """Returns a PYTHONPATH with which another process imports what this one can, some folders first."""
    return os.pathsep.join([*map(str, first), str(ROOT), *filter(None, sys.path)])
