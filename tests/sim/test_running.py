"""A simulation that runs is a machine like any other: followed, asked for its past, never half."""

from __future__ import annotations

import errno
import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epcgroup.atonce import AtOnce
from epcgroup.cli.main import main
from epcgroup.errors import BadInput, Refused
from epcgroup.observe import Snapshot
from epcgroup.serve.sources import running
from epcgroup.serve.sources.running import RunningSource, published
from epcgroup.sim.result import Result
from epcgroup.sim.virtual import Simulation, run

SCENARIO = """
[machine]
profile = "icelake"
epc = "16M"
[[cgroup]]
path = "/pods"
max = "4M"
[[tenant]]
name = "a"
cgroup = "/pods"
size = "8M"
accesses = {accesses}
workload = {{ pattern = "uniform" }}
"""
SHORT, ENDLESS = SCENARIO.format(accesses=20_000), SCENARIO.format(accesses=10**12)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "result"


@pytest.fixture
def endless(tmp_path: Path, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A simulation in another process, of which something is to be seen; killed at the end."""
    scenario = tmp_path / "endless.toml"
    scenario.write_text(ENDLESS)
    words = [str(Path(sys.executable).parent / "epcgroup"), "sim", str(scenario), "-o", str(folder)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            source = RunningSource(folder)
            while not running.now_of(folder).exists() or not source.snapshot().time_s:
                assert process.poll() is None
                assert time.monotonic() < end, "it was never seen"
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def test_a_follower_sees_every_step_and_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_EVERY_S", 0.0)
    monkeypatch.setattr(running, "_SHARE", 1e9)
    source, seen = RunningSource(folder), list[Snapshot]()

    with published(folder, pytest.fail) as watch:

        def look(simulation: Simulation) -> None:
            watch(simulation)
            seen.append(source.snapshot())
            assert seen[-1].time_s == simulation.now / 1e9

        assert running.runs(folder)
        with pytest.raises(Refused, match="not begun"):
            source.snapshot()
        result = run(SHORT, watch=look)
        assert source.name == str(folder)
        result.write(folder)

    assert len(seen) > 10
    assert all(a.time_s < b.time_s for a, b in itertools.pairwise(seen))
    assert all(snapshot.virtual for snapshot in seen)
    group = seen[-1].group("/pods")
    assert group is not None
    assert group.limit == 4 << 20
    assert 0 < group.pages_in <= result.summary["loads"]
    assert source.snapshot().time_s == result.summary["virtual_s"]
    assert "over" in source.name
    assert {"limit", "burst"} <= {event.kind for event in source.events()}
    assert {path.name for path in folder.iterdir()} == {"groups.parquet", "summary.json", "tenants.parquet"}


def test_looking_takes_no_more_than_its_share_of_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With clocks of our own: a look that takes a second is repeated after twenty."""
    clock, used = itertools.count(1000.0), itertools.count(0.0)
    monkeypatch.setattr(running.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(running.time, "thread_time", lambda: next(used))
    written = list[float]()
    monkeypatch.setattr(running._Writer, "_write", lambda *_: written.append(0.0))
    with published(folder, pytest.fail) as watch:
        run(SHORT, watch=watch)
    calls = next(clock) - 1000.0
    assert 1 < len(written) <= calls / 20 + 1


def test_every_view_follows_a_simulation_of_another_process(
    folder: Path, endless: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["top", "--once", "--sim", str(folder)]) == 0
    assert " s virtual" in capsys.readouterr().out
    assert main(["exporter", "--once", "--sim", str(folder)]) == 0
    assert 'epc_cgroup_limit_bytes{cgroup="/pods"} 4194304' in capsys.readouterr().out
    assert main(["report", str(folder)]) == 0
    assert "still running" in capsys.readouterr().out
    end, said = time.monotonic() + 60, ""
    while "/pods hit its limit of 4M" not in said:  # told from the second sample on
        assert time.monotonic() < end, said
        assert main(["why", "/pods", "--sim", str(folder)]) == 0
        said = capsys.readouterr().out
        time.sleep(0.1)
    again = [str(Path(sys.executable).parent / "epcgroup"), "sim", "endless.toml", "-o", str(folder)]
    refused = subprocess.run(
        again, cwd=folder.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert refused.returncode == 1
    assert "another simulation writes its result" in refused.stderr

    end = time.monotonic() + 60
    while not (folder / "summary.json").exists():  # an impatient user takes nothing away
        assert time.monotonic() < end
        endless.send_signal(signal.SIGINT)
        time.sleep(0.002)
    assert endless.wait(60) == 130
    assert Result.read(folder).summary["interrupted"]
    assert not (folder / "running").exists()
    assert main(["why", "/pods", "--sim", str(folder)]) == 0
    assert "/pods waited for pages" in capsys.readouterr().out


def test_a_killed_simulation_is_not_taken_for_a_running_one_and_its_samples_are_not_lost(
    tmp_path: Path, folder: Path, endless: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    source = RunningSource(folder)
    source.snapshot()
    endless.kill()
    endless.wait()
    with pytest.raises(Refused, match="ended before it had a result"):
        source.snapshot()
    assert main(["top", "--once", "--sim", str(folder)]) == 1
    assert f"epcgroup report {folder}" in capsys.readouterr().err
    assert main(["report", str(folder)]) == 0
    assert "/pods: more: its limit of 4M was hit" in capsys.readouterr().out
    scenario = tmp_path / "short.toml"
    scenario.write_text(SHORT)
    assert main(["sim", str(scenario), "-o", str(folder)]) == 0
    assert not (folder / "running").exists()
    assert main(["top", "--once", "--sim", str(folder)]) == 0


def test_a_result_that_replaces_another_is_seen_whole_or_not_at_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its three files change places in turn; what is seen is of one run, also where the disk is full."""
    results = [run(SHORT), run(SHORT.replace("20_000", "20"))]
    results[0].write(folder)
    appear, seen = AtOnce.appear, list[str]()

    def look(place: AtOnce) -> None:
        with pytest.raises(BadInput, match=r"summary\.json is missing"):
            Result.read(folder)
        seen.append(str(place))
        if len(seen) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        appear(place)

    monkeypatch.setattr(AtOnce, "appear", look)
    results[1].write(folder)
    assert Result.read(folder).summary == results[1].summary
    with pytest.raises(BadInput, match="No space left"):
        results[0].write(folder)
    with pytest.raises(BadInput, match=r"summary\.json is missing"):
        Result.read(folder)
    assert {path.name for path in folder.iterdir()} == {"groups.parquet", "tenants.parquet"}


def test_a_folder_that_cannot_be_made_is_told_before_anything_is_simulated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    scenario = tmp_path / "endless.toml"
    scenario.write_text(ENDLESS)
    assert main(["sim", str(scenario), "-o", str(tmp_path / "file" / "r")]) == 2
    assert "cannot be written" in capsys.readouterr().err
