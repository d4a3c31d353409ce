"""`cgrpo recipe` with commands that only note that they were called: what runs, what is skipped, what is said."""

import json
import pathlib

import pytest
import tiny_run
from entry_points import refused

from cgrpo_jax import recipe
from cgrpo_jax.runs import cli
from cgrpo_jax.runtime import digests

STEPS = """
from cgrpo_jax.runs.recipes import Step


def get_steps(number: int = 3):
    return [
        Step("samples", "collect", {"collect.num_responses": number}),
        Step("learnt", "finetune", {"finetune.rows": "{samples}"}),
        Step("exported", "convert", weights="learnt"),
        Step("after", "evaluate", weights="learnt"),
    ]
"""
COLLECTED = {"questions": 2, "responses": 6, "critiques": 0, "refinements": 0}
SHARE = {"value": 0.5, "low": 0.25, "high": 0.75}
SUMMARIES = {
    "samples": COLLECTED | {"solved": SHARE, "pass@1": SHARE},
    "learnt": {"updates": 7, "rows": 4, "eval_before": {"pass@1": 0.25}, "eval_after": {"pass@1": 0.5}},
    "after": {"mean": {"questions": 2, "pass@1": SHARE}},
}


class Killed(BaseException):
    pass


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Commands in the place of the real ones: each notes its step, its weights' folder and where it writes."""

    class Commands:
        called, exported, stops, dies = [], [], "", ""

        def end(self, weights, folder):
            folder = pathlib.Path(folder)
            self.called.append((folder.name, pathlib.Path(weights).name))
            if folder.name == self.dies:
                raise Killed
            if folder.name == self.stops:
                return
            folder.mkdir(exist_ok=True)
            if folder.name == "exported":
                (folder / digests.FILE).write_text("{}")
            else:
                (folder / "summary.json").write_text(json.dumps(SUMMARIES[folder.name]))
            if folder.name == "learnt":
                (folder / "kept_rows.json").write_text(json.dumps({"a": 3, "b": 1}))

    made = Commands()
    made.called, made.exported = [], []
    for name in ("collect", "evaluate"):
        monkeypatch.setattr(getattr(recipe, name), "main", lambda config, workdir, out: made.end(workdir, out))
    for name in ("train", "finetune"):
        monkeypatch.setattr(getattr(recipe, name), "main", lambda config, workdir: made.end(workdir, workdir))
    monkeypatch.setattr(recipe, "export_hf", lambda run, to, of: made.exported.append(of) or made.end(run, to))
    monkeypatch.setattr(recipe.rollout_questions, "files", lambda folder: [])
    monkeypatch.setattr(recipe.diversity, "pass_rates", lambda paths, pass_threshold: {"a": 0.0, "b": 1.0})
    (tmp_path / "steps.py").write_text(STEPS)
    return made


def run(folder, given="", *flags):
    argv = [f"--recipe={folder / 'steps.py'}{given}", *tiny_run.arguments(folder / "work"), *flags]
    required = ("config", "workdir", "recipe")
    cli.run(recipe.main, require=required, flags=recipe.FLAGS, trains=False, argv=argv)


ALL = [("samples", "samples"), ("learnt", "learnt"), ("exported", "learnt"), ("after", "learnt")]


def test_steps_follow_one_another_to_tables(commands, tmp_path, capsys):
    run(tmp_path)
    assert commands.called == ALL
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["collected", "samples"], ["questions", "2"], ["responses", "6"], ["critiques", "0"],
    ]  # fmt: skip
    assert "pass@1 after    0.500" in out and "hard share                      0.750" in out
    assert "pass@1    0.500 (0.250 to 0.750)" in out and out.endswith(f"are in {tmp_path / 'work'}\n")
    assert "step 2 of 4: learnt: finetune with finetune.rows={samples}\n" in err
    results = json.loads((tmp_path / "work" / "results.json").read_text())
    assert [one["step"] for one in results] == ["samples", "learnt", "exported", "after"]
    assert results[1]["kept"] == {"0": 3, "1": 1, "hard share": 0.75} and results[0]["responses"] == 6
    assert commands.exported == ["policy"]
    run(tmp_path)  # all of it is done
    assert commands.called == ALL and "step 4 of 4 is done: after" in capsys.readouterr().err


def test_a_step_may_export_the_critic_that_another_has_trained(commands, tmp_path):
    keys = {"critic.train": True, "critique.kind": "cot", "critique.when": "all", "critique.num_per_response": 2}
    text = STEPS.replace('"finetune", {"finetune.rows": "{samples}"}', f'"train", {keys}')
    text = text.replace(
        'weights="learnt"),\n        Step("after"', 'weights="learnt", of="critic"),\n        Step("after"'
    )
    assert "of=" in text and "critic.train" in text
    (tmp_path / "steps.py").write_text(text)
    run(tmp_path)
    assert commands.called == ALL and commands.exported == ["critic"]


def test_several_processes_are_refused_before_anything_starts(commands, tmp_path, capsys):
    _, err = refused(capsys, run, tmp_path, "", "--distributed")
    assert err.startswith("error: unknown flag --distributed") and not commands.called
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("number, name", enumerate(["samples", "learnt", "exported", "after"]))
def test_it_resumes_at_the_step_that_did_not_end(commands, tmp_path, capsys, number, name):
    commands.dies = name
    with pytest.raises(Killed):
        run(tmp_path)
    assert commands.called == ALL[: number + 1] and not (tmp_path / "work" / "results.json").exists()
    commands.dies, commands.called[:] = "", []
    run(tmp_path)
    assert commands.called == ALL[number:] and (tmp_path / "work" / "results.json").exists()


def test_a_step_that_a_signal_stopped_ends_the_recipe(commands, tmp_path, capsys):
    """`finetune` then returns, where 0 is the status of what was stopped; nothing may follow on half of it."""
    commands.stops = "learnt"
    run(tmp_path)
    assert commands.called == ALL[:2] and not (tmp_path / "work" / "results.json").exists()
    assert capsys.readouterr().err.endswith("step 2 of 4 was stopped; the same command resumes it\n")


def test_mistakes_are_one_line_and_nothing_is_written(commands, tmp_path, capsys):
    for given, flags, message in [
        (":n=3", (), "recipe steps.py has no argument 'n=3'"),
        ("", ("--config.data.num_eval=0",), "step after: there are no held-out questions to evaluate"),
        ("", ("--config.collect.num_responses=5",), "--config.collect.num_responses=5 changes nothing: step 'samples'"),
        ("", ("--config.colect.rows=a",), "unknown config key --config.colect.rows"),
    ]:
        _, err = refused(capsys, run, tmp_path, given, *flags)
        assert message in err and not (tmp_path / "work").exists()
    run(tmp_path)
    _, err = refused(capsys, run, tmp_path, ":number=4")
    assert "holds another recipe (samples, which is done: collect.num_responses: 3 -> 4); give another --workdir" in err
