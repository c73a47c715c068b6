"""Fuzzing by several processes at once, as long as is wanted, in as many sittings as it takes.

    make fuzz JOBS=2 RUNS=1000000
    python -m tests.fuzz.run [--jobs N] [--runs N] [--seconds N] [DIRECTORY]

DIRECTORY (`.fuzz`) keeps the corpus, which the processes share and which begins with `seeds`, and how many
inputs were played on this build: that is, on these sources. A run that was ended goes on where it stopped;
when the sources change, the count begins anew, with the corpus there is. What breaks something is kept there
too (`crash-…`, see `surface`). The exit status is 0 when all was clean.

Each process is libFuzzer around `surface.one_input`; how far it is it says in a word of a file, so that not
even a kill loses count.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
COUNTER = "EPCGROUP_FUZZ_COUNTER"
_OPTIONS = ("-max_len=256", "-len_control=0", "-timeout=60", "-print_final_stats=1")
_WORD = struct.Struct("<Q")
_SAID = re.compile(r"^#\d+\t.*cov: (\d+) ", re.MULTILINE)


def build_id() -> str:
    """What tells these sources from others."""
    found = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *Path(__file__).parent.glob("*.py")]):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()[:12]


class Count:
    """A word of a file that outlives whoever counts in it."""

    def __init__(self, path: Path) -> None:
        with path.open("a+b") as file:
            file.truncate(_WORD.size)
            self._map = mmap.mmap(file.fileno(), _WORD.size)

    @property
    def value(self) -> int:
        return int(_WORD.unpack_from(self._map)[0])

    @value.setter
    def value(self, value: int) -> None:
        _WORD.pack_into(self._map, 0, value)


@dataclass(slots=True)
class Job:
    """One process that fuzzes."""

    process: subprocess.Popen[bytes]
    log: Path
    count: Count

    @property
    def edges(self) -> int:
        """Branches of the instrumented code that it has seen taken."""
        return max((int(found) for found in _SAID.findall(self.log.read_text(errors="replace"))), default=0)


class Fuzzing:
    """The processes, and what is known of them. ``seed`` is for the first one; each has another."""

    def __init__(self, directory: Path, jobs: int, options: tuple[str, ...], seed: int = 0) -> None:
        self.directory = directory
        self.corpus = directory / "corpus"
        self.corpus.mkdir(parents=True, exist_ok=True)
        self._plant()
        self.jobs = [
            self._start(number, (*options, *((f"-seed={seed + number}",) if seed else ())))
            for number in range(jobs)
        ]

    def _plant(self) -> None:
        from .seeds import seeds

        for number, seed in enumerate(seeds()):
            (self.corpus / f"seed-{number:03}").write_bytes(seed)

    def _start(self, number: int, options: tuple[str, ...]) -> Job:
        log, counter = self.directory / f"job-{number}.log", self.directory / f"count-{number}"
        counter.unlink(missing_ok=True)
        words = [*_OPTIONS, *options, f"-artifact_prefix={self.directory}/", str(self.corpus)]
        said: IO[bytes]
        with log.open("wb") as said:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz.surface", *words],
                stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, cwd=ROOT,
                env={**os.environ, COUNTER: str(counter)},
            )  # fmt: skip
        return Job(process, log, Count(counter))

    @property
    def inputs(self) -> int:
        """Played so far by all of them."""
        return sum(job.count.value for job in self.jobs)

    @property
    def edges(self) -> int:
        return max(job.edges for job in self.jobs)

    def failed(self) -> Job | None:
        """One that has ended otherwise than well."""
        return next((job for job in self.jobs if job.process.poll() not in (None, 0)), None)

    def finished(self) -> bool:
        return all(job.process.poll() is not None for job in self.jobs)

    def stop(self) -> None:
        for job in self.jobs:
            job.process.kill()
            job.process.wait()

    def figures(self, seconds: float, inputs: int | None = None) -> str:
        """The run in one line."""
        inputs = self.inputs if inputs is None else inputs
        kept = sum(1 for _ in self.corpus.iterdir())
        return (
            f"{inputs} inputs in {seconds:.0f} s ({inputs / max(seconds, 1e-9):.0f}/s, "
            f"{len(self.jobs)} jobs), {self.edges} edges, corpus {kept}"
        )


@contextmanager
def fuzzing(directory: Path, jobs: int, *options: str, seed: int = 0) -> Iterator[Fuzzing]:
    """Fuzzing that is ended at the end whether it is done or not."""
    running = Fuzzing(directory, jobs, options, seed)
    try:
        yield running
    finally:
        running.stop()


def _done_before(state: Path, build: str) -> tuple[int, float]:
    with suppress(OSError, ValueError, KeyError):
        known = json.loads(state.read_text())
        if known["build"] == build:
            return int(known["inputs"]), float(known["seconds"])
    return 0, 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz.run", description="Fuzz by several processes.")
    option = parser.add_argument
    option("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    option("--runs", type=int, default=1_000_000, help="inputs on this build, earlier sittings included")
    option("--seconds", type=int, default=0, help="stop this sitting after so many")
    parser.add_argument("directory", nargs="?", type=Path, default=ROOT / ".fuzz")
    wanted = parser.parse_args()
    wanted.directory.mkdir(parents=True, exist_ok=True)
    build, state = build_id(), wanted.directory / "state.json"
    before, spent = _done_before(state, build)
    if before >= wanted.runs:
        print(f"build {build}: {before} inputs are done already: clean")
        return 0
    began = time.monotonic()
    broken = None
    share = -(-(wanted.runs - before) // wanted.jobs)
    with fuzzing(wanted.directory, wanted.jobs, f"-runs={share}") as running:
        shown = began
        try:
            while not running.finished() and broken is None:
                time.sleep(0.2)
                broken, now = running.failed(), time.monotonic()
                if now - shown > 20:
                    shown = now
                    done = f"{before + running.inputs} of {wanted.runs}"
                    print(f"{done}: {running.figures(now - began)}", flush=True)
                if before + running.inputs >= wanted.runs or 0 < wanted.seconds <= now - began:
                    break
        except KeyboardInterrupt:
            pass
        broken = broken or running.failed()
        inputs, seconds = before + running.inputs, spent + time.monotonic() - began
        if broken is None:
            state.write_text(json.dumps({"build": build, "inputs": inputs, "seconds": seconds}))
            whole = "" if inputs >= wanted.runs else f" (of {wanted.runs}; the same command goes on)"
            print(f"build {build}: {running.figures(seconds, inputs)}: clean{whole}")
            return 0
    state.unlink(missing_ok=True)
    print(broken.log.read_text(errors="replace")[-4000:])
    print(f"build {build}: broken after {inputs} inputs; see {wanted.directory}/crash-* and before-*")
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
