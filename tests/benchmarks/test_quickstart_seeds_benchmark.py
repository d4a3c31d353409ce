"""Seeds of the quickstart: which runs are done again, and which are out of their bounds."""

import json
import pathlib
import shutil

import pytest
import quickstart_seeds as seeds

CONFIG = """
from cgrpo_jax.runs import base

def get_config():
    c = base.get_config()
    c.data.kind = "chains"
    return c
"""
ROW = {"devices": "1", "seed": 0, "start": 0.4, "unsolved": 0.6, "all_failed_start": 0.6, "end": 0.95, "seconds": 99.0}


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "quickstart.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def runs(monkeypatch):
    """Every run that is started, in the place of it."""
    started = []

    def warm(self, seed, devices):
        started.append(("warm", seed, devices))
        return {"seconds": 30.0, "accuracy": 0.4, "refined": 0.9}

    def arm(self, name, seed, devices, warm):
        started.append((name, seed, devices))
        return {**ROW, "devices": devices, "seed": seed, "end": 0.95 if name == "critique" else 0.5 + seed / 10}

    monkeypatch.setattr(seeds.Room, "warm", warm)
    monkeypatch.setattr(seeds.Room, "arm", arm)
    return started


def test_runs_are_kept_and_not_done_again(tmp_path, config, runs, capsys):
    command = [f"--workdir={tmp_path}", f"--config={config}", f"--json={tmp_path}/out.json", "--devices=1,2x4"]
    assert seeds.main([*command, "--seeds=0,1"]) == 0
    assert runs == [(arm, seed, on) for on in ("1", "2x4") for seed in (0, 1) for arm in ("warm", "critique")]
    assert seeds.main([*command, "--seeds=0-2", "--arms=critique,grpo"]) == 1  # grpo of seed 2 ends at 0.7
    assert len(runs) == len(set(runs)) == 18
    assert "grpo, seed 2, devices 2x4: end 0.700 is above 0.65" in capsys.readouterr().out
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["task"].startswith("chains ") and len(found["runs"]) == 18
    config.write_text(CONFIG.replace("return c", "c.warm_start.num_updates = 3\n    return c"))
    assert seeds.main([*command, "--seeds=0", "--devices=1"]) == 0  # other settings: the runs of before are dropped
    assert len(runs) == 20 and len(json.loads((tmp_path / "out.json").read_text())["runs"]) == 2


@pytest.mark.parametrize(
    "arm, changes, said",
    [
        ("critique", {}, []),
        ("critique", {"end": 0.89}, ["end 0.890 is below 0.9"]),
        ("critique", {"start": 0.51, "unsolved": 0.39}, ["start 0.510 is above 0.5", "unsolved 0.390 is below 0.4"]),
        ("critique", {"seconds": 301.0}, ["seconds 301.000 is above 300"]),
        ("critique", {"seconds": 301.0, "devices": "8"}, []),
        ("grpo", {"end": 0.65}, []),
        ("no_critique", {"end": 0.66}, ["end 0.660 is above 0.65"]),
    ],
)
def test_bounds(arm, changes, said):
    assert seeds.faults({**ROW, "arm": arm, **changes}, seeds.BOUNDS["quickstart"]) == said


def test_a_run_is_the_configurations(tmp_path, config, monkeypatch):
    """The commands of a seed: a warm start on its mesh, its diagnosis on one device, an arm from its weights."""
    commands = []

    def run(self, command, devices):
        commands.append((command[2].rpartition(".")[2], {one for one in command[3:] if "workdir" not in one}, devices))
        folder = next(one for one in command if one.startswith("--workdir=")).partition("=")[2]
        numbers = {"kinds": {"execution": {"successful_refinements": 0.9}}, "accuracy": 0.4}
        summary = {"seconds": 30.0, "eval_before": {"pass@1": 0.4}, "eval_after": {"pass@1": 1.0}}
        summary |= {"unsolved_before": 64, "all_failed_start": 0.5}
        files = {"summary.json": summary, "config.json": {"data": {"num_eval": 128}}, "diagnosis/summary.json": numbers}
        for name, content in files.items():
            path = pathlib.Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        (pathlib.Path(folder) / "checkpoints").mkdir(exist_ok=True)

    monkeypatch.setattr(seeds.Room, "run", run)
    room = seeds.Room(config, tmp_path)
    warm = room.warm(3, "2x4")
    assert warm == {"seconds": 30.0, "accuracy": 0.4, "refined": 0.9}
    numbers = room.arm("grpo", 3, "2x4", warm)
    assert (numbers["start"], numbers["unsolved"], numbers["end"], numbers["seconds"]) == (0.4, 0.5, 1.0, 60.0)
    mesh = {"--config.seed=3", "--config.mesh.fsdp=2", "--config.mesh.tensor=4", f"--config={config}"}
    start = f"--config.model.init={room.folder('warm', 3, '2x4') / 'checkpoints'}"
    (first, warming, on), (second, diagnosing, one), (third, training, last) = commands
    assert (first, second, third) == ("train", "diagnose", "train") and (on, one, last) == ("2x4", "1", "2x4")
    assert warming == mesh | {"--config.num_iterations=0", "--config.data.num_eval=0"}
    assert {"--config.mesh.fsdp=1", "--config.diagnosis.kinds=execution"} < diagnosing
    changes = {"--config.refine.kind=none", "--config.num_responses=8", "--config.warm_start.num_updates=0"}
    assert training == mesh | changes | {start}
    shutil.rmtree(room.folder("warm", 3, "2x4"))  # kept numbers may outlive it
    room.arm("grpo", 3, "2x4", warm)
    assert [(name, told) for name, told, _ in commands[3:]] == [("train", warming), ("train", training)]


def test_tuning_draws_other_questions(tmp_path, config):
    report, tune = (seeds.Room(config, tmp_path, tuning) for tuning in (False, True))
    assert "data.seed" not in report.changes(100, "1") and tune.changes(100, "1")["data.seed"] == 100
    assert report.key()["settings"] != tune.key()["settings"]


def test_a_configuration_without_bounds_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        seeds.main([f"--workdir={tmp_path}", "--config=configs/paper.py"])
    assert "paper.py has no bounds here; use one of quickstart, code_quickstart" in capsys.readouterr().err
