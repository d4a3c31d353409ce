"""A report in a real browser, from a disk and without a network: it is read, filtered, searched, and walked by keys."""

import csv
import json
import pathlib
import re
import xml.etree.ElementTree

import numpy as np
import pytest
import report_runs

from cgrpo_jax.datasets import rollout_columns, rollouts
from cgrpo_jax.ratios import shaped_ratio
from cgrpo_jax.records import Stage
from cgrpo_jax.report import groups as groups_lib
from cgrpo_jax.report import page as page_lib
from cgrpo_jax.report import run_folder
from cgrpo_jax.report.groups import Flag, Outcome


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = report_runs.write(tmp_path_factory.mktemp("run") / "table", iterations=8, questions=8)
    report_runs.measure(folder)
    return folder


@pytest.fixture(scope="module")
def report(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "report.html"
    page_lib.write([run_folder.read(folder)], out, max_groups=500)
    return out


def found(shown):
    return int(shown.text(".count").split()[0].replace(",", ""))


def test_it_opens_from_disk_without_a_network_and_without_a_fault(report, opened):
    shown = opened(report)
    assert "Before training, after its warm start, the model solved 40 %" in shown.text(".story")
    assert "which are never trained on" in shown.text(".story") and shown.text("h1") == "table"
    assert shown.page.locator(".chart canvas").count() >= 12
    assert shown.page.wait_for_selector(".lesson .chain li") and shown.page.locator(".lesson .chain li").count() == 3
    assert "With the critique in view the policy wrote" in shown.text(".lesson .helped")
    started = shown.text(".started")
    assert "cgrpo train --config.seed=0" in started and "1a2b3c4+ (files differ" in started and "2 x cpu" in started
    assert shown.faults == [] and shown.asked == [report.absolute().as_uri()]


def test_it_says_what_is_asked_what_is_right_and_what_the_model_had_learned(report, folder, opened):
    shown = opened(report)
    task = shown.text(".task")
    assert "Chains of sums and products" in task and "equals the gold answer" in task
    assert "a warm start of 400 updates then taught it" in task and "no lesson held these 16 products" in task
    (example,) = shown.page.evaluate("about.examples")
    asked = next(row.problem for path in run_folder.read(folder).files for row in rollouts.read(path)
                 if row.problem.question == example["question"])  # fmt: skip
    assert (example["answer"], example["solution"]) == (asked.answer, asked.solution)
    assert all(text in task for text in example.values())
    assert "then taught by a warm start" in shown.text(".sub")
    assert "reward of the group" in shown.text(".steps") and "A group is" in shown.text(".story")
    assert "responses, where all to a question fail" in shown.text(".steps")
    assert "--config.refine.kind=none" in shown.text(".alone") and shown.faults == []


def test_a_filter_opens_its_first_hit_and_a_search_what_it_finds(report, opened):
    shown = opened(report)
    for name in ("all right", "rescued"):  # which no group is both
        shown.page.locator(".chip", has_text=name).first.click()
        shown.page.wait_for_selector(f".detail .badge:text-is('{name}')")
        assert shown.page.locator(".list .entry").first.get_attribute("aria-current") == "true"
        shown.page.locator(".chip", has_text=name).first.click()
    here = shown.at()
    question = shown.page.locator(".detail .asked .text").first.inner_text()
    shown.page.fill("#search", question)
    shown.page.evaluate("new Promise((drawn) => setTimeout(drawn, 100))")
    assert found(shown) < 64 and shown.at() == here  # it is among what is found
    shown.page.fill("#search", next(text for text in ("2*3", "2*4") if text != question))
    shown.page.wait_for_function("here => location.hash !== here", arg=here)
    assert shown.page.locator(".list .entry[aria-current=true]").count() == 1
    shown.page.fill("#search", "no text says this")
    shown.page.wait_for_selector(".none")
    assert shown.page.locator(".detail .card").count() == 0 and shown.faults == []


def test_every_filter_finds_as_many_as_it_says(report, opened):
    shown = opened(report)
    everything = found(shown)
    chips = shown.page.locator(".chip")
    assert everything == 64 and chips.count() >= 6
    for number in range(chips.count()):
        chip = chips.nth(number)
        said = int(chip.locator("span").inner_text())
        chip.click()
        assert found(shown) == said > 0 and chip.get_attribute("aria-pressed") == "true"
        chip.click()
    assert found(shown) == everything and shown.faults == []


def test_search_reads_questions_and_texts(report, opened):
    shown = opened(report)
    shown.page.keyboard.press("/")
    shown.page.keyboard.type("Conclusion: wrong")
    shown.page.wait_for_function("parseInt(document.querySelector('.count').textContent) > 0")
    shown.page.wait_for_function("parseInt(document.querySelector('.count').textContent) < 64")
    rescued = int(shown.page.locator(".chip", has_text="rescued").locator("span").inner_text())
    unsolved = shown.page.locator(".chip", has_text="unsolved this time")
    assert found(shown) == rescued + (int(unsolved.locator("span").inner_text()) if unsolved.count() else 0)
    shown.page.fill("#search", "no text says this")
    shown.page.wait_for_selector(".none")
    shown.page.click(".none button")
    assert found(shown) == 64


def test_keys_walk_through_the_list_and_the_run(report, opened):
    shown = opened(report)
    first = shown.at()
    second = shown.move("j")
    assert first != second and shown.move("k") == first
    assert shown.move("]") != first and shown.move("[") == first  # what was learned is solved when it is asked again
    assert shown.page.locator(".times .cell[aria-current=true]").count() == 1
    shown.page.keyboard.press("?")
    assert shown.page.locator("dialog[open]").count() == 1
    shown.page.keyboard.press("Escape")
    shown.page.keyboard.press("t")
    assert shown.page.evaluate("document.documentElement.dataset.theme") == "dark"
    again = opened(report, fragment=shown.at())
    assert again.at() == shown.at() and shown.faults == again.faults == []


def test_tokens_are_coloured_and_say_their_numbers(report, opened):
    shown = opened(report)
    for name in ("probability", "ratio", "ρ", "weight", "advantage"):
        shown.page.click(f"button:text-is('{name}')")
        coloured = shown.page.eval_on_selector_all(".tokens span[style]", "spans => spans.length")
        assert coloured > 0, name
    shown.page.locator(".card.refinement:has(.badge.kept) .tokens").focus()
    shown.page.keyboard.press("ArrowRight")
    tip = shown.page.wait_for_selector(".tip", state="visible").inner_text()
    assert "π, given the question alone" in tip and "weight" in tip and "advantage A" in tip
    before = shown.page.evaluate("document.querySelector('.detail').scrollHeight")
    shown.page.keyboard.press("ArrowRight")
    assert shown.page.evaluate("document.querySelector('.detail').scrollHeight") == before  # nothing jumps
    shown.page.keyboard.press("Escape")
    shown.page.check(".check input")
    assert shown.page.locator(".diff ins").count() > 0 and shown.faults == []


def test_numbers_of_tokens_are_those_of_the_equations(report, folder, opened):
    shown = opened(report)
    gamma, seen = run_folder.read(folder).facts.gamma, 0
    for path in sorted((folder / "rollouts").iterdir())[:3]:
        for number, row in enumerate(rollouts.read(path)):
            if row.trainer_logp is None or row.rollout.stage != Stage.REFINEMENT:
                continue
            where = f"0/{rollouts.iteration_of(path)}/{row.rollout.index.question}"
            raw = shown.page.evaluate(
                """async ([where, number]) => {
                  const index = prepared(await unpacked(document.getElementById("index").textContent));
                  const group = await loadGroup(index, index.byPlace.get(where));
                  const row = group.rows.find((one) => one.row === number);
                  return row.pieces.map((_, at) => numbers(row, at, about.runs[0].method));
                }""",
                [where, number],
            )
            p = np.exp(row.trainer_logp.astype(np.float64))
            weight = gamma * p / (p + gamma) ** 2
            expected = {"p": p, "rho": np.asarray(shaped_ratio(row.trainer_logp, gamma)), "weight": weight}
            expected |= {"ratio": p / np.exp(row.rollout.logp), "sampler": np.exp(row.rollout.logp)}
            for name, values in expected.items():
                assert np.allclose([token[name] for token in raw], values, rtol=2e-4), name
            assert row.train_row is not None and row.train_row.advantage == pytest.approx(raw[0]["A"], rel=1e-6)
            seen += 1
    assert seen > 3


def test_the_gap_of_sampler_and_trainer_clips_nothing_where_the_trainers_are_the_old_ones(report, opened):
    shown = opened(report)
    clipped = """trainer_logp => numbers(
      { stage: "response", logp: [-10000], trainer_logp: [-7000], advantage: 0.5 }, 0,
      { ...about.runs[0].method, clip_initial: true, clip_high: 0.2, trainer_logp }).clipped"""
    assert shown.page.evaluate(clipped, True) is False and shown.page.evaluate(clipped, False) is True


@pytest.mark.parametrize(
    ("method", "responses", "refinements"),
    [
        ({}, "min(r A, clip(r, 1−ε, 1+ε) A)", "ρ A"),
        ({"clip_refined": True, "clip_initial": False}, "r A", "min(ρ A, clip(ρ, 1−ε, 1+ε) A)"),
        ({"initial_ratio": "sequence", "refined_ratio": "plain"}, "min(s A, clip(s, 1−ε, 1+ε) A)", "π A"),
        ({"initial_ratio": "cispo", "refined_ratio": "logp"}, "sg(min(r, 1+ε)) A log π", "A log π"),
        (
            {"tis_cap": 2, "tis_level": "sequence_mask", "initial_ratio": "cispo"},
            "w [w ≤ 2] · sg(min(r, 1+ε)) A log π",
            "ρ A",
        ),
        ({"tis_cap": 2, "clip_initial": False, "refined_ratio": "importance"}, "min(w, 2) · r A", "r A"),
    ],
)
def test_the_equation_is_that_of_the_ratios_by_name(report, opened, method, responses, refinements):
    shown = opened(report)
    said = shown.page.evaluate("changed => equations({ ...about.runs[0].method, ...changed })", method)
    assert (said["responses"][0], said["refinements"][0]) == (responses, refinements)
    names = shown.page.evaluate(
        "changed => colouringsOf({ ...about.runs[0].method, ...changed }).map(([n]) => n)", method
    )
    shaped = method.get("refined_ratio", "shaped") == "shaped"
    assert ("rho" in names, "weight" in names) == (shaped, shaped)


def test_a_share_is_all_or_none_only_where_it_is(report, opened):
    shares = [None, 0, 1e-4, 0.02, 0.5, 0.994, 0.9964, 1469 / 1470, 1 - 1e-9, 1]
    said = ["–", "0 %", "under 0.1 %", "2.0 %", "50 %", "99 %", "99.6 %", "99.9 %", "99.9 %", "100 %"]
    assert opened(report).page.evaluate("shares => shares.map(percent)", shares) == said


def test_every_reason_not_to_train_has_words(report, opened):
    (words,) = [words for name, _, words in rollout_columns.COLUMNS if name == "dropped"]
    reasons = set(re.findall("`(.+?)`", words))
    assert len(reasons) > 5 and reasons == set(opened(report).page.evaluate("Object.keys(DROPPED)"))


def test_a_response_is_weighed_by_what_its_sampler_did_otherwise(report, opened):
    shown = opened(report)
    push = """changed => [0, 1].map((at) => numbers(
      { stage: "response", logp: [-10000, -10000], trainer_logp: [-7000, 0], advantage: 0.5 }, at,
      { ...about.runs[0].method, trainer_logp: true, ...changed }).push)"""
    by_token = shown.page.evaluate(push, {"tis_cap": 2, "tis_level": "token"})
    assert by_token == pytest.approx([0.5 * np.exp(0.3), 0.5 * 2])
    whole = {"tis_cap": 4, "tis_level": "sequence_mask"}
    assert shown.page.evaluate(push, whole) == pytest.approx([0.5 * np.exp(1.3)] * 2)
    assert shown.page.evaluate(push, whole | {"tis_cap": 2}) == [0, 0]
    assert shown.page.evaluate(push, {"tis_cap": 0}) == [0.5, 0.5]


def test_a_page_of_another_objective_states_it(tmp_path, opened):
    changes = {"objective.refined_ratio": "plain", "objective.clip_refined": False, "objective.baseline": "initial"}
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=4, changes=changes)
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=500)
    shown = opened(tmp_path / "a.html")
    assert "π A, π itself" in shown.text(".equation") and "the responses alone" in shown.text(".steps")
    token = """numbers({ stage: "refinement", logp: [-10000], trainer_logp: [-20000], advantage: 0.5 }, 0,
      about.runs[0].method)"""
    found = shown.page.evaluate(token)
    assert found["rho"] is None and found["weight"] is None and found["push"] == pytest.approx(0.5 * np.exp(-2))
    assert shown.faults == []


