"""On which node of an emulated EPC a thread runs."""

from __future__ import annotations

import os
from pathlib import Path

from epcgroup.live.numa import Numa, of_this_machine


def test_processors_keep_the_nodes_they_have_if_this_machine_has_them_all() -> None:
    numa = Numa([1, 0], {0: 0, 1: 1, 2: 0, 3: 1, 4: 7})
    assert [numa.of_cpu(cpu) for cpu in range(5)] == [0, 1, 0, 1, 7]


def test_else_they_are_dealt_out_in_equal_parts() -> None:
    numa = Numa([4, 2], {0: 0, 1: 0}, cpus=4)
    assert [numa.of_cpu(cpu) for cpu in range(5)] == [2, 2, 4, 4, 4]
    assert [Numa([0, 1, 2], {}, cpus=2).of_cpu(cpu) for cpu in range(2)] == [0, 1]


def test_nodes_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    for node, cpus in (("node0", "0-1,4\n"), ("node12", "2\n"), ("node3", "\n")):
        (tmp_path / node).mkdir()
        (tmp_path / node / "cpulist").write_text(cpus)
    (tmp_path / "possible").write_text("0-12\n")
    assert of_this_machine(tmp_path) == {0: 0, 1: 0, 4: 0, 2: 12}


def test_a_thread_runs_where_it_is_pinned() -> None:
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            assert Numa([0, 1, 2, 3], {}, cpus=8).of_task(os.getpid()) == min(cpu, 7) // 2
    finally:
        os.sched_setaffinity(0, before)
    assert Numa([3, 5], {}, cpus=1).of_task(1 << 30) == 3
