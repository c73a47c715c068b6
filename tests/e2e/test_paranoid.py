"""`--paranoid`: a sound machine passes every check, an unsound one ends at once, with status 70."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.e2e.machine import NEEDS, command, run

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]

# What breaks the machine, and the invariant that must notice.
BREAKS = {
    "an evicted page stays in the memfd": (
        "import epcgroup.live.paging.revoke as revoke; revoke.punch = lambda device, index, count=1: None",
        "LIVE-",
    ),
    "a page is hidden and shown at once": (
        "import epcgroup.live.paging.frames as frames; put = frames.MemfdFrames.put\n"
        "def both(self, enclave, index, contents, word):\n"
        "    put(self, enclave, index, contents, word)\n"
        "    self._devices[enclave].hidden[index] = bytearray(contents)\n"
        "frames.MemfdFrames.put = both",
        "LIVE-2",
    ),
    "an evicted page leaves no version behind": (
        "import epcgroup.driver.pager as pager; pager.SealingPager.slots_in_use = lambda self, enclave: 0",
        "LIVE-3",
    ),
    "a page that nothing touches is on no list": (
        "import epcgroup.epc.machine as m; fault = m.Machine.fault; done = []\n"
        "def careless(self, caller, enclave, index):\n"
        "    page = caller.group.reclaimable.tail\n"
        "    if page and page.prev and page.prev.prev and not done:\n"
        "        done.append(page.prev.prev.__setattr__('next', page))\n"
        "    return fault(self, caller, enclave, index)\n"
        "m.Machine.fault = careless",
        "INV-4",
    ),
    "the engine forgets to charge": (
        "import epcgroup.epc.machine as m; add = m.Machine.add_page\n"
        "def cheap(self, caller, enclave, index):\n"
        "    page = add(self, caller, enclave, index)\n"
        "    caller.group.usage[self.resource] -= 4096\n"
        "    return page\n"
        "m.Machine.add_page = cheap",
        "INV-1",
    ),
}


@pytest.mark.parametrize("policy", ["standard", "v5", "v17"])
def test_a_sound_machine_passes_every_check(policy: str) -> None:
    """More heap than the limit, so that pages come and go all the time."""
    ended = run("load", "once", 60, epc=128, limit=40, policy=policy, options=("--paranoid",))
    assert ended.status == 0, ended.errors[-3000:]
    assert "does not hold" not in ended.errors
    assert ended.report is not None
    assert ended.report["groups"][-1]["pages_in"] > 0, "nothing was paged: the test proves little"


@pytest.mark.parametrize("program", ["processes", "t2_epcm", "leaves", "t5_mapping"])
def test_whatever_programs_do_keeps_the_invariants(program: str) -> None:
    """Permissions, forks, ENCLU leaves, dynamic memory, mappings: what changes a page beside plain paging."""
    ended = run(program, epc=128, options=("--paranoid",))
    assert set(ended.cases.values()) == {"ok"}, f"{ended.output}\n{ended.errors[-3000:]}"


def test_a_hostile_program_breaks_no_invariant() -> None:
    """What its threads remap and touch at once is never there without the engine's knowing."""
    ended = run("hostile", 2, 1, epc=300, options=("--paranoid",))
    assert ended.status == 0, f"{ended.output}\n{ended.errors[-3000:]}"


@pytest.mark.parametrize(
    ("what", "way"), [*((what, "option") for what in BREAKS), (next(iter(BREAKS)), "environment")]
)
def test_a_broken_invariant_ends_the_machine(what: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line names the invariant, the command is killed, the status is that of a bug."""
    breaking, name = BREAKS[what]
    if way == "environment":
        monkeypatch.setenv("EPCGROUP_PARANOID", "1")
    options = ("--paranoid",) if way == "option" else ()
    words = command("load", "hold", 60, epc=128, limit=40, options=options)
    script = f"import sys\n{breaking}\nfrom epcgroup.cli.main import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", script, *words[1:]], capture_output=True, text=True, timeout=60, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 70, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert f"internal error: {name}" in done.stderr
    assert "does not hold" in done.stderr
