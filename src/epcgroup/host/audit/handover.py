"""The strings by which a limit travels from a pod to misc.max, exactly as the clients spell them.

==========================  ====================================================================
Intel's device plug-in      resource ``sgx.intel.com/epc`` (bytes, a quantity)
its webhook                 pod annotation of the same name, the sum over the containers, and
                            resource ``sgx.intel.com/enclave: 1``; it sets no limit
NRI plug-in sgx-epc         ``epc-limit.nri.io/container.NAME``, ``…/pod``, ``epc-limit.nri.io``, the
                            first that is there; plain bytes; "pod" means each container, not the sum
CRI-O                       ``io.kubernetes.cri-o.UnifiedCgroup.NAME`` or ``unified-cgroup.crio.io/NAME``:
                            ``misc.max=sgx_epc BYTES``, several values separated by ``;``
OCI runtime-spec            ``linux.resources.unified["misc.max"]``: ``sgx_epc BYTES``
podman, nerdctl             ``--cgroup-conf=misc.max="sgx_epc BYTES"``
older resources             see OLDER; book-keeping as well
==========================  ====================================================================
"""

from __future__ import annotations

from epcgroup.errors import BadInput
from epcgroup.host.audit.quantity import whole_bytes
from epcgroup.host.cgroup import SGX_EPC
from epcgroup.units import PAGE_SIZE

RESOURCE = "sgx.intel.com/epc"
ENCLAVE = "sgx.intel.com/enclave"
NRI = "epc-limit.nri.io"
CRIO = ("io.kubernetes.cri-o.UnifiedCgroup.", "unified-cgroup.crio.io/")
MISC_MAX = "misc.max"
MIB = 1 << 20

#: Resource of an older plug-in → the bytes that its unit stands for.
OLDER = {
    "kubernetes.azure.com/sgx_epc_mem_in_MiB": MIB,
    "alibabacloud.com/sgx_epc_MiB": MIB,
    "intel.com/sgx": PAGE_SIZE,
}


def nri_keys(container: str) -> tuple[str, str, str]:
    """The annotations that the NRI plug-in looks up, in its order."""
    return f"{NRI}/container.{container}", f"{NRI}/pod", NRI


def misc_max(value: str) -> int | None:
    """The EPC limit in a misc.max entry (lines ``RESOURCE AMOUNT``), None for max or no line about EPC.

    Raises BadInput for what a kernel would refuse.
    """
    limit = None
    for line in value.splitlines():
        key, _, amount = line.strip().partition(" ")
        if key == SGX_EPC:
            limit = None if amount == "max" else whole_bytes(amount.strip())
        elif not amount:
            raise BadInput(f"{line!r} is no entry of misc.max; write {SGX_EPC!r}, a blank, and bytes")
    return limit


def crio_value(text: str) -> str | None:
    """The misc.max part of a CRI-O annotation; None when it has none. Raises BadInput."""
    found = None
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if not equals:
            raise BadInput(f"{part!r} is no FILE=VALUE; write misc.max={SGX_EPC} BYTES")
        if name.strip() == MISC_MAX:
            found = value.strip()
    return found
