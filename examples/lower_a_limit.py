#!/usr/bin/env python3
"""Lower a cgroup's limit under a running enclave, and draw what happens.

    .venv/bin/python examples/lower_a_limit.py limit.png

One real SGX program with a heap of 12M starts under a limit of 16M. Four seconds
after its heap is there the limit is set to 6M: under the `standard` policy reclaim begins at
once, usage falls below the new limit and the program pages from then on. After
four more seconds the limit is lifted and the pages come back one by one, as
they are touched.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from epcgroup.live import Supervisor
from epcgroup.observe import History, Snapshot, plot, report

MIB = 1 << 20
STEPS = [(4.0, 6 * MIB, "limit lowered"), (8.0, None, "limit lifted")]
PROGRAM = [sys.executable, "-m", "epcgroup.cli.main", "stress", "--heap", "12M", "--pattern", "zipf"]


def main(output: Path) -> int:
    """Run the example; the program's exit status."""
    history, marks, steps = History(), [], list(STEPS)
    with Supervisor(epc_pages=8192) as machine:
        machine.mkdir("/job", limit=16 * MIB)
        pid = machine.spawn([*PROGRAM, "--seconds", "11"], group="/job")

        filled: list[float] = []

        def tick(snapshot: Snapshot) -> None:
            history.add(snapshot)
            print(report.plain_line(snapshot), flush=True)
            if not filled and snapshot.group("/job").current >= 12 * MIB:
                filled.append(snapshot.time_s)
            if steps and filled and snapshot.time_s >= filled[0] + steps[0][0]:
                _, limit, text = steps.pop(0)
                machine.set_max("/job", limit)
                marks.append((snapshot.time_s, text))

        status = machine.run(tick, interval=0.5)[pid]
        history.add(machine.snapshot())
    plot.save(history, output, title="One enclave, three limits", marks=marks)
    print(f"picture: {output}")
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else "limit.png")))
