"""Traces recorded here from real programs: read, packed, replayed on both engines."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from scripts import both

from epcgroup import sim
from epcgroup.epc import POLICIES, Policy
from epcgroup.sim.kernel import columns as c
from epcgroup.sim.traces.convert import convert
from epcgroup.sim.traces.trace import Trace
from epcgroup.units import PAGE_SIZE

pytestmark = pytest.mark.needs("valgrind", "sqlite3")


@pytest.fixture(scope="session", params=["sort", "sqlite3", "python", "gzip"])
def recording(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The first 300,000 lines of what lackey says of a program, converted."""
    folder = tmp_path_factory.mktemp("lackey")
    (folder / "in").write_text("".join(f"{n * 7919 % 1000}\n" for n in range(300)))
    commands = {
        "sort": ["sort", "-n", "in"],
        "sqlite3": ["sqlite3", ":memory:", "create table t(a); insert into t values(1); select * from t;"],
        "python": [sys.executable, "-S", "-E", "-c", "sorted(range(1000))"],
        "gzip": ["gzip", "-c", "in"],
    }
    with subprocess.Popen(
        ["valgrind", "--tool=lackey", "--trace-mem=yes", *commands[request.param]],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as program:
        assert program.stderr is not None
        (folder / "lackey").write_bytes(b"".join(itertools.islice(program.stderr, 300_000)))
        program.kill()
    convert(folder / "lackey", "lackey", folder / "trace")
    return Trace(folder / "trace")


def test_recordings_of_real_programs_are_read_and_packed(recording: Trace) -> None:
    assert recording.info.accesses > 50_000
    assert recording.info.clock == "instruction"
    pages = np.unique(np.concatenate(list(recording.pages_of(0))))
    assert pages.tolist() == list(range(recording.info.enclaves[0][1])), "by first touch, without holes"
    assert recording.size < 2 * recording.info.accesses


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_both_engines_page_alike_over_a_recording(recording: Trace, policy: Policy) -> None:
    touched = np.concatenate([pages for _, pages, _ in recording.runs()])[:20_000]
    size = recording.info.enclaves[0][1]
    reference, compiled = both(policy, 4096)
    operations = ["mkcg /a", f"max /a {max(size // 2, 20) * PAGE_SIZE}", "proc 1 /a", f"encl 1 1 {size}"]
    operations += [f"addb 1 0 {size}", "init 1"]
    operations += [f"touch 1 {' '.join(map(str, part.tolist()))}" for part in np.array_split(touched, 40)]
    for operation in operations:
        assert compiled.run(operation) == reference.run(operation), operation[:40]
    assert compiled.check() == reference.check()
    assert int(compiled.machine.g[c.LOADED_TOTAL]) > 20, "half of its pages do not fit"


def test_a_recording_takes_longer_under_a_tighter_limit(recording: Trace) -> None:
    size = recording.info.enclaves[0][1]
    slow = []
    for pages in (size + 40, max(size // 2, 20), max(size // 4, 12)):
        result = sim.run(
            f'[machine]\nprofile = "icelake"\n[[cgroup]]\npath = "/a"\nmax = "{pages * PAGE_SIZE}"\n'
            f'[[tenant]]\nname = "t"\ncgroup = "/a"\ntrace = "{recording.path}"\naccess_ns = 1\n'
        )
        tenant = result.tenants.row(0, named=True)
        assert (tenant["status"], tenant["accesses"]) == ("done", recording.info.accesses)
        slow.append(tenant["slowdown"])
    assert slow[0] < slow[1] < slow[2]
