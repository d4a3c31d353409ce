"""How far sampler and trainer are apart, by hand."""

import numpy as np
import pytest

from cgrpo_jax.records import TrainRow
from cgrpo_jax.training.sampler_gap import measure


def row(*probabilities, refined=False):
    ids = np.zeros(len(probabilities), np.int32)
    return TrainRow(ids, ids, np.log(np.array(probabilities, np.float32)), 1.0, refined)


def short(found):
    return {name.removeprefix("sampling/"): value for name, value in found.items()}


def test_tokens():
    # Trainer over sampler: 1, 2, 1/2 and 4. The refined row was sampled after another prompt.
    rows = [row(0.1, 0.2), row(0.4, 0.1), row(0.9, refined=True)]
    trainer = [np.log([0.1, 0.4]), np.log([0.2, 0.4]), np.log([0.001])]
    found = short(measure(rows, trainer, cap=2.5, level="token"))
    assert found == {
        "sampling_logp_difference/mean": pytest.approx(np.log([2, 2, 4]).sum() / 4),
        "sampling_logp_difference/max": pytest.approx(np.log(4)),
        "importance_sampling_ratio/min": pytest.approx(0.5),
        "importance_sampling_ratio/mean": pytest.approx(7.5 / 4),
        "importance_sampling_ratio/max": pytest.approx(4),
        "effective_sample_size": pytest.approx(7.5**2 / (4 * (1 + 4 + 0.25 + 16))),
        "frac_capped": 0.25,
    }


def test_rows():
    # 1 * 2 = 2 and 1/2 * 4 = 2.
    rows = [row(0.1, 0.2), row(0.4, 0.1)]
    trainer = [np.log([0.1, 0.4]), np.log([0.2, 0.4])]
    found = short(measure(rows, trainer, cap=1.5, level="sequence_mask"))
    assert found["importance_sampling_ratio/min"] == pytest.approx(2) == found["importance_sampling_ratio/max"]
    assert found["effective_sample_size"] == pytest.approx(1) and found["frac_capped"] == 1


def test_what_agrees():
    rows = [row(0.1, 0.2), row(0.3)]
    found = short(measure(rows, [one.old_logp for one in rows], cap=0.0, level="token"))
    assert found["sampling_logp_difference/max"] == 0 and found["effective_sample_size"] == 1
    assert "frac_capped" not in found


def test_no_row_has_been_sampled_as_it_trains():
    assert measure([row(0.1, refined=True)], [np.log([0.5])], cap=2.0, level="token") == {}


def test_a_token_that_the_sampler_gave_nothing_stays_finite():
    found = short(measure([row(1e-30)], [np.zeros(1)], cap=2.0, level="token"))
    assert all(np.isfinite(value) for value in found.values())
