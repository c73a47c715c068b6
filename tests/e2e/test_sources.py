"""One model from all sources: a served machine from another process, its files, a simulation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually, served

from epcgroup.errors import Refused
from epcgroup.observe.model import Snapshot
from epcgroup.serve.places import Places
from epcgroup.serve.sources import FilesSource, SocketSource

pytestmark = pytest.mark.needs(*NEEDS)

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("sources")) as server:
        yield server


@pytest.fixture
def source(machine: Served) -> Iterator[SocketSource]:
    source = SocketSource(Places(machine.directory))
    yield source
    source.close()


def paging(snapshot: Snapshot, path: str) -> bool:
    group = snapshot.group(path)
    return group is not None and group.pages_in > 1000


def told(source: SocketSource) -> set[str]:
    return {event.kind for event in source.events()}


def test_a_program_that_pages_is_seen_from_another_process_in_every_part_of_the_model(
    machine: Served, source: SocketSource
) -> None:
    import subprocess

    assert source.snapshot().group("/busy/one") is None
    machine.path("busy").mkdir()
    machine.write("busy/misc.max", f"sgx_epc {4 * MIB}")
    command = [EPCGROUP, "stress", "--heap", "8M", "--seconds", "600", "--threads", "2"]
    words = machine.argv("busy/one", *command)
    words.insert(2, "--create")
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as stress:
        try:
            eventually(lambda: paging(source.snapshot(), "/busy"), 60)
            snapshot = source.snapshot()
            eventually(lambda: source.snapshot() and told(source) >= {"made", "limit", "burst", "began"})
        finally:
            stress.terminate()
    groups = {group.path: group for group in snapshot.groups}
    assert list(groups) == ["/", "/busy", "/busy/one"]
    busy, one = groups["/busy"], groups["/busy/one"]
    assert one.limit is None
    assert busy.limit == 4 * MIB >= busy.current
    assert busy.pages_in >= one.pages_in > 1000  # of the subtree, though all is charged to the child
    assert groups["/"].pages_out >= busy.pages_out > 1000
    assert busy.events_local > 0
    assert one.events_local == 0
    assert (one.secs, one.va) == (1, busy.va)
    assert one.unreclaimable == (1 + one.va) * 4096 < one.current
    assert 0 < one.full_s <= one.some_s <= one.stall_s + 1e-6
    (enclave,) = (enclave for enclave in snapshot.enclaves if not enclave.ended)
    assert enclave.group == "/busy/one"
    assert enclave.pages_in > 1000
    (process,) = (process for process in snapshot.processes if process.faults > 1000)
    assert (process.group, process.pid) == ("/busy/one", enclave.pid)
    assert sum(thread.enclave == enclave.id for thread in process.threads) >= 1
    assert abs(snapshot.at - time.time()) < 30

    eventually(lambda: all(enclave.ended for enclave in source.snapshot().enclaves))
    machine.path("busy/one").rmdir()
    after = source.snapshot()
    assert after.group("/busy/one") is None
    busy_after = after.group("/busy")
    assert busy_after is not None
    assert busy_after.pages_in >= busy.pages_in, "what a removed child counted stays in its parent"
    assert busy_after.stall_s >= busy.stall_s


def test_who_wants_no_events_is_sent_none(machine: Served, source: SocketSource) -> None:
    """Of ten thousand cgroups they are as much as all the rest, and an exporter has no use for them."""
    machine.path("eventful").mkdir()
    quiet = SocketSource(Places(machine.directory), events=False)
    for _ in range(2):
        seen = quiet.snapshot()
    assert seen.group("/eventful") is not None
    assert not quiet.events()
    quiet.close()
    eventually(lambda: source.snapshot() and "made" in told(source))


def test_a_limit_set_through_a_source_holds_and_a_wrong_one_is_refused(
    machine: Served, source: SocketSource
) -> None:
    machine.path("set").mkdir()
    source.set_max("/set", 8 * MIB)
    assert machine.value("set/misc.max") == str(8 * MIB)
    files = FilesSource(machine.mount)
    files.set_max("/set", None)
    group = source.snapshot().group("/set")
    assert group is not None
    assert group.limit is None
    for path in ("/none", "/"):
        with pytest.raises((Refused, ValueError), match="cgroup"):
            source.set_max(path, 1)


def test_the_files_tell_the_same_limits_and_usage_and_say_that_they_know_no_paging(machine: Served) -> None:
    machine.path("files").mkdir()
    machine.write("files/misc.max", f"sgx_epc {MIB}")
    snapshot = FilesSource(machine.mount).snapshot()
    group = snapshot.group("/files")
    assert group is not None
    assert (group.limit, group.current, group.events) == (MIB, 0, 0)
    assert snapshot.epc_pages == 4096
    assert snapshot.knows == frozenset()


def test_a_server_that_is_started_anew_is_found_again(tmp_path: Path) -> None:
    source = SocketSource(Places(tmp_path))
    with pytest.raises(Refused, match="no server answers"):
        source.snapshot()
    with served(tmp_path) as server:
        server.path("first").mkdir()
        assert source.snapshot().group("/first") is not None
        server.stop()
    with pytest.raises(Refused, match="is gone"):
        source.snapshot()
    with served(tmp_path, epc="32M"):
        assert source.snapshot().epc_pages == 8192
    source.close()
