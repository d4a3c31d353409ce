"""What a user can get wrong: one line that says what was given and what to do, exit status 2, nothing half-written."""

import os
import shutil
import socket
import subprocess
import sys

import hf_folders
import numpy as np
import pytest
import start_lines
import tiny_run
from refusals import contents, corrupt, jsonl, refused, write
from tiny_run import metrics, run

from cgrpo_jax import train
from cgrpo_jax.models.hf import config
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import model_source, run_dir


def endpoint(**more) -> dict:
    """A good HTTP critic, but for what is given."""
    changes = {
        "critic.kind": "endpoint",
        "critic.endpoint.url": "http://localhost:9/v1",
        "critic.endpoint.model": "m",
        "critique.kind": "cot",
    }
    keys = ("critique.kind", "critic.kind", "critic.folder")
    return changes | {key if key in keys else f"critic.endpoint.{key}": value for key, value in more.items()}


# --- values of keys -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_response": 4}, "unknown config key --config.num_response (did you mean --config.num_responses?)"),
        ({"data.trian": "x"}, "did you mean --config.data.train?"),
        (
            {"optimizer.learning_rate": "fast"},
            "--config.optimizer.learning_rate=fast is not a number; it is now 0.0002",
        ),
        ({"num_responses": "7.5"}, "--config.num_responses=7.5 is not an int"),
        (
            {"critique.kind": "socratic"},
            "critique.kind 'socratic' is unknown; use one of indicative, indicative_gt, execution",
        ),
        (
            {"objective.aggregate": "mean"},
            "objective.aggregate 'mean' is unknown; use one of constant, paper, token_mean, sequence_mean",
        ),
        ({"grader.kind": "sympy"}, "grader.kind: grader 'sympy' is unknown; use one of math"),
        ({"num_responses": 0}, "num_responses 0 is too small; use at least 1"),
        ({"eval.num_samples": 0}, "eval.num_samples 0 is too small; use at least 1"),
        ({"seed": -1}, "seed -1 is negative; use 0 or more"),
        ({"warm_start.num_updates": -5}, "warm_start.num_updates -5 is negative"),
        ({"refine.max_pass": 50.0}, "refine.max_pass 50.0 is not a share; use a value from 0 to 1"),
        (
            {"optimizer.updates_per_batch": 3},
            "optimizer.updates_per_batch 3 does not divide questions_per_iteration 4; use one of 1, 2, 4",
        ),
        (
            {"sampling.top_p": 0.9},
            'sampling.top_p below 1 or sampling.top_k above 0 needs objective.old_logp "trainer"; set it, or sample',
        ),
        ({"sampling.top_k": 5}, 'needs objective.old_logp "trainer"'),
        (
            {"sampling.top_p": 0.0, "objective.old_logp": "trainer"},
            "sampling.top_p 0.0 is not a probability mass; use a value above 0 and at most",
        ),
        ({"eval.top_p": 0.0}, "eval.top_p 0.0 is not a probability mass; use a value above 0 and at most 1"),
        ({"grader.kind": "judge"}, 'grader.kind "judge" asks an endpoint; give its address in judge.endpoint.url'),
        ({"judge.endpoint.url": "http://127.0.0.1:1/v1"}, "judge.endpoint.model is empty; give the name"),
        ({"judge.endpoint.timeout": 0.0}, "judge.endpoint.timeout 0.0 leaves no time"),
        ({"grader.tolerance": -1.0}, "grader.tolerance -1.0 is negative"),
        ({"grader.timeout": 0.0}, "grader.timeout 0.0 leaves no time; use a positive one"),
        ({"seed": 2**32}, "seed 4294967296 does not fit 32 bits; use at most 4294967295"),
        ({"data.chain_length": 0}, "data.chain_length 0 is too small; use at least 1"),
        ({"warm_start.rows_per_update": 0}, "warm_start.rows_per_update 0 is too small"),
        ({"sampling.temperature": 0.0}, "sampling.temperature 0.0 gives no exploration; use a positive one"),
        ({"objective.gamma": 0.0}, "objective.gamma 0.0 makes the shaped ratio 1; use a positive one, such as 0.1"),
        ({"optimizer.learning_rate": "nan"}, "optimizer.learning_rate nan is no finite number; use one"),
        ({"objective.gamma": "1e400"}, "objective.gamma inf is no finite number"),
        ({"optimizer.b1": 1.5}, "optimizer.b1 1.5 is no decay of an average; use a value of at least 0 and below 1"),
        ({"critic.max_prompt_length": -1}, "critic.max_prompt_length -1 is negative"),
        ({"refine.max_prompt_length": -1}, "refine.max_prompt_length -1 is negative"),
        ({"warm_start.num_updates": 5, "warm_start.chain_lengths": "()"}, "warm_start.chain_lengths () must hold"),
        ({"warm_start.num_updates": 5, "warm_start.chain_lengths": "(0, 1)"}, "chain_lengths (0, 1) must hold numbers"),
        ({"critique.kind": "cot", "critic.max_prompt_length": 4}, "its response; critic.max_prompt_length is 4"),
        (
            {"grader.kind": "code", "critique.kind": "indicative_gt", "critique.step_checker": "equations"},
            "would quote the unit tests",
        ),
        ({"reward_source": "critic"}, 'set critique.kind "cot" and critique.when "all"'),
        ({"eval.k": "(1, 16)"}, "eval.k 16 needs as many samples; eval.num_samples is 8"),
        ({"cache.gib": 1.5}, "and cache.gib 1.5 are both set; set one of them to 0"),
        ({"engine.num_slots": 0}, "engine.num_slots 0 takes as many slots as cache.gib holds; set one of them"),
        ({"engine.num_slots": 0, "cache.gib": 1e-6}, "cache.gib 1e-06 does not hold one slot of"),
        ({"sampling.stop": "(5,)"}, "sampling.stop (5,) must hold strings; quote them"),
        (
            {"sampling.stop": "('',)"},
            "sampling.stop ('',) holds an empty string, after which every text ends; leave it out",
        ),
        ({"eval.k": "()"}, "eval.k () must hold numbers of at least 1"),
        (
            {"packing.length": 30},
            "packing.length 30 does not hold the longest prompt and response; use at least 31, or 0",
        ),
        ({"warm_start.rare_rate": 0.1, "data.num_held_out": 0}, "but data.num_held_out is 0; set one of them"),
        ({"data.num_held_out": 50}, "num_held_out 50 is not possible; 0 to 49 products"),
        ({"prompts.question": "Solve it."}, "prompts.question: prompt template 'Solve it.' lacks {question}"),
        ({"prompts.refine": "{question} {response}"}, "prompts.refine: prompt template '{question} {response}' lacks"),
        ({"prompts.critique_with_answer": "{question}{response}"}, "prompts.critique_with_answer: prompt template"),
        (
            endpoint(**{"critique.kind": "indicative"}),
            'critic.kind "endpoint" needs critique.kind "cot", or "hint", not \'indicative\'; set one, or critic.kind',
        ),
        (
            endpoint(**{"critic.folder": "nowhere"}),
            'critic.folder \'nowhere\' is given, but critic.kind is "endpoint"; set critic.kind to "folder"',
        ),
        (endpoint(model=""), "critic.endpoint.model is empty; give the name that the endpoint knows its model by"),
        (endpoint(concurrency=0), "critic.endpoint.concurrency 0 is too small; use at least 1"),
        (endpoint(max_attempts=0), "critic.endpoint.max_attempts 0 is too small; use at least 1"),
        (endpoint(timeout=0.0), "critic.endpoint.timeout 0.0 leaves no time; use a positive one"),
        (
            endpoint(max_requests=9) | {"reward_source": "critic", "critique.when": "all"},
            "needs a verdict on every response, which critic.endpoint.max_requests and max_tokens end; set both to 0",
        ),
        (endpoint(max_requests=-1), "critic.endpoint.max_requests -1 is negative; use 0 or more"),
        (endpoint(max_tokens=-1), "critic.endpoint.max_tokens -1 is negative; use 0 or more"),
        (endpoint(url="localhost:8000"), "'localhost:8000' is not http"),
        (endpoint(url="http://me:secret@host/v1"), "'http://***@host/v1' holds a password"),
        (endpoint(key_variable="UNSET_CRITIC_KEY"), "'UNSET_CRITIC_KEY'"),
    ],
)
def test_values(tmp_path, capsys, changes, message):
    error = refused(capsys, tmp_path / "run", changes)
    assert message in error and "secret" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model.tokenizer": ""}, "no model: set model.folder, or model.init to a converted checkpoint, or"),
        ({"model.num_layers": 0}, "no model: set model.folder"),
        ({"model.mlp_dim": 0}, "model.mlp_dim 0 is no size"),
        ({"model.num_heads": 5}, "model.num_heads 5 does not divide model.embed_dim 64"),
        ({"model.num_kv_heads": 3}, "num_kv_heads 3 does not divide num_heads 2"),
        ({"model.tokenizer": "nowhere"}, "nowhere holds no tokenizer; give a folder with tokenizer.json"),
        ({"model.folder": "nowhere"}, "nowhere/config.json does not exist"),
        ({"model.init": "nowhere"}, "model.init nowhere does not exist; give the folder of a run"),
        (
            {"critic.kind": "folder", "critic.folder": "nowhere", "critique.kind": "cot"},
            "nowhere/config.json does not exist",
        ),
        ({"refine.max_prompt_length": 60}, "refine.max_prompt_length + max_response_length is 60 + 16, more"),
        (
            {"max_prompt_length": 60, "refine.kind": "none"},
            "max_prompt_length + max_response_length is 60 + 16, more than",
        ),
        ({"critique.kind": "cot", "critic.max_length": 20}, "critic.max_prompt_length + critic.max_length is 48 + 20"),
    ],
)
def test_models(tmp_path, capsys, changes, message):
    changes = {"packing.length": 128} | changes
    assert message in refused(capsys, tmp_path / "run", changes)
    assert not (tmp_path / "run").exists()


