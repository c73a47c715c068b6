"""Scenarios: what they say, when they refuse, what comes out."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import signal
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest

from epcgroup import sim
from epcgroup.cli.main import main
from epcgroup.epc import V17, Policy
from epcgroup.errors import BadInput, to_install
from epcgroup.sim.record import SAMPLES
from epcgroup.sim.scenario import parse
from epcgroup.sim.traces.trace import Trace, Writer

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "sim").glob("*.toml"))

ONE = """
[machine]
profile = "icelake"
epc = "64M"
[[cgroup]]
path = "/a"
max = "{limit}"
[[tenant]]
name = "t"
cgroup = "/a"
size = "8M"
accesses = 100_000
access_ns = 100
workload = {{ pattern = "{pattern}" }}
"""


def one(limit: str = "max", pattern: str = "uniform", more: str = "") -> sim.Result:
    return sim.run(ONE.format(limit=limit, pattern=pattern) + more)


def test_enough_epc_costs_the_first_touch_of_each_page_and_no_more() -> None:
    result = one()
    tenant = result.tenants.row(0, named=True)
    assert tenant["status"] == "done"
    assert tenant["loads"] == tenant["evictions"] == 0
    assert tenant["time_s"] == pytest.approx(100_000 * 100e-9 + 2048 * 6_250e-9, rel=0.001)
    assert (tenant["slowdown"], tenant["pressure"]) == (pytest.approx(1), pytest.approx(0, abs=1e-9))


def test_a_tighter_limit_is_slower() -> None:
    slow = [one(limit).tenants["slowdown"][0] for limit in ("9M", "6M", "4M", "2M")]
    assert slow == sorted(slow)
    assert slow[-1] > 5 * slow[0]


def test_time_is_what_the_counts_cost() -> None:
    """Faults, loads and evictions times their prices: the clock counts nothing else."""
    tenant = one("4M").tenants.row(0, named=True)
    hits = 100_000 * 100
    loads = tenant["loads"] * 3_750
    assert tenant["stall_s"] * 1e9 > loads + tenant["retried"] * 6_250
    first_touches = (tenant["time_s"] * 1e9 - hits - tenant["stall_s"] * 1e9) / 6_250  # of pages still there
    assert first_touches == pytest.approx(round(first_touches), abs=1e-3)
    assert 0 < first_touches <= 1024
    assert 0 < tenant["pressure"] < 1


def test_the_same_seed_gives_the_same_result() -> None:
    assert one("4M").tenants.equals(one("4M").tenants)


def test_stealing_workers_are_slower_than_workers_on_their_own_core() -> None:
    text = ONE.format(limit="max", pattern="uniform").replace('epc = "64M"', 'epc = "6M"')
    apart = sim.run(text).tenants["time_s"][0]
    stealing = sim.run(text.replace("[machine]", '[machine]\nworker = "steals"')).tenants["time_s"][0]
    assert stealing > apart


def test_a_lowered_limit_takes_pages_under_standard_and_nothing_under_v17_until_the_next_fault() -> None:
    event = '\n[[event]]\nat = "30ms"\ncgroup = "/a"\nmax = "4M"\n'
    text = ONE.format(limit="max", pattern="scan").replace("accesses = 100_000", "accesses = 400_000") + event
    standard = sim.run(text)
    v17 = sim.run(text.replace("[machine]", '[machine]\npolicy = "v17"'))
    assert standard.groups.filter(cgroup="/a")["usage"][-2] <= 4 << 20
    assert standard.tenants["evictions"][0] > 1000
    assert v17.tenants["evictions"][0] == 0, "every page is resident: no fault, no charge, no reclaim"


def test_a_disabled_enclave_ends_with_that_status() -> None:
    event = '\n[[event]]\nat = "30ms"\ncgroup = "/a"\nmax = "0"\n'
    assert one(more=event).tenants["status"][0] == "disabled"


def test_a_guest_that_does_not_fit_is_refused_and_one_that_exits_gives_its_pages_back() -> None:
    guests = """
