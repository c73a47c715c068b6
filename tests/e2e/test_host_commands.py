"""`tree`, `get`, `set`, `watch`, `events` and `doctor` on a mounted tree."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.processes import opened
from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually, served, stressed

pytestmark = pytest.mark.needs(*NEEDS)


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("host")) as server:
        server.path("pods").mkdir()
        server.write("cgroup.subtree_control", "+misc")
        server.write("pods/cgroup.subtree_control", "+misc")
        server.path("pods/a").mkdir()
        yield server


def run(machine: Served, command: str, *words: str) -> subprocess.CompletedProcess[str]:
    argv = [EPCGROUP, command, "--root", str(machine.mount), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_set_and_get_go_through_the_files(machine: Served) -> None:
    done = run(machine, "set", "pods", "2M")
    assert done.returncode == 0, done.stderr
    assert machine.value("pods/misc.max") == "2097152"
    report = json.loads(run(machine, "get", "--json", "pods/a").stdout)
    assert report["cgroups"][0]["effective"] == 2097152
    assert report["cgroups"][0]["effective_of"] == "/pods"
    assert "└─ a" in run(machine, "tree").stdout


def test_events_waits_for_the_limit_to_be_hit_anywhere(machine: Served) -> None:
    run(machine, "set", "pods/a", "1M")
    words = [EPCGROUP, "events", "--root", str(machine.mount), "--json", "--count", "3", "--timeout", "90"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        eventually(lambda: len(os.listdir(f"/proc/{waiting.pid}/fd")) > 4)  # noqa: PTH208
        with stressed(machine, "pods/a", "--heap", "3M"):
            output, _ = waiting.communicate(timeout=100)
    lines = [json.loads(line) for line in output.splitlines()]
    assert {line["cgroup"] for line in lines} == {"/pods", "/pods/a"}
    assert all(line["new"] > 0 for line in lines)


def test_events_says_by_its_status_that_nothing_came(machine: Served) -> None:
    assert run(machine, "events", "--timeout", "0.1").returncode == 1


def test_events_ends_when_its_cgroup_is_removed(machine: Served) -> None:
    machine.path("gone").mkdir()
    words = [EPCGROUP, "events", "--root", str(machine.mount), "gone"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as waiting:
        eventually(lambda: any("gone" in target for target in opened(waiting.pid)), 60)
        machine.path("gone").rmdir()
        output, _ = waiting.communicate(timeout=60)
    assert output.endswith("/gone  removed\n")
    assert waiting.returncode == 0


def test_watch_follows_usage(machine: Served) -> None:
    run(machine, "set", "pods/a", "max")
    words = [EPCGROUP, "watch", "--root", str(machine.mount), "--json", "--interval", "0.1", "pods/a"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["current"] == 0
        with stressed(machine, "pods/a", "--heap", "1M"):
            while json.loads(watching.stdout.readline())["current"] < 1 << 20:
                pass
        watching.terminate()


def test_a_name_cannot_write_to_the_terminal(machine: Served) -> None:
    evil = machine.mount / "pods" / "\x1b[2Jx"
    evil.mkdir()
    raw = os.fsencode(machine.mount) + b"/pods/\xff\xfe"
    os.mkdir(raw)  # noqa: PTH102 - no text
    try:
        for command in ("tree", "get"):
            out = run(machine, command).stdout
            assert "\x1b" not in out
            assert "\\x1b[2Jx" in out
    finally:
        evil.rmdir()
        os.rmdir(raw)  # noqa: PTH106


def test_doctor_finds_and_takes_away_the_mount_of_a_dead_server(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.stop(signal.SIGKILL)
        found = subprocess.run([EPCGROUP, "doctor"], capture_output=True, text=True, check=False, timeout=60)
        assert found.returncode == 1
        assert f"MISSING  {server.mount}: its server is gone" in found.stdout
        mended = subprocess.run(
            [EPCGROUP, "doctor", "--fix"], capture_output=True, text=True, check=False, timeout=60
        )
        assert f"fixed    unmounted {server.mount}" in mended.stdout
        assert list(server.mount.iterdir()) == []
