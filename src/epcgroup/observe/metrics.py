"""A snapshot as Prometheus metrics, in the text format and as OpenMetrics.

Ten thousand cgroups are some hundred thousand samples a scrape. prometheus-client
writes a sample in 5 µs, which would be a second of the machine's one interpreter;
so the lines are written here, and those of a cgroup that did not change are kept
from the scrape before. Its parsers judge what we write (tests), as promtool does.

Names and units are by the Prometheus rules. Two sets of old names can be added
for dashboards that exist: those of cAdvisor's draft (#3420) and TEEMon's, with the
types they should have had.

A label's value is UTF-8, a cgroup's name any bytes: what is none is written as
U+FFFD and two hexadecimal digits, a real U+FFFD twice, so that two names never
become one (a sample given twice fails the whole scrape, and names are anybody's).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter

from epcgroup import __version__
from epcgroup.errors import BadInput
from epcgroup.observe.model import ENCLAVES, PAGING, PRESSURE, STALL, UNRECLAIMABLE, GroupView, Snapshot
from epcgroup.observe.podnames import PodNames
from epcgroup.units import PAGE_SIZE

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
CADVISOR, TEEMON = "cadvisor", "teemon"
COMPAT = (CADVISOR, TEEMON)


@dataclass(frozen=True, slots=True)
class Family:
    """A metric of cgroups: a field of GroupView, None if it has none. ``part``: what a source must know."""

    name: str
    kind: str
    help: str
    field: str
    part: str = ""
    plain: bool = False  # an old name, as it is: no _total, other labels


FAMILIES = (
    Family("epc_cgroup_current_bytes", "gauge", "EPC in use by the cgroup and all below it.", "current"),
    Family(
        "epc_cgroup_limit_bytes",
        "gauge",
        "Limit of the cgroup (misc.max); absent without one.",
        "limit",
    ),
    Family("epc_cgroup_peak_bytes", "gauge", "Most EPC ever in use at once.", "peak"),
    Family(
        "epc_cgroup_limit_hits",
        "counter",
        "Charges refused at the cgroup's own limit.",
        "events_local",
    ),
    Family(
        "epc_cgroup_unreclaimable_bytes",
        "gauge",
        "EPC in use that no eviction can free: SECS, version arrays, virtual EPC.",
        "unreclaimable",
        UNRECLAIMABLE,
    ),
    Family("epc_cgroup_pages_in", "counter", "Pages loaded back (ELDU).", "pages_in", PAGING),
    Family("epc_cgroup_pages_out", "counter", "Pages evicted (EWB).", "pages_out", PAGING),
    Family("epc_cgroup_faults", "counter", "Touches that waited for a page.", "faults", STALL),
    Family(
        "epc_cgroup_stall_seconds",
        "counter",
        "Time that threads waited for pages, summed over threads.",
        "stall_s",
        STALL,
    ),
    Family(
        "epc_cgroup_stall_some_seconds",
        "counter",
        "Time in which at least one process waited for a page.",
        "some_s",
        PRESSURE,
    ),
    Family(
        "epc_cgroup_stall_full_seconds",
        "counter",
        "Time in which all processes with an enclave waited for a page.",
        "full_s",
        PRESSURE,
    ),
)
_CADVISOR = (
    Family("container_misc_usage", "gauge", "Current usage of the resource.", "current", plain=True),
    Family("container_misc_events", "counter", "Charges refused at a limit.", "events", plain=True),
)


Values = tuple[int | float | None, ...]  # of the families, of one cgroup


class Metrics:
    """Writes one machine's snapshots; keeps the lines of cgroups that do not change."""

    def __init__(self, names: PodNames | None = None, compat: Iterable[str] = ()) -> None:
        """``compat``: old names to add, of COMPAT. Raises BadInput for others."""
        self._names = names or PodNames()
        self._compat = frozenset(compat)
        unknown = self._compat - set(COMPAT)
        if unknown:
            raise BadInput(f"no old names {', '.join(sorted(unknown))}; there are {', '.join(COMPAT)}")
        self._families = FAMILIES + (_CADVISOR if CADVISOR in self._compat else ())
        self._kept: dict[str, tuple[GroupView, Values, list[str]]] = {}
        self._values = attrgetter(*(family.field for family in self._families))
        self._samples = [_sample(family) for family in FAMILIES]
        self._before: dict[str, list[str]] = {}  # what of each line stands before the value
        self._version = -1

    def text(self, snapshot: Snapshot, *, openmetrics: bool = False) -> str:
        """The whole exposition. Call it from one thread at a time."""
        columns = list(zip(*self._groups(snapshot), strict=True)) or [()] * len(self._families)
        parts: list[str] = []
        for family, lines in zip(self._families, columns, strict=True):
            if family.part and family.part not in snapshot.knows:
                continue
            parts.append(_head(family.name, family.kind, family.help, openmetrics, plain=family.plain))
            parts.extend(lines)
        parts.extend(_machine(snapshot, openmetrics))
        if TEEMON in self._compat:
            parts.extend(_teemon(snapshot, openmetrics))
        parts.append("# EOF\n" if openmetrics else "")
        return "".join(parts)

    def _groups(self, snapshot: Snapshot) -> Iterator[list[str]]:
        """The lines of each cgroup, one a family; empty where it has no value."""
        self._names.refresh()
        if self._names.version != self._version:
            self._version = self._names.version
            self._kept.clear()
            self._before.clear()
        before, now = self._kept, {}
        for group in snapshot.groups:
            kept = before.get(group.path)
            if kept is None or kept[0] is not group:
                values = self._values(group)
                same = kept is not None and kept[1] == values
                kept = (
                    group,
                    values,
                    kept[2] if same and kept is not None else self._lines(group.path, values),
                )
            now[group.path] = kept
        self._kept = now
        for path in self._before.keys() - now.keys():
            del self._before[path]
        return (lines for _, _, lines in now.values())

    def _lines(self, path: str, values: Values) -> list[str]:
        before = self._before.get(path)
        if before is None:
            pod = self._names.of(path)
            labels = _labels({"cgroup": path, **pod})
            before = [f"{name}{labels} " for name in self._samples]
            if CADVISOR in self._compat:
                labels = _labels({"id": path, "resource": "sgx_epc", **pod})
                before += [f"{family.name}{labels} " for family in _CADVISOR]
            self._before[path] = before
        return [
            "" if value is None else f"{start}{value}\n" for start, value in zip(before, values, strict=True)
        ]


