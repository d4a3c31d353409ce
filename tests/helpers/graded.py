"""Unit tests that programs are graded by, and what such tests of ours need."""

import json
import sys

import pytest

MARKS = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
    pytest.mark.usefixtures("nothing_is_left"),
]
ADD = json.dumps({"asserts": ["assert add(1, 2) == 3", "assert add(2, 2) == 4"]})
SUM = json.dumps({"stdin": [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9\n"}]})
