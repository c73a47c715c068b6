"""The machines that views can look at, each behind `observe.source.Source`.

===========  ===============  ======================================================
`machine`    `MachineSource`  a machine in this process (`epcgroup run`, `serve`)
`remote`     `SocketSource`   the machine of an `epcgroup serve`, by its control socket
`files`      `FilesSource`    a kernel's misc.* files, or a mounted tree of ours
`simulated`  `SimSource`      the result of a simulation, moment by moment (extra sim)
`running`    `RunningSource`  a simulation that has no result yet, in another process
===========  ===============  ======================================================
"""

from __future__ import annotations

from epcgroup.serve.sources.files import FilesSource
from epcgroup.serve.sources.machine import MachineSource
from epcgroup.serve.sources.remote import SocketSource

__all__ = ["FilesSource", "MachineSource", "SocketSource"]
