"""What a program finds beside Python itself: standard files by name, time zones, packages, the user's own modules.

`paths` and `wanted` are asked from the outside, `prepare` is called inside.
"""

import _thread
import builtins
import functools
import importlib.machinery
import io
import os
import resource
import sys
from typing import Any

from cgrpo_jax.rewards.sandbox.modules import NONE, Modules

# Its files can't be opened by these names: there is no /proc, and they are another user's.
_STANDARD = {
    path: number
    for number, name in enumerate(("stdin", "stdout", "stderr"))
    for path in (f"/dev/{name}", f"/dev/fd/{number}", f"/proc/self/fd/{number}")
}
_ONE_THREAD = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@functools.cache
def paths() -> list[str]:
    """Returns the paths that Python needs."""
    python = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__)]  # never a virtual environment
    return [*python, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/nix/store", "/etc/ld.so.cache"]


@functools.cache
def zones() -> str | None:
    """Returns the folder of time zones: the system's, else that of the package `tzdata`."""
    import importlib.util
    import zoneinfo

    found = importlib.util.find_spec("tzdata")
    folders = [
        *zoneinfo.TZPATH,
        *(f"{folder}/zoneinfo" for folder in (found and found.submodule_search_locations) or ()),
    ]
    return next((folder for folder in folders if os.path.exists(f"{folder}/UTC")), None)


@functools.cache
def packages(numpy: bool) -> dict[str, str]:
    """Returns the folders of packages that a program may import, each by its name; what else is there, it may not."""
    import importlib.util

    found = importlib.util.find_spec("numpy") if numpy else None
    return {"numpy": os.path.dirname(os.path.dirname(found.origin))} if found and found.origin else {}


def wanted(program: str, tests: str, numpy: bool, modules: Modules = NONE) -> dict:
    """Returns what a program and its tests want of this, for `prepare`: each path that is shown takes a moment.

    Args:
      program, tests: their sources.
      numpy: they may import NumPy.
      modules: of the user's own, which the program may import; what they import themselves is wanted too.
    """
    imported = modules.wanted(program)
    text = "\n".join([program, tests, *(source for source, _ in imported.values())])
    found = {name: folder for name, folder in packages(numpy).items() if name in text}
    return {
        "zones": zones() if "zoneinfo" in text else None,
        "packages": found,
        "modules": imported,
    }


def wanted_paths(wanted: dict) -> list[str]:
    """Returns the paths that this needs."""
    found = [f"{folder}/{name}{end}" for name, folder in wanted["packages"].items() for end in ("", ".libs")]
    return [*found, *filter(None, [wanted["zones"]])]


class _Finder:
    """Finds packages in folders of which nothing else is to be imported."""

    def __init__(self, folders):
        self._folders = folders

    def find_spec(self, name, path=None, target=None):
        """Returns what is to be imported by a name, None if it is no such package."""
        folder = self._folders.get(name)
        return folder and importlib.machinery.PathFinder.find_spec(name, [folder])


class _Importer:
    """Finds and runs modules whose text it holds, `modules.Modules.sources`."""

    def __init__(self, sources):
        self._sources = sources

    def find_spec(self, name, path=None, target=None):
        """Returns what is to be imported by a name, None if it is none of these."""
        if name not in self._sources:
            return None
        is_package = bool(self._sources[name][1])
        origin = name.replace(".", "/") + ("/__init__.py" if is_package else ".py")
        loader: Any = self
        return importlib.machinery.ModuleSpec(name, loader, origin=origin, is_package=is_package)

    def create_module(self, spec):
        """Returns None: the module is made as by default."""

    def exec_module(self, module):
        """Runs the text in a module."""
        name, module.__file__ = module.__spec__.name, module.__spec__.origin
        exec(compile(self._sources[name][0], module.__file__, "exec"), module.__dict__)


def prepare(job):
    """Prepares a process for a program or its tests."""
    builtins.exit = builtins.quit = sys.exit  # Python has been started without `site`, which defines them
    sys.argv = ["program.py"]
    if job["zones"]:
        import zoneinfo

        zoneinfo.reset_tzpath(to=[job["zones"]])
    if job["packages"]:
        os.environ.update(dict.fromkeys(_ONE_THREAD, "1"))
        sys.meta_path.append(_Finder(job["packages"]))
    if job["modules"]:
        sys.meta_path.insert(0, _Importer(job["modules"]))  # before all others
    opened = builtins.open
    builtins.open = io.open = _by_name(open, lambda number, *args, **kwargs: opened(os.dup(number), *args, **kwargs))
    os.open = _by_name(os.open, lambda number, *_, **__: os.dup(number))
    os.stat = _by_name(os.stat, lambda number, **_: os.fstat(number))  # of `os.path.exists`, too
    stack_size, most = _thread.stack_size, resource.getrlimit(resource.RLIMIT_AS)[0] // 2
    _thread.stack_size = lambda size=0: stack_size(min(size, most))  # of which `threading` takes its own


def _by_name(function, of_number):
    """A function of a file, which takes the standard files by their names, too."""

    @functools.wraps(function)
    def of_file(file, *args, **kwargs):
        number = _STANDARD.get(os.fsdecode(file)) if isinstance(file, (str, bytes, os.PathLike)) else None
        return function(file, *args, **kwargs) if number is None else of_number(number, *args, **kwargs)

    return of_file
