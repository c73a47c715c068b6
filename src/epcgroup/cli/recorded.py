"""A recording on disk: the trace, and a scenario that simulates it under the same limits."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from epcgroup import atonce
from epcgroup.errors import BadInput
from epcgroup.units import PAGE_SIZE

if TYPE_CHECKING:
    from array import array
    from collections.abc import Mapping

    from epcgroup.observe.model import Snapshot

PROFILE = "icelake"


def check(path: Path) -> None:
    """Raises BadInput, MissingCapability before anything runs."""
    from epcgroup.sim import require

    require()
    if path.suffix != ".parquet":
        raise BadInput(f"{path}: a trace is written as FILE.parquet, with FILE.toml beside it to simulate it")
    atonce.check(path)


class File:
    """Writes FILE.parquet and, at its good end, FILE.toml. Use it in a ``with`` block.

    Where they cannot be written nothing is raised, for what is recorded goes on: ``failed`` says why.
    """

    def __init__(self, path: Path, source: str) -> None:
        from epcgroup.sim.traces.trace import Writer

        self._writer = Writer(path, source, clock="fault")
        self._path = path
        self._began = time.monotonic()
        self._sizes: dict[int, tuple[int, str, str]] = {}
        self.accesses = self.lost = 0
        self.failed: BadInput | None = None
        self.snapshot: Snapshot | None = None  # machine, policy and limits of the scenario

    def append(
        self, enclaves: array[int], pages: array[int], sizes: Mapping[int, tuple[int, str, str]], lost: int
    ) -> None:
        """What a `live.recording.Seen` holds."""
        if self.failed is not None:
            return
        if len(pages):
            try:
                self._writer.append_raw(memoryview(enclaves), memoryview(pages))
            except BadInput as error:
                self.failed = error
        self._sizes.update(sizes)
        self.accesses += len(pages)
        self.lost += lost

    def __enter__(self) -> File:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if kind is not None or self.failed is not None:
            self._writer.__exit__(kind or BadInput, error, where)  # what was there before stays
            return
        try:
            self._end()
        except BadInput as unwritable:
            self.failed = unwritable

    def _end(self) -> None:
        self._writer.info.seconds = time.monotonic() - self._began
        traced = self._writer.info.enclaves
        for number, (size, group, command) in self._sizes.items():
            if number in traced:
                self._writer.name(number, f"{command} {number} in {group}", size)
        self._writer.__exit__(None, None, None)
        if self.snapshot is not None and traced:
            scenario = self._scenario(self.snapshot, sorted(traced))
            atonce.write(self._path.with_suffix(".toml"), scenario.encode())

    def _scenario(self, machine: Snapshot, enclaves: list[int]) -> str:
        groups = {self._sizes[number][1] for number in enclaves}
        named = {path for group in groups for path in _upwards(group)}
        lines = [
            "# The recorded accesses under the limits they were recorded under; change them and compare.",
            f"title = {_quoted(f'recorded: {self._path.name}')}",
            "",
            "[machine]",
            f'profile = "{PROFILE}"',
            f'epc = "{machine.epc_pages} pages"',
            f'policy = "{machine.policy}"',
        ]
        for group in machine.groups:
            if group.path in named:
                lines += ["", "[[cgroup]]", f"path = {_quoted(group.path)}"]
                lines += [] if group.limit is None else [f'max = "{group.limit // PAGE_SIZE} pages"']
        for number in enclaves:
            lines += ["", "[[tenant]]", f'name = "enclave {number}"', f"trace = {_quoted(self._path.name)}"]
            lines += [f"enclave = {number}", f"cgroup = {_quoted(self._sizes[number][1])}"]
        return "\n".join(lines) + "\n"


def report(file: File, path: Path) -> None:
    """Say what was recorded, and what was lost. Raises BadInput where it could not be written."""
    if file.failed is not None:
        raise file.failed
    lost = f"; {file.lost:,} more were lost, the machine was too fast" if file.lost else ""
    then = f"; epcgroup sim {path.with_suffix('.toml')}" if file.accesses else ""
    print(f"epcgroup: {path}: {file.accesses:,} accesses{lost}{then}", file=sys.stderr)


def _upwards(path: str) -> list[str]:
    parts = [part for part in path.split("/") if part]
    return ["/" + "/".join(parts[: depth + 1]) for depth in range(len(parts))]


def _quoted(text: str) -> str:
    """A string in TOML. Raises BadInput for a name that no scenario can hold."""
    import json

    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadInput(f"cgroup {text!a} has no UTF-8 name; a scenario cannot hold it") from None
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
