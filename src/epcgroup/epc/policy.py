"""Policies: every difference between the versions, as one frozen record of knobs.

The series was posted many times, and each posting answered the same questions
differently (spec 9.3): who loses pages, in what order, when is the worker
queued, where does it stop, what happens when nothing is left to take. A
:class:`Policy` is one set of answers. The engine reads knobs; nowhere does it
ask for a version. To compare a new idea, add a record.

* ``V5``: the series of September 2023, faithful, defects included.
* ``V17``: its last posting, equally faithful.
* ``STANDARD``: what v5 promises to its user (spec 8.1), done right: every "must"
  of spec section 10. See docs/engine.md for why each knob is as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from epcgroup.errors import BadInput
from epcgroup.misc import rules


class Target(Enum):
    """Whose pages go when a charge is refused (ALLOC-10, B-24)."""

    OWN = "the charging group's subtree, whoever's limit was hit"
    REFUSING = "the subtree of the group whose limit was hit"


class Walk(Enum):
    """How a reclaim round goes through a subtree (spec 4.1, 4.7)."""

    RESTART = "from the top, emptying one list before the next, in one batch"
    CURSOR = "from where the last round stopped, one batch a group"


class Dying(Enum):
    """What a walk does at a group that waits for its release (B-42)."""

    STOP = "ends there"
    SKIP = "passes over it"


class OnMaxWritten(Enum):
    """What a write to misc.max starts (spec 5.6, MISC-20)."""

    NOTHING = "nothing; the next charge will reclaim"
    WORKER = "the worker, always"
    WORKER_IF_ABOVE = "the worker, if usage is above the new limit"


class Disable(Enum):
    """What the worker does when it is above its target and nothing is reclaimable (spec 5)."""

    NEVER = "stops"
    CASCADE = "disables enclave after enclave, waiting for none"
    ONE_AND_WAIT = "disables one, only if above the limit itself, and waits for it to be closed"


def goal_v5(limit: int, total: int, _wanted: int) -> int:
    """v5 (spec 3.4): one below the limit, eight more above 33, at most the EPC."""
    goal = max(limit - 1, 0)
    if goal > 32:
        goal -= 8
    return min(goal, total)


def goal_v17(limit: int, _total: int, _wanted: int) -> int:
    """v10 and later (spec 3.5): below the limit; below limit - 32 above 128 pages."""
    return (limit - 32 if limit > 128 else limit) - 1


def goal_standard(limit: int, _total: int, wanted: int) -> int:
    """Room for what is waited for and a sixteenth of the limit, at most 16 pages.

    With nobody waiting (a lowered limit) the limit itself: a group within its
    limit loses nothing (B-64).
    """
    if not wanted:
        return limit
    return max(limit - max(wanted, min(limit // 16, 16)), 0)


@dataclass(frozen=True, slots=True)
class Policy:
    """One set of answers; sizes in pages, counts in rounds."""

    name: str
    misc: rules.Rules

    # Who loses pages, and in what order.
    target: Target
    walk: Walk
    dying: Dying
    batch_min: int  # pages of one round for a group: the need, clamped to these
    batch_max: int
    global_batch: int  # pages of one round for the whole machine
    batch_by_need: bool  # no run begins with a round that takes more than is missing
    direct_batch: int  # pages of one round that a charging task does itself
    ignore_age_after: int | None  # this many fruitless rounds are borne; then young pages go too
    ignore_age_globally: bool  # also in rounds for the whole machine
    give_up: bool  # a whole turn with nothing written, age ignored: fail instead of trying for ever

    # The per-group worker.
    on_max_written: OnMaxWritten
    goal: Callable[[int, int, int], int]  # (limit, EPC, wanted) -> usage at which it stops
    disable: Disable

    # Allocation.
    edmm_reclaims_group: bool  # the SGX2 ioctls also help their group (v10, ALLOC-33)
    busy_before_signal: bool  # a fault over the limit is retried even while a signal is pending (B-23)
    all_at_once: bool  # who needs several pages (page and SECS, page and VA) gets all or none

    # ksgxd: woken below low, works until high are free.
    low: int
    high: int
    scale_watermarks: bool  # to a sixteenth and an eighth of a small EPC

    # misc.low protects, misc.high is a soft limit (RFC v1, spec 9.2); no posting since has them.
    soft_limits: bool = False

    @property
    def track_unreclaimable(self) -> bool:
        """Whether SECS and VA pages are on a list: only to find a victim."""
        return self.disable is not Disable.NEVER

    def watermarks(self, epc_pages: int) -> tuple[int, int]:
        """(low, high) for an EPC of so many pages."""
        if not self.scale_watermarks:
            return self.low, self.high
        return max(1, min(self.low, epc_pages // 16)), max(1, min(self.high, epc_pages // 8))


V5 = Policy(
    name="v5",
    misc=rules.V5,
    target=Target.OWN,
    walk=Walk.RESTART,
    dying=Dying.STOP,
    batch_min=16,
    batch_max=32,
    global_batch=16,
    batch_by_need=False,
    direct_batch=16,
    ignore_age_after=5,
    ignore_age_globally=False,
    give_up=False,
    on_max_written=OnMaxWritten.WORKER,
    goal=goal_v5,
    disable=Disable.CASCADE,
    edmm_reclaims_group=False,
    busy_before_signal=False,
    all_at_once=False,
    low=32,
    high=64,
    scale_watermarks=False,
)

V17 = Policy(
    name="v17",
    misc=rules.V17,
    target=Target.OWN,
    walk=Walk.CURSOR,
    dying=Dying.SKIP,
    batch_min=16,
    batch_max=16,
    global_batch=16,
    batch_by_need=False,
    direct_batch=1,
    ignore_age_after=None,
    ignore_age_globally=False,
    give_up=False,
    on_max_written=OnMaxWritten.NOTHING,
    goal=goal_v17,
    disable=Disable.NEVER,
    edmm_reclaims_group=True,
    busy_before_signal=False,
    all_at_once=False,
    low=32,
    high=64,
    scale_watermarks=False,
)

STANDARD = Policy(
    name="standard",
    misc=rules.STANDARD,
    target=Target.REFUSING,
    walk=Walk.CURSOR,
    dying=Dying.SKIP,
    batch_min=1,
    batch_max=16,
    global_batch=16,
    batch_by_need=True,
    direct_batch=16,
    ignore_age_after=5,
    ignore_age_globally=True,
    give_up=True,
    on_max_written=OnMaxWritten.WORKER_IF_ABOVE,
    goal=goal_standard,
    disable=Disable.ONE_AND_WAIT,
    edmm_reclaims_group=False,
    busy_before_signal=True,
    all_at_once=True,
    low=32,
    high=64,
    scale_watermarks=True,
)

POLICIES = {policy.name: policy for policy in (STANDARD, V5, V17)}


def with_soft_limits(policy: Policy) -> Policy:
    """The same policy, with misc.low and misc.high."""
    return replace(policy, soft_limits=True, misc=rules.with_soft_limits(policy.misc))


def by_name(name: str) -> Policy:
    """The policy of that name; raises BadInput listing those there are."""
    try:
        return POLICIES[name]
    except KeyError:
        raise BadInput(f"no policy {name!r}; there are {', '.join(POLICIES)}") from None