def test_curves_are_those_of_the_metrics(report, folder, opened):
    shown = opened(report)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    said = shown.page.evaluate("about.runs[0].metrics")
    assert said["reward"] == pytest.approx([row["reward"] for row in rows])
    shares = shown.page.evaluate(
        """async () => outcomeSeries(prepared(await unpacked(document.getElementById("index").textContent)),
          about.runs[0], 0, "tokens").map((one) => [one.label, one.xs, one.values])"""
    )
    right = next(values for label, _, values in shares if label == "all right")
    assert right == pytest.approx([row["frac_all_right"] for row in rows])
    assert shares[0][1] == [row["num_tokens"] for row in rows]


def test_numbers_over_a_curve_are_those_at_the_cursor_or_the_last(report, folder, opened):
    shown = opened(report)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    chart = shown.page.locator(".chart", has=shown.page.locator("h3", has_text=re.compile("^Reward")))
    legend = chart.locator(".legend")
    last = [f"{rows[-1][name]:.0%}".removesuffix("%") for name in ("reward", "group_reward")]
    assert legend.inner_text().split() == ["last:", "responses", last[0], "%", "all", "that", "trains", last[1], "%"]
    plot = chart.locator(".u-over")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    shown.page.mouse.move(box["x"] + 2, box["y"] + 20)
    chart.locator(".place:text-is('iteration 0:')").wait_for()
    assert f"responses {rows[0]['reward']:.0%}".replace("%", " %") in legend.inner_text().replace("\n", " ")
    other = shown.page.locator(".chart", has=shown.page.locator("h3", has_text=re.compile("^Entropy")))
    assert "iteration 0:" in other.inner_text()  # all curves at that place
    shown.page.mouse.move(5, 5)
    chart.locator(".place:text-is('last:')").wait_for()
    assert shown.faults == []


