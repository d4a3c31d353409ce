"""Values as JSON and as text."""

import collections
import datetime
import decimal
import json
import zoneinfo

import pytest

from cgrpo_jax.rewards.sandbox.values import MAX_SHOWN, Writer, cut, decode, shown


class Point(collections.namedtuple("Point", "x y")):
    """A class that is derived from a type of Python's."""


class Kept(list):
    def __call__(self, value):
        self.append(value)
        return len(self) - 1


def copied(value):
    kept = Kept()
    found = decode(json.loads(json.dumps(Writer(kept)(value))), lambda kind, content: pytest.fail(kind))
    assert not kept
    return found


ZONE = zoneinfo.ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    "value",
    [
        None,
        -0.0,
        10**400,
        -(10**4000),
        "\ud800\n",
        [1, (2.0, {"a": {3}}, frozenset([b"x"]))],
        {(1, 2): [None], True: 1.5},
        1j,
        bytearray(b"ab"),
        range(1, 9, 2),
        slice(1, None),
        ...,
        NotImplemented,
        decimal.Decimal("-0.10"),
        decimal.Decimal("Infinity"),
        datetime.date(1, 1, 1),
        datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZONE),
        datetime.time(1, 2, 3, 4, tzinfo=datetime.timezone(datetime.timedelta(hours=1), "one")),
        datetime.timedelta(-1, 2, 3),
        collections.ChainMap({1: 2}, {3: 4}),
        collections.UserList([1]),
        collections.deque([1], maxlen=2),
        int,
        decimal.Decimal,
        [type(None), list],
    ],
)
def test_values_are_copied(value):
    found = copied(value)
    assert found == value and type(found) is type(value) and repr(found) == repr(value)


def test_what_a_copy_keeps_beside_its_value():
    assert copied(collections.defaultdict(int, a=1))["b"] == 0
    assert copied(collections.defaultdict(lambda: 5, a=1)).default_factory is None
    late = copied(datetime.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZONE))
    assert late.utcoffset() == datetime.timedelta(hours=1)
    assert copied(decimal.Decimal("NaN")).is_nan()


def test_an_object_of_a_derived_class_is_copied_and_kept():
    kept = Kept()
    ((kind, (number, name, _, acts, value)),) = Writer(kept)(Point(1, 2)).items()
    assert (kind, number, name, acts, value) == ("own", 0, "Point", False, {"tuple": [1, 2]})
    assert kept == [(1, 2)]


def test_an_iterator_is_sent_a_few_items_at_a_time():
    kept = Kept()
    write = Writer(kept, first_items=2)
    assert write(iter([1, 2, 3])) == {"iterator": [[1, 2], 0, 4]}
    assert write.items(kept[0], 4) == {"iterator": [[3], None, 8]}


@pytest.mark.parametrize(
    "value", [{"none": 1}, {"Fraction": [1, 0]}, {"bytes": [300]}, {"int": "x"}, {"range": []}, {}]
)
def test_what_is_no_value_is_an_error(value):
    with pytest.raises((ValueError, KeyError, TypeError, ZeroDivisionError)):
        decode(value, lambda kind, content: {}[kind])


def test_long_values_are_cut_in_a_report():
    assert shown(10**5000) == "<int: 16610 bits>"
    assert len(shown([10**100] * 10)) < MAX_SHOWN + 10 and len(cut("x" * 10**6)) < MAX_SHOWN + 10
    assert shown(object()) == "<object object>"
