"""What takes longer than a unit test may, of tests/inference/test_overlap.py: data groups, and what is compiled."""

import jax
import pytest
import small_engine
from compilations import compilations
from small_engine import MANY, SPLIT, engine, hold_to_many, sample

from cgrpo_jax import sharding
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.sampling import Sampling


@pytest.mark.parametrize("pages", [None, Pages(12, 8, tokens=16, prompts=3, kernel=False)], ids=["slots", "pages"])
def test_two_data_groups_write_the_same_and_nothing_is_compiled_after_the_start(pages):
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    params = jax.device_put(SPLIT, jax.sharding.NamedSharding(mesh, sharding.WHOLE))
    made = engine(num_slots=4, mesh=mesh, pages=pages, overlap=True)
    made.compile(params, [Sampling()])
    with compilations() as compiled:
        groups = sample(MANY, make=made, params=params)
    assert not compiled
    hold_to_many(groups)
    assert made.take_stats().tokens == sum(len(row.token_ids) for group in small_engine.many() for row in group)
