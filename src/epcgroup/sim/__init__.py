"""The engine, compiled, over whole traces in virtual time.

    from pathlib import Path
    from epcgroup import sim

    result = sim.run(Path("examples/sim/noisy_neighbour.toml"))
    print(result.tenants.select("tenant", "slowdown", "pressure"))

``run`` takes a Scenario, a path or TOML text and returns a Result with polars
frames. :class:`CompiledMachine` is the engine alone, :class:`Trace` and
:class:`Writer` the trace format. Nothing heavy is imported before it is used.
Needs the extra ``sim``.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from epcgroup.errors import MissingCapability, to_install

if TYPE_CHECKING:
    from epcgroup.sim.costs import Profile
    from epcgroup.sim.kernel.machine import CompiledMachine
    from epcgroup.sim.result import Result
    from epcgroup.sim.scenario import Event, Scenario, Tenant
    from epcgroup.sim.traces.trace import Trace, Writer
    from epcgroup.sim.virtual import run

_HOMES = {
    "CompiledMachine": "kernel.machine",
    "Event": "scenario",
    "Profile": "costs",
    "Result": "result",
    "Scenario": "scenario",
    "Tenant": "scenario",
    "Trace": "traces.trace",
    "Writer": "traces.trace",
    "run": "virtual",
}

__all__ = [
    "CompiledMachine",
    "Event",
    "Profile",
    "Result",
    "Scenario",
    "Tenant",
    "Trace",
    "Writer",
    "require",
    "run",
]


def require() -> None:
    """Raise MissingCapability, saying what to install, where the extra ``sim`` is missing."""
    missing = [name for name in ("llvmlite", "numpy", "polars", "pyarrow") if find_spec(name) is None]
    if missing:
        raise MissingCapability(f"simulation needs {', '.join(missing)}: {to_install('sim')}")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(name)
    require()
    return getattr(importlib.import_module(f"epcgroup.sim.{_HOMES[name]}"), name)
