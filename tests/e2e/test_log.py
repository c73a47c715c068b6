"""`--log json` and `why`: what happened to real enclaves, told from log and history."""

from __future__ import annotations

import re
import subprocess
import time
from pathlib import Path

import pytest
from tests.e2e.machine import EPCGROUP, NEEDS, run
from tests.e2e.served import NEEDS as FUSE_NEEDS
from tests.e2e.served import eventually, served

from epcgroup.observe.log import read
from epcgroup.observe.store import Store
from epcgroup.serve.places import Places
from epcgroup.serve.sources import SocketSource

STRESS = (EPCGROUP, "stress", "--seconds", "1", "--heap", "8M")


def why(*words: str) -> str:
    """What it answers; nothing while it knows nothing yet."""
    done = subprocess.run([EPCGROUP, "why", *words], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout


@pytest.mark.needs(*NEEDS)
def test_an_enclave_that_died_of_a_page_that_was_tampered_with_is_told_so(tmp_path: Path) -> None:
    file = tmp_path / "log"
    options = ("--log", "json", "--log-file", str(file), "--inject", "tamper@100")
    ended = run(*STRESS, epc=4096, limit=1024, options=options)
    assert ended.status != 0
    assert "MAC" not in ended.errors, "the log is in its file alone"
    events = {event.kind: event for event in read(file)}
    assert events["failed"].enclave == 1
    assert "MAC mismatch" in events["failed"].reason
    assert {"began", "limit", "said", "ended"} <= events.keys()
    said = why("--log", str(file), "1")
    assert "failed with SIGBUS" in said
    assert "MAC mismatch" in said
    assert "/run hit its limit of 4M" in said


@pytest.mark.needs(*NEEDS)
def test_a_refused_ioctl_is_logged_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "log"
    run("negative", epc=4096, options=("--log-file", str(file)))
    refused = [event for event in read(file) if event.kind == "refused"]
    assert {"EINVAL", "EPERM"} <= {event.errno for event in refused}
    assert all(event.reason and event.pid for event in refused)
    assert any(event.reason.startswith("INIT: ") for event in refused)


@pytest.mark.needs(*FUSE_NEEDS)
def test_a_cgroup_that_was_slow_is_told_so_from_the_servers_history(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.path("slow").mkdir()
        server.write("slow/misc.max", f"sgx_epc {4 << 20}")
        assert server.exec("slow", EPCGROUP, "stress", "--seconds", "1.5", "--heap", "8M").returncode == 0
        eventually(lambda: "hit its limit" in why("--dir", str(tmp_path), "/slow"))
        said = why("--dir", str(tmp_path), "/slow")
        assert "/slow waited for pages" in said
        assert "/slow hit its limit of 4M" in said
        assert "waited for pages" in why("--dir", str(tmp_path), "1")
        now = time.strftime("%H:%M:%S")
        asked = "--dir", str(tmp_path), "slow", "--span", "60", "--at"
        assert "/slow hit its limit of 4M" in why(*asked, now), "a moment by the clock"
        yesterday = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() - 86400))
        assert "hit its limit" not in why(*asked, yesterday)
        server.stop()
    assert "/slow waited for pages" in why("--dir", str(tmp_path), "slow"), "it outlives the server"
    unknown = [EPCGROUP, "why", "--dir", str(tmp_path), "/none"]
    done = subprocess.run(unknown, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "nothing is known of cgroup /none" in done.stderr


@pytest.mark.needs(*FUSE_NEEDS)
def test_an_enclave_that_was_disabled_is_told_so_and_its_program_meets_a_sigbus(tmp_path: Path) -> None:
    """A limit below what cannot be evicted: the SECS and the version arrays of eight megabytes."""
    with served(tmp_path) as server:
        server.path("tight").mkdir()
        server.write("tight/misc.max", f"sgx_epc {4 << 20}")
        words = server.argv("tight", EPCGROUP, "stress", "--seconds", "100", "--heap", "8M")
        with subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as program:
            source = SocketSource(Places(tmp_path))
            # It pages, so it is inside; before, its ioctls or mmap would be refused.
            eventually(lambda: any(group.pages_in > 1000 for group in source.snapshot().groups), 60)
            source.close()
            server.write("tight/misc.max", "sgx_epc 4096")
            output, _ = program.communicate(timeout=60)
        assert program.returncode == 1, output
        assert "the enclave was disabled" in output, "the program could say so itself"
        eventually(lambda: "for good" in why("--dir", str(tmp_path), "1"), 30)
        for target in ("1", "tight"):
            said = why("--dir", str(tmp_path), target)
            assert "lost its memory for good: /tight held" in said
            assert "under a limit of 4K, and nothing of it could be evicted" in said
            assert re.search(r"the limit of /tight was set to 4K, with [34][.0-9]*M in use", said)
            assert "failed with SIGBUS" in said
        server.stop()
    store = Store(tmp_path / "history", read_only=True)
    events = {event.kind: event for event in store.events()}
    store.close()
    assert events["set"].at <= events["disabled"].at <= events["ended"].at
