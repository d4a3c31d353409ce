"""A grader that has no verdict on some texts."""

from cgrpo_jax.rewards import grader as grader_lib


class Failing(grader_lib.Grader):
    """Has no verdict on some texts."""

    def __init__(self, *texts):
        super().__init__("trace")
        self.texts = texts

    def submit(self, response, *arguments, **options):
        if response in self.texts:
            return grader_lib.Pending(lambda: grader_lib.Grade(0.0, None, "judge failed: timeout", failed=True))
        return super().submit(response, *arguments, **options)
