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


@dataclass(frozen=True, slots=True)
class Caller:
    """The current task: its group pays (not the enclave's creator; spec EPC-31).

    ``signal_pending`` is asked only where the kernel would look.
    """

    group: Group
    signal_pending: Callable[[], bool] = never
