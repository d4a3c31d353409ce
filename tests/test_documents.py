"""The documents are right about the tree: links, files, commands and keys that they name are there."""

import importlib.util
import pathlib
import re
import string

import ml_collections
import pytest

from cgrpo_jax.runs import base, validate
from cgrpo_jax.runs import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cgrpo_jax"
ROOMS = sorted(path.parent for path in PACKAGE.glob("*/__init__.py"))
ROOM_READMES = sorted(PACKAGE.rglob("README.md"))
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "tests" / "README.md",
    *ROOM_READMES,
    PACKAGE / "datasets" / "ROLLOUTS.md",
    PACKAGE / "inference" / "paged" / "MEASUREMENTS.md",
    PACKAGE / "runs" / "FOLDER.md",
    PACKAGE / "training" / "CRITICS.md",
    *sorted((ROOT / "configs").rglob("README.md")),
    *sorted((ROOT / "launch").rglob("README.md")),
]
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_PATH = re.compile(r"(?<![\w/.])((?:cgrpo_jax|configs|tests|launch)/[\w./-]+\.(?:py|sh|json|jsonl|yaml|png))\b")
_FILE = re.compile(r"\.(py|md|json|jsonl|safetensors|sh|model)$")


def relative(path: pathlib.Path) -> str:
    return str(path.relative_to(ROOT))


def links(path: pathlib.Path) -> list[str]:
    """Returns the targets within the repository that a document links to."""
    found = [one or two for one, two in _LINK.findall(path.read_text())]
    return [target for target in found if "://" not in target]


def anchors(path: pathlib.Path) -> set[str]:
    """Returns the anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    kept = string.ascii_lowercase + string.digits + "-_"
    return {"".join(c for c in heading.lower().replace(" ", "-") if c in kept) for heading in headings}


def keys(section: ml_collections.ConfigDict, prefix: str = "") -> set[str]:
    """Returns the dotted names of all keys and sections."""
    names = set()
    for name, value in section.items():
        names.add(prefix + name)
        if isinstance(value, ml_collections.ConfigDict):
            names |= keys(value, f"{prefix}{name}.")
    return names


@pytest.fixture(scope="module")
def known() -> set[str]:
    return keys(base.get_config())


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=relative)
def test_links_resolve(document):
    for target in links(document):
        name, _, anchor = target.partition("#")
        file = (document.parent / name).resolve() if name else document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_files_that_are_named_exist(document):
    for path in _PATH.findall(document.read_text()):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_keys_that_are_named_exist(document, known):
    text = document.read_text()
    flags = set(re.findall(r"--config\.([a-z_0-9.]*[a-z_0-9])", text))
    assert flags <= known, sorted(flags - known)
    quoted = {name for name in re.findall(r"`([a-z_]+(?:\.[a-z_0-9]+)+)(?:=[^`]*)?`", text) if not _FILE.search(name)}
    quoted = {name for name in quoted if name.partition(".")[0] in known}
    modules = {f"{path.parent.name}.{path.stem}" for path in PACKAGE.rglob("*.py")}
    wrong = {name for name in quoted - known if not is_attribute(name, modules)}
    assert not wrong, sorted(wrong)


def is_attribute(name: str, modules: set[str]) -> bool:
    """Does a dotted name, whose first part is also a section's, begin with a module or name a module's function?"""
    first, _, rest = name.partition(".")
    files = [path for path in PACKAGE.rglob(f"{first}.py")]
    return name in modules or any(
        re.search(rf"^(def|class) {rest}\b", file.read_text(), re.MULTILINE) for file in files
    )


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_commands_that_are_named_exist(document):
    text = document.read_text()
    names = set(re.findall(r"python -m cgrpo_jax\.(\w+)", text)) | set(re.findall(r"(?:^|`)cgrpo ([a-z]+)", text, re.M))
    for name in names:
        module = PACKAGE / f"{name}.py"
        module = module if module.exists() else PACKAGE / name / "__main__.py"
        assert 'if __name__ == "__main__":' in module.read_text(), name


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_has_a_readme_that_names_its_modules(room):
    document = room / "README.md"
    named = {(document.parent / target.partition("#")[0]).resolve() for target in links(document)}
    for inner in (path for path in ROOM_READMES if room in path.parent.parents):
        named |= {(inner.parent / target.partition("#")[0]).resolve() for target in links(inner)}
    modules = {path for path in room.rglob("*.py") if path.name != "__init__.py"}
    assert modules <= named, sorted(map(relative, modules - named))


@pytest.mark.parametrize("document", [*ROOM_READMES, ROOT / "launch" / "README.md"], ids=relative)
def test_a_room_readme_is_short(document):
    assert 30 <= len(document.read_text().splitlines()) <= 80


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_bytes()) < 12 << 10


def heredocs(text: str) -> dict[str, str]:
    """Returns the files that a document's shell commands write, by name."""
    return dict(re.findall(r"^cat > (\S+) <<'END'\n(.*?)^END$", text, re.MULTILINE | re.DOTALL))


def test_the_readme_example_is_valid(tmp_path, monkeypatch):
    """Its data can be made, its configuration passes all checks, and its reward is what the text says."""
    monkeypatch.chdir(tmp_path)
    for name, body in heredocs((ROOT / "README.md").read_text()).items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(body)
    exec(compile((tmp_path / "mine" / "make_data.py").read_text(), "make_data.py", "exec"), {"__name__": "__main__"})

    config = config_lib.freeze(config_lib.load("mine/config.py"))
    validate.check(config)
    data, grader = config.data, config.grader.kind
    for file in (data.train, data.eval):
        rows = pathlib.Path(file).read_text().splitlines()
        assert rows and all(f'"{key}": ' in rows[0] for key in (data.question_key, data.answer_key))

    file, _, name = grader.partition(":")
    spec = importlib.util.spec_from_file_location("reward", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    texts = ["7*1=7, 7+0=7, 7*3=21. Answer: 7 7 21", "Answer: 7 8 21", "Answer: 7", "no"]
    rewards = getattr(module, name)([""] * 4, texts, ["7 7 21"] * 4)
    assert rewards == [1.0, pytest.approx(2 / 3), 0.0, 0.0]
