"""The trace format: which enclave touched which page, in order, on disk.

A trace is a Parquet file. Columns: ``enclave`` and ``page`` (32 bits, delta-packed)
and ``run`` (how often in a row that page was touched: programs touch a page
hundreds of times before the next, and a repeated touch changes nothing in the
engine but the clock). Metadata under ``epcgroup.trace`` is JSON: version, page
size, source, clock, number of accesses, and each enclave's name and size.
Anything that reads Parquet reads it.

Writing goes to a temporary file beside the target, renamed when it is whole: a
failed conversion leaves nothing. Reading streams: memory does not grow with the
length of a trace.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE

Pages = npt.NDArray[np.int32]

VERSION = 1
_KEY = b"epcgroup.trace"
_SCHEMA = pa.schema([("enclave", pa.int32()), ("page", pa.int32()), ("run", pa.int32())])
_ROWS = 1 << 20  # of one row group
_BATCH = 1 << 21  # accesses handed to a reader at once


@dataclass
class Info:
    """What a trace says of itself. ``enclaves``: number -> (name, size in pages)."""

    source: str
    clock: str = "none"  # what one access stands for: none, instruction, sample
    page_size: int = PAGE_SIZE
    version: int = VERSION
    accesses: int = 0
    enclaves: dict[int, tuple[str, int]] = field(default_factory=dict)


class Writer:
    """Writes one trace; use it in a ``with`` block, at whose good end the file appears."""

    def __init__(self, path: Path, source: str, *, clock: str = "none", page_size: int = PAGE_SIZE) -> None:
        self.info = Info(source, clock, page_size)
        self._path = path
        self._rows: list[tuple[Pages, Pages, Pages]] = []
        self._pending = 0
        try:
            handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        except OSError as error:
            raise BadInput(f"{path}: cannot be written: {error.strerror}") from None
        os.close(handle)
        self._temporary = Path(name)
        self._file = pq.ParquetWriter(
            name,
            _SCHEMA,
            compression="zstd",
            use_dictionary=["enclave"],
            column_encoding={"page": "DELTA_BINARY_PACKED", "run": "DELTA_BINARY_PACKED"},
        )

    def append(self, enclaves: npt.NDArray[Any] | int, pages: npt.NDArray[Any]) -> None:
        """Accesses in order; equal neighbours are counted, not stored again."""
        count = len(pages)
        if not count:
            return
        page = np.ascontiguousarray(pages, np.int32)
        who = np.full(count, enclaves, np.int32) if isinstance(enclaves, int) else enclaves.astype(np.int32)
        first = np.empty(count, bool)
        first[0] = True
        np.not_equal(page[1:], page[:-1], out=first[1:])
        first[1:] |= who[1:] != who[:-1]
        starts = np.flatnonzero(first)
        runs = np.diff(np.append(starts, count)).astype(np.int32)
        self.append_runs(who[starts], page[starts], runs)

    def append_runs(self, enclaves: Pages, pages: Pages, runs: Pages) -> None:
        """The same, counted already."""
        for number in np.unique(enclaves).tolist():
            top = int(pages[enclaves == number].max()) + 1
            name, size = self.info.enclaves.get(number, (f"enclave {number}", 0))
            self.info.enclaves[number] = (name, max(size, top))
        self.info.accesses += int(runs.sum())
        self._rows.append((enclaves, pages, runs))
        self._pending += len(pages)
        if self._pending >= _ROWS:
            self._flush()

    def name(self, enclave: int, name: str, size: int = 0) -> None:
        """Name an enclave; its size is at least what was touched."""
        self.info.enclaves[enclave] = (name, max(size, self.info.enclaves.get(enclave, ("", 0))[1]))

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
                said = json.dumps(asdict(self.info))
                self._file.add_key_value_metadata({_KEY.decode(): said})
                self._file.close()
                self._temporary.replace(self._path)
            else:
                self._file.close()
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(np.concatenate(column)) for column in zip(*self._rows, strict=True)]
            self._file.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA))
            self._rows.clear()
            self._pending = 0


class Trace:
    """A trace on disk. Raises BadInput for a file that is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise BadInput(f"{path}: no such file") from None
        except (OSError, pa.ArrowInvalid) as error:
            raise BadInput(f"{path}: not a trace: {error}") from None
        said = (self._file.schema_arrow.metadata or {}).get(_KEY) or self._file.metadata.metadata.get(_KEY)
        if said is None:
            raise BadInput(f"{path}: Parquet, but no trace of ours; convert it with 'epcgroup trace convert'")
        data = json.loads(said)
        if data.get("version") != VERSION:
            raise BadInput(f"{path}: version is {data.get('version')!r}; this program reads {VERSION}")
        data["enclaves"] = {int(number): tuple(what) for number, what in data["enclaves"].items()}
        self.info = Info(**data)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def runs(self) -> Iterator[tuple[Pages, Pages, Pages]]:
        """(enclaves, pages, run lengths) in order, a part at a time."""
        for batch in self._file.iter_batches(batch_size=_ROWS // 4):
            yield tuple(column.to_numpy() for column in batch.columns)

    def batches(self) -> Iterator[tuple[Pages, Pages]]:
        """(enclaves, pages) of every access in order, a part at a time."""
        for enclaves, pages, runs in self.runs():
            ends = np.cumsum(runs, dtype=np.int64)
            start = 0
            while start < len(runs):
                before = int(ends[start - 1]) if start else 0
                stop = max(int(np.searchsorted(ends, before + _BATCH)), start + 1)
                part = slice(start, stop)
                yield np.repeat(enclaves[part], runs[part]), np.repeat(pages[part], runs[part])
                start = stop

    def pages_of(self, enclave: int) -> Iterator[Pages]:
        """The pages that one enclave touches, in order."""
        for enclaves, pages in self.batches():
            mine = pages[enclaves == enclave]
            if len(mine):
                yield mine
