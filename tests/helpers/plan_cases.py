"""What the tests of planning/test_plan share with those that take longer."""

import jax
import planned
import pytest


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return planned.describe(tmp_path_factory.mktemp("policy"))


def arrays(tree):
    return [(leaf.shape, str(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


# Numbers of one device, of 2 (fsdp) x 2 (tensor): width 32, MLP 64, 4 and 2 heads of 8, 5 layers, 96 tokens.
MATRICES = 2 * 96 * 32 + 5 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64)
NORMS = 5 * (2 * 32 + 2 * 8) + 32
TRAINED = 4 * (MATRICES // 4 + NORMS) + 4  # and the number of updates
ADAM = 2 * (TRAINED - 4) + 8  # and the counts of Adam and of the schedule
SAMPLING = 2 * (MATRICES // 2 + NORMS)  # whole over fsdp, bfloat16
# Keys and values of 8 slots of a data group, of one of two heads, with room for a prompt of 100 and 16 more; and what
# else there is of a slot: newest token, length, tokens sampled, their limit, a key of two numbers, whether it goes on.
CACHE = 2 * 2 * 5 * 8 * (100 + 16) * 8
