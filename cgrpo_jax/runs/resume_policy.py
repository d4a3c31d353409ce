"""Which keys of a configuration may change when a run, or the results of an evaluation, go on. All others may not.

A key stands here if no text, no reward and no update depends on its value, up to rounding; answers of HTTP endpoints
aside. The name of a group stands for all its keys.
"""

_WHERE = (  # where it runs, and with what room
    "mesh",  # how the devices share the work
    "num_slots",  # how many texts are sampled at a time
    "kv_cache_gib",  # likewise, where memory says how many
    "decode_chunk",  # how often the host looks at them
    "prompt_bucket",  # what prompts are padded to
    "remat",  # what the backward pass computes again
    "offload_optimizer",  # where the optimiser's state lies between updates
    "grader_workers",  # processes that grade
    "data.tfds_dir",  # where data sets lie; their questions are compared by themselves
    "http_critic.url",  # where the critic of that name answers
    "http_critic.key_variable",  # what it is paid with
    "http_critic.concurrency",  # how much it is asked at a time
    "http_critic.timeout",  # how long it is waited for
    "http_critic.max_attempts",  # how often it is asked for the same
    "http_critic.max_requests",  # what it may be asked until the run ends or is resumed
    "http_critic.max_tokens",  # likewise
    "judge.url",  # of the judge, as of the critic; what decides its verdicts may not change
    "judge.key_variable",
    "judge.concurrency",
    "judge.timeout",
    "judge.max_attempts",
)
_HOW_LONG = (  # how long training goes on, and what it keeps and tells meanwhile
    "num_iterations",  # unless the learning rate falls over them
    "checkpoint_every",
    "checkpoints_to_keep",
    "samples_every",
    "samples_per_iteration",
    "profile_steps",
    "max_nonfinite_updates",  # how many it skips before it stops; the next start goes on after them
)

TRAINING = (
    *_WHERE,
    *_HOW_LONG,
    "eval.oracle",  # of `evaluate` alone
    "eval.texts_per_slot",  # of `evaluate` and `diagnose`
    "diagnosis",  # of `diagnose` alone
)
EVALUATION = (
    *_WHERE,
    *_HOW_LONG,
    "eval.every",  # of training alone
    "eval.texts_per_slot",  # how much is sampled together, and done again after a kill
    "diagnosis",  # of `diagnose` alone
)
DIAGNOSIS = (
    *_WHERE,
    *_HOW_LONG,
    "eval",  # of training and `evaluate`, but for texts_per_slot, as above
    "diagnosis.kinds",  # a kind more is added to those that are there
)
