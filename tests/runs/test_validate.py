"""Every rule of a configuration, and that all that is wrong is said at once."""

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation import estimators
from cgrpo_jax.runs import base, cli, keys, validate
from cgrpo_jax.runs import config as config_lib


def changed(**changes):
    return config_lib.replaced(config_lib.Config(), {key.replace("__", "."): value for key, value in changes.items()})


def found(**changes):
    return list(validate.violations(changed(**changes)))


def test_the_defaults_have_nothing_against_them():
    assert not found()
    validate.check(config_lib.Config())


def test_the_first_moment_of_muon_may_be_smaller():
    assert not found(optimizer__kind="muon", optimizer__mu_dtype="bfloat16")


JUDGE = {"judge__endpoint__url": "http://x/v1", "judge__endpoint__model": "m"}
ENDPOINT = {"critic__kind": "endpoint", "critic__endpoint__url": "http://x/v1", "critic__endpoint__model": "m"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_responses": 0}, "num_responses 0 is too small; use at least 1."),
        ({"sampling__top_k": -1}, "sampling.top_k -1 is negative; use 0 or more."),
        ({"seed": 2**32}, "seed 4294967296 does not fit 32 bits; use at most 4294967295."),
        ({"refine__max_pass": 1.5}, "refine.max_pass 1.5 is not a share; use a value from 0 to 1."),
        ({"optimizer__b2": 1.0}, "optimizer.b2 1.0 is no decay of an average; use a value of at least 0 and below 1."),
        ({"eval__top_p": 0.0}, "eval.top_p 0.0 is not a probability mass; use a value above 0 and at most 1."),
        ({"objective__gamma": float("nan")}, "objective.gamma nan is no finite number; use one."),
        ({"objective__gamma": 0.0}, "objective.gamma 0.0 makes the shaped ratio 1; use a positive one, such as 0.1."),
        ({"compute__remat": "all"}, "compute.remat 'all' is unknown; use one of none, mlp, layer."),
        ({"grader__kind": "x"}, "grader.kind: grader 'x' is unknown; use one of math"),
        ({"prompts__question": ""}, "prompts.question: prompt template '' lacks {question}"),
        (
            {"prompts__refine": "{question}"},
            "prompts.refine: prompt template '{question}' lacks {critique}",
        ),
        ({"prompts__system": "a\ud800"}, "prompts.system is not valid Unicode: character 2 of 2 is U+D800"),
        ({"prompts__question": "{question}\udfff"}, "prompts.question is not valid Unicode"),
        ({"sampling__stop": ("a", "\udcff")}, "sampling.stop is not valid Unicode"),
        ({"data__train": "f\udcff.jsonl"}, "data.train is not valid Unicode: character 2 of 8 is U+DCFF"),
        ({"grader__thinking": "before"}, "grader.thinking 'before' is unknown; use one of after, anywhere."),
        ({"critic__temperature": -0.5}, "critic.temperature -0.5 is no temperature; use 0 or more, or -1"),
        (
            ENDPOINT | {"critic__endpoint__url": "http://x/v1?key=secret"},
            "critic's url 'http://x/v1?***' has values in its query, which config.json would keep",
        ),
        (JUDGE | {"judge__endpoint__url": "ftp://u:secret@x"}, "judge's url 'ftp://***@x' holds a password"),
        (
            {"critic__endpoint__url": "http://x?key=$KEY", "critic__endpoint__model": "m"},
            "critic.endpoint.url 'http://x?***' is given, but critic.kind",
        ),
        ({"judge__mode": "both"}, "judge.mode 'both' is unknown; use one of explicit, implicit."),
        ({"judge__num_judgements": 5}, "judge.num_judgements 5 at judge.temperature 0 are 5 times the same; set"),
        ({"judge__evidence": True, "judge__mode": "implicit"}, "judge.evidence is of each criterion, but judge.mode"),
        ({"judge__universal": "[1]"}, "judge.universal '[1]' is no rubric: criterion 1 is neither a text nor an"),
        ({"judge__universal": '{"reference": "r"}'}, "has a reference, which is of one question alone; leave it out."),
        (
            {"judge__universal": '[{"program": {"asserts": []}}]'},
            'judge.universal \'[{"program": {"asserts": []}}]\' has a program whose tests can\'t be read',
        ),
        (
            {"critique__kind": "checklist"},
            "critique.kind \"checklist\" names the items of a rubric, but responses are graded by 'math'; set",
        ),
        (
            JUDGE | {"critique__kind": "checklist", "grader__kind": "judge", "judge__mode": "implicit"},
            'critique.kind "checklist" names the items of a rubric, but judge.mode "implicit" rules on none; set it',
        ),
        ({"judge__endpoint__extra_body": '{"n": 2}'}, "judge.endpoint.extra_body 'n' is no extra field"),
        ({"judge__endpoint__extra_body": "n=2"}, "judge.endpoint.extra_body 'n=2' is no JSON object"),
        ({"judge__endpoint__max_tokens_field": "n"}, "is unknown; use one of max_tokens, max_completion_tokens."),
        ({"critic__top_p": 1.5}, "critic.top_p 1.5 is not a share; use a value from 0 to 1."),
        (
            {"prompts__template_arguments": "thinking"},
            "prompts.template_arguments 'thinking' is no dictionary of names",
        ),
        ({"prompts__template_arguments": "{1: 2}"}, "prompts.template_arguments '{1: 2}' is no dictionary of names"),
        ({"critic__template_arguments": "[" * 9999}, "is no dictionary of names; write one such as"),
        (
            ENDPOINT | {"critique__kind": "cot", "critic__template_arguments": "{'a': 1}"},
            "the endpoint renders its chat template itself",
        ),
        ({"sampling__stop": (5,)}, "sampling.stop (5,) must hold strings; quote them."),
        ({"sampling__stop": ("",)}, "sampling.stop ('',) holds an empty string"),
        ({"critique__schedule": ((1,),)}, "(1,) is not (first iteration, kind)"),
        ({"eval__k": ()}, "eval.k () must hold numbers of at least 1, such as (1, 8)."),
        ({"eval__k": (16,)}, "eval.k 16 needs as many samples; eval.num_samples is 8."),
        ({"eval__num_samples": 2000}, "eval.num_samples 2000 is too large; use at most 1024."),
        (
            {"eval__keep_best": "pass@1"},
            "eval.keep_best 'pass@1' compares evaluations, but eval.every",
        ),
        (
            {"eval__keep_best": "eval/pass@1", "eval__every": 5},
            "eval.keep_best 'eval/pass@1' is no number of the evaluation; use one of pass@1, pass@8, mean@8, "
            "mean_length, truncated, ungraded, loss, with a - before it for the lowest.",
        ),
        ({"critic__sees": "all"}, "critic.sees 'all' is unknown; use one of nothing, answer, solution."),
        (
            {"critic__sees": "solution"},
            'critic.sees "solution" shows the data\'s solutions; name their column in data.',
        ),
        (
            {"prompts__critique_with_solution": "{question} {response} {solution}"},
            "prompts.critique_with_solution: prompt template '{question} {response} {solution}' lacks {answer}",
        ),
        ({"diagnosis__kinds": ("hint",)}, "diagnosis.kinds ('hint',) must be kinds of critiques; use some of indica"),
        ({"collect__which": "right"}, "collect.which 'right' is unknown; use one of failed, all."),
        ({"collect__questions_per_file": 0}, "collect.questions_per_file 0 is too small; use at least 1."),
        (
            {"collect__num_critiques": 0},
            "collect.num_refinements 1 follow critiques, but collect.num_critiques is 0 and collect.rows names no",
        ),
        (
            {"collect__num_critiques": 0, "collect__num_refinements": 0, "collect__rows": "rows"},
            "collect.rows has responses, but collect.num_critiques and collect.num_refinements are 0: nothing",
        ),
        (
            {"collect__num_responses": 3, "collect__rows": "rows"},
            "collect.num_responses 3 changes nothing: the responses are those of collect.rows; leave it at 0.",
        ),
        (
            {"collect__utility": "judge"},
            'collect.utility "judge" asks an endpoint; give its address in judge.endpoint.url.',
        ),
        ({"data__mixture": "a"}, "'a' is not NAME:WEIGHT"),
        ({"data__mixture": "a:1", "data__kind": "chains"}, "data.mixture mixes data sets that are read"),
        (
            {"data__pass_rates": "f", "data__min_pass_rate": 2.0},
            "data.min_pass_rate 2 is not below data.max_pass_rate 1",
        ),
        ({"lora__rank": 2, "lora__targets": ("z",)}, "LoRA target 'z' is unknown"),
        ({"optimizer__kind": "adafactor", "optimizer__mu_dtype": "bfloat16"}, "optimizer.mu_dtype 'bfloat16' is of"),
        (
            {"optimizer__updates_per_batch": 3},
            "optimizer.updates_per_batch 3 does not divide questions_per_iteration 128",
        ),
        (
            {"optimizer__schedule": "cosine", "optimizer__warmup_updates": 200},
            "optimizer.warmup_updates 200 leaves optimizer.schedule 'cosine' none of the run's 200 updates",
        ),
        ({"packing__length": 5}, "packing.length 5 does not hold the longest prompt and response; use at least 8191"),
        ({"engine__num_slots": 0}, "engine.num_slots 0 takes as many slots as cache.gib holds; set one of them."),
        ({"cache__gib": 1.0}, "engine.num_slots 64 and cache.gib 1 are both set; set one of them to 0."),
        (
            {"sampling__top_p": 0.5},
            'sampling.top_p below 1 or sampling.top_k above 0 needs objective.old_logp "trainer"',
        ),
        ({"grader__kind": "judge"}, 'grader.kind "judge" asks an endpoint; give its address in judge.endpoint.url.'),
        ({"judge__endpoint__url": "u"}, "judge.endpoint.model is empty; give the name"),
        ({"judge__endpoint__timeout": 0.0}, "judge.endpoint.timeout 0.0 leaves no time; use a positive one"),
        (
            {"reward_source": "critic"},
            'reward_source "critic" takes its rewards from verdicts; set critique.kind "cot"',
        ),
        (
            {**ENDPOINT, "reward_source": "critic", "critique__when": "all", "critic__endpoint__max_tokens": 5},
            'reward_source "critic" needs a verdict on every response',
        ),
        (
            {"critic__kind": "folder"},
            'critic.kind "folder" needs critic.folder; give it, or set critic.kind to "policy".',
        ),
        (
            {"critic__kind": "endpoint"},
            'critic.kind "endpoint" needs critic.endpoint.url; give it, or set critic.kind to',
        ),
        (
            {"critic__folder": "F"},
            'critic.folder \'F\' is given, but critic.kind is "policy"; set critic.kind to "folder", or leave '
            "critic.folder empty.",
        ),
        (
            {"critic__endpoint__url": "u", "critic__endpoint__model": "m"},
            'critic.endpoint.url \'u\' is given, but critic.kind is "policy"; set critic.kind to "endpoint"',
        ),
        (
            {**ENDPOINT, "critique__kind": "execution"},
            'critic.kind "endpoint" needs critique.kind "cot", or "hint", not \'execution\'',
        ),
        (
            {"critique__step_checker": "chain"},
            "critique.step_checker \"chain\" knows chains only, not data.kind 'jsonl'",
        ),
        ({"refine__kind": "solution"}, 'refine.kind "solution" inserts the data\'s solutions; name their column in'),
        ({"warm_start__num_updates": 1}, "warm_start has lessons on chains and snippets only"),
        (
            {"warm_start__num_updates": 1, "data__kind": "chains", "warm_start__chain_lengths": ()},
            "warm_start.chain_lengths () must hold numbers of at least 1",
        ),
        ({"warm_start__rare_rate": 0.5}, "warm_start.rare_rate shows held-out facts, but data.num_held_out is 0"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_fix(changes, message):
    violations = found(**changes)
    assert len(violations) == 1 and message in violations[0] and "\n" not in violations[0]
    with pytest.raises(UserError) as caught:
        validate.check(changed(**changes))
    assert str(caught.value) == violations[0] and not isinstance(caught.value, keys.ConfigErrors)


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"num_responses": 1, "refine__kind": "none"},
            'num_responses 1 teaches nothing: refine.kind is "none", so each response is compared with itself alone, '
            "and its advantage is 0; use at least 2, or refine.",
        ),
        ({"num_responses": 1, "pass_threshold": 0.0}, "num_responses 1 teaches nothing: pass_threshold is 0, below wh"),
        (
            {"sampling__top_k": 1, "objective__old_logp": "trainer", "refine__kind": "none"},
            'sampling.top_k 1 teaches nothing: refine.kind is "none", and all 7 responses to a question are the same',
        ),
    ],
)
def test_what_teaches_nothing_is_refused_where_it_is_to_teach(changes, message):
    violations = found(**changes)
    assert len(violations) == 1 and message in violations[0]
    config = changed(**changes)
    assert not list(validate.violations(config, trains=False))
    validate.check(config, trains=False)
    assert not found(**changes, num_iterations=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_responses": 1},
        {"num_responses": 1, "refine__kind": "solution", "data__solution_key": "s"},
        {"num_responses": 1, "pass_threshold": 0.0, "grader__kind": "f.py:f"},
        {"sampling__top_k": 1, "objective__old_logp": "trainer"},
        {"sampling__top_k": 1, "objective__old_logp": "trainer", "refine__kind": "none", "grader__kind": "f.py:f"},
    ],
)
def test_what_may_teach_something_is_not_refused(changes):
    assert not found(**changes)