# --- data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.num_train": 0}, "no training questions: data.num_train is 0; use at least 1"),
        ({"data.num_train": 500}, "there are fewer than 500 different chains of 1 steps; ask for fewer"),
        ({"critique.kind": "cot", "refine.max_prompt_length": 20}, "tokens, 16 of them for a critique, without"),
        ({"refine.max_prompt_length": 4}, "without the response; refine.max_prompt_length is 4"),
        ({"data.chain_length": 8}, "12 of 12 prompts have more than max_prompt_length 16 tokens, the longest"),
        (jsonl(""), "no training data: set data.train to a file or a TFDS name"),
        (jsonl("nowhere.jsonl"), "data file 'nowhere.jsonl' does not exist; check the path"),
        (
            jsonl("x", **{"critique.step_checker": "chain"}),
            "critique.step_checker \"chain\" knows chains only, not data.kind 'jsonl'",
        ),
        (jsonl("x") | {"warm_start.num_updates": 5}, "warm_start has lessons on chains and snippets only"),
        (
            {"data.kind": "snippets", "critique.step_checker": "equations", "data.mixture": "a:1"},
            "data.kind snippets is made up",
        ),
        (
            {"data.kind": "snippets", "critique.step_checker": "equations", "data.num_held_out": 58},
            "0 to 57 words of different",
        ),
        (
            {"eval.keep_best": "pass@1", "eval.every": 1, "data.num_eval": 0},
            "compares evaluations on held-out questions",
        ),
        (jsonl("x", **{"refine.kind": "solution"}), "name their column in data.solution_key"),
        (
            {
                "data.kind": "tfds",
                "data.train": "nothing_here",
                "data.tfds_dir": ".",
                "critique.step_checker": "equations",
            },
            "data set 'nothing_here' is not in '.' (there are: none); name one of these, or prepare it there.",
        ),
    ],
)
def test_data(tmp_path, capsys, changes, message):
    assert message in refused(capsys, tmp_path / "run", changes)
    assert not (tmp_path / "run").exists()


