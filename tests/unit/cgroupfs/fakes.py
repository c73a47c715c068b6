"""Processes that are only numbers."""

from __future__ import annotations

from collections.abc import Iterable

from epcgroup.cgroupfs import ROOT_USER, Cgroup, CgroupTree, files
from epcgroup.misc import STANDARD, Group, Rules, Tree


class FakeProcesses:
    """Every multiple of ten below 1000 is a process with two threads, 990 one of the kernel's."""

    def __init__(self) -> None:
        self.stopped: set[int] = set()
        self.killed: list[int] = []

    def leader(self, pid: int) -> int | None:
        return pid // 10 * 10 if 10 <= pid < 1000 and pid % 10 < 2 else None

    def meant(self, _reader: int, number: int) -> int | None:
        return number

    def shown(self, _reader: int, tids: Iterable[int]) -> list[int]:
        return list(tids)

    def unmovable(self, pid: int) -> bool:
        return pid == 990

    def threads(self, pid: int) -> list[int]:
        return [pid, pid + 1]

    def stop(self, pid: int, stopped: bool) -> None:
        (self.stopped.add if stopped else self.stopped.discard)(pid)

    def kill(self, pid: int) -> None:
        self.killed.append(pid)


WRITER = files.Writer(500, ROOT_USER)


def make(rules: Rules = STANDARD, *, auto_delegate: bool = False) -> CgroupTree[Group]:
    """A machine with 1 MiB of EPC and 9 sev; misc is enabled below the root."""
    misc = Tree(rules, Group)
    misc.set_capacity("sgx_epc", 1 << 20)
    misc.set_capacity("sev", 9)
    tree = CgroupTree(misc, FakeProcesses(), auto_delegate=auto_delegate)
    tree.control(tree.root, True)
    return tree


def read(tree: CgroupTree[Group], path: str, name: str) -> str:
    return files.read(tree, tree.lookup(path), name).decode()


def write(
    tree: CgroupTree[Group], path: str, name: str, text: str, writer: files.Writer = WRITER
) -> Cgroup[Group]:
    cgroup = tree.lookup(path)
    assert files.write(tree, cgroup, name, text.encode(), writer) == len(text.encode())
    return cgroup
