"""Metrics: judged by prometheus-client's parsers and by promtool."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from epcgroup.errors import BadInput
from epcgroup.observe import EnclaveView, GroupView, NodeView, Snapshot
from epcgroup.observe.metrics import Metrics, escape, negotiated
from epcgroup.observe.podnames import PodNames

UID = "0f2a7c1e-1111-2222-3333-444455556666"
CONTAINER = "ab" * 32
POD = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
HOSTILE = '/a"b\\c\nd\x1b<b>\udcff' + "y" * 4096
GROUPS = (
    GroupView("/", None, 12288, 16384, pages_in=7, pages_out=9, some_s=1.5),
    GroupView("/a", 4096, 4096, 8192, events=5, events_local=3, pages_in=7, stall_s=0.25, secs=1, va=2),
    GroupView(HOSTILE, 2**64 - 1, 8192, 8192),
    GroupView(f"{POD}/cri-containerd-{CONTAINER}.scope", 8192, 0, 0),
)
ENCLAVE = EnclaveView(1, 2, "c", "/a", 1, 1, 1, 1, 1, disabled=True)
SNAPSHOT = Snapshot(
    5.0,
    "standard",
    100,
    60,
    GROUPS,
    (ENCLAVE, replace(ENCLAVE, id=2, disabled=False, ended=True)),
    nodes=(NodeView(0, 60, 50), NodeView(1, 40, 10)),
)


@pytest.fixture
def pods(tmp_path: Path) -> PodNames:
    (tmp_path / "pods" / f"shop_web-0_{UID}").mkdir(parents=True)
    (tmp_path / "containers").mkdir()
    (tmp_path / "containers" / f"web-0_shop_front-end-{CONTAINER}.log").touch()
    return PodNames(tmp_path)


def samples(text: str, *, openmetrics: bool = False) -> dict[tuple[str, str], float]:
    """(name, cgroup or node) -> value, by prometheus-client's parser."""
    parse = parse_openmetrics if openmetrics else parse_text
    found = {}
    for family in parse(text):
        for sample in family.samples:
            labels = sample.labels
            where = labels.get("cgroup") or labels.get("id") or labels.get("numa_node", "")
            assert (sample.name, where) not in found, "a sample given twice fails the whole scrape"
            found[sample.name, where] = sample.value
    return found


@pytest.mark.parametrize("openmetrics", [False, True])
def test_every_value_of_the_model_is_read_back_by_the_parser(openmetrics: bool) -> None:
    found = samples(Metrics().text(SNAPSHOT, openmetrics=openmetrics), openmetrics=openmetrics)
    assert found["epc_cgroup_current_bytes", "/a"] == 4096
    assert found["epc_cgroup_limit_bytes", "/a"] == 4096
    assert ("epc_cgroup_limit_bytes", "/") not in found, "no limit: no sample"
    assert found["epc_cgroup_peak_bytes", "/a"] == 8192
    assert found["epc_cgroup_limit_hits_total", "/a"] == 3
    assert found["epc_cgroup_unreclaimable_bytes", "/a"] == 3 * 4096
    assert found["epc_cgroup_pages_in_total", "/"] == 7
    assert found["epc_cgroup_pages_out_total", "/"] == 9
    assert found["epc_cgroup_stall_seconds_total", "/a"] == 0.25
    assert found["epc_cgroup_stall_some_seconds_total", "/"] == 1.5
    assert found["epc_node_capacity_bytes", "1"] == 40 * 4096
    assert found["epc_node_free_bytes", "0"] == 50 * 4096
    assert found["epc_enclaves", ""] == found["epc_enclaves_disabled", ""] == 1


