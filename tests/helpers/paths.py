"""Where the repository, its configurations and its test helpers lie."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
LOCAL_POD = ROOT / "launch" / "local_pod.sh"


def python_path() -> str:
    """Returns a PYTHONPATH with which another process imports what this one can."""
    return os.pathsep.join([str(ROOT), *filter(None, sys.path)])