def test_a_run_that_keeps_its_best_is_evaluated_by_any_numbers():
    config = changed(eval__keep_best="pass@8", eval__k=(1,), eval__every=0)
    assert len(list(validate.violations(config))) == 2 and not list(validate.violations(config, trains=False))


def test_an_evaluation_may_have_lengths_for_which_training_has_no_room():
    config = changed(packing__length=8, sampling__top_p=0.5, optimizer__updates_per_batch=3)
    assert len(list(validate.violations(config))) == 3 and not list(validate.violations(config, trains=False))


def test_every_condition_of_being_read_names_a_key_and_values_that_it_may_have():
    values = {name: value for name, _, value in keys.items(config_lib.Config())}
    rules = {name: known.rules for name, known, _ in keys.items(config_lib.Config())}
    conditions = [(other, one) for _, known, _ in keys.items(config_lib.Config()) for where in known.unread_where
                  for other, some in where.items() for one in some]  # fmt: skip
    assert conditions
    for other, one in conditions:
        assert type(one) is type(values[other]) and all(rule(other, one) is None for rule in rules[other]), (other, one)


@pytest.mark.parametrize(
    "changes, unread",
    [
        (
            {"refine__kind": "none", "refine__num_kept": 2},
            "refine.num_kept 2 changes nothing while refine.kind is 'none'",
        ),
        ({"data__train": "f", "data__kind": "chains"}, "data.train 'f' changes nothing while data.kind is 'chains'"),
        ({"data__chain_length": 2}, "data.chain_length 2 changes nothing while data.kind is 'jsonl'"),
        (
            {"critique__reveals_value": False},
            "changes nothing while critique.kind is 'cot' and critique.schedule is ()",
        ),
        (
            {"eval__every": 5},
            "eval.every 5 changes nothing while data.kind is 'jsonl' and data.eval is '' and finetune.eval_rows is ''",
        ),
        ({"finetune__epochs": 5}, "finetune.epochs 5 changes nothing: cgrpo finetune alone reads it; leave it out."),
        ({"critique__reveals_value": False, "critique__schedule": ((3, "execution"),)}, None),
        ({"eval__every": 5, "data__eval": "f"}, None),
        ({"eval__every": 5, "data__kind": "chains"}, None),
        ({"critic__sees": "answer"}, None),
        (
            {"critic__sees": "answer", "critique__kind": "execution"},
            "critic.sees 'answer' changes nothing while critique.",
        ),
    ],
)
def test_keys_that_nothing_reads(changes, unread):
    given = {key.replace("__", "."): value for key, value in changes.items()}
    said = list(validate.unread(changed(**changes), given))
    assert (len(said) == 1 and unread in said[0]) if unread else not said
    assert not list(validate.unread(changed(**changes), {}))


