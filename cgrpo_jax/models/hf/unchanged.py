"""Are the files of a Hugging Face folder those that this program has written there? Folders of others are not asked."""

import functools
import pathlib

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import digests, files

_WEIGHTS = (".safetensors", ".safetensors.index.json")
_FREE = ("README.md",)  # for people to edit


def seal(folder: pathlib.Path) -> None:
    """Writes the digests of a folder's files, once all of them are there."""
    with files.checked(folder):
        names = [path.name for path in folder.iterdir() if path.is_file() and path.name not in (*_FREE, digests.FILE)]
        digests.write(folder, sorted(names))


def unseal(folder: pathlib.Path) -> None:
    """Forgets the digests, before files change."""
    (folder / digests.FILE).unlink(missing_ok=True)


def check(folder: str | pathlib.Path, *, weights: bool) -> None:
    """Checks the weights of a folder, or all other files; once, as long as its digests stay.

    Raises:
      UserError: a file is missing or another one.
    """
    path = pathlib.Path(folder).absolute()
    if (path / digests.FILE).is_file():
        _check(path, weights, (path / digests.FILE).stat().st_mtime_ns)


@functools.cache
def _check(folder: pathlib.Path, weights: bool, time: int) -> None:
    try:
        content = digests.read(folder)
        if content is not None:
            digests.check(folder, content, where=lambda name: name.endswith(_WEIGHTS) == weights)
    except digests.Damaged as error:
        raise UserError(
            f"{folder} is damaged ({error}); restore it from a copy or write it again, or if you have changed it "
            f"remove its {digests.FILE}."
        ) from error
