"""Four points on the quickstart: two shaping constants, each with and without the paper's weight of refinements.

    python launch/sweep.py --sweep=configs/sweeps/quickstart.py --workdir=runs/sweep

About two minutes a point on two cores.
"""

from points import product


def get_sweep():
    """Returns the configuration that all points share, and the points."""
    return {
        "config": "configs/quickstart.py",
        "points": product({"objective.gamma": (0.01, 0.1), "objective.aggregate": ("constant", "paper")}),
    }