@pytest.mark.parametrize(
    "changes, unread",
    [
        ({"finetune__epochs": 5, "critic__sees": "answer", "data__num_eval": 4}, None),
        ({"objective__gamma": 0.5}, "objective.gamma 0.5 changes nothing: cgrpo finetune does not read it; leave it"),
        ({"num_responses": 3}, "num_responses 3 changes nothing: cgrpo finetune does not read it; leave it out."),
        ({"optimizer__updates_per_batch": 4}, "optimizer.updates_per_batch 4 changes nothing: cgrpo finetune does not"),
        ({"data__mixture": "a:1,b:1"}, "data.mixture 'a:1,b:1' changes nothing: cgrpo finetune does not read it"),
        ({"data__num_train": 4}, "data.num_train 4 changes nothing: cgrpo finetune does not read it"),
        ({"data__pass_rates": "f"}, "data.pass_rates 'f' changes nothing: cgrpo finetune does not read it"),
        ({"num_iterations": 5}, "num_iterations 5 changes nothing while finetune.epochs is 3; leave it out, or set"),
        ({"num_iterations": 5, "finetune__epochs": 0}, None),
        ({"data__num_train": 4, "data__kind": "chains"}, None),
    ],
)
def test_keys_that_finetune_does_not_read(changes, unread):
    given = {key.replace("__", "."): value for key, value in changes.items()}
    said = list(validate.unread(changed(**changes), given, finetunes=True))
    assert (len(said) == 1 and unread in said[0]) if unread else not said


