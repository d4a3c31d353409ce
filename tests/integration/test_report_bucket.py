"""A report of a run in a bucket; the page itself lies on a disk."""

import pathlib

import bucket_server
import pytest
import report_runs
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax.errors import UserError
from cgrpo_jax.report import __main__ as report
from cgrpo_jax.report import page, run_folder


def test_a_run_in_a_bucket_has_the_page_of_one_on_a_disk(bucket, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=2)
    for path in filter(pathlib.Path.is_file, folder.rglob("*")):
        name = f"runs/a/{path.relative_to(folder)}"
        bucket.buckets["mine"][name] = bucket_server.Object(path.read_bytes(), next(bucket.generations))
    here = page.write(run_folder.read_all([folder]), tmp_path / "here.html", max_groups=9)
    there = page.write(run_folder.read_all(["gs://mine/runs/a"]), tmp_path / "there.html", max_groups=9)
    assert (there.total, there.shown, there.faults) == (here.total, here.shown, []) and there.total == 4


def test_a_page_is_not_written_to_a_bucket(bucket, tmp_path):  # noqa: F811
    with pytest.raises(
        UserError, match=r"--out gs://mine/x\.html is in a bucket; give a file on a disk, such as x\.html"
    ):
        report.main([str(tmp_path)], out="gs://mine/x.html", max_groups=1, seed=0)
