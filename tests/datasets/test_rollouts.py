import collections
import dataclasses
import json
import os
import re

import numpy as np
import pandas as pd
import paths
import pyarrow as pa
import pytest
import rollout_cases
from pyarrow import parquet

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.datasets.rollout_columns import COLUMNS, SCHEMA
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.rollout import Solved
from cgrpo_jax.training import critic_rows
from cgrpo_jax.training.critic_rows import CriticTraining


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rollouts") / rollouts.file_name(7)
    assert rollouts.write(path, rollout_cases.make(), iteration=7, spell=rollout_cases.spell) == path.stat().st_size
    return path


def bits(value):
    """Returns a record as values of which equal ones have the same bits."""
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, tuple | list):
        return type(value).__name__, [bits(inner) for inner in value]
    if dataclasses.is_dataclass(value):
        return {field.name: bits(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return type(value).__name__, repr(value)


def test_rows_come_back_as_they_were_bit_for_bit(file):
    written, read = rollout_cases.make(), rollouts.read(file)
    assert [bits(row) for row in read] == [bits(row) for row in written]
    assert read[7].rollout.parent.parent is read[0].rollout and read[0].problem is read[1].problem
    assert all(len(row.rollout.rejected) == (2 if i == 4 else 0) for i, row in enumerate(read))


@pytest.mark.parametrize("loss", ["rco", "policy_gradient"])
def test_critiques_that_train_their_critic_come_back_bit_for_bit(tmp_path, loss):
    """Their targets, 1/0.3 - log Z say, are of float32 before they are written."""
    response = rollout_cases.rollout(RowIndex(0), reward=0.0)
    critiques = [
        rollout_cases.rollout(RowIndex(0, critique=n, stage=Stage.CRITIQUE), prompt=(1, 8, 2), parent=response)
        for n in range(3)
    ]
    at = RowIndex(0, stage=Stage.REFINEMENT)
    refinements = [
        rollout_cases.rollout(at.replace(critique=n), prompt=(1, 9, 2), parent=one, reward=float(n == 1))
        for n, one in enumerate(critiques)
    ]
    problem = rollout_cases.PROBLEMS[0]
    solved = Solved([response], refinements, collections.Counter(), critiques, problem)
    found = critic_rows.critic_rows([solved], CriticTraining(loss, "policy", beta=0.3, verdict_weight=0.1))
    written = [rollouts.Row(response, problem, "mine", dropped="replaced")]
    for one, row in zip(found.groups[0], found.rows[0], strict=True):
        more = {"train_row": row, "trainer_logp": rollout_cases.HARD[:2].copy(), "utility": one.utility}
        written.append(rollouts.Row(one.critique, problem, **more))
    path = tmp_path / rollouts.file_name(0)
    rollouts.write(path, written, iteration=0, spell=rollout_cases.spell)
    assert [bits(row) for row in rollouts.read(path)] == [bits(row) for row in written]
    assert len({row.advantage for row in found.rows[0]}) == 2
    refined = parquet.read_table(path).column("refined").to_pylist()
    assert refined == [None] * 4  # none is in a group


def test_the_same_rows_are_the_same_bytes(file, tmp_path):
    rollouts.write(tmp_path / "again.parquet", rollouts.read(file), iteration=7, spell=rollout_cases.spell)
    assert (tmp_path / "again.parquet").read_bytes() == file.read_bytes()


def test_groups_are_in_the_order_in_which_they_trained(file):
    one, two = rollouts.train_groups(rollouts.read(file))
    assert [(row.advantage, row.refined) for row in one] == [
        (np.float32(-1 / 3), False),
        (np.float32(2 / 3), True),
        (0.0, False),
    ]
    assert all(row.context_ids.tolist() == [1, 7, 2] for row in one)
    assert len(two) == 1 and two[0].context_ids.tolist() == [1, 5, 2] and two[0].old_logp.tolist() == [0.0] * 4


def test_a_refinement_that_saw_no_critique_answers_its_response(tmp_path):
    rows = [row for row in rollout_cases.make() if row.rollout.stage != Stage.CRITIQUE]
    rollouts.write(tmp_path / "a.parquet", rows, iteration=0, spell=rollout_cases.spell)
    read = rollouts.read(tmp_path / "a.parquet")
    assert read[2].rollout.stage == Stage.REFINEMENT and read[2].rollout.parent is read[0].rollout


def test_text_that_is_no_unicode_is_made_valid(tmp_path):
    row = rollout_cases.make()[0]
    row = dataclasses.replace(row, rollout=row.rollout.replace(feedback="half \ud83d"))
    rollouts.write(tmp_path / "a.parquet", [row], iteration=0, spell=rollout_cases.spell)
    assert rollouts.read(tmp_path / "a.parquet")[0].rollout.feedback == "half ?"


def test_an_iteration_without_rows(tmp_path):
    rollouts.write(tmp_path / "a.parquet", [], iteration=0, spell=rollout_cases.spell)
    assert rollouts.read(tmp_path / "a.parquet") == []
    assert rollouts.train_groups([]) == []


def test_two_rows_of_one_index_are_refused(tmp_path):
    rows = rollout_cases.make()
    with pytest.raises(ValueError, match="two rows of an iteration have the same index"):
        rollouts.write(tmp_path / "a.parquet", [*rows, rows[0]], iteration=0, spell=rollout_cases.spell)
    assert not list(tmp_path.iterdir())


# --- other programs -----------------------------------------------------------------------------------------------


def test_pandas_reads_it_as_it_is(file):
    table = pd.read_parquet(file.parent)
    assert list(table.columns) == [column.name for column in COLUMNS]
    assert table.iteration.unique() == [7] and table.stage.value_counts().to_dict() == {
        "response": 3,
        "critique": 5,
        "refinement": 3,
    }
    first = table.iloc[0]
    assert first.prompt == "1 7 2" and first.token_ids.dtype == np.int32
    assert first.logp.dtype == np.float32 and first.logp.tobytes() == rollout_cases.HARD.tobytes()
    assert first.rewards[0] == {"name": "mine", "reward": 0.0}
    assert json.loads(first.problem_columns) == {"level": 1, "tags": ["a", None], "x": 0.1}
    assert table.reward.isna().tolist() == [row in (2, 3, 4, 5, 8, 9) for row in range(11)]
    assert table.trained.tolist() == [row in (0, 6, 10) for row in range(11)]
    assert table.kept.tolist() == [None] * 6 + [True, False, None, None, True]
    assert table.parent.fillna(-1).tolist() == [-1, -1, 0, 0, 0, 1, 4, 4, 6, -1, 9]
    assert table.context.fillna(-1).tolist() == [0, 0, -1, -1, -1, -1, 0, -1, -1, -1, 9]
    assert table.dropped.dropna().tolist() == ["zero_advantage", "not_selected", "ungraded"]
    assert table.prompt[5] == "Be brief.\n\nIs it right?" and pd.isna(table.prompt[4])
    for name, missing in (("prompt_ids", (4, 5)), ("logp", (4, 5, 10)), ("trainer_logp", range(1, 11))):
        assert table[name].isna().tolist() == [row in missing for row in range(11)]


def test_duckdb_reads_it_as_it_is(file):
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(f"select stage, count(*), sum(len(token_ids)), sum(rewards[1].reward) from '{file}' group by 1")
    assert sorted(found.fetchall()) == [
        ("critique", 5, 10, None),
        ("refinement", 3, 8, 2.0),
        ("response", 3, 8, pytest.approx(1 / 3)),
    ]


def test_its_types_are_plain(file):
    def all_types(kind):
        yield kind
        for number in range(kind.num_fields):
            yield from all_types(kind.field(number).type)

    schema = parquet.read_schema(file)
    for field in schema:
        for kind in all_types(field.type):
            assert not isinstance(kind, pa.BaseExtensionType) and not pa.types.is_dictionary(kind)
            assert not pa.types.is_large_string(kind) and not pa.types.is_map(kind)  # which `datasets` does not take
    assert schema.names == SCHEMA.names
    metadata = parquet.read_metadata(file)
    assert {metadata.row_group(0).column(i).compression for i in range(metadata.num_columns)} == {"ZSTD"}


def test_the_document_has_the_same_table():
    text = (paths.ROOT / "cgrpo_jax" / "datasets" / "ROLLOUTS.md").read_text()
    types = {column.name: re.sub(r"(item|element): ", "", str(column.type)) for column in COLUMNS}
    lines = [f"| `{name}` | {types[name]} | {meaning} |" for name, _, meaning in COLUMNS]
    start = text.index(lines[0])
    assert text[start:].split("\n\n")[0].rstrip().split("\n") == lines


# --- faults -------------------------------------------------------------------------------------------------------


def test_what_can_not_be_read_is_refused_in_one_line(file, tmp_path):
    with pytest.raises(UserError, match="nowhere.parquet can't be read as Parquet"):
        rollouts.read(tmp_path / "nowhere.parquet")
    (tmp_path / "half.parquet").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match="half.parquet can't be read as Parquet .*; give a whole file of RUN/rollouts"):
        rollouts.read(tmp_path / "half.parquet")
    table = parquet.read_table(file)
    parquet.write_table(table.replace_schema_metadata({}), tmp_path / "other.parquet")
    with pytest.raises(UserError, match="other.parquet holds no rollouts of a run"):
        rollouts.read(tmp_path / "other.parquet")
    newer = table.replace_schema_metadata({rollouts.VERSION_KEY: "99"})
    parquet.write_table(newer, tmp_path / "newer.parquet")
    with pytest.raises(UserError, match="rollouts of version 99; this program reads .1, 2, 3.; use the other"):
        rollouts.read(tmp_path / "newer.parquet")


@pytest.mark.parametrize("version, lacks", [("1", ["shown", "feedback_ids"]), ("2", ["feedback_ids"])])
def test_a_file_of_a_version_before_is_read(file, tmp_path, version, lacks):
    table = parquet.read_table(file).drop_columns(lacks).replace_schema_metadata({rollouts.VERSION_KEY: version})
    parquet.write_table(table, tmp_path / "older.parquet")
    before, now = rollouts.read(tmp_path / "older.parquet"), rollouts.read(file)
    assert [row.rollout.text for row in before] == [row.rollout.text for row in now]
    assert {row.rollout.feedback_ids for row in before} == {None}
    assert "shown" not in lacks or {row.rollout.shown for row in before} == {None}


def test_a_byte_that_has_changed_is_found(file, tmp_path):
    metadata = parquet.read_metadata(file)
    data = bytearray(file.read_bytes())
    logp = metadata.row_group(0).column([*_leaves(metadata)].index("logp.list.element"))
    data[logp.data_page_offset + logp.total_compressed_size - 3] ^= 1
    (tmp_path / "a.parquet").write_bytes(data)
    with pytest.raises(UserError, match="can't be read as Parquet"):
        rollouts.read(tmp_path / "a.parquet")


def _leaves(metadata):
    return (metadata.row_group(0).column(i).path_in_schema for i in range(metadata.num_columns))


@pytest.mark.parametrize("fails", ["write_table", "fsync", "replace"])
def test_a_file_is_there_whole_or_not_at_all(file, tmp_path, monkeypatch, fails):
    path = tmp_path / file.name
    path.write_bytes(b"the old one")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollouts.parquet if fails == "write_table" else os, fails, full)
    with pytest.raises(OSError, match="No space left"):
        rollouts.write(path, rollout_cases.make(), iteration=7, spell=rollout_cases.spell)
    assert path.read_bytes() == b"the old one" and len(list(tmp_path.iterdir())) == 1


def test_names_sort_and_say_their_iteration(tmp_path):
    names = [rollouts.file_name(number) for number in (0, 9, 10, 123456)]
    assert names == sorted(names) and [rollouts.iteration_of(tmp_path / name) for name in names] == [0, 9, 10, 123456]
    assert [
        rollouts.iteration_of(tmp_path / name) for name in ("mine.parquet", "step_x.parquet", ".step_1.parquet.tmp")
    ]
    assert rollouts.iteration_of(tmp_path / "step_x.parquet") == rollouts.iteration_of(tmp_path / "a.txt") == -1
