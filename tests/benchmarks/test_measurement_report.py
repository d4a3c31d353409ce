"""Rows of a benchmark's report: what is measured with NumPy is judged, and written, as anything else."""

import json

import numpy as np
import report


def test_a_row_of_numpy_numbers_is_json_and_its_verdict_decides_the_exit_status():
    missed = report.row("seconds", [np.float64(1.2), np.float64(1.3)], "pairs", unit="s", target=1.1, most=True)
    assert missed["met"] is False
    assert json.loads(json.dumps(missed))["met"] is False
    met = report.row("rate", [np.float32(3.0)], "pairs", unit="1/s", target=2.5)
    assert json.loads(json.dumps(met))["value"] == 3.0 and met["met"] is True
