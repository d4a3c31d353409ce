"""Modules of the user's own that programs may import, such as a private library: read once, kept as text.

A program imports them from the description that it is given: it meets no file of theirs, so there is nothing that it
could change for others, and what it runs is what was hashed. Python alone: neither compiled modules nor data files.

    modules = read(["lib/hydro.py", "lib/pumps"])
    modules.names          # ("hydro", "pumps")
    modules.digests()      # {"the module hydro": "5f7c0b7d0d7ce8a1", ...}
"""

import dataclasses
import hashlib
import importlib.util
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from cgrpo_jax.errors import UserError

_MAX_BYTES = 1 << 20  # of all together: each program is given them
_TAKEN = (*sys.stdlib_module_names, "numpy", "cgrpo_jax", "program", "tests")


@dataclasses.dataclass(frozen=True)
class Modules:
    """Modules that programs may import.

    Attributes:
      sources: of each module, by its dotted name: its text, and whether it is a package.
    """

    sources: Mapping[str, tuple[str, bool]] = dataclasses.field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The modules that are not within another, in the order in which they were given."""
        return tuple(name for name in self.sources if "." not in name)

    def digests(self) -> dict[str, str]:
        """Returns for each of `names` 16 hexadecimal digits of all that it holds."""
        found = {}
        for top in self.names:
            whole = hashlib.sha256()
            for name, (text, is_package) in self.sources.items():
                if name.partition(".")[0] == top:
                    whole.update(f"{name} {is_package} {len(text)}\n{text}".encode())
            found[f"the module {top}"] = whole.hexdigest()[:16]
        return found

    def wanted(self, program: str) -> dict[str, tuple[str, bool]]:
        """Returns what a program is given, for `environment.prepare`: all if it has the name of one, else none."""
        used = any(re.search(rf"\b{re.escape(name)}\b", program) for name in self.names)
        return dict(self.sources) if used else {}


NONE = Modules()


def read(paths: Sequence[str | pathlib.Path]) -> Modules:
    """Reads modules: each a file, or a folder with all that is in it.

    Raises:
      UserError: one is missing, is no Python, has a name that can't be imported or is taken, or they are too large.
    """
    sources: dict[str, tuple[str, bool]] = {}
    for path in map(pathlib.Path, paths):
        name = path.stem if path.suffix == ".py" else path.name
        if not path.exists():
            raise UserError(f"module {str(path)!r} does not exist; give a file, such as lib/hydro.py, or a folder.")
        if path.is_file() and path.suffix != ".py":
            raise UserError(f"module {str(path)!r} is no Python file; give one that ends in .py, or a folder of them.")
        if not name.isidentifier() or name in _TAKEN:
            why = "is the name of one that is there already" if name in _TAKEN else "is no name that can be imported"
            raise UserError(f"module {str(path)!r}: {name!r} {why}; rename it.")
        if name in sources:
            raise UserError(f"two modules are called {name!r}; rename one, or leave it out.")
        sources |= {name: (_text(path), False)} if path.is_file() else _package(path, name)
    if (size := sum(len(text.encode()) for text, _ in sources.values())) > _MAX_BYTES:
        raise UserError(
            f"modules {', '.join(map(str, paths))} hold {size} bytes, which each program would be given; "
            f"give at most {_MAX_BYTES}."
        )
    return Modules(sources)


def _package(folder: pathlib.Path, name: str) -> dict[str, tuple[str, bool]]:
    """The sources of a folder and those in it; one without an `__init__.py` is a package all the same."""
    found: dict[str, tuple[str, bool]] = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).with_suffix("").parts
        if not all(part.isidentifier() for part in parts):  # such as those of a hidden folder
            continue
        for depth in range(len(parts)):
            found.setdefault(".".join([name, *parts[:depth]]), ("", True))
        if parts[-1] == "__init__":
            found[".".join([name, *parts[:-1]])] = (_text(file), True)
        elif not found.get(".".join([name, *parts]), ("", False))[1]:  # of a folder and a file, Python takes the folder
            found[".".join([name, *parts])] = (_text(file), False)
    if not found:
        raise UserError(f"module {str(folder)!r} holds no Python file; give a folder that has some.")
    return found


def _text(file: pathlib.Path) -> str:
    try:
        text = importlib.util.decode_source(file.read_bytes())
        compile(text, str(file), "exec", dont_inherit=True)
    except OSError as error:
        raise UserError(f"module {str(file)!r} can't be read: {error.strerror}.") from error
    except (SyntaxError, ValueError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        raise UserError(f"module {str(file)!r} is no Python ({error.__class__.__name__}{line}); fix it.") from error
    except (RecursionError, MemoryError) as error:
        why = f"is nested too deeply to be compiled ({error.__class__.__name__})"
        raise UserError(f"module {str(file)!r} {why}; simplify it.") from error
    return text
