"""Traces: what is written is read, what is malformed is named, nothing half-done is left."""

from __future__ import annotations

import gc
import subprocess
import sys
from array import array
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from epcgroup.cli import recorded
from epcgroup.errors import BadInput
from epcgroup.sim.traces import trace
from epcgroup.sim.traces.convert import convert, cut, merge, sample
from epcgroup.sim.traces.streams import Streams
from epcgroup.sim.traces.trace import Trace, Writer


def accesses(trace: Trace) -> list[tuple[int, int]]:
    """Every (enclave, page)."""
    found: list[tuple[int, int]] = []
    for enclaves, pages in trace.batches():
        found += zip(enclaves.tolist(), pages.tolist(), strict=True)
    return found


def write(path: Path, enclaves: list[int], pages: list[int]) -> Trace:
    with Writer(path, "test") as writer:
        writer.append(np.array(enclaves), np.array(pages))
    return Trace(path)


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    pages = [5, 5, 5, 0, 1, 1, 7, 5]
    trace = write(tmp_path / "t", [0, 0, 1, 1, 0, 0, 0, 0], pages)
    assert accesses(trace) == list(zip([0, 0, 1, 1, 0, 0, 0, 0], pages, strict=True))
    assert trace.info.accesses == 8
    assert trace.info.enclaves == {0: ("enclave 0", 8), 1: ("enclave 1", 6)}


def test_long_runs_are_handed_out_in_bounded_parts(tmp_path: Path) -> None:
    """Memory stays flat: ten million touches of one page are one row."""
    with Writer(tmp_path / "t", "test") as writer:
        for part in range(200):
            writer.append(0, np.full(50_000, part, np.int32))
    trace = Trace(tmp_path / "t")
    sizes = [len(pages) for _, pages in trace.batches()]
    assert sum(sizes) == 10_000_000
    assert max(sizes) < 3_000_000
    assert trace.size < 20_000


