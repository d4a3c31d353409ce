"""Damaged checkpoints, in small numbers."""

import json

import flips
import jax
import pytest

from cgrpo_jax.training import checkpoint_seal


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what Orbax drops
def test_a_share_is_kept_and_not_computed_again(tmp_path, monkeypatch, capsys):
    command = [f"--json={tmp_path}/out.json", "--flips=100", "--share=4"]
    assert flips.main(command) == 0, capsys.readouterr().out
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["cases"] >= 10 and result["faults"] == [] and result["outcomes"]["flip"]["the one before"] > 0
    monkeypatch.setattr(flips, "outcome", None)  # nothing is computed again
    assert flips.main(command) == 0


def test_another_state_is_seen(monkeypatch, tmp_path):
    """Without digests a flipped bit of the weights is restored as other weights."""
    flips.write(tmp_path, (flips.BEFORE, flips.BEFORE), (flips.NEWEST, flips.NEWEST))
    newest = tmp_path / str(flips.NEWEST)
    template = jax.eval_shape(lambda: flips.state_of(0))
    assert flips.same(flips.checkpoint.restore_params(tmp_path, template.params), flips.state_of(flips.NEWEST).params)
    assert flips.outcome(tmp_path) == flips.IDENTICAL
    monkeypatch.setattr(checkpoint_seal, "check", lambda *args, **kw: None)
    monkeypatch.setattr(flips, "state_of", lambda seed, of=flips.state_of: of(seed + (seed == flips.NEWEST)))
    assert flips.outcome(tmp_path) == flips.OTHER and newest.is_dir()
