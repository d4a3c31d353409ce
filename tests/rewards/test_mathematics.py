"""Verdicts on mathematical answers, judged by hand, by kind of spelling or difference."""

import json
import pathlib
import random
from decimal import Decimal

import pytest

from cgrpo_jax.rewards import mathematics

CASES = [
    json.loads(line)
    for line in (pathlib.Path(__file__).parent / "cases" / "math.jsonl").read_text(encoding="utf-8").splitlines()
]
BATCH = 20


def batches():
    by_kind = {}
    for case in CASES:
        by_kind.setdefault(case["why"], []).append(case)
    for why, cases in by_kind.items():
        for begin in range(0, len(cases), BATCH):
            yield pytest.param(cases[begin : begin + BATCH], id=f"{why} {begin // BATCH + 1}")


@pytest.fixture(scope="module", autouse=True)
def _imported():
    """What a worker imports before its first answer, counted for no test."""
    mathematics.start(0)
    mathematics.grade(r"\boxed{x^2+\sqrt{2}}", "x^2+1")
    mathematics.grade(r"\boxed{x>1}", r"(1,\infty)")


def test_both_verdicts_are_tried_of_each_kind():
    assert len(CASES) >= 400
    assert len({(case["response"], case["gold"]) for case in CASES}) == len(CASES)
    for why in {case["why"] for case in CASES}:
        assert {case["verdict"] for case in CASES if case["why"] == why} >= {0}


@pytest.mark.parametrize("cases", batches())
def test_every_verdict_is_right(cases):
    found = [mathematics.grade(case["response"], case["gold"]) for case in cases]
    wrong = [(case, grade) for case, grade in zip(cases, found, strict=True) if grade[0] != case["verdict"]]
    assert not wrong


def test_scientific_notation_has_many_spellings():
    """As in gold answers of problems in physics: of each size, in e-notation, as a power of ten and as a decimal."""
    rng = random.Random(0)
    for exponent in range(-35, 36):
        digits = rng.choice([f"{rng.randint(1, 9)}", f"{rng.uniform(1, 10):.{rng.randint(1, 6)}f}"])
        sign = rng.choice(["", "-"])
        number = Decimal(f"{digits}e{exponent}")
        spellings = [
            f"{sign}{digits}e{exponent}",
            f"{sign}{digits}E{exponent:+03d}",
            rf"{sign}{digits}\times 10^{{{exponent}}}",
            rf"{sign}{digits} \cdot 10^{{{exponent}}}\text{{ J}}",
            f"{sign}{number:f}",
        ]
        gold, other = spellings[0], f"{sign}{number * Decimal('1.01'):e}"
        for spelling in spellings:
            assert mathematics.grade(rf"\boxed{{{spelling}}}", gold)[0] == 1, spelling
            assert mathematics.grade(rf"\boxed{{{gold}}}", spelling)[0] == 1, spelling
            assert mathematics.grade(rf"\boxed{{{spelling}}}", other)[0] == 0, spelling


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [
        (r"The answer is $\frac{1}{2}$.", "0.5", 1),
        (r"Thus the answer is $3+4\mathrm{i}$.", "7", 0),
        (r"Thus the answer is $3+4\mathrm{i}$.", "3+4i", 1),
        ("The answer is 1.5e3.", "1500", 1),
        ("The answer is $1.5e3$.", "1500", 1),
        (r"So the answer is \(0.\dot{3}\).", "1/3", 1),
        ("The answer is 42.", "42", 1),
        ("The answer is 41.", "42", 0),
    ],
)
def test_an_answer_without_a_box(response, gold, score):
    assert mathematics.grade(response, gold)[0] == score


@pytest.mark.parametrize("answer", ["???", "2 3", r"\frac{", "x foo = ,", r"\{x\mid", "平方"])
def test_unreadable_gold_answers(answer):
    assert not mathematics.readable(answer)


@pytest.mark.parametrize("gold", ["12", "0.5", "(3, 5)", r"[1,2]\cup[3,4]", r"\{1,2\}", "x>1", "x^2+1", r"\sqrt{2}"])
def test_a_number_that_nobody_can_write_out_is_compared_at_once(gold):
    """In an interval, beside a decimal, in a formula: SymPy would compute all of its digits."""
    nines = "9" * 40
    immense = (rf"10^{{{nines}}}", rf"2^{{-{nines}}}", rf"(3/2)^{{{nines}}}", f"{nines}!", "99999999!")
    for one in (
        *immense,
        rf"\binom{{{nines}}}{{{nines[1:]}}}",
        rf"(1,10^{{{nines}}})",
        rf"x>10^{{{nines}}}",
        "1E99999",
    ):
        assert mathematics.grade(rf"so \boxed{{{one}}}", gold)[0] == 0, one
    for one in (rf"so \boxed{{10^{{{nines * 34}}}}}", f"10^{nines * 34}"):
        assert mathematics.grade(one, gold)[0] == 0, one


def test_a_number_that_nobody_can_write_out_equals_itself_however_it_is_spelled():
    power = "10^{" + "9" * 40 + "}"
    assert mathematics.grade(rf"\boxed{{1 \cdot {power}}}", power)[0] == 1
    assert mathematics.grade(rf"\boxed{{x = {power}}}", f"x = 1 {power}")[0] == 0  # beside each other: unreadable
    assert mathematics.grade(rf"\boxed{{{power}}}", power.replace("10", "11", 1))[0] == 0
    assert mathematics.grade(r"\boxed{100000000!}", "99999999!")[0] == 0