def _sample(family: Family) -> str:
    return f"{family.name}_total" if family.kind == "counter" else family.name


def negotiated(accept: str) -> bool:
    """Whether a scraper with this Accept header prefers OpenMetrics.

    >>> negotiated("application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), negotiated("*/*")
    (True, False)
    """
    return "application/openmetrics-text" in accept


def escape(value: str) -> str:
    r"""A label's value between its quotes.

    >>> escape('/a"b\\c\nd\udcff')
    '/a\\"b\\\\c\\nd\ufffdff'
    """
    if not value.isascii():
        value = "".join(
            f"\ufffd{ord(char) - 0xDC00:02x}" if "\udc80" <= char <= "\udcff"
            else "\ufffd\ufffd" if char == "\ufffd" or "\ud800" <= char <= "\udfff"
            else char
            for char in value
        )  # fmt: skip
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}"


def _head(name: str, kind: str, words: str, openmetrics: bool, *, plain: bool = False) -> str:
    if openmetrics:
        kind = "unknown" if plain and kind == "counter" else kind  # a counter's name would end in _total
    elif kind == "counter" and not plain:
        name += "_total"
    return f"# HELP {name} {words}\n# TYPE {name} {kind}\n"


def _machine(snapshot: Snapshot, openmetrics: bool) -> Iterator[str]:
    nodes = [(_labels({"numa_node": str(node.node)}), node) for node in snapshot.nodes]
    yield _head("epc_node_capacity_bytes", "gauge", "EPC of a NUMA node.", openmetrics)
    if nodes:
        yield from (f"epc_node_capacity_bytes{labels} {node.pages * PAGE_SIZE}\n" for labels, node in nodes)
    else:
        yield f"epc_node_capacity_bytes {snapshot.epc_pages * PAGE_SIZE}\n"
    yield _head("epc_node_free_bytes", "gauge", "Free EPC of a NUMA node.", openmetrics)
    if nodes:
        yield from (f"epc_node_free_bytes{labels} {node.free * PAGE_SIZE}\n" for labels, node in nodes)
    else:
        yield f"epc_node_free_bytes {snapshot.free_pages * PAGE_SIZE}\n"
    if ENCLAVES in snapshot.knows:
        alive = [enclave for enclave in snapshot.enclaves if not enclave.ended]
        yield _head("epc_enclaves", "gauge", "Enclaves that exist.", openmetrics)
        yield f"epc_enclaves {len(alive)}\n"
        yield _head("epc_enclaves_disabled", "gauge", "Of them, those that lost their memory.", openmetrics)
        yield f"epc_enclaves_disabled {sum(enclave.disabled for enclave in alive)}\n"
    yield _head("epc_machine_info", "gauge", "Who manages this EPC.", openmetrics)
    yield f"epc_machine_info{_labels({'policy': snapshot.policy, 'version': __version__})} 1\n"


def _teemon(snapshot: Snapshot, openmetrics: bool) -> Iterator[str]:
    """The names of TEEMon's exporter (a patched driver's module parameters)."""
    root = snapshot.group("/") or GroupView("/", None, 0, 0)
    alive = [enclave for enclave in snapshot.enclaves if not enclave.ended]
    for name, kind, words, value in (
        ("sgx_nr_total_epc_pages", "gauge", "Pages of EPC.", snapshot.epc_pages),
        ("sgx_nr_free_pages", "gauge", "Free pages.", snapshot.free_pages),
        ("sgx_nr_low_pages", "gauge", "Free pages below which reclaim begins.", snapshot.low_pages),
        ("sgx_nr_high_pages", "gauge", "Free pages at which reclaim ends.", snapshot.high_pages),
        ("sgx_nr_marked_old", "counter", "Pages found touched and marked old.", root.young),
        ("sgx_nr_evicted", "counter", "Pages evicted.", root.pages_out),
        ("sgx_nr_alloc_pages", "gauge", "Pages in use.", snapshot.epc_pages - snapshot.free_pages),
        ("sgx_nr_enclaves", "gauge", "Enclaves that exist.", len(alive)),
        ("sgx_nr_reclaimed", "counter", "Pages taken by reclaim.", root.pages_out),
        ("sgx_nr_added_pages", "counter", "Pages added to enclaves.", root.added),
        ("sgx_init_enclaves", "gauge", "Enclaves that are initialised.", sum(e.initialised for e in alive)),
        ("sgx_loaded_back", "counter", "Pages loaded back.", root.pages_in),
    ):
        yield _head(name, kind, words, openmetrics, plain=True) + f"{name} {value}\n"