def test_a_mean_over_nothing_that_was_trained_is_a_gap(tmp_path, opened):
    folder = report_runs.write(tmp_path / "a", iterations=4, questions=2)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["ratio"] = 1 - 1e-7 * (row["step"] % 2)  # too near to each other for marks between them
    rows[1] |= {"tokens_trained": 0, "ratio": 0.0, "entropy": 0.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=9)
    shown = opened(tmp_path / "a.html")
    for name in ("ratio", "entropy"):
        (one,) = shown.page.evaluate("name => seriesOf([[name, name, '--c1']], about.runs, 'iteration')", name)
        assert one["values"] == [None if at == 1 else pytest.approx(row[name]) for at, row in enumerate(rows)]
    assert shown.faults == []


def test_changes_are_told_word_by_word(report, opened):
    shown = opened(report)
    change = "([before, after]) => difference(before, after)"
    before, after = "4*7=11, 1+4=5. Answer: 11 5", "4*7=28, 8+4=12. Answer: 28 12"
    assert shown.page.evaluate(change, [before, after]) == [
        ["gone", "4*7=11, 1+4=5"], ["new", "4*7=28, 8+4=12"], ["same", ". Answer: "], ["gone", "11 5"],
        ["new", "28 12"],
    ]  # fmt: skip
    prose = ["It is 12, so no.", "It is 13, so yes."]
    assert shown.page.evaluate(change, prose) == [
        ["same", "It is "], ["gone", "12"], ["new", "13"], ["same", ", so "], ["gone", "no"], ["new", "yes"],
        ["same", "."],
    ]  # fmt: skip
    for texts in ([before, after], prose, ["", "a b"], ["a, b", ""], ["二加三是六", "二加三是五"], ["same", "same"]):
        parts = shown.page.evaluate(change, texts)
        for kind, text in zip(("new", "gone"), texts, strict=True):
            assert "".join(part for one, part in parts if one != kind) == text
    assert ["gone", "六"] in shown.page.evaluate(change, ["二加三是六", "二加三是五"])


