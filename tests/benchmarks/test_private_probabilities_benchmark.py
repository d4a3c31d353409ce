"""What a token's weight is at each gamma, by hand."""

import numpy as np
import private_probabilities
import pytest


def test_a_weight_is_a_quarter_at_gamma_and_falls_as_pi_below_it():
    found = private_probabilities.report([np.array([0.001, 0.5]), np.array([1e-6, 1.0])])
    assert (found["programs"], found["tokens"]) == (2, 2.0)
    lowest, _, _, at_gamma, _, highest = found["bins"]
    assert (lowest["tokens"], at_gamma["tokens"], highest["tokens"]) == (0.5, 0.5, 1.0)
    assert at_gamma["weights"]["0.001"] == 0.25 and at_gamma["weights"]["0.1"] == pytest.approx(0.0098, abs=1e-4)
    assert lowest["weights"]["0.001"] == pytest.approx(1e-6 / 1e-3, abs=1e-4)
    assert highest["weights"]["0.1"] == pytest.approx((0.05 / 0.36 + 0.1 / 1.21) / 2, abs=1e-4)
