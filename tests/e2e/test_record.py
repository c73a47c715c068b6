"""Record real enclaves, simulate what was recorded, drive real enclaves by a trace: the counts agree."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.e2e.machine import EPCGROUP, NEEDS
from tests.e2e.served import NEEDS as FUSE_NEEDS
from tests.e2e.served import eventually, served

from epcgroup.errors import Refused
from epcgroup.serve.places import Places
from epcgroup.serve.tape import Tape
from epcgroup.sim import Trace, Writer, run

MIB = 1 << 20
pytestmark = pytest.mark.needs(*NEEDS)


def epcgroup(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [EPCGROUP, *map(str, words)], capture_output=True, text=True, timeout=120, check=False
    )


def live(folder: Path, *words: str | Path, policy: str = "standard") -> dict[str, Any]:
    """`epcgroup run` of a program on 16 MiB under a limit of 4 MiB: its cgroup in the report."""
    file = folder / "report.json"
    options = ("--epc", "16M", "--max", "4M", "--policy", policy, "--report", "json", "--report-file", file)
    done = epcgroup("run", *options, *words)
    assert done.returncode == 0, done.stderr
    groups = {group["path"]: group for group in json.loads(file.read_text())["groups"]}
    return groups["/run"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("policy", "pattern", "off"),
    [("standard", "random", 0.09), ("v5", "zipf", 0.09), ("v17", "seq", 0.03)],
)
def test_what_was_recorded_is_simulated_with_the_same_loads(
    tmp_path: Path, policy: str, pattern: str, off: float
) -> None:
    """Not exactly: touches of resident pages are known by the scans alone (live.recording)."""
    trace = tmp_path / "t.parquet"
    stress = (EPCGROUP, "stress", "--heap", "8M", "--passes", "2", "--pattern", pattern)
    group = live(tmp_path, "--record", trace, "--", *stress, policy=policy)
    assert group["pages_in"] > 2000
    result = run(tmp_path / "t.toml")
    assert result.summary["policy"] == policy
    assert result.summary["loads"] == pytest.approx(group["pages_in"], rel=off)
    assert result.summary["evictions"] == pytest.approx(group["pages_out"], rel=off)
    info = Trace(trace).info
    assert info.clock == "fault"
    ((name, size),) = info.enclaves.values()
    assert "/run" in name
    assert size == 2048 + 3, "heap, code, TCS and SSA"


def cyclic(path: Path, *enclaves: int, pages: int = 1500, rounds: int = 3) -> None:
    """A trace of enclaves that go round their pages."""
    with Writer(path, "test") as writer:
        for _ in range(rounds):
            for enclave in enclaves:
                writer.append(enclave, np.arange(pages))


def test_a_real_enclave_is_driven_by_a_trace_and_pages_as_the_simulation_says(tmp_path: Path) -> None:
    """A cyclic scan of 1500 pages under 1024: every touch is a load, less what the limit leaves resident."""
    cyclic(tmp_path / "c.parquet", 1)
    group = live(tmp_path, "--", EPCGROUP, "stress", "--trace", tmp_path / "c.parquet")
    scenario = """
        [machine]
        profile = "icelake"
        epc = "16M"
        [[cgroup]]
        path = "/run"
        max = "4M"
        [[tenant]]
        name = "c"
        cgroup = "/run"
        trace = "three.parquet"
        """
    cyclic(tmp_path / "three.parquet", 1, rounds=5)  # its heap is filled first and checked last
    (tmp_path / "c.toml").write_text(scenario)
    assert group["pages_in"] == pytest.approx(run(tmp_path / "c.toml").summary["loads"], rel=0.03)


def test_replay_drives_an_enclave_for_each_of_the_trace_under_one_limit(tmp_path: Path) -> None:
    cyclic(tmp_path / "two.parquet", 3, 7, pages=1100, rounds=2)
    file = tmp_path / "report.json"
    options = ("--epc", "16M", "--max", "4M", "--report", "json", "--report-file", file)
    done = epcgroup("replay", *options, tmp_path / "two.parquet")
    assert done.returncode == 0, done.stderr
    groups = {group["path"]: group for group in json.loads(file.read_text())["groups"]}
    assert groups["/replay"]["limit"] == 4 * MIB >= groups["/replay"]["peak"]
    assert groups["/replay/3"]["pages_out"] > 100
    assert groups["/replay/7"]["pages_out"] > 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stress", "--trace", "two.parquet"), "choose one of its enclaves with --enclave: [3, 7]"),
        (("stress", "--trace", "two.parquet", "--enclave", "4"), "no accesses of enclave 4"),
        (("stress", "--trace", "two.parquet", "--enclave", "3", "--heap", "4K"), "it needs 20 pages"),
        (("stress", "--trace", "two.parquet", "--enclave", "3", "--threads", "2"), "no --threads"),
        (("stress", "--trace", "none.parquet"), "none.parquet: no such file"),
        (("replay", "--cgroup", "a", "two.parquet"), "replay makes its own cgroups"),
        (("run", "--record", "t.csv", "--", "true"), "a trace is written as FILE.parquet"),
        (("run", "--record", "none/t.parquet", "--", "true"), "there is no such directory"),
        (("record", "t.parquet", "--seconds", "0"), "--seconds 0: more than 0"),
        (("record", "t.parquet", "--dir", "none"), "no server answers"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    cyclic(tmp_path / "two.parquet", 3, 7, pages=20)
    done = epcgroup(*words)
    assert done.returncode in (1, 2)
    assert said in done.stderr


def recordable(directory: Path) -> bool:
    try:
        with Tape(Places(directory)) as tape:
            return len(tape.take(all_=True)[1]) == 0
    except Refused:
        return False


@pytest.mark.needs(*FUSE_NEEDS)
def test_a_served_machine_is_recorded_from_beside_it_one_at_a_time(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.path("busy").mkdir()
        server.write("busy/misc.max", f"sgx_epc {4 * MIB}")
        trace = tmp_path / "t.parquet"
        words = [EPCGROUP, "record", str(trace), "--dir", str(tmp_path)]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as recorder:
            assert recorder.stderr is not None
            assert "recording" in recorder.stderr.readline()
            with pytest.raises(OSError, match="one at a time"):
                Tape(Places(tmp_path))
            done = server.exec("busy", EPCGROUP, "stress", "--heap", "8M", "--passes", "2")
            assert done.returncode == 0
            recorder.send_signal(signal.SIGINT)
            assert recorder.wait(60) == 0
            assert "epcgroup sim" in recorder.stderr.read()
        eventually(lambda: recordable(tmp_path))  # the end of a client is the end of its recording
    result = run(tmp_path / "t.toml")
    assert result.tenants["cgroup"].to_list() == ["/busy"]
    assert result.summary["loads"] > 2000