@pytest.mark.parametrize("gold", ["12", "0.5", "x^2+1"])
@pytest.mark.parametrize(
    "answer",
    [
        r"\sum_{k=1}^{10^{40}} \frac{1}{k^2}",
        r"\sum_{k=1}^{1000} \sin k",
        r"\sum_{k=1}^{\infty} \frac{\sin k}{k}",
        r"\prod_{k=1}^{10^{40}} \frac{k+1}{k}",
        r"\int_0^{10^{40}} \sin(x^2) dx",
    ],
)
def test_a_long_sum_without_a_closed_form_equals_no_other_answer(answer, gold):
    assert mathematics.grade(rf"\boxed{{{answer}}}", gold) == (0.0, answer, "not equal")
    assert mathematics.grade(f"so ${answer}$", gold)[0] == 0


@pytest.mark.parametrize("gold", ["12", "0.5", "x^2+1"])
def test_a_sum_with_an_immense_bound_is_unreadable(gold):
    answer = r"\sum_{k=1}^{10^{6}!} \sum_{j=1}^{k} \binom{k}{j}"
    assert mathematics.grade(rf"\boxed{{{answer}}}", gold) == (0.0, answer, "no answer found")
    assert mathematics.grade(f"so ${answer}$", gold)[0] == 0 and not mathematics.readable(answer)


def test_a_long_sum_with_a_closed_form_has_its_value():
    assert mathematics.grade(r"\boxed{\sum_{k=1}^{10^{40}} k}", r"\frac{10^{40}(10^{40}+1)}{2}")[0] == 1
    assert mathematics.grade(r"so $\sum_{k=1}^{10^{40}} k$", r"\frac{10^{40}(10^{40}+2)}{2}")[0] == 0
    assert mathematics.grade(r"\boxed{\sum_{n=1}^{2023} \frac{1}{n(n+1)}}", r"\frac{2023}{2024}")[0] == 1
    assert mathematics.grade(r"\boxed{\int_0^{10^{40}} x dx}", r"\frac{10^{80}}{2}")[0] == 1


@pytest.mark.parametrize(
    "gold",
    [
        r"\sum_{k=0}^{200} x^k",
        r"\sum_{k=1}^{2024} \frac{x^k}{k}",
        r"\sum_{k=1}^{10000} \frac{1}{k}",
        r"\sum_{k=1}^{5000} 2^k",
        r"\sum_{k=1}^{10^{40}} \frac{1}{k^2}",
        r"\sum_{k=1}^{10^{40}} \sin k",
        r"\sum_{k=1}^\infty \frac{\sin k}{k}",
        r"\sum_{n=1}^\infty\sum_{k=1}^{200}\frac{1}{n^k}",
        r"\prod_{k=1}^{200}(1+x^k)",
        r"\int_0^1 (1-x)^{2024} dx",
        r"\int_0^{2\pi}(1+\cos x)^{500} dx",
        r"\int_0^{1000}\sum_{k=1}^{10} x^k dx",
    ],
)
def test_a_gold_answer_that_can_be_parsed_accepts_itself(gold):
    assert mathematics.readable(gold)
    assert mathematics.grade(rf"so \boxed{{{gold}}}", gold)[0] == 1
    assert mathematics.grade(rf"\boxed{{{gold.replace('k', 'j')}}}", gold)[0] == 1
    assert mathematics.grade(rf"The answer is ${gold}$.", gold)[0] == 1
    assert mathematics.grade(rf"\boxed{{{gold}+1}}", gold)[0] == 0


@pytest.mark.parametrize(
    ("gold", "right", "wrong"),
    [
        (r"\sum_{k=0}^{200} x^k", r"\frac{x^{201}-1}{x-1}", r"\frac{x^{200}-1}{x-1}"),
        (r"\sum_{k=1}^{2024} \frac{3}{2^k}", r"3-\frac{3}{2^{2024}}", r"3-\frac{3}{2^{2023}}"),
        (r"\sum_{k=1}^{5000} 2^k", "2^{5001}-2", "2^{5001}-1"),
        (r"\sum_{k=1}^{10000} \frac{1}{k}", "9.787606", "9.787607"),
        (r"\sum_{i=1}^{10000} \frac{1}{i}", r"\sum_{n=1}^{10000} \frac{1}{n}", r"\sum_{n=1}^{9999} \frac{1}{n}"),
        (r"\int_0^1 (1-x)^{2024} dx", r"\frac{1}{2025}", r"\frac{1}{2024}"),
        (r"\int_0^{1000}\sum_{k=1}^{2} x^k dx", r"\frac{1000^2}{2}+\frac{1000^3}{3}", r"\frac{1000^2}{2}"),
    ],
)
def test_a_long_sum_or_integral_equals_its_value(gold, right, wrong):
    assert [mathematics.grade(rf"\boxed{{{answer}}}", gold)[0] for answer in (right, wrong)] == [1, 0]
    assert mathematics.grade(rf"\boxed{{{gold}}}", right)[0] == 1


def test_a_fraction_of_many_levels_is_one_number():
    golden = r"\frac{1}{1+" * 20 + "1" + "}" * 20
    assert mathematics.grade(rf"\boxed{{{golden}}}", r"\frac{10946}{17711}")[0] == 1
    assert mathematics.grade(rf"\boxed{{{golden}}}", r"\frac{10947}{17711}")[0] == 0
