"""Arrays that are dealt out over the devices, and read whole."""

import numpy as np
import pytest
from meshes import make_mesh

from cgrpo_jax import sharding


@pytest.mark.parametrize("name", ["1x8x1", "2x2x2"])
def test_what_is_read_place_by_place_is_the_whole(name):
    mesh, whole = make_mesh(name), np.arange(8 * 3 * 5, dtype=np.int32).reshape(8, 3, 5)
    dealt = sharding.deal(whole, mesh)
    for read in (sharding.read, sharding.read_by_places):
        found = read(dealt, mesh)
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole)


def test_of_what_is_read_no_device_holds_more_than_one_place():
    mesh, dealt = make_mesh("1x8x1"), sharding.deal(np.zeros((8, 3, 5), np.int32), make_mesh("1x8x1"))
    place = sharding.place_of(dealt, 0, mesh=mesh)
    assert place.is_fully_replicated and place.shape == (8, 3)
    found = sharding.place_of.lower(dealt, 0, mesh=mesh).compile().memory_analysis()
    assert found.output_size_in_bytes == place.nbytes
    assert found.temp_size_in_bytes <= place.nbytes  # of five places, whose bytes a device would else hold
