import math

import numpy as np
import pytest
import report_runs

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.report import details, groups, run_folder


@pytest.fixture
def run(tmp_path):
    return run_folder.read(report_runs.write(tmp_path / "a", iterations=2, questions=3))


def test_a_groups_texts_and_numbers_are_those_of_the_file(run):
    found, _ = groups.read(run)
    spell = load_tokenizer(run.path / "model").spell
    shown = list(details.of_groups(run, found, spell))
    assert [(one["iteration"], one["question_index"]) for one in shown] == [(i, q) for i in (0, 1) for q in range(3)]
    rows = {(i, n): row for i, path in enumerate(run.files) for n, row in enumerate(rollouts.read(path))}
    seen = 0
    for group in shown:
        for row in group["rows"]:
            whole = rows[group["iteration"], row["row"]]
            assert row["stage"] == whole.rollout.stage.name.lower()
            if row["stage"] == "critique":
                assert row["text"] == whole.rollout.text and "pieces" not in row
                assert row["states"] is not row.get("rejected", False)  # those say no more than "Conclusion: right"
                continue
            text = "".join(row["pieces"])
            assert text[: len(text) - row["end"]] == whole.rollout.text and len(row["pieces"]) == len(row["logp"])
            assert np.allclose(np.array(row["logp"]) / details.LOGP_SCALE, whole.rollout.logp, atol=1e-4)
            assert row["reward"] == whole.rollout.reward
            if whole.train_row:
                assert row["advantage"] == whole.train_row.advantage
                assert group["prompts"][row["prompt"]] == spell(whole.rollout.prompt_ids)
                seen += 1
    assert seen > 20


def test_without_a_tokenizer_texts_stay_whole(run):
    found, _ = groups.read(run)
    (shown,) = details.of_groups(run, found[:1], None)
    assert all("text" in row and "pieces" not in row and "logp" not in row for row in shown["rows"])


def test_pieces_join_to_the_text_also_where_a_character_takes_several_tokens():
    data = "a½ é".encode()
    pieces = details.Pieces(lambda ids: bytes(ids).decode(errors="replace"))
    assert pieces.of(list(data), "a½ é") == ["a", "", "½", " ", "", "é"]
    assert pieces.of(list(data), "something else") is None


def test_pieces_keep_the_space_that_a_word_begins_with():
    words = ["▁two", "▁words", "s"]
    pieces = details.Pieces(lambda ids: "".join(words[i] for i in ids).replace("▁", " ").lstrip(" "))
    assert pieces.of([0, 1, 2], "two wordss") == ["two", " words", "s"]


def test_numbers_that_are_none_are_null():
    assert details.scaled(-0.12345) == -1234 and details.scaled(-math.inf) is None
    assert details.finite(math.nan) is None and details.finite(0.5) == 0.5
