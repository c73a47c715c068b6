"""`--log json` of `run` and `serve`: the structured log in place of plain words."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, cast

if TYPE_CHECKING:
    from epcgroup.observe.journal import Journal


def add_options(parser: argparse.ArgumentParser) -> None:
    """Form and place of the log."""
    parser.add_argument(
        "--log",
        choices=("text", "json"),
        default="text",
        help="json: a line on stderr for each limit hit, burst, disabled enclave, refused ioctl …",
    )
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="append the JSON log to FILE")


class Log:
    """What the options ask for; made before the machine, which may speak from its first moment."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Raises BadInput when the file cannot be written."""
        from epcgroup.observe.log import Said, opened

        self.wanted = args.log == "json" or args.log_file is not None
        self._file = opened(args.log_file) if args.log_file is not None else sys.stderr
        self._journal: Journal | None = None
        self._early: list[str] = []
        #: Where the machine writes plain words; None: stderr.
        self.plain = cast("TextIO", Said(self._say)) if self.wanted else None

    def follow(self, journal: Journal) -> None:
        """Write the events of a journal, beginning with what was said before there was one."""
        if not self.wanted:
            return
        from epcgroup.observe.log import JsonLog

        journal.listen(JsonLog(self._file))
        self._journal = journal
        for line in self._early:
            self._say(line)

    def _say(self, line: str) -> None:
        import time

        from epcgroup.observe.model import SAID

        if self._journal is None:
            self._early.append(line)
        else:
            self._journal.note(SAID, time.time(), reason=line)