[[tenant]]
name = "vm"
kind = "guest"
cgroup = "/a"
size = "3M"
copies = 2
[[event]]
at = "5ms"
tenant = "vm-1"
exit = true
"""
    text = ONE.format(limit="5M", pattern="scan").replace('cgroup = "/a"\nsize = "8M"', 'size = "8M"')
    tenants = {row["tenant"]: row for row in sim.run(text + guests).tenants.to_dicts()}
    assert tenants["vm-1"]["status"] == "exited"
    assert tenants["vm-2"]["status"] == "refused"
    assert tenants["t"]["status"] == "done"


def test_ctrl_c_gives_the_result_so_far() -> None:
    def stop(_share: float, accesses: int) -> None:
        if accesses > 20_000:
            raise KeyboardInterrupt

    result = sim.run(parse(ONE.format(limit="4M", pattern="uniform")), stop)
    assert result.summary["interrupted"]
    assert 0 < result.tenants["accesses"][0] < 100_000


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    result = one("4M")
    result.write(tmp_path / "r")
    again = sim.Result.read(tmp_path / "r")
    assert again.tenants.equals(result.tenants)
    assert again.groups.equals(result.groups)
    assert again.summary == result.summary


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run_and_can_be_shown(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", str(path), "-o", str(tmp_path / "r")]) == 0
    assert main(["report", str(tmp_path / "r"), "--plot", str(tmp_path / "r.png")]) == 0
    assert (tmp_path / "r.png").stat().st_size > 10_000
    assert "slowest first" in capsys.readouterr().out


def test_there_are_five_examples() -> None:
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('max = "9M"', 'max = "lots"'), r"scenario:7: cgroup\[1\]\.max: 'lots' is not a size"),
        (('size = "8M"', "size = 8"), r"scenario:11: tenant\[1\]\.size is 8; want string"),
        (('cgroup = "/a"', 'cgroup = "/b"'), r"scenario:10: tenant\[1\]\.cgroup is '/b'; there are /, /a"),
        (("accesses =", "acesses ="), r"scenario:12: tenant\[1\]\.acesses is not known here"),
        (('pattern = "scan"', 'pattern = "zip"'), r"scenario:14: .*pattern is 'zip'; want one of uniform"),
        (('profile = "icelake"', 'profile = "ice"'), r"scenario:3: machine\.profile: no cost profile 'ice'"),
        (("[machine]", "[maschine]"), r"scenario:\d+: .*maschine is not known here"),
        (('name = "t"\n', ""), r"scenario:8: tenant\[1\] lacks name"),
        (('size = "8M"', 'size = "9000T"'), r"scenario:11: tenant\[1\]\.size is '9000T'; .* less than 8T"),
        (
            ("accesses =", "copies = 200_000\naccesses ="),
            r"scenario:12: .*copies is 200000; want at most 100000",
        ),
        (("access_ns = 100", "access_ns = nan"), r"scenario:13: .*access_ns is nan; .*finite"),
        (
            ('"icelake"', '"icelake"\nquantum = "0s"'),
            r"scenario:4: machine\.quantum is '0s'; want more than 0",
        ),
        (('epc = "64M"', 'epc = "0"'), r"scenario:4: machine\.epc is '0'; want at least a page"),
        (('"scan"', '"mixture", parts = [3]'), r"scenario:14: .*workload: parts: want a list of patterns"),
    ],
)
def test_a_fault_in_a_scenario_names_its_line(change: tuple[str, str], said: str) -> None:
    text = ONE.format(limit="9M", pattern="scan")
    assert change[0] in text
    with pytest.raises(BadInput, match=said):
        parse(text.replace(*change))


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "epcgroup scenario"


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


def test_samples_of_a_run_that_takes_longer_than_expected_are_thinned() -> None:
    """Nobody knows before how much paging will slow a run down; memory does not grow with it."""
    text = ONE.format(limit="64K", pattern="uniform").replace("accesses = 100_000", "accesses = 400_000")
    text = text.replace("[machine]", '[machine]\nquantum = "0.5ms"')
    times = sim.run(text).groups.filter(cgroup="/a")["time_s"].to_list()
    assert 500 < len(times) <= SAMPLES + 1
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert max(gaps[:-1]) < 1.01 * min(gaps[1:-1]), "equally far apart"


def test_pages_that_are_removed_are_gone_and_come_back_when_touched() -> None:
    """SGX2: a tenant gives half of its memory back at 50 ms."""
    text = ONE.format(limit="max", pattern="scan").replace('name = "t"', 'name = "t"\ndynamic = true')
    text += '[[event]]\nat = "50ms"\ntenant = "t"\nremove = "4M"\n'
    text = text.replace("accesses = 100_000", "accesses = 300_000").replace(
        "[machine]", '[machine]\nsample = "1ms"'
    )
    result = sim.run(text)
    usage = result.groups.filter(cgroup="/a")["usage"].to_list()
    drops = [before - after for before, after in itertools.pairwise(usage) if after < before]
    assert drops[0] > 3 << 20
    assert result.tenants["status"][0] == "done"
    assert max(usage[usage.index(min(usage[5:-1])) :]) > 8 << 20


def test_a_policy_with_a_knob_that_is_not_compiled_is_refused() -> None:
    @dataclass(frozen=True)
    class More(Policy):
        colour: str = ""

    knobs = {knob.name: getattr(V17, knob.name) for knob in fields(V17)}
    sim.CompiledMachine(100, More(**knobs))
    with pytest.raises(BadInput, match=r"'v17': the compiled engine does not know colour = 'red'"):
        sim.CompiledMachine(100, More(**knobs, colour="red"))


@pytest.mark.parametrize("verb", ["sim", "convert"])
def test_a_long_command_shows_rate_and_time_left_and_ctrl_c_ends_it(tmp_path: Path, verb: str) -> None:
    """On a terminal. The simulation shows what it has; of a conversion nothing is left."""
    if verb == "sim":
        (tmp_path / "s.toml").write_text(
            ONE.format(limit="2M", pattern="uniform").replace("100_000", "2_000_000_000")
        )
        command, shows = ["sim", str(tmp_path / "s.toml")], "(interrupted)"
    else:
        os.mkfifo(tmp_path / "in")
        command, shows = (
            ["trace", "convert", str(tmp_path / "in"), str(tmp_path / "out"), "--from", "csv"],
            "as it was",
        )
    here, there = pty.openpty()
    tool = Path(sys.executable).with_name("epcgroup")
    with subprocess.Popen([tool, *command], stdout=there, stderr=there) as program:
        os.close(there)
        feed = None
        if verb == "convert":
            feed = subprocess.Popen(["sh", "-c", f"(echo page; exec yes 5) > {tmp_path}/in"])
        said = ""
        while "accesses/s" not in said:
            said += os.read(here, 4096).decode()
        program.send_signal(signal.SIGINT)
        while shows not in said:
            said += os.read(here, 4096).decode()
        with contextlib.suppress(OSError):
            while os.read(here, 4096):
                pass
        assert program.wait() == 130
        if feed is not None:
            feed.kill()
            feed.wait()
    os.close(here)
    assert not (tmp_path / "out").exists()


def test_a_hundred_cgroups_of_one_tenant_each_are_two_tables() -> None:
    text = """
[machine]
profile = "icelake"
epc = "64M"
[[cgroup]]
path = "/pods"
[[cgroup]]
path = "/pods/p{n}"
max = "512K"
copies = 100
[[tenant]]
name = "pod"
cgroup = "/pods/p{n}"
size = "1M"
copies = 100
arrivals_per_s = 1000
accesses = 2000
"""
    result = sim.run(text)
    assert result.tenants["status"].to_list() == ["done"] * 100
    assert result.tenants["cgroup"].n_unique() == 100
    assert result.groups.filter(cgroup="/pods")["usage"][-1] == 0
    with pytest.raises(BadInput, match="each needs its own path"):
        parse(text.replace("p{n}", "p"))


def test_without_the_extra_a_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sim, "find_spec", lambda name: None if name == "polars" else object())
    assert main(["sim", str(EXAMPLES[0])]) == 2
    assert f"simulation needs polars: {to_install('sim')}" in capsys.readouterr().err
