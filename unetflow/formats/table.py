"""Write one table as Parquet and as CSV, some rows at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy.typing as npt


class TableFiles:
    """A Parquet and a CSV file that hold the same rows.

    Equal rows, added in equal portions, give equal bytes.

    Parameters
    ----------
    parquet, csv : path
        Files to write.
    columns : mapping of str to str
        Names and types: int64, float64 or bool.
    metadata : mapping of str to str
        Kept in the Parquet file.
    """

    def __init__(
        self,
        parquet: str | os.PathLike[str],
        csv: str | os.PathLike[str],
        columns: Mapping[str, str],
        metadata: Mapping[str, str],
    ) -> None:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
        from pyarrow import parquet as arrow_parquet

        types = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
        fields = [pa.field(name, types[kind]) for name, kind in columns.items()]
        self._schema = pa.schema(fields, metadata={k.encode(): v.encode() for k, v in metadata.items()})
        self._writers: list[Any] = [
            arrow_parquet.ParquetWriter(os.fspath(parquet), self._schema, compression="zstd"),
            arrow_csv.CSVWriter(os.fspath(csv), self._schema),
        ]

    def append(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Write rows; in the Parquet file they are a row group."""
        import pyarrow as pa

        arrays = [pa.array(columns[field.name], field.type, from_pandas=True) for field in self._schema]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        for writer in self._writers:
            writer.write_table(table)

    def __enter__(self) -> TableFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for writer in self._writers:
            writer.close()
