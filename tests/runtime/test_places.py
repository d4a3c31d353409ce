"""Texts that become paths: `~`, buckets, and what is refused."""

import importlib.util
import pathlib

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import places


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert places.place("~/runs/a") == pathlib.Path("/home/me/runs/a")
    assert places.place("runs/~a") == pathlib.Path("runs/~a")
    path = pathlib.Path("~/as it is")
    assert places.place(path) is path


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("s3://mine/a", "is on s3://, which is not supported; give a path on a disk, or gs://BUCKET/NAME"),
        ("hdfs://mine/a", "is on hdfs://"),
        ("http://mine/a", "is on http://"),
        ("file:///a", "is on file://"),
        ("gs:///a", "names no bucket"),
        ("gs://", "names no bucket"),
        ("gs://My Bucket/a", "names no bucket"),
        ("gs:/mine/a", "has one slash where two must be; write gs://mine/a"),
        ("s3:/mine/a", "is on s3://, which is not supported"),
    ],
)
def test_what_can_not_be_read_is_refused(text, why):
    assert why in (places.fault(text) or "")
    with pytest.raises(UserError, match="s3|hdfs|http|file|bucket|slash"):
        places.place(text)


def test_without_the_extra_a_bucket_is_refused(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gcsfs" else find(name))
    with pytest.raises(UserError, match=r"gs://mine/a is on Google Cloud Storage.*pip install 'cgrpo_jax\[gcs\]'"):
        places.place("gs://mine/a")


def test_the_first_of_several_that_is_wrong_is_named():
    assert places.faults("a.jsonl, s3://mine/b.jsonl") == places.fault("s3://mine/b.jsonl")
    assert places.faults("gsm8k,openr1") is None and places.fault("gsm8k:1.0.0") is None
