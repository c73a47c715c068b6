"""The EPC manager: who holds an EPC page, who pays for it, who loses it. Pure.

Start with :class:`Machine`; give it a :class:`Pager` and a :class:`Policy`.
"""

from epcgroup.epc.alloc import headroom
from epcgroup.epc.caller import Caller
from epcgroup.epc.group import Group
from epcgroup.epc.machine import Machine
from epcgroup.epc.nodes import Section
from epcgroup.epc.pager import Pager
from epcgroup.epc.pages import SECS_INDEX, VA_INDEX, Counters, Enclave, EpcPage, Kind, State, Vepc
from epcgroup.epc.policy import POLICIES, STANDARD, V5, V17, Disable, Policy, by_name, with_soft_limits

__all__ = [
    "POLICIES",
    "SECS_INDEX",
    "STANDARD",
    "V5",
    "V17",
    "VA_INDEX",
    "Caller",
    "Counters",
    "Disable",
    "Enclave",
    "EpcPage",
    "Group",
    "Kind",
    "Machine",
    "Pager",
    "Policy",
    "Section",
    "State",
    "Vepc",
    "by_name",
    "headroom",
    "with_soft_limits",
]
