"""What a run wrote is shown as text, whatever it says: no script of it runs, and nothing in it hides its neighbours."""

import json
import pathlib

import report_runs

from cgrpo_jax.report import page as page_lib
from cgrpo_jax.report import run_folder

SCRIPT = '</script><script>window.hurt=1</script><img src=x onerror="window.hurt=1"><svg onload="window.hurt=1">'
HIDING = "\u202eright\u202c \x1b[8mhidden\x1b[0m \u200b\x00"
LONG = "x" * 1_000_000  # a megabyte


def written(tmp_path, name="run"):
    texts = report_runs.Texts(
        question=SCRIPT + "{a}*{b}" + HIDING,
        right=f"{SCRIPT} {HIDING} {{{{{{{{constructor.constructor('window.hurt=1')()}}}}}}}} {{n}}",
        wrong=f"{SCRIPT} ${{{{window.hurt=1}}}} {{m}} {LONG}",
        critique=f"javascript:window.hurt=1 {SCRIPT} {{n}}",
        refined=f"{SCRIPT} {HIDING} {{n}}",
        answer=SCRIPT + "{n}",
    )
    changes = {"data.train": SCRIPT + "\u202e.jsonl", "prompts.question": SCRIPT + "{question}"}
    folder = report_runs.write(tmp_path / name, iterations=2, questions=3, texts=texts, changes=changes)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-1] |= {SCRIPT: 1.0, "half \ud83d": 2.0, "reward": None, "entropy": SCRIPT, "grade/failures": 3}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "starts.jsonl").write_text(json.dumps({"command": SCRIPT, "devices": HIDING}) + "\n")
    report_runs.measure(folder)
    for path in (folder / "evaluation").iterdir():
        text = path.read_text().replace('"Look again."', json.dumps(SCRIPT + HIDING))
        path.write_text(text.replace('"tables"', json.dumps(SCRIPT)))
    return folder


def test_no_script_of_a_run_executes_and_all_of_it_is_shown(tmp_path, opened):
    folder = written(tmp_path, name="<img src=x onerror=window.hurt=1>")
    out = tmp_path / "report.html"
    page_lib.write([run_folder.read(folder)], out, max_groups=100)
    shown = opened(out)
    page = shown.page
    page.wait_for_selector(".detail .card.refinement")
    for name in ("probability", "advantage", "plain"):
        page.click(f".colouring button:text-is('{name}')")
    page.check(".check input")
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.wait_for_selector("#measured .case[open]")
    assert SCRIPT in shown.text("#measured") and SCRIPT in shown.text(".started")
    with page.expect_download() as saved:
        page.click("button[aria-label='save pass@k as SVG']")
    drawn = pathlib.Path(saved.value.path()).read_text()
    assert "<script" not in drawn and "onerror=" in drawn  # as text
    assert page.evaluate("window.hurt") is None
    assert page.locator("main img, main svg, main script").count() == 0
    assert SCRIPT in page.inner_text(".detail .asked") and shown.text("h1") == folder.name
    text = page.inner_text(".detail")
    assert "\\x1b[8mhidden" in text and "\\u202eright" in text and "\x1b" not in text and "\u202e" not in text
    assert "show all 1,000," in text  # characters of a text that is too long to draw at once
    page.locator("button:has-text('show all 1,000,')").first.click()
    page.fill("#search", SCRIPT.upper())
    page.wait_for_function("parseInt(document.querySelector('.count').textContent) === 6")
    assert page.evaluate("window.hurt") is None
    assert shown.faults == [] and shown.asked == [out.absolute().as_uri()]


def test_no_script_of_a_run_executes_in_texts_beside_the_page(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(page_lib, "INLINE_BYTES", 10)
    out = tmp_path / "report.html"
    page_lib.write([run_folder.read(written(tmp_path))], out, max_groups=100)
    shown = opened(out)
    shown.page.wait_for_selector(".detail .card.refinement")
    for text in (SCRIPT.upper(), "\\x1b[8mhidden", "HIDDEN"):  # the second stands only in what is shown
        shown.page.fill("#search", text)
        shown.page.wait_for_selector(".count[aria-busy=false]")
        assert int(shown.text(".count").split()[0]) == (0 if text.startswith("\\") else 6)
    assert shown.page.evaluate("window.hurt") is None and shown.faults == []
    assert any("report_texts/" in one for one in shown.asked)


def test_a_script_that_got_into_the_page_would_not_run_either(tmp_path, opened):
    """The content security policy: what has no place in the page is refused, were it ever to get there."""
    out = tmp_path / "report.html"
    page_lib.write([run_folder.read(report_runs.write(tmp_path / "a", iterations=1, questions=1))], out, max_groups=9)
    out.write_text(out.read_text().replace("</body>", f"{SCRIPT}</body>"))
    shown = opened(out)
    shown.page.wait_for_selector("h1")
    assert shown.page.evaluate("window.hurt") is None
    assert any("Content Security Policy" in fault for fault in shown.faults)
