"""What each item of a checkpoint holds of a train state: by name, as Orbax saves and restores it."""

from typing import Any

import jax
import numpy as np

from cgrpo_jax.records import TrainState
from cgrpo_jax.training.named_arrays import by_path, dtype_of


def of_state(state: TrainState) -> dict[str, Any]:
    """Returns what each item of a checkpoint holds of a state."""
    critic = state.critic
    rest = {"step": state.step, "opt_state": state.opt_state, "average": state.average}
    if critic is not None:
        rest["critic"] = {"step": critic.step, "opt_state": critic.opt_state}
    own = {} if critic is None or critic.params is None else {"critic": critic.params}
    return {"params": state.params, "rest": rest, **own}


def state_of(items: dict[str, Any]) -> TrainState:
    """Undoes `of_state`."""
    rest = dict(items["rest"])
    critic = rest.pop("critic", None)
    return TrainState(
        params=items["params"], critic=critic and TrainState(params=items.get("critic"), **critic), **rest
    )


def to_save(tree: Any) -> dict[str, Any]:
    """Returns the arrays of a pytree by name."""
    # Orbax copies device arrays before `save` returns; a NumPy array it may only refer to.
    return {name: leaf if isinstance(leaf, jax.Array) else np.array(leaf) for name, leaf in by_path(tree).items()}


def to_restore(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes, dtypes and shardings by name; a leaf without a sharding goes to the first device."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype_of(leaf), sharding=getattr(leaf, "sharding", None) or first)

    return {name: struct(leaf) for name, leaf in by_path(tree).items()}