def test_what_is_against_training_is_not_against_learning_from_rows():
    changes = {"optimizer__schedule": "cosine", "optimizer__warmup_updates": 200, "questions_per_iteration": 7}
    assert len(found(**changes)) == 2 and not list(validate.violations(changed(**changes), finetunes=True))
    assert len(list(validate.violations(changed(**changes, num_responses=0), finetunes=True))) == 1


@pytest.mark.parametrize("known", [key for key in keys.items(config_lib.Config())], ids=lambda key: key[0])
def test_no_value_makes_the_check_fail_otherwise(known):
    """Rules of several keys bear what the rule of one refuses."""
    name, _, value = known
    for bad in {int: (-1, 0, 2**40), float: (-1.0, 0.0, float("nan"), float("inf")), str: ("", "x")}.get(
        type(value), ()
    ):
        for more in ({}, {"optimizer.schedule": "cosine"}, {"reward_source": "critic"}):
            config = config_lib.replaced(config_lib.Config(), more | {name: bad})
            assert all(isinstance(one, str) and "\n" not in one for one in validate.violations(config))
    if isinstance(value, tuple):
        for bad in ((), (0,), ("x",), ((1,),)):
            config = config_lib.replaced(config_lib.Config(), {name: bad, "lora.rank": 1})
            assert all(isinstance(one, str) for one in validate.violations(config))


