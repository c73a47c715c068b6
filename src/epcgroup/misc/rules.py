"""What differs between one misc controller and another, as data.

The controller is the same small machine in every kernel: hierarchical counters
with a limit. Releases differ in which resources were compiled in, which files
exist where, and who counts an event (spec 1.2, 1.5). Each difference is one
field here; no code asks for a version.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

SGX_EPC = "sgx_epc"


class EventRule(Enum):
    """Which groups count a refused charge (spec 1.5)."""

    WITH_ROOT = "events at the refusing level and at every ancestor, the root too"
    LOCAL = "events as above without the root; events.local at the refusing level alone"


@dataclass(frozen=True, slots=True)
class Rules:
    """One variant of the misc controller.

    ``resources`` are the keys in the order in which every file prints them;
    ``root_files`` and ``group_files`` the names without the prefix ``misc.``.
    """

    name: str
    resources: tuple[str, ...]
    root_files: frozenset[str]
    group_files: frozenset[str]
    event_rule: EventRule
    soft: frozenset[str] = frozenset()  # resources that misc.low and misc.high are for (no kernel's)
    counts_subsystems: bool = False  # nr_subsys_misc and nr_dying_subsys_misc in cgroup.stat (6.12)

    def index(self, resource: str) -> int:
        """Number of a resource; raises ValueError for a key that is not compiled in."""
        return self.resources.index(resource)


V5 = Rules(
    name="v5",
    resources=("sev", "sev_es", SGX_EPC),
    root_files=frozenset({"capacity"}),
    group_files=frozenset({"max", "current", "events"}),
    event_rule=EventRule.WITH_ROOT,
)
V6_12 = Rules(
    name="6.12",
    resources=("sev", "sev_es"),
    root_files=frozenset({"capacity", "current", "peak"}),
    group_files=frozenset({"max", "current", "peak", "events", "events.local"}),
    event_rule=EventRule.LOCAL,
    counts_subsystems=True,
)
V17 = Rules(
    name="v17",
    resources=("sev", "sev_es", SGX_EPC),
    root_files=V6_12.root_files,
    group_files=V6_12.group_files,
    event_rule=EventRule.LOCAL,
)
STANDARD = Rules(
    name="standard",
    resources=V17.resources,
    root_files=V17.root_files,
    group_files=V17.group_files,
    event_rule=EventRule.LOCAL,
    counts_subsystems=True,
)


def with_soft_limits(rules: Rules) -> Rules:
    """The same controller with misc.low and misc.high for EPC (the RFC's files, spec 9.2)."""
    return replace(rules, group_files=rules.group_files | {"low", "high"}, soft=frozenset({SGX_EPC}))


VARIANTS = {rules.name: rules for rules in (V5, V6_12, V17, STANDARD)}
