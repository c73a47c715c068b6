"""Real processes on an emulated SGX machine.

Start with :class:`Supervisor`.
"""

from epcgroup.live.supervisor import Supervisor

__all__ = ["Supervisor"]