GOOD = {"question": "2+2", "answer": "4"}
LONG = {"question": "2+" * 10 + "2", "answer": "22"}  # 21 tokens, and 2 of the chat template


@pytest.mark.parametrize(
    "rows, changes, message",
    [
        ([], {}, "has no rows; it needs at least one"),
        ([GOOD, {"question": "1+1"}], {}, "line 2: column 'answer' is missing (there are: question)"),
        ([GOOD, {"question": "1+1", "answer": "two"}], {}, "can't be read by grader 'numeric' (row 2: 'two')"),
        ([GOOD, {"question": "1+1", "answer": "hm?!"}], {"grader.kind": "math"}, "grader 'math' (row 2: 'hm?!')"),
        ([GOOD, {"question": "1+1", "answer": " "}], {"grader.kind": "exact"}, "1 of 2 gold answers can't be read"),
        ([GOOD], {"data.answer_pattern": "#(.*)"}, "answer_pattern '#(.*)' is not found in '4'"),
        (
            [{"question": "6*7", "answer": "It is 42.\n#### 42"}],
            {"grader.kind": "exact"},
            "the gold answers are solutions that end as 'It is 42.\\n#### 42'; name the answer in them: "
            "data.answer_pattern='####\\s*(.+)'.",
        ),
        (
            [GOOD, LONG],
            {"prompts.on_long_question": "error"},
            "tokens, the longest, of problem 1, 23; raise it, or set",
        ),
        ([LONG], {}, "1 of 1 prompts have more than max_prompt_length 16 tokens"),
        (
            [GOOD | {"long": "2+" * 9}],
            {"refine.kind": "solution", "data.solution_key": "long"},
            "problem 0 has 19 tokens",
        ),
        (
            [GOOD | {"worked": "2+2=4"}, GOOD | {"worked": " "}],
            {"critique.kind": "cot", "critic.sees": "solution", "data.solution_key": "worked"},
            "training questions: row 2 of train has no solution in column 'worked', which the critic sees",
        ),
        (
            [GOOD | {"worked": ""}],
            {"refine.kind": "solution", "data.solution_key": "worked"},
            "row 1 of train has no solution in column 'worked', which refine.kind \"solution\" inserts; fill it",
        ),
        (
            [GOOD | {"worked": "2+2=4"}, GOOD],
            {"critique.kind": "cot", "critic.sees": "solution", "data.solution_key": "worked"},
            "line 2: column 'worked' is missing (there are: question, answer)",
        ),
    ],
)
def test_rows(tmp_path, capsys, rows, changes, message):
    file = tmp_path / "train.jsonl"
    write(file, *rows)
    assert message in refused(capsys, tmp_path / "run", jsonl(file) | changes)
    assert not (tmp_path / "run").exists()


