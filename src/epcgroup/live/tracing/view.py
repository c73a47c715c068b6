"""What a program is shown of its cgroups and mounts, where that is not what the kernel would show.

The tracer knows how a system call is answered, not what a cgroup is. A `View`
says which calls and files it wants to answer; whoever starts a program gives it
one (`Supervisor.spawn`), and its children have the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from epcgroup.live.tracing.ptrace import UserRegs
    from epcgroup.live.tracing.task import Task
    from epcgroup.live.tracing.tracer import Tracer

    Handler = Callable[[Tracer, Task, UserRegs], None]


class View(Protocol):
    """Answers calls that have nothing to do with SGX."""

    @property
    def calls(self) -> Mapping[int, Handler]:
        """What answers which system call. Programs stop for these from their start."""

    def born(self, parent: Task, child: Task) -> None:
        """A task with this view has a new one, which has not run yet; World.lock is not held."""

    def opens(self, tracer: Tracer, task: Task, regs: UserRegs, name: str, flags: int) -> bool:
        """Answer an open of this name (O_* flags); False leaves it to the kernel. Asked at every open."""
