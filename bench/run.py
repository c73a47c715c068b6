"""Run the benchmarks: `make bench`, or `make bench ARGS="engine"` for some by name.

A benchmark is a script in this directory. It measures us and a named peer in one
run, since only a ratio means something on another machine; prints one line per figure,

    what: 12.3 µs, peer 5.4 µs: 2.3× (limit 3×), how it was measured

and exits 1 when a stated limit is broken.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LONGEST = 600  # seconds for one script


def main(names: list[str]) -> int:
    """Run the named scripts, or all; 1 when any of them failed, 2 for an unknown name."""
    files = sorted(HERE.glob("*.py"))
    scripts = {path.stem: path for path in files if path.stem != "run" and path.stem[0] != "_"}
    unknown = [name for name in names if name not in scripts]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(scripts)}", file=sys.stderr)
        return 2
    failed = []
    for name in names or scripts:
        print(f"== {name}", flush=True)
        try:
            done = subprocess.run([sys.executable, str(scripts[name])], timeout=LONGEST, check=False)
        except subprocess.TimeoutExpired:
            print(f"{name}: still running after {LONGEST} s, ended")
            failed.append(name)
        else:
            failed += [name] if done.returncode else []
    print(f"{len(names or scripts)} benchmarks; over a limit or failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
