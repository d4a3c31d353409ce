"""`cgrpo simulate` without a compiler: whose costs, whose lengths, what is printed."""

import json
import re

import numpy as np
import plan_cases
import planned
import pytest

from cgrpo_jax import simulate
from cgrpo_jax.inference import slots
from cgrpo_jax.inference.slot_writes import Copy, Prefill
from cgrpo_jax.planning import pricing, program_costs, programs, simulator
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.planning.simulation import Tick
from cgrpo_jax.planning.simulator import Lengths, Simulator
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import cli
from cgrpo_jax.runs.variants import Variants

model = plan_cases.model  # the fixture


class Counted:
    """What a compiler might count: decoding moves 7 bytes, in each step 100 and 512 a block; a prefill 50 a row."""

    compiled: list = []

    def __init__(self, function, args, keywords, kernel_cost):
        self.decodes = function is slots.tick
        self.compiled.append((function.__name__, keywords["settings"].num_slots))

    def cost(self, *trips):
        if not self.decodes:
            return Cost(bytes=50.0 * trips[0], operations=2.0)
        steps, blocks = trips
        return Cost(bytes=7 + steps * (100.0 + 512 * blocks), operations=3 + steps * (5.0 + 2 * blocks))


@pytest.fixture
def pretended(monkeypatch):
    planned.pretend(monkeypatch)
    monkeypatch.setattr(program_costs, "CountedProgram", Counted)
    monkeypatch.setattr(Counted, "compiled", [])


def made(model, /, name=planned.NAME, **more):
    return Simulator(Variants(planned.config(model, **{"critique.kind": "cot"} | more)), name)


def test_decoding_is_divided_into_calls_steps_and_positions(model, pretended):
    long = {"max_response_length": 1024, "packing.length": 0, "engine.num_slots": 4}
    costs = made(model, **long).costs["policy"]
    decode = costs.decode
    assert decode.call == Cost(bytes=7.0, operations=3.0) and decode.step == Cost(bytes=100.0, operations=5.0)
    assert decode.position == Cost(bytes=512 / (4 * 512), operations=2 / (4 * 512))
    short = made(model).costs["policy"].decode  # whose slots are read whole: a step is all of it
    assert short.step == Cost(bytes=612.0, operations=7.0) and short.position == Cost()


def test_prefills_are_compiled_once_and_copies_are_what_they_copy(model, pretended):
    costs = made(model).costs["policy"]
    call = Prefill(4, 16, False, ((), ()))
    assert costs.prefill(call) == costs.prefill(call) == Cost(bytes=200.0, operations=2.0)
    assert Counted.compiled == [("prefill", 8)]
    copied = costs.copy(Copy(16, ((None,) * 3, (None,))))  # the group that copies the most
    position = 2 * 2 * 5 * 8  # keys and values of one head, 5 layers, bfloat16
    assert copied == Cost(bytes=2.0 * 3 * 16 * position, operations=2.0 * 3 * 2)


def test_an_iteration_is_the_runs_own(model, pretended):
    found = made(model).simulate(Lengths("uniform(min=2, max=16)", failed=0.25))
    assert [found.texts(stage) for stage in Stage] == [24, 6, 6]  # 8 questions of 3 responses, 2 of them refined
    tokens = {index: n for one in found.questions for asked in one.all for index, n in asked.tokens.items()}
    ticks = [one for one in found.calls["policy"] if isinstance(one, Tick)]
    by_stage = np.sum([tick.live_N3.sum(0) for tick in ticks], axis=0)
    assert by_stage.tolist() == [sum(n for i, n in tokens.items() if i.stage == stage) for stage in Stage]
    assert (found.num_chips, found.num_groups, found.num_slots) == (4, 2, 8)
    slower, faster = (found.at(share).seconds for share in (0.4, 1.0))
    assert slower > found.at(0.8).seconds > faster > found.at(1.0, peaks=True).seconds


def test_a_frozen_critic_has_its_own_engine(model, pretended, tmp_path):
    other = planned.describe(tmp_path / "critic", num_hidden_layers=2)
    frozen = {"critic.kind": "folder", "critic.folder": other}
    found = made(model, **frozen).simulate(Lengths("uniform(min=2, max=16)", failed=0.5))
    lives = {
        who: np.sum([one.live_N3.sum(0) for one in calls if isinstance(one, Tick)], axis=0) > 0
        for who, calls in found.calls.items()
    }
    assert {who: live.tolist() for who, live in lives.items()} == {
        "policy": [True, False, True],
        "folder": [False, True, False],
    }
    assert found.at(0.8).seconds > 0


