"""A minute of coverage-guided fuzzing; `make fuzz` goes on for a million inputs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fuzz.run import Count, Fuzzing, build_id

from . import surface
from .seeds import seeds
from .surface import one_input, random_inputs

ROOT = Path(__file__).resolve().parents[2]


def test_no_bytes_break_the_machine_or_a_neighbour(fuzzer: Fuzzing) -> None:
    (job,) = fuzzer.jobs
    status = job.process.wait(280)
    kept = [path.read_bytes().hex() for path in fuzzer.directory.glob("[ct][ri][am]*-*")]
    assert status == 0, f"{job.log.read_text(errors='replace')[-3000:]}\ninputs: {kept}"
    assert fuzzer.inputs > 300, "more than it begins with, however busy the machine"
    assert fuzzer.edges > 1000


def test_random_bytes_reach_every_operation_without_the_fuzzer() -> None:
    assert random_inputs(seconds=0, seed=5, least=300) == 300


def test_a_guest_may_be_killed_while_a_thread_of_it_is_inside() -> None:
    """Found by a million inputs: page 1 is an SECS, the guest is inside when its monitor ends."""
    one_input(bytes.fromhex(
        "0117060100170602001782011702021706020017c2011702221c1c04010704221ce50403000217070300000000"
        "520009090000030017030317320000001732000000"
    ))  # fmt: skip


def test_the_inputs_to_begin_with_enter_grow_and_page_enclaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the fuzzer would knock at the door only: for long no input of it had ever entered an enclave."""
    from epcgroup.sgx import enclu, leaves, thread

    reached: set[str] = set()
    inner = {(thread, "eenter"), (thread, "eresume"), (thread, "eexit"), (thread, "asynchronous_exit"),
             (thread, "edeccssa"), (enclu, "eaccept"), (enclu, "emodpe"), (enclu, "eacceptcopy"),
             (enclu, "ereport"), (enclu, "egetkey"), (leaves, "eaug"), (leaves, "emodt"),
             (leaves, "emodpr")}  # fmt: skip
    for module, name in inner:
        real = getattr(module, name)

        def noting(*args: object, real: object = real, name: str = name, **more: object) -> object:
            result = real(*args, **more)  # type: ignore[operator]
            reached.add(name)
            return result

        monkeypatch.setattr(module, name, noting)
    for data in seeds():
        one_input(data)
    assert reached == {name for _, name in inner}


def test_a_broken_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The harness can fail: here a page that the machine forgets to free."""
    from epcgroup.epc.pool import Pool

    surface.forget_machines()
    with monkeypatch.context() as broken:
        broken.setattr(Pool, "give", lambda *_: None, raising=True)
        with pytest.raises(Exception, match=r"INV-3|still in use|pages in use"):
            random_inputs(seconds=0, seed=5, least=1000)
    surface.forget_machines()


def test_a_run_goes_on_where_the_last_one_stopped_and_says_its_figures(tmp_path: Path) -> None:
    def sitting() -> str:
        words = ["-m", "tests.fuzz.run", "--jobs", "1", "--runs", "400", str(tmp_path)]
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=250, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.splitlines()[-1]

    (tmp_path / "state.json").write_text(json.dumps({"build": build_id(), "inputs": 150, "seconds": 2.0}))
    said = sitting()
    inputs = int(said.split(": ")[1].split()[0])
    assert inputs >= 400
    assert Count(tmp_path / "count-0").value == inputs - 150
    assert said.endswith(": clean")
    assert "edges" in said
    assert "done already" in sitting()
