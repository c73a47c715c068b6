"""The right annotation or OCI entry for a size: what `epcgroup annotate` prints."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from epcgroup.errors import BadInput
from epcgroup.host.audit import handover
from epcgroup.host.cgroup import SGX_EPC
from epcgroup.units import PAGE_SIZE

_NAME = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")


def rounded(size: int) -> int:
    """``size`` up to whole pages, which is what can be charged. Raises BadInput for nothing."""
    if size <= 0:
        raise BadInput(f"{size} bytes are no limit that an enclave could live under; write 64M")
    return -(-size // PAGE_SIZE) * PAGE_SIZE


def nri_line(size: int, container: str = "") -> str:
    """One annotation for the NRI plug-in, as a line of YAML."""
    return f'{handover.nri_keys(container)[0] if container else handover.NRI}: "{rounded(size)}"'


def _pod(size: int, container: str) -> str:
    key, value = handover.nri_keys(container)[0] if container else handover.NRI, rounded(size)
    name = container or "NAME"
    return f"""metadata:
  annotations:
    {key}: "{value}"
spec:
  containers:
  - name: {name}
    resources:
      limits:
        {handover.RESOURCE}: "{value}"
        {handover.ENCLAVE}: 1
"""


def _crio(size: int, container: str) -> str:
    if not container:
        raise BadInput("CRI-O reads the limit of one container; name it by --container")
    return f'{handover.CRIO[0]}{container}: "{handover.MISC_MAX}={entry(size)}"\n'


def _oci(size: int, container: str) -> str:  # noqa: ARG001 - a bundle is one container
    return json.dumps({"linux": {"resources": {"unified": unified(size)}}}, indent=2) + "\n"


#: What can be written, and how: form → (size in bytes, container name) → text.
FORMS: dict[str, Callable[[int, str], str]] = {
    "nri": lambda size, container: nri_line(size, container) + "\n",
    "crio": _crio,
    "pod": _pod,
    "oci": _oci,
    "podman": lambda size, _: f'--cgroup-conf={handover.MISC_MAX}="{entry(size)}"\n',
    "file": lambda size, _: entry(size) + "\n",
}


def annotation(form: str, size: int, container: str = "") -> str:
    """The text of one form for ``size`` bytes. Raises BadInput, also for no name."""
    if container and not _NAME.fullmatch(container):
        raise BadInput(f"--container {container!r} is no container's name: a to z, 0 to 9 and -, at most 63")
    return FORMS[form](size, container)


def entry(size: int) -> str:
    """The line that a kernel's misc.max takes."""
    return f"{SGX_EPC} {rounded(size)}"


def unified(size: int) -> dict[str, str]:
    """The OCI entry."""
    return {handover.MISC_MAX: entry(size)}


def into_bundle(config: Path, size: int) -> None:
    """Set the limit in a bundle's config.json, in place and all or nothing.

    Lines about other misc resources stay. Raises BadInput naming the file.
    """
    from epcgroup.host.audit import bundles

    if config.is_dir():
        config = config / bundles.CONFIG
    bundles.read(config)  # says what is wrong with the file
    try:
        document: dict[str, Any] = json.loads(config.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:  # (an audit reads YAML too)
        raise BadInput(f"{config}:{error.lineno}: no JSON, which is what OCI runtimes read") from error
    values = document
    for name in ("linux", "resources", "unified"):
        values[name] = values.get(name) or {}  # null is nothing, as for who reads it
        values = values[name]
    others = [
        line for line in str(values.get(handover.MISC_MAX, "")).splitlines() if line.split(" ")[0] != SGX_EPC
    ]
    values[handover.MISC_MAX] = "\n".join([*others, entry(size)])
    new = config.with_name(f".{config.name}.{os.getpid()}")
    try:
        new.write_text(json.dumps(document, indent=2) + "\n")
        new.chmod(config.stat().st_mode & 0o7777)
        new.replace(config)
    except OSError as error:
        raise BadInput(f"{config}: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink()
