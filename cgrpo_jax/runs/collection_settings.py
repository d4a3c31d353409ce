"""What `cgrpo collect` writes, as the configuration decides it."""

import dataclasses

from cgrpo_jax.runs.config import Config


@dataclasses.dataclass(frozen=True)
class CollectionSettings:
    """What `collect` writes.

    Attributes:
      num_responses: to a question.
      which: of these, a name of `rollout.REFINED`: those that are critiqued and refined.
      num_critiques: of such a response; 0: those that are there.
      num_refinements: after a critique.
      utility: who compares a refinement with its response, the `verifier` or the `judge`.
      num_questions: the first ones; 0: all.
      questions_per_file: of a file.
    """

    num_responses: int
    which: str
    num_critiques: int
    num_refinements: int
    utility: str
    num_questions: int
    questions_per_file: int


def of_config(config: Config) -> CollectionSettings:
    """Returns what is collected."""
    c = config.collect
    return CollectionSettings(
        num_responses=c.num_responses or config.num_responses,
        which=c.which,
        num_critiques=c.num_critiques,
        num_refinements=c.num_refinements,
        utility=c.utility,
        num_questions=c.num_questions,
        questions_per_file=c.questions_per_file,
    )
