"""What the tests of rewards/test_grader share with those that take longer."""

from cgrpo_jax.rewards import grader as grader_lib


def calls(grader, monkeypatch):
    """Notes how many responses each call of a worker holds."""
    begin, sizes = grader_lib.Grader._begin, []

    def note(self, batch, responses):
        sizes.append(len(responses))
        return begin(self, batch, responses)

    monkeypatch.setattr(grader_lib.Grader, "_begin", note)
    return sizes
