"""Asked, handed over, set, used: where the chain from a pod's request to misc.max breaks.

A pod asks for EPC as a resource that is book-keeping only (``sgx.intel.com/epc``).
Something must turn it into a limit: a webhook's or a person's annotation, read by
an NRI plug-in or by CRI-O, or an entry of the OCI bundle. A runtime writes that to
misc.max, and the kernel holds it. Each link fails silently: the plug-in is evicted
and the container starts without a limit. :mod:`.workloads` and :mod:`.bundles` read
what was asked and handed over, :mod:`.gaps` compares it with a live tree, and
:mod:`.annotate` writes it right. Exact strings: `handover`.
"""

from epcgroup.host.audit.annotate import FORMS, annotation, into_bundle
from epcgroup.host.audit.gaps import Gap, compare
from epcgroup.host.audit.workloads import Statement, Workload, read

__all__ = ["FORMS", "Gap", "Statement", "Workload", "annotation", "compare", "into_bundle", "read"]
