"""Rows of Arrow's record batches as Python values, floats of few bits as NumPy's of so many.

`RecordBatch.to_pylist` widens every float to Python's 64 bits: 33.3 of a float32 column becomes 33.29999923706055.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np


def rows(batch) -> Iterator[dict[str, Any]]:
    """Yields the rows of a `pyarrow.RecordBatch`.

    Raises:
      UnicodeDecodeError: at the row whose text is no UTF-8.
    """
    narrow = {field.name: field.type for field in batch.schema if _has_narrow_float(field.type)}
    for row in _as_python(batch):
        yield {name: _narrowed(value, narrow[name]) if name in narrow else value for name, value in row.items()}


def _as_python(batch) -> Iterator[dict[str, Any]]:
    try:
        yield from batch.to_pylist()
    except UnicodeDecodeError:  # of which row?
        for number in range(batch.num_rows):
            yield from batch.slice(number, 1).to_pylist()


def _inner(kind) -> list:
    """The types within a type: of a list its values', of a struct its fields'."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return [kind.value_type]
    if (storage := getattr(kind, "storage_type", None)) is not None:  # of an extension type
        return [storage]
    return [kind.field(number).type for number in range(kind.num_fields)]


def _has_narrow_float(kind) -> bool:
    from pyarrow import types

    return types.is_float16(kind) or types.is_float32(kind) or any(map(_has_narrow_float, _inner(kind)))


def _narrowed(value: Any, kind) -> Any:
    """Returns a value whose floats of 16 or 32 bits are NumPy's."""
    from pyarrow import types

    if value is None or not _has_narrow_float(kind):
        return value
    if types.is_float16(kind) or types.is_float32(kind):
        return np.float16(value) if types.is_float16(kind) else np.float32(value)
    if types.is_struct(kind):
        return {name: _narrowed(inner, kind.field(name).type) for name, inner in value.items()}
    if types.is_map(kind):
        return [(_narrowed(key, kind.key_type), _narrowed(item, kind.item_type)) for key, item in value]
    if isinstance(value, list):
        return [_narrowed(inner, kind.value_type) for inner in value]
    return _narrowed(value, _inner(kind)[0])
