"""The commands: `cgrpo NAME ...` is `python -m cgrpo_jax.NAME ...`, and `cgrpo` alone lists them."""

import ast
import difflib
import pathlib
import runpy
import sys

# In the order in which one meets them.
COMMANDS = (
    "init",
    "train",
    "finetune",
    "evaluate",
    "diagnose",
    "collect",
    "recipe",
    "sample",
    "report",
    "show",
    "plan",
    "simulate",
    "convert",
    "data",
)


def main() -> None:
    """Runs the command that the first argument names; nothing is imported for the list."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("--help", "-help", "-h"):
        sys.stdout.write(_listed())
    elif name in COMMANDS:
        sys.argv[:2] = [f"{sys.argv[0]} {name}"]
        runpy.run_module(f"{__package__ or 'cgrpo_jax'}.{name}", run_name="__main__", alter_sys=True)
    else:
        close = difflib.get_close_matches(name, COMMANDS, n=1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        sys.stderr.write(f"error: unknown command {name}{meant}; commands are {', '.join(COMMANDS)}\n")
        sys.exit(2)


def _listed() -> str:
    lines = ["usage: cgrpo COMMAND [--help] [flags]", ""]
    for name in COMMANDS:
        module = pathlib.Path(__file__).with_name(f"{name}.py")
        module = module if module.exists() else module.with_suffix("") / "__main__.py"  # a room that is a command
        source = module.read_text(encoding="utf-8")
        lines.append(f"  {name:<9} {(ast.get_docstring(ast.parse(source)) or '').partition(chr(10))[0]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