def test_a_fault_in_the_held_out_questions_is_said_to_be_there(tmp_path, capsys):
    write(tmp_path / "train.jsonl", GOOD)
    test = write(tmp_path / "test.jsonl", GOOD, GOOD, {"question": "1+1", "answer": "two"})
    error = refused(capsys, tmp_path / "run", jsonl(tmp_path / "train.jsonl") | {"data.eval": test})
    assert "held-out questions: 1 of 3 gold answers can't be read by grader 'numeric' (row 3: 'two')" in error


def test_long_questions_are_left_out_counted_and_said(tmp_path, capsys):
    file = write(tmp_path / "train.jsonl", GOOD, LONG, {"question": "2+3", "answer": "5"}, LONG)
    test = write(tmp_path / "test.jsonl", GOOD, LONG)
    changes = jsonl(file) | {"data.eval": test, "refine.kind": "none", "num_iterations": 0, "eval.k": (1,)}
    run(tmp_path / "run", changes)
    err = capsys.readouterr().err
    assert "2 training questions are longer than max_prompt_length 16 and were left out\n" in err
    assert "1 held-out questions are longer than max_prompt_length 16 and were left out\n" in err


# --- model folders ------------------------------------------------------------------------------------------------


@pytest.fixture
def llama(tmp_path):
    """A good model folder: its settings and tensors, for a test to spoil."""
    settings = hf_folders.LLAMA | {"vocab_size": 300}
    folder = hf_folders.write_folder(tmp_path / "llama", settings, {})
    for file in model_source.tokenizer_folder("arithmetic").iterdir():
        shutil.copy(file, folder)
    shape = config.read_config(folder)
    tensors = hf_folders.stored_tensors(hf_folders.random_params(shape), shape)
    return hf_folders.write_folder(folder, settings, tensors), settings, tensors


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("key", ["model.folder", "critic.folder"])
@pytest.mark.parametrize(
    "settings, tensors, message",
    [
        ({}, {NORM: None}, f"has no tensor {NORM}; its config.json and weights must be of one model"),
        ({}, {NORM: np.ones(13, np.float32)}, f"{NORM} has shape (13,), config.json asks for (12,)"),
        ({"model_type": "mamba"}, {}, "model_type 'mamba' is not supported; use one of llama, mistral, qwen2, qwen3"),
        ({"vocab_size": 20}, {}, "The tokenizer has 207 tokens, the model embeds 20"),
        ({"max_position_embeddings": 63}, {}, "is 48 + 16, more than the 63 tokens of context that the"),
    ],
    ids=["missing tensor", "wrong shape", "architecture", "vocabulary", "context"],
)
def test_model_folders(tmp_path, capsys, llama, key, settings, tensors, message):
    folder, good_settings, good = llama
    left = {name: tensor for name, tensor in (good | tensors).items() if tensor is not None}
    hf_folders.write_folder(folder, good_settings | settings, left)
    changes = {key: str(folder), "critique.kind": "cot"}
    if key == "critic.folder":
        changes["critic.kind"] = "folder"
    if key == "model.folder":
        changes |= {"model.tokenizer": ""}
    assert message in refused(capsys, tmp_path / "run", changes)
    assert not (tmp_path / "run").exists()


# --- the run's folder ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("finished"), {"data.num_eval": 0, "checkpoints.keep": 3}, num_iterations=2)


