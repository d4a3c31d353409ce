"""Recipes: what each learns, token for token, by the templates of three families; steps, their keys, mistakes."""

import dataclasses
import json

import chain_prompts
import chat_families
import made_rollouts
import numpy as np
import paths
import pytest
import tiny_run

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind
from cgrpo_jax.runs import load_rows, model_source, recipes
from cgrpo_jax.runs.recipes import Step
from cgrpo_jax.training.packing import PackShape

FOLDER = paths.CONFIGS / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SHAPE = PackShape(num_token_rows=1, pack_length=256, num_slots=8, from_rows=True)
LONG = {"max_response_length": 64, "packing.length": 256, "finetune.rows_per_update": 1}
Q = "2+3?"
RESPONSES = [(Q, "5")]
AGREEING = ["It is less: wrong 0", "It is less: wrong 1", "wrong 0", "All right 0", "All right 1"]
REFINEMENTS = [(Q, f"so 5 {text}") for text in AGREEING]
ALL_REFINEMENTS = [*REFINEMENTS, (Q, "so 5 It is more: wrong 1")]
OF_WRONG, OF_RIGHT = f"{Q}\nTried: six\nCheck.", f"{Q}\nTried: 5\nCheck."
CRITIQUES = [(OF_WRONG, "It is less: wrong"), (OF_WRONG, "wrong"), (OF_RIGHT, "All right")]
OTHERS = [(OF_WRONG, "right"), (OF_RIGHT, "It is more: wrong")]
# What the one step of each recipe that learns is given: context and target, of weight 1; all of it in any order.
LEARNT = {
    "sft": RESPONSES,
    "raft": RESPONSES,
    "refinement_ft": REFINEMENTS,
    "critique_ft": CRITIQUES,
    "citl_ft": [*RESPONSES, *REFINEMENTS],
    "cft": CRITIQUES[:1],
    "one_problem_cft": CRITIQUES,
    "self_training": [*RESPONSES, *ALL_REFINEMENTS],
    "grpo_then_refinement_sft": ALL_REFINEMENTS,
    "rco": [*CRITIQUES, *OTHERS],
    "dpco": [CRITIQUES[0], OTHERS[0], CRITIQUES[2], OTHERS[1]],
}
ARGUMENTS = {"self_training": ":rounds=1,max_per_question=0"}
# Rows of one's own, for the recipes that are given some.
OWN = {
    "sft": {"question": Q, "solution": "5"},
    "cft": {"question": Q, "response": "six", "critique": "It is less: wrong"},
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    made = {}
    for family in chat_families.FAMILIES:
        made[family] = chat_families.make(tmp_path_factory.mktemp(family) / "model", family)
    return made


def planned(name, workdir, changes=None, /):
    return recipes.plan(recipes.load(str(FOLDER / name)), tiny_run.config(changes or {}), workdir)


def learnt(one, tokenizer):
    """Returns the rows that a step which learns is given."""
    prompts = chain_prompts.make(tokenizer, **chain_prompts.CHAINS)
    rows = load_rows.load_rows(one.config, prompts, shape=SHAPE, max_context=256, seed=0)
    return [row for unit in rows.training for row in unit.rows]


def test_every_recipe_says_what_it_keeps_and_where_it_is_from():
    assert NAMES == sorted(LEARNT)
    for name in NAMES:
        text = (FOLDER / f"{name}.py").read_text().split('"""')[1]
        assert "arXiv" in text and (" L = " in text or "argmin" in text), name
        assert "context:" in text and "target" in text and "weight:" in text and f"recipes/{name}.py" in text, name


@pytest.mark.parametrize("family", chat_families.FAMILIES)
@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_learns(name, family, tmp_path, tokenizers):
    tokenizer = tokenizers[family]
    changes = LONG
    if name in OWN:
        (tmp_path / "rows.jsonl").write_text(json.dumps(OWN[name]) + "\n")
        changes = LONG | {"finetune.rows": str(tmp_path / "rows.jsonl"), "data.solution_key": "solution"}
    steps = planned(f"{name}.py{ARGUMENTS.get(name, '')}", tmp_path / "recipe", changes)
    for one in steps:
        if one.step.command == "collect":
            made_rollouts.write(one.folder, tokenizer, **chain_prompts.CHAINS)
    (learns,) = [one for one in steps if one.step.command == "finetune"]
    rows = learnt(learns, tokenizer)
    asked, end = chat_families.ASKED[family], chat_families.END[family]
    found = [(tokenizer.spell(row.context_ids), tokenizer.spell(row.target_ids)) for row in rows]
    assert sorted(found) == sorted((asked.format(context), f"{target}{end}") for context, target in LEARNT[name])
    assert all(row.counted is None for row in rows)  # of the targets all are learnt, of the contexts nothing
    weights = [row.advantage for row in rows]
    if name != "rco":
        assert set(weights) == {1}
        return
    beta, groups = 0.1, ((1.0, 0.75, 0.5), (0.5, 0.25))
    expected = [u / beta - np.log(np.mean([np.exp(one / beta) for one in group])) for group in groups for u in group]
    assert weights == pytest.approx(expected)
    assert {row.loss for row in rows} == {LossKind.RCO}


def test_pairs_of_critiques_are_of_one_response(tmp_path, tokenizers):
    steps = planned("dpco.py", tmp_path, LONG)
    made_rollouts.write(tmp_path / "samples", tokenizers["chatml"], **chain_prompts.CHAINS)
    (learns,) = [one for one in steps if one.step.command == "finetune"]
    rows = learnt(learns, tokenizers["chatml"])
    assert [row.pair > 0 for row in rows] == [True, False] * 2 and {row.loss for row in rows} == {LossKind.DPO}


def test_a_critique_alone_is_counted(tmp_path, tokenizers):
    """It has nothing to be compared with; RCO learns nothing of it."""
    made = made_rollouts.Made(tokenizers["chatml"], **chain_prompts.CHAINS)
    for number, several in enumerate((2, 1)):
        response = made.response(number, 0.0, f"six {number}")
        for c in range(several):
            critique = made.critique(response, c, False, f"wrong {number} {c}")
            made.refinement(critique, 0, float(c), "so 5")
    spell = tokenizers["chatml"].spell
    made_rollouts.rollouts.write(tmp_path / "step_00000000.parquet", made.rows, iteration=0, spell=spell)
    changes = LONG | {"finetune.loss": "rco", "finetune.rows": str(tmp_path)}
    prompts = chain_prompts.make(tokenizers["chatml"])
    rows = load_rows.load_rows(tiny_run.config(changes), prompts, shape=SHAPE, max_context=256, seed=0)
    assert len(rows.training) == 2
    assert rows.said[0].endswith(", 1 left out that are alone, with no other critique of their response")


# --- steps --------------------------------------------------------------------------------------------------------


def file(path, body, signature=""):
    path.write_text(f"from cgrpo_jax.runs.recipes import Step\n\n\ndef get_steps({signature}):\n    return {body}\n")
    return str(path)


def plan(*steps, changes=None, workdir="work"):
    return recipes.plan(list(steps), tiny_run.config(changes or {}), workdir)


def test_steps_refer_to_folders_and_weights_of_steps_before():
    samples, learns, after, again = plan(
        Step("samples", "collect", {"collect.num_responses": 3}),
        Step("learnt", "finetune", {"finetune.rows": "mine.jsonl,{samples}"}),
        Step("after", "evaluate", weights="learnt"),
        Step("again", "finetune", {"finetune.rows": "{samples}"}, weights="learnt"),
        changes={"model.init": "first"},
    )
    work = samples.folder.parent
    assert learns.config.finetune.rows == f"mine.jsonl,{work / 'samples'}"
    assert samples.weights == samples.folder == work / "samples" and after.weights == learns.folder
    assert samples.config.model.init == learns.config.model.init == after.config.model.init == "first"
    assert again.config.model.init == str(work / "learnt")
    assert recipes.said(after) == "after: evaluate from learnt"
    assert recipes.said(samples) == "samples: collect with collect.num_responses=3"


def test_lessons_are_given_once():
    start, samples = plan(Step("samples", "collect"), changes={"warm_start.num_updates": 5})
    assert (start.step.name, start.step.command, start.config.num_iterations) == ("start", "train", 0)
    assert start.config.warm_start.num_updates == 5 and not samples.config.warm_start.num_updates
    assert samples.config.model.init == str(start.folder)


@pytest.mark.parametrize("lessons", [0, 5])
def test_a_step_that_starts_from_weights_has_their_model_where_a_checkpoint_alone_is_given(tmp_path, lessons):
    """A run's folder describes its model beside its checkpoints, as that of a converted one does."""
    bare = {"model.init": str(tmp_path / "converted"), "model.tokenizer": "", "model.num_layers": 0}
    given = [Step("learnt", "finetune", {"finetune.rows": "x"}), Step("again", "train", weights="learnt")]
    steps = plan(*given, changes=bare | {"warm_start.num_updates": lessons}, workdir=tmp_path)
    for folder in (tmp_path / "converted", *(one.folder for one in steps)):
        (folder / "model").mkdir(parents=True)
    starts = [tmp_path / "converted", *([tmp_path / "start"] if lessons else []), tmp_path / "learnt"]
    assert [model_source.of_policy(one.config).description for one in steps] == [one / "model" for one in starts]
    assert [model_source.of_policy(one.config).init for one in steps] == starts


def test_a_step_with_the_weights_of_a_critic_that_was_trained_has_its_keys(tmp_path):
    """What evaluates, or collects, asks that critic; what trains on from the policy's weights has none of it."""
    keys = {"critic.train": True, "critic.training.weights": "adapter", "critic.training.rank": 3}
    keys |= {"critique.kind": "cot", "critique.when": "all", "critique.num_per_response": 2}
    joint, after, held_out, again = plan(
        Step("joint", "train", keys),
        Step("after", "evaluate", weights="joint"),
        Step("held_out", "collect", {"collect.questions": "held_out"}, weights="joint"),
        Step("again", "finetune", {"finetune.rows": "x"}, weights="joint"),
        workdir=tmp_path,
    )
    assert joint.config.critic == after.config.critic == held_out.config.critic != again.config.critic
    assert again.config.critic == tiny_run.config().critic and not again.config.critic.train


def test_another_stream_draws_other_texts():
    one, two = plan(Step("one", "collect"), Step("two", "collect", stream=1), changes={"seed": 2**32 - 1})
    assert one.config.seed == 2**32 - 1 and 0 <= two.config.seed < one.config.seed


def test_rounds_start_from_the_first_weights(tmp_path):
    steps = {one.step.name: one for one in planned("self_training.py:rounds=2,original=o.jsonl", tmp_path)}
    assert steps["learnt_2"].config.model == steps["learnt_1"].config.model
    assert steps["samples_2"].weights == steps["learnt_1"].folder
    assert steps["samples_1"].config.seed != steps["samples_2"].config.seed
    assert steps["learnt_2"].config.finetune.rows == f"o.jsonl,{tmp_path / 'samples_2'}"
    plain = {one.step.name: one for one in planned("self_training.py:with_critic=False", tmp_path)}
    assert plain["samples_3"].config.collect.num_critiques == plain["samples_3"].config.collect.num_refinements == 0


def test_several_critics_of_one_problem(tmp_path):
    steps = {one.step.name: one for one in planned("one_problem_cft.py:critics=a,critics=b,max_rows=9", tmp_path)}
    assert [steps[f"critiques_{n}"].config.critic.folder for n in (1, 2)] == ["a", "b"]
    assert steps["learnt"].config.finetune.rows == f"{tmp_path / 'critiques_1'},{tmp_path / 'critiques_2'}"
    assert steps["critiques_1"].config.collect.rows == str(tmp_path / "solutions")
    assert steps["solutions"].config.collect.num_questions == 1


def test_a_critic_of_its_own_is_what_is_trained(tmp_path):
    steps = {one.step.name: one for one in planned("rco.py:critic=mine", tmp_path, {"model.init": "actor"})}
    assert (steps["critic"].config.model.folder, steps["critic"].config.model.init) == ("mine", "")
    assert steps["samples"].config.critic.folder == steps["untrained"].config.critic.folder == "mine"
    assert steps["trained"].config.critic.folder == str(tmp_path / "exported")
    assert steps["samples"].config.model.init == steps["trained"].config.model.init == "actor"


@pytest.mark.parametrize("name", ["rco.py", "dpco.py", "one_problem_cft.py:critics=mine"])
def test_a_critic_that_a_recipe_would_not_ask_is_refused(name, tmp_path):
    """RCO learns its own critic's critiques; one-problem CFT those of the critics that it is given."""
    other = {"critic.kind": "folder", "critic.folder": "other"}
    with pytest.raises(
        UserError, match=r"--config.critic.\w+=\w+ changes nothing: step '\w+' of the recipe sets it to"
    ):
        planned(name, tmp_path, other)
    assert planned("one_problem_cft.py", tmp_path, other)[2].config.critic.folder == "other"


@pytest.mark.parametrize(
    "name, message",
    [
        ("rco.py:num_critiques=1", "num_critiques 1 leaves a critique nothing to be compared with; use at least 2"),
        ("dpco.py:num_critiques=1", "num_critiques 1 leaves a critique nothing to be compared with; use at least 2"),
        ("self_training.py:rounds=0", "rounds 0 learns nothing; use at least 1"),
    ],
)
def test_numbers_of_which_nothing_is_learnt_are_refused(name, message, tmp_path):
    with pytest.raises(UserError, match=f"recipe .*{name}: {message}"):
        planned(name, tmp_path)


def test_rows_that_a_recipe_needs_are_asked_for(tmp_path):
    own = {"data.kind": "jsonl", "data.train": "questions.jsonl", "data.eval": "held.jsonl"}
    own |= {"grader.kind": "exact", "critique.step_checker": "equations"}
    with pytest.raises(UserError, match="step learnt: no rows to learn from: data.kind 'chains' makes up questions"):
        planned("sft.py", tmp_path)
    assert planned("sft.py", tmp_path, own)  # their solutions
    for changes in ({}, own):  # of which solutions would be learnt
        with pytest.raises(UserError, match="step learnt: it learns critiques, and data.train is of questions; set fi"):
            planned("cft.py", tmp_path, changes)
    assert planned("cft.py", tmp_path, {"finetune.rows": "critiques.jsonl"})


@pytest.mark.parametrize(
    "steps, changes, message",
    [
        ([Step("a", "sing")], {}, "step 'a' of the recipe has command 'sing'; use one of train, finetune, collect"),
        ([Step("a", "collect"), Step("a", "collect")], {}, "'a' of the recipe needs a name of its own"),
        ([Step("a/b", "collect")], {}, "'a/b' of the recipe needs a name of its own"),
        ([Step("a", "collect"), Step("b", "evaluate", weights="a")], {}, "weights of 'a', which no step before it"),
        ([Step("b", "convert")], {}, "takes the weights of '', which no step before it trains"),
        (
            [Step("a", "train"), Step("b", "convert", weights="a", of="judge")],
            {},
            "step 'b' of the recipe is of 'judge'; of convert it can be policy or critic",
        ),
        ([Step("a", "train", of="critic")], {}, "step 'a' of the recipe is of 'critic'; of train it can be policy."),
        (
            [Step("a", "train"), Step("b", "convert", weights="a", of="critic")],
            {},
            "exports the critic of 'a', which trains none (critic.train)",
        ),
        (
            [Step("a", "finetune"), Step("b", "convert", weights="a", of="critic")],
            {"critic.train": True},
            "exports the critic of 'a', which trains none (critic.train)",
        ),
        ([Step("a", "collect", {"colect.rows": "x"})], {}, "sets colect.rows, which is no key (did you mean collect"),
        ([Step("a", "collect", {"collect.num_responses": "many"})], {}, "step 'a' of the recipe: "),
        ([Step("a", "finetune", {"finetune.beta": -1.0})], {}, "step a: finetune.beta -1.0"),
        ([Step("a", "evaluate")], {"data.num_eval": 0}, "step a: there are no held-out questions to evaluate: set"),
        (
            [Step("a", "collect", {"collect.questions": "held_out"})],
            {"data.num_eval": 0},
            "no held-out questions to coll",
        ),
        (
            [Step("a", "finetune"), Step("b", "finetune", weights="a")],
            {"lora.rank": 2},
            "step b: it starts from weights of a run, which has adapters",
        ),
        (
            [Step("a", "collect")],
            {"lora.rank": 2, "warm_start.num_updates": 5},
            "step start: lessons (warm_start.num_updates) before a recipe would leave adapters (lora.rank)",
        ),
        (
            [Step("a", "finetune", {"finetune.which": "right"})],
            {"finetune.which": "all"},
            "--config.finetune.which=all changes nothing: step 'a' of the recipe sets it to 'right'",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(steps, changes, message):
    with pytest.raises(UserError) as caught:
        plan(*steps, changes=changes)
    assert message in str(caught.value)


def test_arguments_of_a_recipe(tmp_path):
    steps = '[Step("a", "collect", {"n": n, "x": x, "s": s, "on": on, "t": t})]'
    name = file(tmp_path / "r.py", steps, 'n=1, x=0.5, s="", on=True, t=()')
    assert recipes.load(name)[0].keys == {"n": 1, "x": 0.5, "s": "", "on": True, "t": ()}
    (step,) = recipes.load(f"{name}:n=3,x=2,s=a.jsonl,on=False,t=a,t=b")
    assert step.keys == {"n": 3, "x": 2.0, "s": "a.jsonl", "on": False, "t": ("a", "b")}
    for given, message in {
        "m=3": "recipe r.py has no argument 'm=3'; its arguments are n=1, x=0.5",
        "n": "has no argument 'n'",
        "n=many": "recipe r.py: n is 'many'; give a value such as 1",
        "on=1": "recipe r.py: on is '1'; give a value such as True",
    }.items():
        with pytest.raises(UserError) as caught:
            recipes.load(f"{name}:{given}")
        assert message in str(caught.value)


def test_files_that_are_no_recipes(tmp_path):
    cases = {
        str(tmp_path / "none.py"): "does not exist; give one such as configs/recipes/raft.py",
        file(tmp_path / "a.py", "3"): "returned 3; return a list of Step",
        file(tmp_path / "b.py", "[1 / 0]"): "fails: ZeroDivisionError",
        file(tmp_path / "c.py", "["): "fails to load: SyntaxError",
    }
    (tmp_path / "d.py").write_text("x = 1\n")
    for name, message in (cases | {str(tmp_path / "d.py"): "has no function get_steps()"}).items():
        with pytest.raises(UserError, match=message):
            recipes.load(name)


# --- its folder ---------------------------------------------------------------------------------------------------


def test_another_recipe_in_the_folder_is_refused(tmp_path):
    tmp_path.joinpath("work").mkdir()

    def opened(*steps, **changes):
        given = recipes.plan(list(steps), tiny_run.config(changes), tmp_path / "work")
        return recipes.open_folder(given, tmp_path / "work")

    a, b = Step("a", "collect", {"collect.num_responses": 3}), Step("b", "evaluate")
    assert not opened(a, b) and opened(a, b)
    assert opened(a, b, trackers=("tensorboard",))  # which changes nothing of what is written
    with pytest.raises(UserError, match="holds another recipe .its steps: a, b -> a.; give another --workdir"):
        opened(a)
    with pytest.raises(UserError, match="another recipe .a: seed: 2 -> 3; b: seed: 2 -> 3"):
        opened(a, b, seed=3)
    with pytest.raises(UserError, match="a: collect.num_responses: 3 -> 4"):
        opened(dataclasses.replace(a, keys={"collect.num_responses": 4}), b)


def test_a_step_that_is_done_is_not_done_again_by_a_longer_command(tmp_path):
    """Its numbers would be those of before, and said to be the new command's."""
    work = tmp_path / "work"
    work.mkdir()
    given = [
        Step("a", "train"),
        Step("b", "finetune", {"finetune.rows": "x"}, weights="a"),
        Step("c", "evaluate", weights="b"),
    ]

    def opened(**changes):
        return recipes.open_folder(recipes.plan(given, tiny_run.config(changes), work), work)

    def ended(name):
        (work / name).mkdir()
        (work / name / "summary.json").write_text("{}")

    opened(num_iterations=2)
    assert opened(num_iterations=3) and opened(num_iterations=2)  # what is not done goes on
    opened(num_iterations=3)
    ended("a")
    assert opened(num_iterations=3)
    with pytest.raises(UserError, match="another recipe .a, which is done: num_iterations: 3 -> 2.; give another"):
        opened(num_iterations=2)
    longer = {"finetune.epochs": 5}
    assert opened(num_iterations=3, **longer)
    ended("b")
    assert opened(num_iterations=3, **longer, trackers=("tensorboard",))
    with pytest.raises(UserError, match="another recipe .b, which is done: finetune.epochs: 5 -> 3.; give another"):
        opened(num_iterations=3)


def test_num_iterations_is_the_length_of_finetuning_without_epochs(tmp_path):
    for epochs, fails in ((3, False), (0, True)):
        work = tmp_path / str(epochs)
        (work / "a").mkdir(parents=True)
        given = [Step("a", "finetune", {"finetune.rows": "x", "finetune.epochs": epochs})]
        now, later = (recipes.plan(given, tiny_run.config(num_iterations=n), work) for n in (2, 3))
        recipes.open_folder(now, work)
        (work / "a" / "summary.json").write_text("{}")
        if not fails:
            assert recipes.open_folder(later, work)
            continue
        with pytest.raises(UserError, match="a, which is done: num_iterations: 2 -> 3"):
            recipes.open_folder(later, work)


def test_whose_weights_are_exported_is_kept(tmp_path):
    """A folder that does not say it is from before critics were exported."""
    keys = {"critic.train": True, "critique.kind": "cot", "critique.when": "all", "critique.num_per_response": 2}
    work = tmp_path / "work"
    work.mkdir()

    def given(of):
        steps = [Step("joint", "train", keys), Step("out", "convert", weights="joint", of=of)]
        return recipes.plan(steps, tiny_run.config(), work)

    assert [recipes.said(given(of)[1]) for of in ("policy", "critic")] == [
        "out: convert the policy of joint",
        "out: convert the critic of joint",
    ]
    recipes.open_folder(given("critic"), work)
    assert recipes.open_folder(given("critic"), work)
    with pytest.raises(UserError, match="another recipe .its steps: joint, out of the critic -> joint, out.; give an"):
        recipes.open_folder(given("policy"), work)
    before = json.loads((work / "recipe.json").read_text())
    for one in before["steps"]:
        del one["of"]
    (work / "recipe.json").write_text(json.dumps(before))
    with pytest.raises(UserError, match="another recipe .its steps: joint, out -> joint, out of the critic.; give an"):
        recipes.open_folder(given("critic"), work)
    assert recipes.open_folder(given("policy"), work)
