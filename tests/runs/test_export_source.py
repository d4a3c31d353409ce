"""What an export reads: a model that a run has, by one of its two names."""

import contextlib

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import export_source


def test_a_name_of_no_model_is_refused(tmp_path):
    """Not taken for the policy's, which would be written under a critic's misspelt name."""
    with contextlib.ExitStack() as held:
        with pytest.raises(UserError, match="a run has no model 'critics' to export; use one of policy, critic"):
            export_source.open_source(tmp_path, held, of="critics", step=None)
