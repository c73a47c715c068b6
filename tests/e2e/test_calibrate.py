"""`epcgroup calibrate`: a profile of the machine it runs on, refused where it would say nothing."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, command, run

from epcgroup import sim
from epcgroup.sim import costs

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

EPC = 1024  # pages


def test_an_emulated_machine_is_calibrated_when_one_insists_and_its_profile_serves_a_scenario(
    tmp_path: Path,
) -> None:
    place = tmp_path / "mine.toml"
    words = ("calibrate", "--emulated", "--epc", "4M", "--rounds", "2", str(place))
    ended = run(EPCGROUP, *words, epc=EPC, limit=None)
    assert ended.status == 0, ended.errors[-2000:]
    assert "load" in ended.output
    made = costs.load(str(place))
    measured = {name: one for name, one in made.cost.items() if one.mark == "C"}
    assert measured.keys() == {"create", "add", "evict", "first_eviction", "fault", "load"}
    assert all("2 rounds" in one.source and "EMULATED" in one.source for one in measured.values())
    assert made.cost["track"].source.startswith("not measured; as icelake")
    assert (made.epc_pages, made.name) == (EPC, "mine")
    # One alone may come out as nothing, as the difference of what a busy machine did in two rounds.
    assert sum(one.ns for one in measured.values()) > 1_000, "all of this takes microseconds at least"
    (tmp_path / "s.toml").write_text(
        '[machine]\nprofile = "mine.toml"\n[[tenant]]\nname = "t"\nsize = "8M"\naccesses = 10_000\n'
    )
    assert sim.run(tmp_path / "s.toml").tenants["status"].to_list() == ["done"]


def test_an_emulated_machine_is_refused(tmp_path: Path) -> None:
    ended = run(EPCGROUP, "calibrate", str(tmp_path / "mine.toml"), epc=EPC, limit=None)
    assert ended.status == 2
    assert "emulated" in ended.errors
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_keeps_the_whole_rounds(tmp_path: Path) -> None:
    place = tmp_path / "mine.toml"
    words = ("calibrate", "--emulated", "--epc", "4M", "--rounds", "60", str(place))
    here, there = pty.openpty()
    with subprocess.Popen(
        command(EPCGROUP, *words, epc=EPC, limit=None), stderr=there, stdout=there
    ) as machine:
        os.close(there)
        said = b""
        while b"pages/s" not in said:
            said += os.read(here, 4096)
        while not re.search(rb" [2-9]%", said):
            said += os.read(here, 4096)
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text().split()
        while not place.exists():  # whoever is impatient loses nothing
            for child in children:
                os.kill(int(child), signal.SIGINT)
            time.sleep(0.002)
        while b"not measured" not in said:
            said += os.read(here, 4096)
        assert machine.wait() == 130
    os.close(here)
    assert "rounds" in costs.load(str(place)).cost["add"].source
