"""`epcgroup annotate`: the annotation, OCI entry or option that hands a limit over, from a size."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from epcgroup.units import parse_size

_FORMS = {
    "nri": "annotation for the NRI plug-in sgx-epc (default)",
    "crio": "annotation for CRI-O without NRI",
    "pod": "the parts of a pod spec: annotation and resources",
    "oci": "linux.resources.unified of an OCI bundle",
    "podman": "option of podman and nerdctl",
    "file": "the line that misc.max takes",
}


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Describe the command to argparse."""
    parser = subparsers.add_parser(
        "annotate",
        help="write the annotation or OCI entry that hands an EPC limit over",
        description="Print what hands a limit over, in the exact form that the client reads; "
        "sizes are rounded up to whole pages.",
        epilog="; ".join(f"{form}: {what}" for form, what in _FORMS.items()) + ".",
    )
    parser.add_argument("size", metavar="SIZE", help="64M, 1G, 4096 or '16384 pages'")
    parser.add_argument("--as", dest="form", choices=tuple(_FORMS), default="nri", help="for which client")
    parser.add_argument("--container", default="", metavar="NAME", help="of one container (default: each)")
    parser.add_argument("--into", type=Path, metavar="BUNDLE", help="set it in this OCI bundle instead")
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Print, or edit the bundle."""
    from epcgroup.host import audit

    size = parse_size(args.size)
    if args.into is not None:
        audit.into_bundle(args.into, size)
        print(f"{args.into}: {audit.annotation('file', size).strip()}")
        return 0
    sys.stdout.write(audit.annotation(args.form, size, args.container))
    return 0
