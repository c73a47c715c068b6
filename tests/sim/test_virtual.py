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

import pytest
from scenarios import ONE

from epcgroup import sim
from epcgroup.cli.main import main
from epcgroup.epc import V17, Policy
from epcgroup.errors import BadInput, to_install
from epcgroup.sim.record import SAMPLES
from epcgroup.sim.scenario import parse, read

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples" / "sim").glob("*.toml"))


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


def test_a_result_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after the first of its three files it was a part of two runs."""
    first = one("4M")
    first.write(tmp_path)

    def killed(_file: Path, _to: Path) -> None:
        raise KeyboardInterrupt

    second = one("8M")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            second.write(tmp_path)
    with pytest.raises(BadInput, match="no result"):
        sim.Result.read(tmp_path)
    first.write(tmp_path)
    assert sim.Result.read(tmp_path).summary == first.summary
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "groups.parquet",
        "summary.json",
        "tenants.parquet",
    ]


@pytest.mark.parametrize("text", ["[]", "{}", "\xff"])
def test_a_summary_of_something_else_is_named(tmp_path: Path, text: str) -> None:
    one("4M").write(tmp_path)
    (tmp_path / "summary.json").write_text(text, encoding="latin-1")
    with pytest.raises(BadInput, match=str(tmp_path)):
        sim.Result.read(tmp_path)


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
        (('max = "9M"', "max = 9437184"), r"scenario:7: .*max is 9437184; want string \(as a size, or max\)"),
        (('path = "/a"', 'path = "/a/"'), r"scenario:6: .*path is '/a/'; want a path like /pods/a"),
        (('path = "/a"', 'path = "//a"'), r"scenario:6: .*path is '//a'; want a path"),
        (('path = "/a"', 'path = "/.."'), r"scenario:6: .*path is '/\.\.'; want a path"),
        (('name = "t"', 'name = " "'), r"scenario:9: tenant\[1\]\.name is ' '; want a name"),
        (("[[tenant]]", "[tenant]"), r"scenario:8: tenant is one table; .* write \[\[tenant\]\]"),
        (('"icelake"', '"icelake"\nseed = -1'), r"scenario:4: machine\.seed is -1; want at least 0"),
        (('"icelake"', '"icelake"\nduration = 0'), r"scenario:4: machine\.duration is 0; want more than 0"),
        (
            ("[[tenant]]", '[[event]]\nat = 1\nmax = "1M"\n[[tenant]]'),
            r"scenario:8: event\[1\] has max; want",
        ),
        (
            (
                "[[tenant]]",
                '[[event]]\nat = 1\ncgroup = "/a"\nmax = "1M"\nexit = true\ntenant = "t"\n[[tenant]]',
            ),
            r"event\[1\] has cgroup, exit, max, tenant; want cgroup and max, or tenant and one of",
        ),
    ],
)
def test_a_fault_in_a_scenario_names_its_line(change: tuple[str, str], said: str) -> None:
    text = ONE.format(limit="9M", pattern="scan")
    assert change[0] in text
    with pytest.raises(BadInput, match=said):
        parse(text.replace(*change))


def test_a_copy_has_no_other_s_name() -> None:
    text = ONE.format(limit="9M", pattern="scan")
    copies = '[[tenant]]\nname = "c"\ncopies = 2\nsize = "4K"\n'
    with pytest.raises(BadInput, match=r"tenant\[2\]\.name is 'c-2' a second time"):
        parse(text.replace("[[tenant]]", copies + "[[tenant]]").replace('name = "t"', 'name = "c-2"'))


def test_a_scenario_without_a_tenant_is_none() -> None:
    """It was simulated, and its table could not be shown."""
    text = ONE.format(limit="9M", pattern="scan")
    with pytest.raises(
        BadInput, match=r"scenario:1: scenario has no tenant; want at least one \[\[tenant\]\]"
    ):
        parse(text[: text.index("[[tenant]]")])


def test_a_scenario_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (file := tmp_path / "s.toml").write_bytes(
        b"\xef\xbb\xbf" + ONE.format(limit="9M", pattern="scan").encode()
    )
    assert read(file).tenants


@pytest.mark.parametrize(
    "change",
    [
        ('name = "t"', 'name = "t"\nstart = "5s"'),
        ("[machine]", '[machine]\nquantum = "1h"'),
        ("[[tenant]]", '[[event]]\nat = "5s"\ncgroup = "/a"\nmax = "4M"\n[[tenant]]'),
    ],
)
def test_a_run_never_lasts_longer_than_its_duration(change: tuple[str, str]) -> None:
    """Not to the next start, event or quantum."""
    text = ONE.format(limit="4M", pattern="uniform").replace("[machine]", "[machine]\nduration = 0.00001")
    assert sim.run(text.replace(*change)).summary["virtual_s"] == 0.00001


def test_the_schema_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "epcgroup scenario"


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
