"""Files beyond the kernel's: names, modes, sizes, the text and averages of a pressure file."""

from __future__ import annotations

import dataclasses
import errno
import json

import pytest
from tests.unit.cgroupfs.fakes import WRITER, make, read, write

from epcgroup.cgroupfs import files, psi, state
from epcgroup.cgroupfs.extra import parse_amount
from epcgroup.errors import Refused
from epcgroup.misc import STANDARD, Group, with_soft_limits


class Counting:
    """One file that says its group, another that keeps what was written."""

    def __init__(self) -> None:
        self.modes = {"misc.stat": 0o444, "misc.reclaim": 0o200}
        self.written: list[tuple[str, bytes]] = []

    def has(self, group: Group, name: str) -> bool:  # noqa: ARG002
        return name in self.modes

    def read(self, group: Group, name: str) -> bytes:
        return f"{name} of {group.path}\n".encode()

    def pressure(self, group: Group, name: str) -> None:
        pass

    def write(self, group: Group, name: str, data: bytes) -> None:
        self.written.append((f"{group.path}:{name}", data))


def test_extra_files_are_where_the_controller_is_with_their_modes() -> None:
    tree = make()
    extra = Counting()
    tree.extras.append(extra)
    tree.mkdir("/a")
    tree.mkdir("/a/b")
    for path in ("/", "/a"):
        assert {"misc.stat", "misc.reclaim"} <= set(files.names(tree, tree.lookup(path)))
    assert "misc.stat" not in files.names(tree, tree.lookup("/a/b"))
    assert not files.exists(tree, tree.lookup("/a/b"), "misc.stat")
    assert read(tree, "/a", "misc.stat") == "misc.stat of /a\n"
    assert tree.attributes(tree.lookup("/a"), "misc.reclaim").mode == 0o200
    assert files.write_elsewhere(tree, tree.lookup("/a"), "misc.reclaim", b"16M") == 3
    assert files.write_elsewhere(tree, tree.lookup("/a"), "misc.reclaim", b"") == 0
    assert extra.written == [("/a:misc.reclaim", b"16M")]
    with pytest.raises(Refused) as error:
        files.write_elsewhere(tree, tree.lookup("/a"), "misc.reclaim", b"x" * 4097)
    assert error.value.errno == errno.E2BIG


def test_without_extensions_there_are_only_the_kernels_files() -> None:
    tree = make()
    tree.mkdir("/a")
    for name in ("misc.stat", "misc.low"):
        assert not files.exists(tree, tree.lookup("/a"), name)


def test_low_and_high_are_writable_files_and_survive() -> None:
    rules = with_soft_limits(STANDARD)
    tree = make(rules)
    cgroup = tree.mkdir("/a")
    assert tree.attributes(cgroup, "misc.low").mode == 0o644
    write(tree, "/a", "misc.low", "sgx_epc 4096")
    write(tree, "/a", "misc.high", "sgx_epc 8192")
    saved = state.dump(tree)
    again = make(rules)
    again.control(again.root, False)
    state.load(again, json.loads(saved))
    assert read(again, "/a", "misc.low") + read(again, "/a", "misc.high") == "sgx_epc 4096\nsgx_epc 8192\n"
    plain = make()
    plain.control(plain.root, False)
    state.load(plain, json.loads(saved))  # served without extensions next time: no error
    with pytest.raises(OSError, match="no file"):
        files.write(plain, plain.lookup("/a"), "misc.low", b"sgx_epc 1", WRITER)
    assert dataclasses.replace(rules, soft=frozenset()).soft == STANDARD.soft


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        (b"4096", 4096),
        (b"sgx_epc 4096\n", 4096),
        (b" 16m ", 16 << 20),
        (b"0x10K", 16 << 10),
        (b"1G\0x", 1 << 30),
    ],
)
def test_an_amount_is_a_number_perhaps_with_a_unit_and_the_key(text: bytes, amount: int) -> None:
    assert parse_amount(text) == amount


@pytest.mark.parametrize("text", [b"", b"\n", b"M", b"sev 1", b"sgx_epc", b"1 2", b"-1", b"1KB", b"max"])
def test_what_is_no_amount_is_refused(text: bytes) -> None:
    with pytest.raises(Refused) as error:
        parse_amount(text)
    assert error.value.errno == errno.EINVAL


# -- pressure ------------------------------------------------------------------


def numbers(text: str) -> dict[str, list[float]]:
    """Averages and total by line."""
    return {
        words[0]: [float(word.partition("=")[2]) for word in words[1:]]
        for words in (line.split() for line in text.splitlines())
    }


def test_nothing_is_the_kernels_text_for_nothing() -> None:
    assert psi.nothing() == (
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n"
    )


def test_averages_come_up_to_the_share_of_time_and_decay() -> None:
    averages = psi.Averages(0.0)
    for step in range(1, 1000):
        averages.update(2.0 * step, step * 1.0, step * 0.5)  # half of the time some, a quarter full
    seen = numbers(averages.text(999.0, 499.5))
    assert seen["some"] == [pytest.approx(50, abs=0.2)] * 3 + [999_000_000]
    assert seen["full"] == [pytest.approx(25, abs=0.2)] * 3 + [499_500_000]
    averages.update(2.0 * 999 + 20, 999.0, 499.5)
    ten, sixty, threehundred, _ = numbers(averages.text(999.0, 499.5))["some"]
    assert ten < 8 < 30 < sixty < threehundred < 50


def test_steps_that_were_missed_count_as_quiet() -> None:
    """Whoever looks once an hour does not see the last hour's stalls as of the last ten seconds."""
    late, steady = psi.Averages(0.0), psi.Averages(0.0)
    for step in range(1, 31):
        steady.update(2.0 * step, min(2.0 * step, 2.0), 0.0)
    late.update(60.0, 2.0, 0.0)
    assert numbers(late.text(2.0, 0.0))["some"][1] < 6
    assert numbers(steady.text(2.0, 0.0))["some"][0] < 0.5


def test_a_step_counts_at_most_its_own_length() -> None:
    averages = psi.Averages(0.0)
    averages.update(2.0, 100.0, 0.0)
    assert numbers(averages.text(100.0, 0.0))["some"][0] <= 100
