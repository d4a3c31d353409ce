"""What tests of buckets share. A test file takes the fixtures by importing them."""

import functools
import os

import bucket_server
import pytest

os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"  # which gcsfs looks at when it is imported
pytest.importorskip("gcsfs", reason="buckets need the extra [gcs]")


@functools.cache
def _started():
    """Returns the server of this process: clients keep its address as long as they live."""
    serving = bucket_server.serve()
    return serving, serving.__enter__()


@pytest.fixture
def bucket(monkeypatch):
    """A server with an empty bucket `mine`, which gs:// paths of this process, and of those it starts, mean."""
    _, server = _started()
    server.buckets.clear()
    server.make_bucket("mine")
    server.faults = type(server)().faults
    for name, value in bucket_server.environment(server.url).items():
        monkeypatch.setenv(name, value)
    return server
