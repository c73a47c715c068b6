"""The trace format: which enclave touched which page, in order, on disk.

A trace is a Parquet file. Columns: ``enclave`` and ``page`` (32 bits, delta-packed)
and ``run`` (how often in a row that page was touched: programs touch a page
hundreds of times before the next, and a repeated touch changes nothing in the
engine but the clock). Metadata under ``epcgroup.trace`` is JSON: version, page
size, source, clock, number of accesses, and each enclave's name and size.
Anything that reads Parquet reads it.

Writing goes to a file without a name, which gets it when it is whole (see
:mod:`epcgroup.atonce`). Reading streams: memory does not grow with the length of a trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from epcgroup.atonce import AtOnce
from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE

Pages = npt.NDArray[np.int32]

VERSION = 1
CLOCKS = {
    "none": "nothing that is known",
    "instruction": "a memory access of a program",
    "sample": "a sample of a profiler",
    "fault": "a page fault, or a page that a scan found accessed; hits in between are not there",
}
"""What one access may stand for."""
_KEY = b"epcgroup.trace"
_SCHEMA = pa.schema([("enclave", pa.int32()), ("page", pa.int32()), ("run", pa.int32())])
_ROWS = 1 << 20  # of one row group
_BATCH = 1 << 21  # accesses handed to a reader at once


@dataclass
class Info:
    """What a trace says of itself. ``enclaves``: number -> (name, size in pages)."""

    source: str
    clock: str = "none"  # what one access stands for, a key of CLOCKS
    page_size: int = PAGE_SIZE
    version: int = VERSION
    accesses: int = 0
    seconds: float = 0.0  # how long what was recorded took, 0: not known
    enclaves: dict[int, tuple[str, int]] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)  # accesses of each enclave


class Writer:
    """Writes one trace; use it in a ``with`` block, at whose good end the file appears.

    ``clock`` says what one access stands for (see :class:`Info`), ``seconds`` may be set
    in ``info`` until the end. Enclaves are numbers of the caller's choice; ``name`` names
    them. An error in the block, or the death of the process, leaves nothing behind.
    Raises BadInput where ``path`` cannot be written.
    """

    def __init__(self, path: Path, source: str, *, clock: str = "none", page_size: int = PAGE_SIZE) -> None:
        if clock not in CLOCKS:
            raise BadInput(f"{path}: clock is {clock!r}; want one of {', '.join(CLOCKS)}")
        self.info = Info(source, clock, page_size)
        self._path = path
        self._rows: list[tuple[Pages, Pages, Pages]] = []
        self._pending = 0
        self._place = AtOnce(path)
        self._file: Any = None

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

    def append_raw(self, enclaves: bytes | memoryview, pages: bytes | memoryview) -> None:
        """As append, from memory that holds 32-bit integers."""
        self.append(np.frombuffer(enclaves, np.int32), np.frombuffer(pages, np.int32))

    def append_runs(self, enclaves: Pages, pages: Pages, runs: Pages) -> None:
        """The same, counted already."""
        numbers, each = np.unique(enclaves, return_inverse=True)
        tops = np.zeros(len(numbers), np.int32)
        np.maximum.at(tops, each, pages)
        touched = np.bincount(each, runs, len(numbers)).astype(np.int64)
        for number, top, count in zip(numbers.tolist(), tops.tolist(), touched.tolist(), strict=True):
            self.name(number, self.info.enclaves.get(number, (f"enclave {number}", 0))[0], top + 1)
            self.info.counts[number] = self.info.counts.get(number, 0) + count
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
                self._flush(last=True)
                said = json.dumps(asdict(self.info))
                self._file.add_key_value_metadata({_KEY.decode(): said})
                self._file.close()
                self._place.appear()
        except OSError as failed:
            raise self._unwritable(failed) from None
        finally:
            if self._file is not None:
                self._file.is_open = False  # else it writes its end when it is collected
            self._place.close()

    def _unwritable(self, error: OSError) -> BadInput:
        return BadInput(f"{self._path}: cannot be written: {error.strerror}")

    def _flush(self, *, last: bool = False) -> None:
        try:
            self._write_rows(last=last)
        except OSError as failed:
            raise self._unwritable(failed) from None

    def _write_rows(self, *, last: bool) -> None:
        if self._rows or (last and self._file is None):
            parts = self._rows or [(np.zeros(0, np.int32),) * 3]
            columns = [pa.array(np.concatenate(column)) for column in zip(*parts, strict=True)]
            rows = pa.Table.from_arrays(columns, schema=_SCHEMA)
            if self._file is None:
                self._file = pq.ParquetWriter(self._place.file, _SCHEMA, **_smallest(rows))
            self._file.write_table(rows)
            self._rows.clear()
            self._pending = 0


def _smallest(rows: pa.Table) -> dict[str, Any]:
    """How to pack this trace: scans want differences, popularity bytes apart or a dictionary.

    The first rows, packed in each way, decide for the whole file.
    """
    ways: list[dict[str, Any]] = [
        {"use_dictionary": ["enclave"], "column_encoding": {"page": how, "run": "DELTA_BINARY_PACKED"}}
        for how in ("DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT")
    ]
    ways.append({"use_dictionary": ["enclave", "page"], "column_encoding": {"run": "DELTA_BINARY_PACKED"}})
    sizes = []
    for way in ways:
        way["compression"] = "zstd"
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, **way)
        sizes.append(sink.getvalue().size)
    return ways[sizes.index(min(sizes))]


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
        try:
            data = json.loads(said)
            version = data.get("version")
            if version != VERSION:
                raise BadInput(f"{path}: version is {version!r}; this program reads {VERSION}")
            data["enclaves"] = {int(number): tuple(what) for number, what in data["enclaves"].items()}
            data["counts"] = {int(number): int(what) for number, what in data.get("counts", {}).items()}
            self.info = Info(**data)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadInput(f"{path}: metadata {_KEY.decode()} is {said[:60]!r}: {error}") from None
        if self._file.schema_arrow.names != _SCHEMA.names:
            names = ", ".join(self._file.schema_arrow.names)
            raise BadInput(f"{path}: columns are {names}; want {', '.join(_SCHEMA.names)}")

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def runs(self) -> Iterator[tuple[Pages, Pages, Pages]]:
        """(enclaves, pages, run lengths) in order, a part at a time."""
        row = 0
        try:
            for batch in self._file.iter_batches(batch_size=_ROWS // 4):
                enclaves, pages, runs = (column.to_numpy() for column in batch.columns)
                for field_name, values, least in (
                    ("enclave", enclaves, 0),
                    ("page", pages, 0),
                    ("run", runs, 1),
                ):
                    if len(values) and values.min() < least:
                        at = int(np.argmax(values < least))
                        said = f"{field_name} is {values[at]}; want at least {least}"
                        raise BadInput(f"{self.path}: row {row + at + 1}: {said}")
                row += len(pages)
                yield enclaves, pages, runs
        except (OSError, pa.ArrowException, ValueError) as error:
            raise BadInput(f"{self.path}: damaged behind row {row}: {error}") from None

    def batches(self) -> Iterator[tuple[Pages, Pages]]:
        """(enclaves, pages) of every access in order, a part at a time."""
        for enclaves, pages, runs in self.runs():
            for part, counted in parts(runs):
                yield np.repeat(enclaves[part], counted), np.repeat(pages[part], counted)

    def pages_of(self, enclave: int) -> Iterator[Pages]:
        """The pages that one enclave touches, in order."""
        for enclaves, pages in self.batches():
            mine = pages[enclaves == enclave]
            if len(mine):
                yield mine


def parts(runs: Pages) -> Iterator[tuple[slice, Pages]]:
    """Rows that stand for about so many accesses as a reader is handed at once, and their runs.

    A run that is longer is cut.
    """
    ends = np.cumsum(runs, dtype=np.int64)
    start = 0
    while start < len(runs):
        before = int(ends[start - 1]) if start else 0
        stop = max(int(np.searchsorted(ends, before + _BATCH)), start + 1)
        counted = runs[start:stop]
        if stop == start + 1:
            whole, rest = divmod(int(runs[start]), _BATCH)
            for length in [_BATCH] * whole + [rest] * (rest > 0):
                yield slice(start, stop), np.array([length], np.int32)
        else:
            yield slice(start, stop), counted
        start = stop


def expanded(pages: Pages, runs: Pages) -> Iterator[Pages]:
    """The accesses that these rows stand for, a part at a time."""
    for part, counted in parts(runs):
        yield np.repeat(pages[part], counted)