def test_all_mistakes_are_said_at_once(capsys, tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cgrpo_jax.runs import base\n\ndef get_config():\n    c = base.get_config()\n    c.num_responses = 0\n"
        "    c.sampling.temperature = 0.0\n    c.critic.folder = 'F'\n    return c\n"
    )
    ran = []

    def main(config):
        validate.check(config)
        ran.append(config)

    with pytest.raises(SystemExit) as caught:
        cli.run(main, require=("config",), argv=[f"--config={file}", "--config.data.chain_length=0"])
    assert caught.value.code == 2 and not ran
    assert capsys.readouterr().err.splitlines() == [
        "error: 4 problems in the configuration:",
        "  num_responses 0 is too small; use at least 1.",
        "  sampling.temperature 0.0 gives no exploration; use a positive one, such as 1.0.",
        "  data.chain_length 0 is too small; use at least 1.",
        '  critic.folder \'F\' is given, but critic.kind is "policy"; set critic.kind to "folder", or leave '
        "critic.folder empty.",
    ]


def test_the_text_of_several_mistakes_is_one_line():
    with pytest.raises(UserError) as caught:
        validate.check(changed(num_responses=0, data__chain_length=0))
    assert str(caught.value).startswith("2 problems in the configuration: num_responses 0") and "\n" not in str(
        caught.value
    )


def test_limits_of_other_rooms_are_kept():
    assert not found(eval__num_samples=estimators.MOST_SAMPLES)
    assert found(eval__num_samples=estimators.MOST_SAMPLES + 1)


def test_every_key_has_a_line_of_help_and_every_reason_stands_beside_what_may_change():
    for name, known, _ in keys.items(config_lib.Config()):
        assert known.help and "\n" not in known.help, name
        assert bool(known.because) == bool(known.may_change), name
    for name, section in keys.sections(config_lib.Config()):
        assert section.__doc__ and not section.__doc__.startswith(type(section).__name__ + "("), name


def test_the_base_configuration_is_locked_and_new_each_time():
    one = base.get_config()
    one.objective.gamma = 0.7
    assert base.get_config().objective.gamma == 0.1
    with pytest.raises(AttributeError):
        one.objective.gama = 1.0


def test_keys_that_training_alone_reads():
    sections = {name for name, _ in keys.sections(config_lib.Config())}
    assert set(validate.TRAINING_ALONE) <= sections
    said = list(validate.unread_without_training({"rollouts.every": 0, "sampling.top_k": 1, "packing.rows": 2}))
    assert [one.partition(":")[0] for one in said] == [
        "rollouts.every 0 changes nothing",
        "packing.rows 2 changes nothing",
    ]
