"""`serve --extensions`: soft limits, reclaim on demand, counts and pressure of real paging."""

from __future__ import annotations

import errno
import os
import re
import select
import subprocess
from collections.abc import Iterator

import pytest
from tests.e2e.served import EPCGROUP, NEEDS, Served, eventually, served, stressed

pytestmark = pytest.mark.needs(*NEEDS)

MIB = 1 << 20


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("extensions"), "--extensions") as server:
        yield server


def stat(machine: Served, group: str) -> dict[str, int]:
    lines = machine.read(f"{group}/misc.stat").splitlines()
    return {key.removeprefix("sgx_epc."): int(value) for key, value in (line.split() for line in lines)}


def test_a_program_under_pressure_is_seen_in_every_file(machine: Served) -> None:
    machine.path("a").mkdir()
    assert stat(machine, "a")["pgadd"] == 0
    with stressed(machine, "a", "--heap", "6M"):
        eventually(lambda: stat(machine, "a")["pgadd"] > 1500)
        held = stat(machine, "a")
        assert held["secs"] == 4096
        assert held["va"] == 4 * 4096
        assert held["vepc"] == 0

        before = stat(machine, "a")["pgout"]
        machine.write("a/misc.reclaim", f"sgx_epc {MIB}")
        assert stat(machine, "a")["pgout"] >= before + 256

        machine.write("a/misc.high", f"sgx_epc {2 * MIB}")
        eventually(lambda: int(machine.value("a/misc.current")) <= 2 * MIB)
        eventually(lambda: stat(machine, "a")["pgrefault"] > 1000)
        assert machine.read("a/misc.events") == "sgx_epc.max 0\n"

        words = [EPCGROUP, "reclaim", "a", "1G", "--root", str(machine.mount)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "less than 1G could be evicted" in done.stderr
        with pytest.raises(BlockingIOError):
            machine.write("a/misc.reclaim", "1G")
        with pytest.raises(OSError, match=r".") as error:
            machine.write("a/misc.reclaim", "much")
        assert error.value.errno == errno.EINVAL

        pressure = r"some avg10=(\d+\.\d\d) avg60=\d+\.\d\d avg300=\d+\.\d\d total=(\d+)\n"
        eventually(lambda: float(re.match(pressure, machine.read("a/misc.pressure"))[1]) > 0)
        for line in ("some", "full"):
            assert re.search(pressure.replace("some", line), machine.read("a/misc.pressure"))
        assert int(re.match(pressure, machine.read("misc.pressure"))[2]) > 0
    after = stat(machine, "a")
    assert (after["reclaimable"], after["secs"], after["va"]) == (0, 0, 0)
    assert after["pgout"] > 0
    machine.path("a").rmdir()
    eventually(lambda: stat(machine, ".")["pgout"] >= after["pgout"])  # the parent keeps what it did


def test_a_trigger_of_pressure_wakes_who_polls(machine: Served) -> None:
    """As the kernel's: so much waiting within two seconds."""
    machine.path("t").mkdir()
    file = os.open(machine.path("t/misc.pressure"), os.O_RDWR)
    poll = select.poll()
    poll.register(file, select.POLLPRI)
    assert poll.poll(0) == [(file, select.POLLPRI | select.POLLERR)], "no trigger"
    with pytest.raises(OSError, match=r".") as error:
        os.write(file, b"some 0 2000000")
    assert error.value.errno == errno.EINVAL
    os.write(file, b"some 2000 2000000")
    with pytest.raises(OSError, match=r".") as error:
        os.write(file, b"some 2000 2000000")
    assert error.value.errno == errno.EBUSY
    assert poll.poll(0) == []
    machine.write("t/misc.max", f"sgx_epc {2 * MIB}")
    command = machine.argv("t", EPCGROUP, "stress", "--heap", "6M", "--seconds", "600")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        assert poll.poll(60_000) == [(file, select.POLLPRI)]
        process.terminate()
    os.close(file)
    machine.path("t").rmdir()


def test_an_ordinary_user_cannot_reclaim(machine: Served) -> None:
    assert machine.path("misc.reclaim").stat().st_mode & 0o777 == 0o200
    fd = os.open(machine.path("misc.reclaim"), os.O_WRONLY)
    assert os.write(fd, b"") == 0
    os.close(fd)
