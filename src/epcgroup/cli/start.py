"""Where the `epcgroup` command begins: with little, for Ctrl-C may come before all is imported."""

from __future__ import annotations

import signal


def start() -> int:
    """The command line of this process; its exit status. Until it can answer Ctrl-C, that just ends it."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from epcgroup.cli.main import main

    signal.signal(signal.SIGINT, before)
    return main()
