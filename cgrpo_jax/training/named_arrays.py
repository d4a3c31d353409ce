"""The arrays of a pytree by their dotted path, such as `layers.q`: how a checkpoint names and checks them."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cgrpo_jax.errors import UserError


def by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by their dotted path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two leaves of the tree have the same dotted path; rename one")
    return named


def unflatten(named: Mapping[str, Any], template: Any) -> Any:
    """Returns a pytree like the template, of arrays by their dotted path."""
    return jax.tree.unflatten(jax.tree.structure(template), [named[name] for name in by_path(template)])


def check_same(saved: Mapping[str, Any], template: Any, where: pathlib.Path, *, same_dtype: bool) -> None:
    """Raises a `UserError` that names the first array of the template that the checkpoint can't fill."""
    wanted = by_path(template)
    here, there = "the config's model", f"checkpoint {where}"
    advice = "use the config that the checkpoint was trained with"
    for name in sorted(wanted.keys() - saved.keys()):
        raise UserError(f"{name} is in {here} but not in {there}; {advice}")
    for name in sorted(saved.keys() - wanted.keys()):
        raise UserError(f"{name} is in {there} but not in {here}; {advice}")
    for name, leaf in wanted.items():
        shape, dtype = tuple(saved[name].shape), np.dtype(saved[name].dtype)
        if shape != np.shape(leaf) or (same_dtype and dtype != dtype_of(leaf)):
            raise UserError(
                f"{name} is {dtype}{list(shape)} in {there} "
                f"but {dtype_of(leaf)}{list(np.shape(leaf))} in {here}; {advice}"
            )


def dtype_of(leaf: Any) -> np.dtype:
    """Returns the dtype of an array, a shape or a number."""
    return np.dtype(leaf.dtype) if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
