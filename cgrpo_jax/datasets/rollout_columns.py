"""The columns of a file of rollouts: their names, types, units and meaning. ROLLOUTS.md has the same table."""

from typing import NamedTuple

import pyarrow as pa

VERSION = 3  # of the columns and of their meaning
READABLE = (1, 2, 3)  # what a version does not have is null
VERSION_KEY = b"cgrpo_jax.rollouts"  # of the file's metadata


class Column(NamedTuple):
    """A column of the files: its name, its Arrow type, and what it holds."""

    name: str
    type: pa.DataType
    meaning: str


IDS, LOGP = pa.list_(pa.int32()), pa.list_(pa.float32())
_TURNS = pa.list_(pa.struct([("role", pa.string()), ("text", pa.string())]))
_REWARDS = pa.list_(pa.struct([("name", pa.string()), ("reward", pa.float64())]))

COLUMNS = (
    Column("row", pa.int32(), "number of the row in its file"),
    Column("parent", pa.int32(), "`row` of what it answers: of a critique's response, of a refinement's critique"),
    Column("iteration", pa.int32(), "from 0; `step` of `metrics.jsonl`"),
    Column("stage", pa.string(), "`response`, `critique` or `refinement`"),
    Column("question_index", pa.int32(), "number of the question in its iteration"),
    Column("response_index", pa.int32(), "number of the response to it"),
    Column("critique_index", pa.int32(), "number of the critique of that"),
    Column("refinement_index", pa.int32(), "number of the refinement by that; of a refinement's critique one more"),
    Column("attempt", pa.int32(), "how often this critique was written before"),
    Column("author", pa.string(), "`policy`, `critic`, `refiner`, `rule`, or `solution` of the data"),
    Column(
        "weights_step",
        pa.int32(),
        "updates that its author's weights had seen by their own optimiser: the policy's where a critic shares them",
    ),
    Column("problem_id", pa.string(), "16 hexadecimal digits: of source, question and turns, whatever their file"),
    Column("problem_index", pa.int64(), "number of the problem in its data set"),
    Column("source", pa.string(), "data set; empty where a run has one"),
    Column("problem_grader", pa.string(), "kind of grader that the problem names; empty for the run's"),
    Column("turns", _TURNS, "of a chat, what came before the question"),
    Column("question", pa.string(), "as the data have it"),
    Column("answer", pa.string(), "gold answer"),
    Column("solution", pa.string(), "worked solution; null without one"),
    Column("problem_columns", pa.string(), "the problem's other columns, as JSON"),
    Column("prompt", pa.string(), "what the author was asked, control tokens included; null of a rule"),
    Column("prompt_ids", IDS, "its tokens; null of a rule and of an endpoint"),
    Column("prompt_cut", pa.bool_(), "what the prompt quotes was cut to fit"),
    Column("opening", pa.string(), "the prompt's end that opens a thinking part; empty for none"),
    Column("text", pa.string(), "what was written, without its end-of-turn token"),
    Column("token_ids", IDS, "its tokens, end of turn included"),
    Column("truncated", pa.bool_(), "it reached its greatest length"),
    Column("logp", LOGP, "nats a token, in the sampler; null of what no model here sampled"),
    Column("trainer_logp", LOGP, "nats a token, in the trainer before the updates; null where not computed"),
    Column("reward", pa.float64(), "null of critiques, and without a verdict"),
    Column(
        "rewards", _REWARDS, "of each reward function, first the one of `reward`, which decides; null where that is"
    ),
    Column("ungraded", pa.bool_(), "the grader failed; of a critique, its endpoint did not answer"),
    Column("extracted", pa.string(), "final answer as the grader read it; null for none"),
    Column("feedback", pa.string(), "what the grader found"),
    Column("verdict", pa.bool_(), "of a critique: right or wrong; null where it can't be read"),
    Column("rejected", pa.bool_(), "an attempt at a critique whose verdict could not be used"),
    Column("shown", pa.string(), "of a critique that was made wrong on purpose: what refinements saw; null of others"),
    Column(
        "feedback_ids",
        IDS,
        "of a response that is distilled: tokens of the prompt, critique and all, after which a teacher scored it; "
        "null of others",
    ),
    Column("kept", pa.bool_(), "of a refinement: it was selected; null of others"),
    Column("group_position", pa.int32(), "number in the group of its question; null where it is in none, as critiques"),
    Column("context", pa.int32(), "`row` whose prompt it is trained after"),
    Column(
        "advantage",
        pa.float32(),
        "reward less the group's mean, or as configured; of a critique that trains its critic likewise, of `rco` its "
        "target in nats; null of what trains nothing",
    ),
    Column(
        "loss",
        pa.string(),
        "what it trains as: `policy`, `distil` or `nll`; a critique its critic: `rco` or `policy`; null of others",
    ),
    Column("refined", pa.bool_(), "it trains by the ratio of the refined rows; null outside a group"),
    Column("trained", pa.bool_(), "it moved the weights"),
    Column(
        "dropped",
        pa.string(),
        "why not: `zero_advantage`, `truncated`, `sampler_cap`, `skipped_update`, `ungraded`, `mention`, "
        "`not_selected`, `replaced`, `drawn_on`, `no_feedback`; null of critiques that train no critic",
    ),
    Column(
        "utility",
        pa.float64(),
        "of a critique that a critic learns from: the mean worth of its refinements, 1 fixed, 0.5 as before, 0 broken; "
        "null of others",
    ),
)
SCHEMA = pa.schema([column[:2] for column in COLUMNS], metadata={VERSION_KEY: str(VERSION)})
