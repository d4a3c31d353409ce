import base64
import hashlib
import html.parser
import json
import re

import pytest
import report_runs
from pyarrow import parquet

from cgrpo_jax.errors import UserError
from cgrpo_jax.report import page, run_folder

HOSTILE = '</script><script>window.hurt=1</script><img src=x onerror="window.hurt=1">'


class Page(html.parser.HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.policy = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        found = dict(attrs)
        if tag == "script":
            self.scripts.append([found.get("type"), found.get("id"), ""])
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"]

    def handle_data(self, data):
        if self.get_starttag_text() and self.cdata_elem == "script":
            self.scripts[-1][2] += data


def made(tmp_path, *, texts=None, max_groups=500, name="a"):
    folder = report_runs.write(tmp_path / name, iterations=2, questions=2, texts=texts)
    out = tmp_path / "report.html"
    return page.write(run_folder.read_all([folder]), out, max_groups=max_groups), out


def test_the_page_is_one_file_whose_own_script_alone_may_run(tmp_path):
    written, out = made(tmp_path)
    read = Page(out.read_text())
    kinds = [kind for kind, _, _ in read.scripts]
    assert kinds == ["application/json", *["text/plain"] * 4, None]  # the index; texts, rows, what was measured
    digest = base64.b64encode(hashlib.sha256(read.scripts[-1][2].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}' 'self' file:;" in read.policy and "default-src 'none'" in read.policy
    assert (written.shown, written.total, written.shards) == (4, 4, 0) and written.bytes == out.stat().st_size
    assert "src=" not in out.read_text().partition("<script>")[0].replace("default-src", "").replace("img-src", "")


def test_no_text_of_a_run_becomes_part_of_the_page(tmp_path):
    texts = report_runs.Texts(*[HOSTILE + field for field in ("q", "r", "w", "c", "f", "a")])
    _, plain = made(tmp_path, name="plain")
    ordinary = Page(plain.read_text()).tags
    _, out = made(tmp_path, texts=texts, name="<b onclick=1>&")
    assert Page(out.read_text()).tags == ordinary
    about = json.loads(Page(out.read_text()).scripts[0][2])
    assert about["runs"][0]["name"] == "<b onclick=1>&"


def test_texts_that_do_not_fit_lie_beside_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "INLINE_BYTES", 10)
    written, out = made(tmp_path)
    beside = sorted((tmp_path / "report_texts").iterdir())
    assert written.shards == len(beside) == 4 and beside[0].read_text().startswith('cgrpoTexts(0, "')
    about = json.loads(Page(out.read_text()).scripts[0][2])
    assert about["folder"] == "report_texts" and about["search"] == [3]
    texts = json.loads(beside[3].read_text().removeprefix("cgrpoTexts(3, ").removesuffix(");\n"))
    assert [at for at, _ in texts] == [0, 1, 2, 3]  # the texts alone, as a search reads them
    assert all("answer: " in text and text == text.lower() for _, text in texts)
    assert written.shard_bytes == sum(path.stat().st_size for path in beside) - len("cgrpoTexts(0, );\n") * 4
    monkeypatch.setattr(page, "INLINE_BYTES", 1 << 20)
    page.write([run_folder.read(tmp_path / "a")], out, max_groups=1)
    assert not (tmp_path / "report_texts").exists()


def test_a_folder_of_something_else_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "report_texts").mkdir()
    (tmp_path / "report_texts" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"report_texts holds mine.txt, which is of no report; give another --out"):
        made(tmp_path)


def test_what_is_left_out_is_counted(tmp_path):
    written, _ = made(tmp_path, max_groups=1)
    assert (written.shown, written.total) == (1, 4) and written.reasons["last iterations"] == (4, 1)


def test_a_run_without_rollouts_or_tokenizer_has_a_page(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=2)
    (folder / "model" / "tokenizer.model").unlink()
    written = page.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=9)
    assert "tokens are not told apart" in written.faults[0]
    for path in (folder / "rollouts").iterdir():
        path.unlink()
    assert page.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=9).total == 0


def test_a_damaged_file_is_a_fault_on_the_page_and_the_others_are_shown(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=3, questions=2)
    damaged = sorted((folder / "rollouts").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:200])
    written = page.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=9)
    assert (written.total, written.shown) == (4, 4) and len(written.faults) == 1
    assert damaged.name in written.faults[0] and damaged.name in (tmp_path / "a.html").read_text()


def test_a_file_whose_texts_are_damaged_is_listed_without_them(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=2)
    first = min((folder / "rollouts").iterdir())
    metadata = parquet.ParquetFile(first).metadata.row_group(0)
    columns = [metadata.column(number) for number in range(metadata.num_columns)]
    tokens = next(one for one in columns if one.path_in_schema.startswith("token_ids"))
    data = bytearray(first.read_bytes())
    data[tokens.data_page_offset + tokens.total_compressed_size - 3] ^= 0xFF
    first.write_bytes(data)
    written = page.write([run_folder.read(folder)], tmp_path / "a.html", max_groups=9)
    assert (written.total, written.shown) == (4, 2) and first.name in written.faults[0]


def test_a_name_that_is_no_text_has_a_page(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=1, questions=1)
    named = folder.rename(tmp_path / "r\udcff")
    page.write(run_folder.read_all([named]), tmp_path / "a.html", max_groups=9)
    assert "<title>r?" in (tmp_path / "a.html").read_text()


def test_a_folder_in_the_place_of_the_page_is_one_line_and_nothing_is_left(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=1, questions=1))
    (tmp_path / "b.html").mkdir()
    with pytest.raises(UserError, match=r"b\.html is a folder; give a file for the page"):
        page.write([run], tmp_path / "b.html", max_groups=9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b.html"]


def test_libraries_of_others_are_those_that_are_stated():
    """Also that each is in the page: what is not stated is none of it."""
    text = (page.ASSETS / "vendor" / "LIBRARIES.md").read_text()
    rows = re.findall(r"^\| `(.+?)` .* \| (\d+) \| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    vendored = {name.removeprefix("vendor/") for name in (*page.SCRIPTS, *page.STYLES) if name.startswith("vendor/")}
    assert {name for name, _, _ in rows} == vendored
    for name, size, digest in rows:
        data = (page.ASSETS / "vendor" / name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (int(size), digest), name
