"""Who is asking: the process on whose behalf an operation runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epcgroup.epc.group import Group


def never() -> bool:
    """No signal is pending."""
    return False


def any_node() -> int:
    """No matter where: node 0 first."""
    return 0


@dataclass(frozen=True, slots=True)
class Caller:
    """The current task: its group pays (not the enclave's creator; spec EPC-31).

    ``signal_pending`` is asked only where the kernel would look; ``node``, the
    NUMA node of the processor it runs on, only where the EPC is on several.
    """

    group: Group
    signal_pending: Callable[[], bool] = never
    node: Callable[[], int] = any_node
