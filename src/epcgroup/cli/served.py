"""Which `epcgroup serve` a command means."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from epcgroup.serve.places import Places


def add_dir(parser: argparse.ArgumentParser) -> None:
    """The option that says which server is meant."""
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="socket, lock and state of the server (default $EPCGROUP_DIR, /run/epcgroup for root)",
    )


def places_of(args: argparse.Namespace) -> Places:
    """The places that the option, the environment or the user's rights name. Raises BadInput."""
    from epcgroup.serve import places

    return places.Places(args.dir.absolute()) if args.dir is not None else places.default()
