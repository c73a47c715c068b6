"""Tenants that replay traces: one of a trace or all, read as they run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scenarios import ONE

from epcgroup import sim
from epcgroup.cli.main import main
from epcgroup.errors import BadInput
from epcgroup.sim.traces.trace import Trace, Writer


def test_trace_commands_work_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.csv").write_text("page\n" + "\n".join(str(n % 50) for n in range(1000)))
    names = {name: str(tmp_path / name) for name in ("a", "b", "c", "d")}
    assert main(["trace", "convert", str(tmp_path / "in.csv"), names["a"], "--from", "csv"]) == 0
    assert main(["trace", "cut", names["a"], names["b"], "--last", "500"]) == 0
    assert main(["trace", "merge", names["c"], names["a"], names["b"]]) == 0
    assert main(["trace", "sample", names["c"], names["d"], "--rate", "0.5"]) == 0
    capsys.readouterr()
    assert main(["trace", "info", names["c"]]) == 0
    assert "1,500 accesses" in capsys.readouterr().out


def test_a_tenant_may_replay_a_trace(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("page\n" + "\n".join(str(n % 50) for n in range(1000)))
    assert main(["trace", "convert", str(tmp_path / "in.csv"), str(tmp_path / "t"), "--from", "csv"]) == 0
    text = ONE.format(limit="max", pattern="scan").replace('workload = { pattern = "scan" }', 'trace = "t"')
    (tmp_path / "s.toml").write_text(text)
    tenant = sim.run(tmp_path / "s.toml").tenants.row(0, named=True)
    assert (tenant["accesses"], tenant["status"]) == (1000, "done")


MANY = """
[machine]
profile = "icelake"
epc = "64M"
[[cgroup]]
path = "/pods"
[[cgroup]]
path = "/pods/p{n}"
max = "64K"
copies = 300
[[tenant]]
name = "pod"
cgroup = "/pods/p{n}"
trace = "t"
enclave = "*"
access_ns = 50
"""


def trace_of_many(path: Path, enclaves: int, accesses: int) -> None:
    rng = np.random.default_rng(1)
    with Writer(path, "test") as writer:
        for number in range(enclaves):
            writer.name(number, f"pod {number}")
        for start in range(0, accesses, 1 << 20):
            count = min(1 << 20, accesses - start)
            writer.append(rng.integers(0, enclaves, count), rng.integers(0, 40, count))


def test_one_call_replays_a_whole_trace_of_hundreds_of_enclaves(tmp_path: Path) -> None:
    trace_of_many(tmp_path / "t", 300, 400_000)
    (tmp_path / "s.toml").write_text(MANY)
    result = sim.run(tmp_path / "s.toml")
    assert result.tenants["status"].to_list() == ["done"] * 300
    assert result.tenants["accesses"].sum() == 400_000
    counts = Trace(tmp_path / "t").info.counts
    assert dict(enumerate(result.tenants["accesses"].to_list())) == counts
    assert result.tenants["loads"].min() > 100, "16 pages of 40 fit"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('enclave = "*"', 'enclave = "pod 7"'), None),
        (('enclave = "*"', "enclave = 8"), None),
        (('enclave = "*"\n', ""), r"s.toml:11: tenant\[1\]\.enclave is not given; there are pod 0, pod 1"),
        (('enclave = "*"', 'enclave = "x"'), r"s.toml:15: tenant\[1\]\.enclave is 'x'; there are pod 0"),
        (('trace = "t"', 'trace = "u"'), r"s.toml:14: tenant\[1\]\.trace: .*u: no such file"),
        (('trace = "t"\n', ""), r"tenant\[1\]\.enclave is one of a trace, and there is no trace"),
        (("access_ns = 50", 'size = "8K"'), r"s.toml:16: tenant\[1\]\.size is 2 pages; the trace touches 40"),
    ],
)
def test_a_tenant_names_its_enclave_of_a_trace(
    tmp_path: Path, change: tuple[str, str], said: str | None
) -> None:
    trace_of_many(tmp_path / "t", 10, 20_000)
    (tmp_path / "s.toml").write_text(MANY.replace(*change))
    if said is None:
        tenant = sim.run(tmp_path / "s.toml").tenants.row(0, named=True)
        assert 1_800 < tenant["accesses"] < 2_200
    else:
        with pytest.raises(BadInput, match=said):
            sim.run(tmp_path / "s.toml")


def test_memory_stays_flat_while_a_trace_streams_from_disk(tmp_path: Path) -> None:
    """Twelve times the accesses, the same memory (the longer trace alone would take 90 MiB)."""
    (tmp_path / "s.toml").write_text(MANY.replace("copies = 300", "copies = 3").replace("64K", "1M"))
    program = (
        "import resource, sys; from pathlib import Path; from epcgroup import sim\n"
        "print(sim.run(Path(sys.argv[1])).tenants['accesses'].sum())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)\n"
    )
    used = []
    for accesses in (1_000_000, 12_000_000):
        trace_of_many(tmp_path / "t", 3, accesses)
        command = [sys.executable, "-c", program, str(tmp_path / "s.toml")]
        said = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
        assert int(said[0]) == accesses
        used.append(int(said[1]))
    assert used[1] < used[0] + 60, f"{used} MiB"
