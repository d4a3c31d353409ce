"""The Dockerfile: what it copies is there and is sent to the builder, what it installs exists."""

import re
import shlex

import paths
import pytest

ROOT = paths.CONFIGS.parent
FILE = ROOT / "launch" / "Dockerfile"
INSTRUCTIONS = [line.split(maxsplit=1) for line in FILE.read_text().splitlines() if line and not line.startswith("#")]


def arguments(name):
    return [rest for word, rest in INSTRUCTIONS if word == name]


def test_it_is_made_of_instructions_that_docker_knows():
    assert {word for word, _ in INSTRUCTIONS} <= {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "CMD"}
    assert INSTRUCTIONS[0][0] == "FROM" and arguments("CMD") == ['["cgrpo"]']


def test_what_it_copies_is_in_the_repository_and_not_ignored():
    ignored = (ROOT / "launch" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    for line in arguments("COPY"):
        *sources, target = shlex.split(line)
        for source in sources:
            assert (ROOT / source).exists() and f"!{source}" in ignored
            assert target in ("./", source)
    needed = re.findall(r'HERE / "(\w[\w.]*)"', (ROOT / "setup.py").read_text())  # which setup.py reads
    assert {"README.md", "cgrpo_jax"} <= set(needed) <= set(" ".join(arguments("COPY")).split())


@pytest.mark.parametrize("extra", ["tpu", "gpu"])
def test_its_extras_exist(extra):
    assert f'"{extra}": [' in (ROOT / "setup.py").read_text()
    assert extra in FILE.read_text()


def test_its_python_is_one_that_the_package_takes():
    (version,) = re.findall(r"python:3\.(\d+)-slim", arguments("FROM")[0])
    assert int(version) >= 11
