"""Columns of metadata from many files: one schema for all, and tables brought into it."""

from collections.abc import Collection, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chromseek.data.errors import BadData, printable

RESERVED = frozenset(["id", "name", "dataset", "n_tokens", "n_fragments", "coverage", "score", "rank", "query"])
_CATEGORY = pa.dictionary(pa.int32(), pa.string())


def join_schemas(schemas: Sequence[tuple[str, pa.Schema]], *, reserved: Collection[str] = RESERVED) -> pa.Schema:
    """Join the schemas of files (name, schema) by column name, in order of appearance.

    Integers of several widths become int64, with floats float64; categories with text become text; a column
    without any value takes the type of the others, and is text where there is none.
    Raises BadData for types that do not join (naming both files and the column), for a reserved name, and for
    a name that comes twice in a file.
    """
    joined: dict[str, tuple[str, pa.DataType]] = {}  # column → the file that gave it its type, type
    for file, schema in schemas:
        _check_names(file, schema.names, reserved)
        for field in schema:
            kind = _plain_type(field.type)
            first_file, first = joined.setdefault(field.name, (file, kind))
            both = _join_types(first, kind)
            if both is None:
                raise BadData(
                    f"column {printable(field.name)} holds {_words(kind)} here but {_words(first)} in "
                    f"{printable(first_file)}",
                    code="SCHEMA-CLASH",
                    file=file,
                    got=str(kind),
                    fix="give it one type in both files, or rename it in one",
                )
            joined[field.name] = (first_file if both == first else file, both)
    return pa.schema([(name, pa.string() if pa.types.is_null(kind) else kind) for name, (_, kind) in joined.items()])


def _check_names(file: str, names: Sequence[str], reserved: Collection[str]) -> None:
    taken = [name for name in names if name in reserved]
    if taken:
        raise BadData(
            f"column {taken[0]} has a name that chromseek uses itself",
            code="SCHEMA-RESERVED",
            file=file,
            got=taken[0],
            fix=f"rename the column, for example to {taken[0]}_given",
        )
    twice = [name for at, name in enumerate(names) if name in names[:at]] if len(set(names)) < len(names) else []
    if twice:
        raise BadData(
            f"column {printable(twice[0])} comes twice",
            code="SCHEMA-TWICE",
            file=file,
            got=printable(twice[0]),
            fix="rename one of them",
        )


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """One type for all that hold the same: any text is string, a dictionary of text is a category."""
    if pa.types.is_dictionary(kind):
        inner = _plain_type(kind.value_type)
        return _CATEGORY if pa.types.is_string(inner) else inner
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    return pa.float32() if pa.types.is_float16(kind) else kind


def _join_types(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds both, None when there is none."""
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        return pa.int64()
    if all(pa.types.is_integer(kind) or pa.types.is_floating(kind) for kind in (a, b)):
        return pa.float64()
    if {a, b} == {_CATEGORY, pa.string()}:
        return pa.string()
    return None


def _words(kind: pa.DataType) -> str:
    if kind == _CATEGORY:
        return "categories"
    if pa.types.is_string(kind):
        return "text"
    if pa.types.is_boolean(kind):
        return "true or false"
    return "whole numbers" if pa.types.is_integer(kind) else "numbers" if pa.types.is_floating(kind) else str(kind)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Bring a table into a joined schema: columns in its order and types, missing ones null, NaN null.

    Raises BadData when a column is not in the schema, or a value does not fit its type without loss.
    """
    extra = [name for name in table.column_names if name not in schema.names]
    if extra:
        raise BadData(
            f"column {printable(extra[0])} was not there when the columns were joined",
            code="SCHEMA-CLASH",
            got=printable(extra[0]),
            fix="give files that do not change while they are read",
        )
    columns = []
    for field in schema:
        at = table.schema.get_field_index(field.name)
        columns.append(pa.nulls(len(table), field.type) if at < 0 else _cast(table.column(at), field))
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    try:
        if pa.types.is_dictionary(column.type) and not pa.types.is_dictionary(field.type):
            column = column.cast(column.type.value_type)
        column = column if column.type == field.type else column.cast(field.type)
    except pa.ArrowException as error:
        raise BadData(
            f"column {printable(field.name)} of type {column.type} does not fit {field.type}: {printable(error)}",
            code="SCHEMA-CLASH",
            got=str(column.type),
            fix="give it one type in all files",
        ) from error
    if pa.types.is_floating(field.type) and np.isnan(pc.sum(column).as_py() or 0.0):
        return pc.if_else(pc.is_nan(column), pa.scalar(None, field.type), column)
    return column
