"""Whether a run of a study or a sweep has finished."""

import json
import sys

import paths
import pytest

from cgrpo_jax.datasets import problems
from cgrpo_jax.runs import config as config_lib

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/sweep.py` has it
import runner  # noqa: E402

NOW = config_lib.to_json(config_lib.load(paths.CONFIGS / "quickstart.py"))


def finished(folder, values, now=NOW, overridden=()):
    """Returns whether the run of a config.json has finished with a configuration of now."""
    (folder / "config.json").write_text(json.dumps(values))
    summary = {"iterations": now["num_iterations"], "task": problems.task_of(now["data"]["kind"])}
    (folder / "summary.json").write_text(json.dumps(summary))
    return runner.summary(folder, now, overridden) is not None


def changed(values, **sections):
    return values | {name: values[name] | section for name, section in sections.items()}


@pytest.fixture
def before():
    """The configuration as a version wrote it that had another default, and fewer keys."""
    values = json.loads(json.dumps(changed(NOW, objective={"clip_refined": True})))
    del values["objective"]["refined_ratio"], values["refine"]["which"]
    return values


def test_a_run_from_before_a_default_changed_has_finished(tmp_path, before):
    assert finished(tmp_path, before)
    assert not finished(tmp_path, before, overridden=["objective.clip_refined"])
    assert not finished(tmp_path, changed(before, objective={"gamma": 0.5}))
    assert not finished(tmp_path, changed(NOW, objective={"clip_refined": True}))  # which says so itself


def test_keys_that_nothing_reads_do_not_outdate_a_run(tmp_path):
    plain = changed(NOW, refine={"kind": "none"})
    assert finished(tmp_path, changed(plain, objective={"gamma": 0.5}), plain)
    assert not finished(tmp_path, changed(plain, objective={"clip_high": 0.5}), plain)
