"""What the two scripts do, as data.

Every program builds one enclave whose heap is as large as all EPC (C bytes, P pages). What of it can
never be reclaimed, one version array for 512 pages and the SECS, is what the limits are about:

* C/512 is less than that: the enclave cannot be built, however hard its cgroup reclaims.
* Four times C/512 holds the metadata of about four: of four at least one finishes, as those that lose
  end and free theirs; of five that run at once, one must lose.
* C as a limit: all finish, paging among themselves.

The second and third are about timing (spec 7.2, cautions). Started at the same moment and served in
turn, four enclaves fill the limit with metadata at the same moment and all lose: so where one success
is wanted the programs are started a moment apart, and where a failure is wanted all at once, and ours
keep their enclaves for a while (a small one is built faster than programs start). For the same reason
an EPC of less than 128 MiB proves less; the command says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

TRUSTED_EPC = 128 << 20  # bytes; see above
STAGGER = 0.4  # s between starts, where one success is wanted
KEEP = 4.0  # s that our programs keep their enclaves, where all are to be there at once


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the exit statuses are judged: ``holds(successes, failures)``."""

    words: str
    holds: Callable[[int, int], bool]


ALL_SUCCEED = Verdict("all succeed", lambda good, bad: good > 0 and bad == 0)
ALL_FAIL = Verdict("all fail", lambda good, bad: good == 0 and bad > 0)
ONE_SUCCEEDS = Verdict("at least one succeeds", lambda good, _: good > 0)
ONE_FAILS = Verdict("at least one fails", lambda _, bad: bad > 0)


@dataclass(frozen=True, slots=True)
class Group:
    """A cgroup, its path below the test's own, and its limit as (factor, divisor) of the capacity."""

    path: str
    limit: tuple[int, int] | None = None

    def bytes(self, capacity: int) -> int | None:
        """The limit. The scripts divide whole numbers, first the capacity by the divisor."""
        return None if self.limit is None else self.limit[0] * (capacity // self.limit[1])


@dataclass(frozen=True, slots=True)
class Step:
    """``programs`` at once in ``group``; ``kill``: one of them is killed after (from, to) seconds.

    ``keep``: seconds that a program of ours keeps its enclave.
    ``memory``: the memory cgroup gets the capacity less twice the group's limit, which is less
    than the backing store of one such enclave.
    """

    group: str
    programs: int
    verdict: Verdict
    shows: str
    stagger: float = 0.0
    keep: float = 0.0
    kill: tuple[float, float] | None = None
    memory: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """One script: its cgroups (parents first), its steps in order."""

    name: str
    root: str
    groups: tuple[Group, ...]
    steps: tuple[Step, ...]


_SMALL, _LARGE, _ALL = (1, 512), (4, 512), (1, 1)
_CHILD_OF_SMALL = "a parent's limit holds for its child: below the enclave's metadata nothing can be built"
_FOUR = "at a limit for about four enclaves' metadata those that lose free theirs, and one finishes"
_FIVE = "the limit holds: five enclaves' metadata do not fit, and reclaim cannot make them"
_PAGE = "enclaves of many times the limit page among themselves and all finish"
_KILLED = "a killed program gives everything back, and the others go on"
_BACKING = "evicted pages are ordinary memory, which the memory cgroup limits"

V5 = Form(
    "v5",
    "selftest",
    (
        Group("test1", _SMALL),
        Group("test1/test3"),
        Group("test2", _LARGE),
        Group("test4", _ALL),
    ),
    (
        Step("test1/test3", 1, ALL_FAIL, _CHILD_OF_SMALL),
        Step("test2", 4, ONE_SUCCEEDS, _FOUR, stagger=STAGGER),
        Step("test2", 5, ONE_FAILS, _FIVE, keep=KEEP),
        Step("test4", 10, ALL_SUCCEED, _PAGE),
    ),
)

V17 = Form(
    "v17",
    "sgx_kselftest",
    (
        Group("sgx_test_small_parent", _SMALL),
        Group("sgx_test_small_parent/sgx_test_small"),
        Group("sgx_test_large", _LARGE),
        Group("sgx_test_larger", _ALL),
    ),
    (
        Step("sgx_test_small_parent/sgx_test_small", 1, ALL_FAIL, _CHILD_OF_SMALL),
        Step("sgx_test_large", 4, ONE_SUCCEEDS, _FOUR, stagger=STAGGER),
        Step("sgx_test_large", 5, ONE_FAILS, _FIVE, keep=KEEP),
        Step("sgx_test_larger", 8, ALL_SUCCEED, _PAGE),
        Step("sgx_test_larger", 8, ALL_SUCCEED, _KILLED, kill=(1.0, 5.0)),
        Step("sgx_test_large", 4, ALL_FAIL, _BACKING, memory=True),
    ),
)

FORMS = {form.name: form for form in (V5, V17)}
