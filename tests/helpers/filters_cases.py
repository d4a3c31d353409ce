"""What the tests of datasets/test_filters share with those that take longer."""

import json

import refusals

from cgrpo_jax.records import Problem, problem_id


def run_files(tmp_path, rates):
    rows = [{"question": f"{k}+2", "answer": str(k + 2)} for k in range(2, 8)]
    (tmp_path / "adds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = [problem_id(Problem(0, row["question"], "", source="adds")) for row in rows]
    lines = [{"source": "adds", "id": name, "pass_rate": rate} for name, rate in zip(ids, rates, strict=False)]
    (tmp_path / "rates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return refusals.jsonl(tmp_path / "adds.jsonl") | {"data.pass_rates": str(tmp_path / "rates.jsonl")}
