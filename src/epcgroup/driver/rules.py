"""Where the driver itself behaves differently from policy to policy."""

from __future__ import annotations

from dataclasses import dataclass

from epcgroup.epc import Policy


@dataclass(frozen=True, slots=True)
class Rules:
    """``short_count_on_signal``: an ADD_PAGES that is interrupted inside an
    allocation after some pages returns their count, instead of being restarted
    from the first page and failing there with EBUSY (B-33).

    ``edmm_retries``: how often an SGX2 ioctl lets background reclaim work and
    tries a page again before it tells the program to (EAGAIN, B-31)."""

    short_count_on_signal: bool
    edmm_retries: int


FAITHFUL = Rules(short_count_on_signal=False, edmm_retries=0)
CORRECT = Rules(short_count_on_signal=True, edmm_retries=1000)
_BY_POLICY = {"v5": FAITHFUL, "v17": FAITHFUL}


def rules_for(policy: Policy) -> Rules:
    """The driver's rules under a policy; correct unless it reproduces a kernel."""
    return _BY_POLICY.get(policy.name, CORRECT)