def options(**more):
    return {"model.init": tiny_run.start(), "data.num_eval": 0, "num_iterations": 2, "checkpoints.keep": 3} | more


def test_another_config_leaves_a_run_as_it_is(finished, capsys):
    before = contents(finished)
    error = refused(capsys, finished, options(num_iterations=9, **{"objective.gamma": 0.2}))
    assert "holds a run with another config (objective.gamma: 0.001 -> 0.2); give another --workdir" in error
    assert contents(finished) == before


def test_a_folder_of_something_else(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("mine")
    assert "has metrics.jsonl but no config.json; give another --workdir" in refused(capsys, tmp_path)
    (tmp_path / "file").write_text("mine")
    assert "can't be a folder, since" in refused(capsys, tmp_path / "file")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"metrics.jsonl": "mine", "file": "mine"}


def test_a_corrupt_checkpoint_is_passed_over(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    corrupt(folder / "checkpoints" / "2")
    capsys.readouterr()
    train.main(tiny_run.config(options()), str(folder))
    err = capsys.readouterr().err
    assert "checkpoint 2 can't be read (" in err and "using the one before" in err
    assert "resuming after iteration 1" in err
    assert tiny_run.repeatable(folder) == tiny_run.repeatable(finished)
    assert [row["step"] for row in metrics(folder)] == [0, 1]


def test_no_checkpoint_can_be_read(finished, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    for checkpoint in (folder / "checkpoints").iterdir():
        corrupt(checkpoint)
    before = contents(folder)
    error = refused(capsys, folder, options())
    assert "none of the checkpoints [2, 1, 0] in" in error and "restore the folder from a copy, or start again" in error
    assert contents(folder) == before


# --- as a program -------------------------------------------------------------------------------------------------


def as_a_program(workdir, module, *flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", f"cgrpo_jax.{module}", *tiny_run.arguments(workdir), *flags],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "module, flags, message",
    [
        (
            "train",
            ["--config.optimizer.updates_per_batch=3"],
            "optimizer.updates_per_batch 3 does not divide questions_per_iteration 4",
        ),
        ("evaluate", [], "has no checkpoints and the configuration names no weights; train first"),
        ("sample", ["--question=2+2", "--anwser=4"], "unknown flag --anwser (did you mean --answer?)"),
    ],
)
def test_as_a_program(tmp_path, module, flags, message):
    done = as_a_program(tmp_path / "run", module, *flags)
    assert (done.returncode, done.stdout) == (2, "")
    err = start_lines.without(done.stderr)
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, environment, message",
    [
        (
            [],
            {"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": ""},
            "JAX_NUM_PROCESSES is 2, so this is one of several processes; give each ",
        ),
        (
            [],
            {"CGRPO_STOPPED_STATUS": "256"},
            "CGRPO_STOPPED_STATUS is '256'; it must be an exit status, from 0",
        ),
        (["--distributed"], {"JAX_NUM_PROCESSES": "1" * 20}, f"JAX_NUM_PROCESSES is '{'1' * 20}'; it must be a number"),
        (["--distributed"], {"JAX_COORDINATOR_ADDRESS": "here"}, "'here'; it must be HOST:PORT, of process 0"),
        (["--distributed"], {"JAX_COORDINATOR_ADDRESS": "localhost:70000"}, "localhost:70000 can't be used"),
    ],
)
def test_environments(tmp_path, flags, environment, message):
    one = {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "localhost:1"}
    done = as_a_program(tmp_path / "run", "train", *flags, **one | environment)
    assert (done.returncode, done.stdout) == (2, "")
    err = start_lines.without(done.stderr)
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken(tmp_path):
    """JAX itself ends with a segmentation fault there."""
    with socket.create_server(("", 0)) as taken:
        address = f"localhost:{taken.getsockname()[1]}"
        one = {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": address}
        done = as_a_program(tmp_path / "run", "train", "--distributed", **one)
    assert done.returncode == 2
    assert f"error: JAX_COORDINATOR_ADDRESS {address} can't be used (Address already in use); give an" in done.stderr


def test_two_runs_in_one_folder(tmp_path, capsys):
    """The second is refused, and leaves the first one's files alone; when the first has ended it is not."""
    run = run_dir.RunDir(tmp_path / "run")
    with run.locked():
        run.open(config_lib.to_json(tiny_run.config()))
        before = {path.name: path.read_bytes() for path in run.path.iterdir()}
        assert f"another run is writing {run.path}; wait for it to end" in refused(capsys, run.path, {})
        assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before
    with run.locked():
        pass