def test_what_a_run_did_not_record_is_no_choice(tmp_path, opened):
    folder = report_runs.write(tmp_path / "a", iterations=4, questions=6, trainer=False)
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=99)
    shown = opened(tmp_path / "a.html")
    shown.page.wait_for_selector(".colouring")
    assert shown.page.locator(".colouring button").all_inner_texts() == ["plain", "probability", "advantage"]
    assert "--config.objective.old_logp=trainer" in shown.text(".unrecorded")
    shown.page.click(".colouring button:text-is('advantage')")
    assert shown.page.locator(".card.response .tokens span[style]").count() > 0
    for _ in range(4):
        shown.page.keyboard.press("c")
    assert shown.faults == []


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (400, False)])
def test_it_is_accessible_and_fits_its_width(report, opened, width, dark):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    shown = opened(report, width=width, dark=dark)
    shown.page.wait_for_selector(".detail .chain")
    shown.page.click("button:text-is('weight')")
    result = axe.run(shown.page).response
    grave = [
        (one["id"], one["help"], [node["target"] for node in one["nodes"]][:3])
        for one in result["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert grave == []
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width


def test_texts_beside_a_large_report_are_loaded_when_they_are_looked_at(folder, tmp_path, opened, monkeypatch):
    monkeypatch.setattr(page_lib, "INLINE_BYTES", 10)
    monkeypatch.setattr("cgrpo_jax.report.payload.SHARD_BYTES", 5_000)
    written = page_lib.write([run_folder.read(folder)], tmp_path / "large.html", max_groups=30)
    shown = opened(tmp_path / "large.html")
    shown.page.wait_for_selector(".detail .card")
    # The page, the texts of the lesson, those of what is open, and what was measured.
    assert len(shown.asked) <= 4 < written.shards
    place = shown.page.evaluate(
        """async () => {
          const index = prepared(await unpacked(document.getElementById("index").textContent));
          return placeOf(index, index.shard.indexOf(-1));
        }"""
    )
    other = opened(tmp_path / "large.html", fragment=f"#group={place}")
    other.page.wait_for_selector(".detail code:has-text('cgrpo show RUN')")
    _, iteration, question = place.split("/")
    rows = [row.rollout for row in rollouts.read(folder / "rollouts" / rollouts.file_name(int(iteration)))]
    rows = [row for row in rows if row.index.question == int(question)]
    other.page.wait_for_selector(".detail [aria-label='rows of the group'] td")
    cells = other.page.locator(".detail [aria-label='rows of the group'] tbody tr").all_inner_texts()
    assert [cell.split("\t")[2] for cell in cells] == [str(len(row.token_ids)) for row in rows]
    assert "30 of them with their texts" in other.text("#questions .head") and shown.faults == other.faults == []


def test_it_says_why_refinements_failed_and_what_became_of_the_steps_that_critiques_named(tmp_path, opened):
    named = report_runs.Texts(critique="Step 1 is wrong: {a} times {b} is {n}, not {m}. Conclusion: wrong [END]")
    folder = report_runs.write(
        tmp_path / "a", iterations=8, questions=8, problems=40, seed=4, texts=named, trainer=False
    )
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=500)
    shown = opened(tmp_path / "a.html")
    shown.page.wait_for_selector(".steps-named.said")
    steps = shown.page.evaluate("about.steps[0]")
    rows = shown.page.locator(".steps-named.said tbody tr").all_inner_texts()
    assert [line.split("\t")[0] for line in rows] == [step for step, *_ in steps] and len(steps) > 3
    for line, (_, written, right, questions, *thirds) in zip(rows, steps, strict=True):
        cells = line.split("\t")[1:]
        assert cells[0].endswith(f"{right} of {written}") and cells[1] == str(questions) == "1"
        for cell, (passed, responses) in zip(cells[2:], thirds, strict=True):
            assert cell.endswith(f"{passed} of {responses}" if responses else "–")
    unseen = shown.page.evaluate("about.unseen[0]")
    rows = shown.page.locator(".steps-named.unseen tbody tr").all_inner_texts()
    assert len(rows) == len(unseen) > 1
    for line, (name, _, _, questions, *thirds) in zip(rows, unseen, strict=True):
        cells = line.split("\t")
        assert cells[:2] == [name, str(questions)]  # no critique names these: there is no column for it
        for cell, (passed, responses) in zip(cells[2:], thirds, strict=True):
            assert cell.endswith(f"{passed} of {responses}" if responses else "–")
    never = shown.page.locator(".listed", has=shown.page.locator("h3:text-is('Never solved')"))
    tried = never.locator(".tried").all_inner_texts()
    assert tried and all("none of which has the step that its critique names" in text for text in tried)
    assert never.locator("del").count() == 0 and "Conclusion" not in never.inner_text()  # they repeat the response
    assert shown.faults == []


def test_arms_and_seeds_of_several_runs(tmp_path, opened):
    for seed, kind in enumerate(("policy", "policy", "none")):
        report_runs.write(tmp_path / f"r{seed}", iterations=4, questions=4, seed=seed, changes={"refine.kind": kind})
    runs = run_folder.read_all([tmp_path / f"r{seed}" for seed in range(3)])
    page_lib.write(runs, tmp_path / "study.html", max_groups=500)
    shown = opened(tmp_path / "study.html")
    assert shown.text("h1") == "3 runs, 2 arms" and "refine.kind" in shown.text(".compared thead")
    assert shown.page.locator(".chart").first.locator(".legend .key").count() == 2
    shown.page.select_option("select[aria-label=run]", "2")
    shown.page.wait_for_function("() => location.hash.startsWith('#group=2/')")  # the first that is found is open
    assert found(shown) == 16 and shown.faults == []
    assert "A (refine.kind=policy) solves 94 % after 4 iterations (40 % before; 2 runs, 94 %" in shown.text(".story")
    cells = shown.page.locator(".arms-compared tbody tr").all_inner_texts()
    groups, _ = zip(*(groups_lib.read(run, number=number) for number, run in enumerate(runs)), strict=True)
    failed = [[one for one in some if one.outcome in (Outcome.RESCUED, Outcome.ALL_WRONG)] for some in groups]
    shares = [(len(failed[0]) + len(failed[1]), 32), (len(failed[2]), 16)]
    said = [f"{n / m:.0%}, {n} of {m}".replace("%", " %") for n, m in shares]
    assert cells[0].split("\t") == ["groups without a right response", *said]


def test_what_one_arm_alone_learned_is_listed(tmp_path, opened):
    for number, kind in enumerate(("policy", "none")):
        report_runs.write(tmp_path / f"r{number}", iterations=9, questions=8, changes={"refine.kind": kind})
    runs = run_folder.read_all([tmp_path / f"r{number}" for number in range(2)])
    page_lib.write(runs, tmp_path / "study.html", max_groups=500)
    shown = opened(tmp_path / "study.html")
    lists = shown.page.locator(".outcomes .listed")
    assert [text.split("\n")[0] for text in lists.all_inner_texts()] == ["Learned by A alone", "Learned by B alone"]
    assert all("No question that another arm asked" in text for text in lists.all_inner_texts())  # they are alike
    alone = """async (outcome) => {
      const index = prepared(await unpacked(document.getElementById("index").textContent));
      for (let at = 0; at < index.size; at++) if (index.run[at] === 1) index.outcome[at] = OUTCOME[outcome];
      return learnedAlone(index, 0).map(({ at }) => index.problems[index.problem[at]][0]);
    }"""
    times = {}
    for one in groups_lib.read(runs[0])[0]:
        times.setdefault(one.problem, []).append(one)
    gained = {problem for problem, some in times.items() if not some[0].passed and some[-1].passed}
    assert set(shown.page.evaluate(alone, "all_wrong")) == gained and gained
    assert shown.page.evaluate(alone, "mixed") == [] and shown.faults == []


def test_runs_without_rollouts_are_compared_by_what_is_known(tmp_path, opened):
    for number, kind in enumerate(("none", "policy")):
        folder = report_runs.write(tmp_path / f"r{number}", iterations=2, questions=2, changes={"refine.kind": kind})
        for path in (folder / "rollouts").iterdir():
            path.unlink()
    runs = run_folder.read_all([tmp_path / f"r{number}" for number in range(2)])
    page_lib.write(runs, tmp_path / "study.html", max_groups=500)
    shown = opened(tmp_path / "study.html")
    assert shown.page.locator(".arms-compared").count() == 0 and shown.page.locator(".task").count() == 1
    assert "Of arm B. Critique-GRPO" in shown.text("#overview")  # the arm that has a method to tell
    assert "A (refine.kind=none) solves 94 %" in shown.text(".story") and shown.faults == []


def test_seeds_are_joined_by_iteration_and_only_where_all_have_got_to(tmp_path, opened):
    for seed in range(2):
        report_runs.write(tmp_path / f"r{seed}", iterations=6, questions=2, seed=seed, ended=not seed)
    going = tmp_path / "r1" / "metrics.jsonl"
    going.write_text("".join(going.read_text().splitlines(keepends=True)[:4]))
    page_lib.write(run_folder.read_all([tmp_path / "r0", tmp_path / "r1"]), tmp_path / "study.html", max_groups=0)
    shown = opened(tmp_path / "study.html")
    (one,) = shown.page.evaluate("heldOutSeries(about.runs, 'iteration')")
    evaluated = [
        {p["iteration"]: p["pass@1"] for p in run} for run in shown.page.evaluate("about.runs.map(r => r.heldOut)")
    ]
    assert set(evaluated[0]) == {0, 2, 4, 6} and set(evaluated[1]) == {2, 4}
    assert one["xs"] == [2, 4]
    assert one["values"] == pytest.approx([(evaluated[0][at] + evaluated[1][at]) / 2 for at in (2, 4)])
    (reward,) = shown.page.evaluate("seriesOf([['reward', 'responses', '--c1']], about.runs, 'iteration')")
    assert reward["xs"] == [0, 1, 2, 3]
    assert shown.page.locator(".compared .before").all_inner_texts() == ["40 %", "–"] and shown.faults == []


def test_what_was_measured_afterwards_is_shown(report, opened):
    shown = opened(report)
    shown.page.wait_for_selector("#measured table")
    text = shown.text("#measured")
    assert "tables, 5 questions" in text and "Of 4 training questions 75 %" in text
    assert shown.page.locator("#measured .case").count() == 3 + 4
    shown.page.locator("#measured .case summary").first.click()
    assert shown.page.locator("#measured .case[open] .chain li").count() == 3
    curve = shown.page.evaluate("loadShard(about.measured).then(([found]) => passSeries(found))")
    assert [one["label"] for one in curve] == ["tables"] and curve[0]["xs"] == [1, 2, 4]
    charts = shown.page.locator("#measured .chart").all_inner_texts()
    assert any("pass@k" in one for one in charts) and any("Length of critiques" in one for one in charts)
    assert shown.faults == []


def test_a_figure_is_saved_with_its_numbers(report, folder, opened):
    shown = opened(report)

    def saved(title, kind):
        with shown.page.expect_download() as download:
            shown.page.click(f"button[aria-label='save {title} as {kind}']")
        return download.value.suggested_filename, pathlib.Path(download.value.path())

    name, path = saved("Reward", "CSV")
    lines = list(csv.reader(path.read_text().splitlines()))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert name == "reward.csv" and lines[0] == ["iterations", "responses", "all that trains"]
    assert [float(line[1]) for line in lines[1:]] == pytest.approx([row["reward"] for row in rows])
    name, path = saved("What became of the questions", "SVG")
    drawn = xml.etree.ElementTree.parse(path).getroot()
    assert name == "what_became_of_the_questions.svg" and drawn.tag.endswith("svg")
    assert len(drawn.findall("{http://www.w3.org/2000/svg}polygon")) >= 3
    name, path = saved("Held-out accuracy", "PNG")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and path.stat().st_size > 5000
    assert shown.faults == []


def test_what_was_learned_and_what_was_never_solved_is_listed_and_opens(tmp_path, opened):
    folder = report_runs.write(tmp_path / "a", iterations=8, questions=8, problems=40, seed=25, trainer=False)
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=500)
    shown = opened(tmp_path / "a.html")
    shown.page.wait_for_selector(".outcomes .listed")
    groups, _ = groups_lib.read(run_folder.read(folder))
    never = {one.problem for one in groups if Flag.NEVER_SOLVED in one.flags}
    learned = before = 0
    for problem in {one.problem for one in groups}:
        times = [one for one in groups if one.problem == problem]
        rescue = next((n for n, one in enumerate(times) if one.outcome == Outcome.RESCUED), None)
        if rescue is not None and any(one.passed for one in times[rescue + 1 :]):
            learned += 1
            before += any(one.passed for one in times[:rescue])
    blocks = {block.locator("h3").inner_text(): block for block in shown.page.locator(".listed").all()}
    last = {one.problem: one for one in groups}
    answered = {one.problem for one in groups if one.passed}
    open_ones = {problem for problem, one in last.items() if not one.passed and problem not in never}
    rescued_before = {one.problem for one in groups if one.outcome == Outcome.RESCUED and one is not last[one.problem]}
    counts = {"What was learned": learned, "Never solved": len(never)}
    counts["No more solved at the end"] = len(open_ones & answered)
    counts["Solved by refinements alone"] = len((open_ones - answered) & rescued_before)
    counts["Rescued, not asked again"] = len(open_ones - answered - rescued_before)
    alone = len(last) - len(answered) - len(never)
    overview = shown.text("#overview").replace(",", "")
    assert f"No response ever solved {len(last) - len(answered)} of the {len(last)} questions" in overview
    assert f": {len(never)} nothing solved {alone} a refinement did." in overview
    assert f"by no response and no refinement; {alone} by a refinement alone" in overview
    assert f"of these {before} had been solved by a response before they failed" in overview and before
    matrix = shown.text("#matrix .note")
    assert f"and {counts['No more solved at the end']} once or more, but not the last time" in matrix
    said = dict.fromkeys(counts, 0)
    for name in blocks.keys() & said:
        number = blocks[name].locator(".note").first.inner_text().split()[0]
        said[name] = 0 if number == "No" else int(number)
    assert said == counts and all(counts.values())
    quoted = blocks["What was learned"].locator("q").first.inner_text()
    a, b = re.findall(r"\d+", quoted)[:2]
    assert quoted.startswith(f"{a}*{b} is {int(a) * int(b)}, not ")  # what the critique of this question said
    assert "[END]" not in quoted  # its verdict is said in words beside it
    shown.page.locator(".chip", has_text="learned").click()
    assert found(shown) == learned
    assert shown.page.locator(".list .entry").first.get_attribute("aria-current") == "true"
    shown.page.locator(".chip", has_text="learned").click()
    assert "verdict right" in blocks["What was learned"].locator(".worth").first.inner_text()
    critiques = blocks["From which critiques"].inner_text()
    assert "refinements after it pass" in critiques and "states the gold answer" in critiques
    worth = [one.critics for one in groups]
    written, rescued = sum(one.written for one in worth), sum(one.rescued for one in worth)
    assert f"Of {written} critiques that refinements saw" in critiques
    assert f"of the {rescued} refinements that rescued a group" in critiques
    shares = blocks["From which critiques"].locator(".critics-worth th").all_inner_texts()
    of = [
        sum(one.agreed for one in worth) / sum(one.judged for one in worth),
        sum(one.stated for one in worth) / written,
    ]
    of.append(sum(one.rescued_stated for one in worth) / rescued)
    assert shares == [f"{share:.0%}".replace("%", " %") for share in of]
    assert shown.page.wait_for_selector(".lesson .helped:has-text('the question was asked again')")
    shown.page.locator(".listed button").first.click()
    assert shown.page.wait_for_selector(".detail .badge.o-rescued")
    story = shown.text(".story")
    again = [one for one in groups if one.outcome == Outcome.RESCUED and one is not last[one.problem]]
    share = sum(bool(last[one.problem].passed) for one in again) / len(again)
    said = f"in {share:.0%} a response solved it, without a critique, the last time".replace("%", " %")
    assert f"Of {len(again)} rescued groups" in story and said in story
    assert "whose question was asked again" in story and "were not asked again" in story and shown.faults == []