def test_an_access_across_a_page_boundary_is_two(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("==1== Lackey\n L 1ffe,8\n S 5000,4\n")
    convert(tmp_path / "in", "lackey", tmp_path / "t")
    assert accesses(Trace(tmp_path / "t")) == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("form", "text", "said"),
    [
        ("lackey", " L 1000,4\nL bad\n", r":2: access is 'L bad'"),
        ("lackey", " L 1000,0\n", r":1: size is '0'"),
        ("csv", "enclave,page\n1,2\n1,x\n", r":3: page is 'x'"),
        ("csv", "enclave,size\n1,2\n", r":1: columns is 'enclave, size'; want page or address"),
        ("lackey", " L 1000,4\n L 1", r":2: access is ' L 1'"),
        ("lackey", " L 12345678901234567,4\n", r":1: access is ' L 12345678901234567,4'"),
        ("csv", "enclave,page\n1\n", r":2: page is missing; want a number"),
        ("csv", "enclave,page\n-1,2\n", r":2: enclave is '-1'"),
        ("csv", "page\n\xff\n", r":2: page is '.'; want a number"),
        ("perf", "12 1.5: 7f00\nnonsense\n", r":2: sample is 'nonsense'"),
        ("perf", "a 1.5: 7f00\n", r":1: pid is 'a'; want a number"),
        ("perf", "1 now: 7f00\n", r":1: time is 'now:'; want seconds"),
        ("perf", "1 1.5: 7g00\n", r":1: address is '7g00'; want up to 16"),
        ("oraclegeneral", "123", r"record 1: size is 3 bytes; want 24 bytes a record"),
        ("lackey", "==1== Lackey\n", r"in: there is no access in it; want what lackey records"),
        ("nonsense", "", r"no trace format 'nonsense'; there are lackey"),
    ],
)
def test_a_malformed_record_is_named_and_nothing_is_left(
    tmp_path: Path, form: str, text: str, said: str
) -> None:
    (tmp_path / "in").write_bytes(text.encode("latin-1"))
    with pytest.raises(BadInput, match=said):
        convert(tmp_path / "in", form, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_an_interrupted_conversion_leaves_what_was_there(tmp_path: Path) -> None:
    write(tmp_path / "out", [0], [7])
    (tmp_path / "in").write_text("page\n" + "1\n" * 600_000)

    def stop(_share: float, _accesses: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "in", "csv", tmp_path / "out", stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert accesses(Trace(tmp_path / "out")) == [(0, 7)]


def test_an_error_after_the_first_rows_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a writer that is collected later write its end, into a file that is closed."""
    monkeypatch.setattr(trace, "_ROWS", 10)
    path = tmp_path / "t.parquet"
    path.write_text("before")

    def interrupted() -> None:
        with Writer(path, "test") as writer:
            writer.append(1, np.arange(100))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    gc.collect()  # what it complains of would fail this test
    assert path.read_text() == "before"


def test_a_recording_that_cannot_be_written_harms_nobody_and_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not end the programs that are recorded, nor take their report."""
    tries = 0

    def full(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise BadInput("t.parquet: cannot be written: No space left on device")

    monkeypatch.setattr(Writer, "append_raw", full)
    path = tmp_path / "t.parquet"
    path.write_text("before")
    with recorded.File(path, "test") as file:
        for _ in range(3):
            file.append(array("i", [1]), array("i", [7]), {1: (8, "/a", "x")}, 0)
    with pytest.raises(BadInput, match="No space left"):
        recorded.report(file, path)
    assert tries == 1
    assert {item.name for item in tmp_path.iterdir()} == {"t.parquet"}
    assert path.read_text() == "before"


def test_kill_9_leaves_nothing(tmp_path: Path) -> None:
    """The file has no name before it is whole; the kernel takes it back."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from epcgroup.sim.traces.trace import Writer\n"
        "with Writer(Path(sys.argv[1]), 'test') as writer:\n"
        "    while True:\n"
        "        writer.append(0, np.random.randint(0, 1000, 1 << 20)); print(flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(3):
            writer.stdout.readline()
        writer.kill()
    assert list(tmp_path.iterdir()) == []


def test_a_trace_replaces_an_older_one_and_obeys_the_umask(tmp_path: Path) -> None:
    write(tmp_path / "t", [0], [7])
    assert accesses(write(tmp_path / "t", [0], [8])) == [(0, 8)]
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "t").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"page": [1, -2]}, r"row 2: page is -2; want at least 0"),
        ({"run": [1, 0]}, r"row 2: run is 0; want at least 1"),
        ({"enclave": [-1, 0]}, r"row 1: enclave is -1; want at least 0"),
    ],
)
def test_a_trace_of_another_writer_is_checked_row_by_row(
    tmp_path: Path, columns: dict[str, list[int]], said: str
) -> None:
    table = {"enclave": [0, 0], "page": [0, 0], "run": [1, 1], **columns}
    rows = pa.table({name: pa.array(values, pa.int32()) for name, values in table.items()})
    info = '{"source": "test", "version": 1, "enclaves": {"0": ["a", 1]}, "accesses": 2}'
    pq.write_table(rows.replace_schema_metadata({"epcgroup.trace": info}), tmp_path / "t")
    with pytest.raises(BadInput, match=said):
        accesses(Trace(tmp_path / "t"))
    pq.write_table(rows.replace_schema_metadata({"epcgroup.trace": '{"version": 9}'}), tmp_path / "t")
    with pytest.raises(BadInput, match="version is 9; this program reads 1"):
        Trace(tmp_path / "t")
    pq.write_table(rows.replace_schema_metadata({"epcgroup.trace": '{"version": 1'}), tmp_path / "t")
    with pytest.raises(BadInput, match=r"metadata epcgroup\.trace is"):
        Trace(tmp_path / "t")


def test_damage_is_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    trace = write(tmp_path / "t", [0] * 100_000, rng.integers(0, 1000, 100_000).tolist())
    whole = bytearray((tmp_path / "t").read_bytes())
    whole[1000:1400] = bytes(400)
    (tmp_path / "t").write_bytes(whole)
    with pytest.raises(BadInput, match="t: damaged behind row 0"):
        accesses(Trace(trace.path))


def test_streams_of_one_trace_give_each_enclave_its_pages_however_they_are_asked_for(tmp_path: Path) -> None:
    """One reader for all; who falls behind more than there is room for reads alone."""
    rng = np.random.default_rng(2)
    enclaves = rng.integers(0, 40, 600_000)
    pages = rng.integers(0, 50, 600_000)
    trace = write(tmp_path / "t", enclaves.tolist(), pages.tolist())
    for room in (1 << 23, 200_000):
        streams = Streams(trace, room)
        opened = {number: streams.open(number) for number in (3, 3 + 40, 5, 7, 11)}
        first = [next(opened[3]) for _ in range(1)]
        dropped = opened.pop(11)
        dropped.close()
        for number in (7, 5, 3, 43):
            found = (first if number == 3 else []) + list(opened[number])
            wanted = pages[enclaves == number].tolist()
            assert [page for part in found for page in part.tolist()] == wanted, (room, number)
        assert streams.rows == 0


def test_a_csv_of_a_spreadsheet_is_read_by_its_columns(tmp_path: Path) -> None:
    """Its byte order mark made the first column another one: all enclaves were taken for one."""
    (tmp_path / "in").write_bytes(b"\xef\xbb\xbfenclave,page\r\n1,5\r\n2,5\r\n")
    convert(tmp_path / "in", "csv", tmp_path / "out")
    assert [name for name, _ in Trace(tmp_path / "out").info.enclaves.values()] == ["1", "2"]


def test_csv_perf_and_oracle_general_are_read(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("enclave,address\n7,0x1000\n9,0x1fff\n7,0x3000\n")
    (tmp_path / "p").write_text("# comment\n  12  1.5: 7f0010\n  13 2.5: 7f1010\n12 7f2010\n")
    record = np.dtype([("time", "<u4"), ("object", "<u8"), ("size", "<u4"), ("next", "<i8")])
    np.array([(0, 99, 1, 2), (1, 2**60, 1, -1), (2, 99, 1, -1)], record).tofile(tmp_path / "o")
    for form, name in (("csv", "c"), ("perf", "p"), ("oraclegeneral", "o")):
        convert(tmp_path / name, form, tmp_path / f"{name}.t")
    assert accesses(Trace(tmp_path / "c.t")) == [(0, 0), (1, 0), (0, 1)]
    assert accesses(Trace(tmp_path / "p.t")) == [(0, 0), (1, 0), (0, 1)]
    assert accesses(Trace(tmp_path / "o.t")) == [(0, 0), (0, 1), (0, 0)]


def test_cut_keeps_a_part(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", [0] * 6, [1, 2, 2, 2, 3, 4])
    assert cut(trace, tmp_path / "c", 2, 5) == 3
    assert accesses(Trace(tmp_path / "c")) == [(0, 2), (0, 2), (0, 3)]


def test_a_part_behind_the_end_is_none(tmp_path: Path) -> None:
    write(tmp_path / "t", [0, 0], [1, 2])
    with pytest.raises(BadInput, match="t: it has 2 accesses, none from 2 on"):
        cut(Trace(tmp_path / "t"), tmp_path / "part", 2, 9)
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_merge_keeps_each_trace_in_order_and_its_share(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [0] * 30_000, list(range(30_000)))
    two = write(tmp_path / "b", [5] * 10_000, list(range(10_000)))
    assert merge([one, two], tmp_path / "m") == 40_000
    merged = accesses(Trace(tmp_path / "m"))
    assert [page for who, page in merged if who == 0] == list(range(30_000))
    assert [page for who, page in merged if who == 1] == list(range(10_000))
    early = sum(who == 1 for who, _ in merged[:20_000])
    assert 4_000 < early < 6_000


def test_a_sample_keeps_all_accesses_to_a_share_of_the_pages(tmp_path: Path) -> None:
    pages = np.random.default_rng(1).integers(0, 20_000, 100_000).tolist()
    trace = write(tmp_path / "t", [0] * len(pages), pages)
    sample(trace, tmp_path / "s", 0.25)
    kept = [page for _, page in accesses(Trace(tmp_path / "s"))]
    chosen = set(kept)
    assert kept == [page for page in pages if page in chosen]
    assert 0.23 < len(chosen) / 20_000 < 0.27


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("no")
    with pytest.raises(BadInput, match="not a trace"):
        Trace(tmp_path / "x")
