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
    assert "Before training the model solved 40 %" in shown.text(".story") and shown.text("h1") == "table"
    assert shown.page.locator(".chart canvas").count() >= 12
    assert shown.page.wait_for_selector(".lesson .chain li") and shown.page.locator(".lesson .chain li").count() == 3
    assert "With the critique in view the policy wrote" in shown.text(".lesson .helped")
    started = shown.text(".started")
    assert "cgrpo train --config.seed=0" in started and "1a2b3c4+ (files differ" in started and "2 x cpu" in started
    assert shown.faults == [] and shown.asked == [report.absolute().as_uri()]


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
    unsolved = shown.page.locator(".chip", has_text="still unsolved")
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
    assert shown.move("[") != first and shown.move("]") == first
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


def test_arms_and_seeds_of_several_runs(tmp_path, opened):
    for seed, kind in enumerate(("policy", "policy", "none")):
        report_runs.write(tmp_path / f"r{seed}", iterations=4, questions=4, seed=seed, changes={"refine.kind": kind})
    runs = run_folder.read_all([tmp_path / f"r{seed}" for seed in range(3)])
    page_lib.write(runs, tmp_path / "study.html", max_groups=500)
    shown = opened(tmp_path / "study.html")
    assert shown.text("h1") == "3 runs, 2 arms" and "refine.kind" in shown.text(".compared thead")
    assert shown.page.locator(".chart").first.locator(".legend li").count() == 2
    shown.page.select_option("select[aria-label=run]", "2")
    assert found(shown) == 16 and shown.faults == []


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
    folder = report_runs.write(tmp_path / "a", iterations=8, questions=8, problems=10, trainer=False)
    page_lib.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=500)
    shown = opened(tmp_path / "a.html")
    shown.page.wait_for_selector(".outcomes .listed")
    groups, _ = groups_lib.read(run_folder.read(folder))
    never = {one.problem for one in groups if Flag.NEVER_SOLVED in one.flags}
    learned = 0
    for problem in {one.problem for one in groups}:
        times = [one for one in groups if one.problem == problem]
        rescue = next((n for n, one in enumerate(times) if one.outcome == Outcome.RESCUED), None)
        if rescue is not None and not any(one.passed for one in times[:rescue]):
            learned += any(one.passed for one in times[rescue + 1 :])
    blocks = {block.locator("h3").inner_text(): block for block in shown.page.locator(".listed").all()}
    said = dict.fromkeys(("What was learned", "Where it failed"), 0)
    for name in blocks.keys() & said:
        said[name] = int(blocks[name].locator(".note").inner_text().split()[0])
    assert said == {"What was learned": learned, "Where it failed": len(never)} and learned > 0
    quoted = blocks["What was learned"].locator("q").first.inner_text()
    assert "Conclusion: wrong" in quoted  # what the critique of this question said
    assert "refinements after it pass" in blocks["From which critiques"].inner_text()
    assert shown.page.wait_for_selector(".lesson .helped:has-text('the question was asked again')")
    shown.page.locator(".listed button").first.click()
    assert shown.page.wait_for_selector(".detail .badge.o-rescued")
    assert "whose question was asked again" in shown.text(".story") and shown.faults == []