def test_a_hostile_name_is_one_label_and_two_names_never_become_one() -> None:
    names = [HOSTILE, "/\udcff", "/\ufffdff", "/\ufffd\ufffdff", "/\\xff", "/\xff"]
    snapshot = replace(SNAPSHOT, groups=tuple(GroupView(name, 1, 1, 1) for name in names))
    for openmetrics in (False, True):
        text = Metrics().text(snapshot, openmetrics=openmetrics)
        text.encode()
        found = samples(text, openmetrics=openmetrics)
        assert len([name for name, _ in found if name == "epc_cgroup_current_bytes"]) == len(names)
    assert escape('"') == '\\"'


def test_pods_and_containers_are_named_by_what_the_kubelet_left_on_disk(pods: PodNames) -> None:
    pods.refresh()
    known = {"namespace": "shop", "pod": "web-0"}
    assert pods.of(POD) == known
    assert pods.of(f"{POD}/cri-containerd-{CONTAINER}.scope") == {**known, "container": "front-end"}
    assert pods.of(f"{POD}/crio-{'cd' * 32}.scope") == {**known, "container": "cdcdcdcdcdcd"}
    assert pods.of(f"/kubepods/besteffort/pod{UID}") == known
    assert pods.of(f"/machine.slice/libpod-{'ef' * 32}.scope") == {"container": "efefefefefef"}
    assert pods.of("/pods/a") == pods.of("/") == {}
    unknown = UID.replace("0f2a", "ffff")
    assert pods.of(f"/kubepods/pod{unknown}") == {"pod": unknown}
    text = Metrics(pods).text(SNAPSHOT)
    assert 'namespace="shop",pod="web-0",container="front-end"} 0' in text


def test_what_a_source_does_not_know_is_not_given_as_zero() -> None:
    text = Metrics().text(replace(SNAPSHOT, knows=frozenset(), nodes=()))
    assert "pages_in" not in text
    assert "stall" not in text
    assert "epc_enclaves" not in text
    assert "\nepc_node_capacity_bytes 409600\n" in text


def test_lines_of_a_cgroup_that_did_not_change_are_written_once() -> None:
    writer = Metrics()
    first = writer.text(SNAPSHOT)
    assert writer.text(SNAPSHOT) == first
    changed = replace(SNAPSHOT, groups=(replace(GROUPS[0], current=77), *GROUPS[1:3]))
    found = samples(writer.text(changed))
    assert found["epc_cgroup_current_bytes", "/"] == 77
    assert found["epc_cgroup_current_bytes", "/a"] == 4096
    assert not any(CONTAINER in where for _, where in found)


@pytest.mark.parametrize("openmetrics", [False, True])
def test_old_names_are_added_when_asked_for(openmetrics: bool) -> None:
    text = Metrics(compat=["cadvisor", "teemon"]).text(SNAPSHOT, openmetrics=openmetrics)
    # The text parser gives counters the ending that they should have had.
    found = {(n.removesuffix("_total"), w): v for (n, w), v in samples(text, openmetrics=openmetrics).items()}
    assert "container_misc_events{" in text
    assert found["container_misc_usage", "/a"] == 4096
    assert found["container_misc_events", "/a"] == 5
    assert 'container_misc_usage{id="/a",resource="sgx_epc"} 4096' in text
    assert found["sgx_nr_total_epc_pages", ""] == 100
    assert found["sgx_nr_evicted", ""] == 9
    assert found["sgx_loaded_back", ""] == 7
    assert "container_misc" not in Metrics().text(SNAPSHOT)
    with pytest.raises(BadInput, match="no old names moon; there are cadvisor, teemon"):
        Metrics(compat=["moon"])


@pytest.mark.needs("promtool")
def test_promtool_finds_nothing_to_say(pods: PodNames) -> None:
    text = Metrics(pods).text(SNAPSHOT)
    words = ["promtool", "check", "metrics"]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_scraper_gets_openmetrics_when_it_asks_for_it() -> None:
    assert negotiated(
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    )
    assert not negotiated("text/plain;version=0.0.4")
    assert Metrics().text(SNAPSHOT, openmetrics=True).endswith("# EOF\n")