def test_with_pages_a_position_has_its_own_cost(model, pretended):
    """By hand, on a device: heads of 8 numbers, one for keys and values in bfloat16; 8 queries at a time, or 16."""
    costs = made(model, **{"cache.kind": "paged"}).costs["policy"]
    config = costs.engine.settings.config
    slots = costs.engine.settings.num_slots
    decode = costs.over_pages(0, slots)
    assert decode.call == Cost(operations=2.0) and decode.step == Cost(bytes=50.0)
    products = 4.0 * config.num_heads / 2 * 8 * config.num_layers
    assert decode.position == Cost(8 * products, bytes=2 * 2 * 8.0 * config.num_layers)
    beside = costs.over_pages(32, slots)
    assert beside.step == Cost(bytes=50.0, operations=2.0) and beside.position.flops == 16 * products


def test_prompts_enter_beside_what_decodes(model, pretended):
    paged = made(model, **{"cache.kind": "paged", "cache.page_size": 8})
    found = paged.simulate(Lengths("uniform(min=2, max=16)", failed=0.25))
    seconds = found.at(0.8)
    assert seconds.seconds == pytest.approx(sum(seconds.parts.values())) and not seconds.parts["copies"]
    assert seconds.seconds == pytest.approx(sum(seconds.stages.values())) and all(seconds.stages.values())
    assert 0 < seconds.prompt_tokens < seconds.prompt_positions
    assert seconds.tokens == sum(n for one in found.questions for each in one.all for n in each.tokens.values())


def test_engines_are_those_that_are_planned(model, pretended):
    settings = made(model).settings
    planned_calls = programs.of(settings).calls
    decoding = next(one for one in planned_calls if one.name == "decode")
    engine = programs.engines(settings)["policy"]
    ours = next(one for one in engine.programs if one.function is slots.tick)
    assert (ours.inputs, ours.keywords) == (decoding.program.inputs, decoding.program.keywords)


# --- the command line ---------------------------------------------------------------------------------------------


def run(*argv):
    cli.run(simulate.main, require=("config", "topology", "lengths"), flags=simulate.FLAGS, argv=list(argv))


def test_slices_are_compared_and_written(model, pretended, tmp_path, capsys):
    lengths, file = "--lengths=uniform(min=2, max=16)", tmp_path / "found.json"
    run(*planned.arguments(model), "--topology=v5e:2x2,v6e:2x2", lengths, f"--json={file}")
    out, err = capsys.readouterr()
    assert "v5e:2x2: compiling decoding" in err
    first, second = json.loads(file.read_text())
    assert [first["topology"], second["topology"]] == ["v5e:2x2", "v6e:2x2"]
    assert list(first["seconds"]) == ["peaks", "HBM 1", "HBM 0.8", "HBM 0.4"]
    one = first["seconds"]["HBM 0.8"]
    assert sum(one["parts"].values()) == pytest.approx(one["seconds"]) == pytest.approx(sum(one["stages"].values()))
    assert one["tokens_per_second_per_chip"] == pytest.approx(one["tokens"] / one["seconds"] / 4)
    assert set(one["parts"]) == set(pricing.PARTS)
    for label in (*pricing.PARTS, "of these needed", "in all", "in the tail", "seconds, peaks", "chips"):
        assert re.search(rf"^ *{label} ", out, re.MULTILINE), label
    assert "Simulated, on no chip: matrix units at 0.6" in out


def test_the_host_is_hidden_where_calls_are_dispatched_ahead(model, pretended):
    lengths, seconds = Lengths("uniform(min=2, max=16)", failed=0.25), {}
    for overlap in ("auto", "on", "off"):  # auto: these devices are CPUs
        found = made(model, **{"engine.overlap": overlap}).simulate(lengths, host=1e-6).at(0.8)
        seconds[overlap] = found.parts["host"]
        assert (found.ahead > 0) is (overlap == "on")
        assert found.seconds == pytest.approx(sum(found.stages.values()))
    assert seconds["on"] < seconds["off"] == seconds["auto"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--host=-1", "--host -1 is no time; use milliseconds, 0 or more"),
        ("--lengths=normal(3)", "lengths 'normal(3)' are no distribution"),
        ("--lengths=nowhere", "nowhere holds no rollouts"),
        ("--critiques=fixed(-1)", "lengths 'fixed(-1)' are no distribution"),
        ("--failed=1.5", "--failed 1.5 is no share"),
        ("--topology=v5p:3x5x7", "topology 'v5p:3x5x7' does not exist"),
        ("--json=nowhere/found.json", "is in no folder; make nowhere first"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(model, pretended, flag, said, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*planned.arguments(model), "--topology=v5e:2x2", f"--lengths={simulator.PROMPTS}", flag)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_configuration_of_finetuning_is_none_of_a_run_that_generates(model, pretended, capsys):
    config, lengths = planned.BASE.parent / "sft.py", f"--lengths={simulator.PROMPTS}"
    given = [f"--config={config}", f"--config.model.folder={model}", "--config.data.train=x"]
    with pytest.raises(SystemExit) as caught:
        run("--topology=v5e:2x2", lengths, *given)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    said = (
        "error: finetune.rows_per_update 8 is of cgrpo finetune, and cgrpo simulate is of cgrpo train, which generates"
    )
    assert err.startswith(said)
