"""`epcgroup audit` and `annotate`: the chain from a request to misc.max, and where it breaks."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epcgroup.cli import main
from epcgroup.errors import BadInput
from epcgroup.host import Hierarchy
from epcgroup.host.audit import FORMS, annotation, compare, into_bundle, read
from epcgroup.host.audit.bundles import cgroup_of
from epcgroup.host.audit.gaps import floor
from epcgroup.host.audit.handover import crio_value, misc_max
from epcgroup.host.audit.quantity import quantity, whole_bytes

CONTAINER = "0123456789abcdef" * 4
POD = """\
kind: Pod
metadata:
  name: web
  namespace: shop
  annotations: {annotations}
spec:
  containers:
  - name: a
    resources: {{limits: {{sgx.intel.com/epc: "{epc}", sgx.intel.com/enclave: 1}}}}
status:
  containerStatuses:
  - {{name: a, containerID: "containerd://{container}"}}
"""


def pod(tmp_path: Path, annotations: str = "{}", epc: str = "1Mi") -> Path:
    """A pod as `kubectl get pod -o yaml` shows it."""
    file = tmp_path / "pod.yaml"
    file.write_text(POD.format(annotations=annotations, epc=epc, container=CONTAINER))
    return file


def tree(
    tmp_path: Path, limit: str = "max", *, misc: bool = True, peak: int = 0, events: int = 0
) -> Hierarchy:
    """A tree as a kernel shows it, with the pod's container in it."""
    root = tmp_path / "cgroup"
    place = root / "kubepods" / f"cri-containerd-{CONTAINER}.scope"
    place.mkdir(parents=True)
    for each in (root, root / "kubepods", place):
        (each / "cgroup.controllers").write_text("misc\n")
    (root / "misc.capacity").write_text("sgx_epc 67108864\n")
    if misc:
        (place / "misc.max").write_text(f"sgx_epc {limit}\n")
        (place / "misc.current").write_text(f"sgx_epc {peak}\n")
        (place / "misc.peak").write_text(f"sgx_epc {peak}\n")
        (place / "misc.events").write_text(f"sgx_epc.max {events}\n")
    return Hierarchy(root)


def kinds(file: Path, live: Hierarchy | None = None, **options: int) -> set[tuple[str, str]]:
    """Kind and level of every gap."""
    return {(gap.kind, gap.level) for gap in compare(read(file), live, **options)}


# -- amounts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("64Mi", 64 << 20),
        ("64M", 64 * 10**6),
        ("1.5Gi", 3 << 29),
        ("1e3", 1000),
        ("0.5", 1),
        ("100m", 1),
        ("0", 0),
    ],
)
def test_a_quantity_means_what_it_means_to_kubernetes(text: str, amount: int) -> None:
    assert quantity(text) == amount


@pytest.mark.parametrize("text", ["", "Mi", "64MiB", "64 Mi", "-1", "1e400", "0x10", "1Ei1", "20000000Ti"])
def test_what_is_no_quantity_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadInput, match="64Mi"):
        quantity(text)


@given(st.integers(0, 2**40))
def test_plain_bytes_are_read_alike_by_all(number: int) -> None:
    assert quantity(str(number)) == whole_bytes(str(number)) == misc_max(f"sgx_epc {number}") == number


def test_a_suffix_where_bytes_are_wanted_is_told_with_what_it_would_mean() -> None:
    with pytest.raises(BadInput, match="1048576"):
        whole_bytes("1Mi")


def test_entries_are_taken_apart_as_the_clients_do() -> None:
    assert misc_max("sev 5\nsgx_epc 8192") == 8192
    assert misc_max("sev 5") is None
    assert misc_max("sgx_epc max") is None
    assert crio_value("memory.max=5; misc.max=sgx_epc 4096") == "sgx_epc 4096"
    assert crio_value("memory.max=5") is None
    assert cgroup_of("a-b.slice:cri:1") == "/a.slice/a-b.slice/cri-1.scope"
    assert cgroup_of("a/b") == "/a/b"


# -- documents -------------------------------------------------------------------


def test_a_request_that_nothing_turns_into_a_limit_is_an_error(tmp_path: Path) -> None:
    assert kinds(pod(tmp_path)) == {("not limited", "error")}


def test_a_request_with_its_annotation_has_no_gap(tmp_path: Path) -> None:
    for words in (
        '{epc-limit.nri.io/container.a: "1048576"}',
        '{epc-limit.nri.io: "1048576"}',
        '{io.kubernetes.cri-o.UnifiedCgroup.a: "misc.max=sgx_epc 1048576"}',
    ):
        assert kinds(pod(tmp_path, words)) == set(), words


def test_the_annotation_of_the_container_comes_first(tmp_path: Path) -> None:
    (workload,) = read(
        pod(tmp_path, '{epc-limit.nri.io/pod: "4096", epc-limit.nri.io/container.a: "1048576"}')
    )
    assert workload.limit == 1 << 20


@pytest.mark.parametrize(
    ("annotations", "epc", "expected"),
    [
        ('{epc-limit.nri.io: "1Mi"}', "1Mi", ("unit", "error")),
        ('{epc-limit.nri.io: "0"}', "1Mi", ("not limited", "error")),
        ('{epc-limit.nri.io: "2097152"}', "1Mi", ("differs", "error")),
        ('{epc-limit.nri.io: "524288"}', "1Mi", ("differs", "warning")),
        ('{epc-limit.nri.io: "8192"}', "64Mi", ("below the floor", "error")),
        ('{epc-limit.nri.io: "1048577"}', "1048577", ("page", "note")),
        ("{}", "64", ("unit", "error")),
    ],
)
def test_each_gap_between_words_is_named(
    tmp_path: Path, annotations: str, epc: str, expected: tuple[str, str]
) -> None:
    assert expected in kinds(pod(tmp_path, annotations, epc))


def test_the_webhooks_sum_is_held_against_what_the_containers_ask(tmp_path: Path) -> None:
    right = '{"sgx.intel.com/epc": "1Mi", "epc-limit.nri.io": "1048576"}'
    assert kinds(pod(tmp_path, right)) == kinds(pod(tmp_path, '{"epc-limit.nri.io": "1048576"}'))
    for wrong in ('"2Mi"', '"much"'):
        assert ("document", "note") in kinds(pod(tmp_path, right.replace('"1Mi"', wrong)))


def test_templates_lists_and_cron_jobs_are_looked_into(tmp_path: Path) -> None:
    template = {"spec": {"containers": [{"name": "x", "resources": {"limits": {"intel.com/sgx": 2}}}]}}
    job = {
        "kind": "CronJob",
        "metadata": {"name": "j"},
        "spec": {"jobTemplate": {"spec": {"template": template}}},
    }
    deployment = {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}}
    service = {"kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": []}}
    file = tmp_path / "list.json"
    file.write_text(json.dumps({"kind": "List", "items": [job, deployment, service]}))
    assert [(each.name, each.asks) for each in read(file)] == [("default/j/x", 8192), ("default/d/x", 8192)]


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [("a.yaml", "a: [1,\nb: {", "a.yaml:2"), ("a.json", '{\n"a": }', "a.json:2"), ("a.json", "[]", "a.json")],
)
def test_a_broken_file_is_told_by_name_and_line(tmp_path: Path, name: str, text: str, where: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=where):
        read(tmp_path / name)


# -- the live tree ---------------------------------------------------------------

LIMITED = '{epc-limit.nri.io: "1048576"}'


def test_a_limit_that_arrived_has_no_gap(tmp_path: Path) -> None:
    assert kinds(pod(tmp_path, LIMITED), tree(tmp_path, "1048576", peak=1 << 20)) == set()


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        ({"limit": "max"}, ("not set", "error")),
        ({"misc": False}, ("not set", "error")),
        ({"limit": "4096"}, ("differs", "error")),
        ({"limit": "1048576", "peak": 1 << 20, "events": 7}, ("tight", "warning")),
        ({"limit": "1048576", "peak": 4096}, ("loose", "note")),
    ],
)
def test_each_gap_between_words_and_files_is_named(
    tmp_path: Path, live: dict[str, int], expected: tuple[str, str]
) -> None:
    assert expected in kinds(pod(tmp_path, LIMITED), tree(tmp_path, **live))


def test_a_cgroup_that_nobody_asked_for_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("kind: Pod\nspec: {containers: []}\n")
    assert kinds(tmp_path / "empty.yaml", tree(tmp_path, peak=4096)) == {("not limited", "warning")}


# -- writing it right --------------------------------------------------------------


def test_what_annotate_writes_audit_accepts(tmp_path: Path) -> None:
    text = annotation("pod", 1 << 20, "a")
    (tmp_path / "new.yaml").write_text(f"kind: Pod\n{text}")
    assert kinds(tmp_path / "new.yaml") == set()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "config.json").write_text(annotation("oci", 1 << 20).replace("{", '{"ociVersion": "1.0",', 1))
    assert read(bundle)[0].limit == 1 << 20


@pytest.mark.parametrize("form", sorted(FORMS))
def test_every_form_rounds_up_to_whole_pages(form: str) -> None:
    assert "8192" in annotation(form, 4097, "a")
    with pytest.raises(BadInput, match="0 bytes"):
        annotation(form, 0, "a")


def test_a_bundle_is_changed_in_place_and_nothing_else_in_it(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    before = {"ociVersion": "1.0", "linux": {"resources": {"unified": {"misc.max": "sev 5\nsgx_epc 4096"}}}}
    config.write_text(json.dumps(before))
    config.chmod(0o600)
    into_bundle(tmp_path, 8000)
    before["linux"]["resources"]["unified"]["misc.max"] = "sev 5\nsgx_epc 8192"  # type: ignore[index]
    assert json.loads(config.read_text()) == before
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", "", "config.json:1: no JSON"),
        ("config.json", "[]", "config.json: no ociVersion"),
        ("empty", "", "empty: no ociVersion"),
        ("two.yaml", "ociVersion: 1\n---\nociVersion: 1\n", "two.yaml: no ociVersion"),
        ("config.yaml", "ociVersion: 1\n", "config.yaml:1: no JSON, which is what OCI runtimes read"),
    ],
)
def test_what_is_no_bundle_is_named_and_left_alone(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=re.escape(said)):
        into_bundle(tmp_path / name, 4096)
    assert (tmp_path / name).read_text() == text


def test_the_floor_of_an_enclave_is_that_of_the_specification() -> None:
    """Spec 7.1: with P heap pages and s others, ceil((1 + s + P)/512) VA pages and the SECS."""
    assert floor(32768 * 4096) == (65 + 1 + 2) * 4096


def test_the_command_says_what_it_found_and_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    live = tree(tmp_path, "max")
    assert main.main(["audit", str(pod(tmp_path, LIMITED)), "--root", str(live.root)]) == 1
    text = capsys.readouterr().out
    assert "shop/web/a: asked 1M, limit handed over 1M" in text
    assert f"epcgroup set --root {live.root} /kubepods/cri-containerd-{CONTAINER}.scope 1048576" in text
    assert main.main(["audit", str(pod(tmp_path, LIMITED)), "--no-tree", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gaps"] == []


def test_hostile_names_do_not_reach_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "pod.json"
    container = {"name": "a\x1b[2J", "resources": {"limits": {"sgx.intel.com/epc": "1Mi"}}}
    file.write_text(json.dumps({"kind": "Pod", "spec": {"containers": [container]}}))
    main.main(["audit", str(file), "--no-tree"])
    assert "\x1b" not in capsys.readouterr().out


POD_OF = '{"kind": "Pod", "spec": %s}'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"kind": "Pod", "spec": "foo"}', 'spec is "foo"; want names with their values'),
        ('{"kind": "Pod", "metadata": "w", "spec": {}}', 'metadata is "w"'),
        (POD_OF % '{"containers": {"a": 1}}', 'containers is {"a": 1}; want a list'),
        (POD_OF % '{"containers": ["a"]}', 'an entry of containers is "a"'),
        (POD_OF % '{"containers": [{"name": "a", "resources": 5}]}', "resources of container a is 5"),
        (
            POD_OF % '{"containers": [{"name": "a", "resources": {"limits": "1Mi"}}]}',
            "limits of container a is",
        ),
        (
            '{"kind": "Pod", "spec": {}, "status": {"containerStatuses": [1]}}',
            "an entry of containerStatuses is 1",
        ),
        ('{"kind": "Job", "spec": {"template": 1}}', "template is 1"),
        ('{"kind": "CronJob", "spec": {"jobTemplate": 1}}', "jobTemplate is 1"),
        ('{"items": 5}', "items is 5; want a list"),
        ('{"ociVersion": "1", "annotations": [1]}', "annotations is [1]"),
        ('{"ociVersion": "1", "linux": {"resources": []}}', "linux.resources is []"),
    ],
)
def test_what_has_another_shape_is_named_with_what_it_should_be(tmp_path: Path, text: str, said: str) -> None:
    """A file that was cut short, or set in wrongly, is still YAML; it ended in a traceback."""
    file = tmp_path / "pod.json"
    file.write_text(text)
    with pytest.raises(BadInput, match=re.escape(f"{file}: {said}")):
        read(file)


def test_files_of_windows_are_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(b'\xef\xbb\xbf{"ociVersion": "1.0"}\r\n')
    into_bundle(file, 4096)
    (workload,) = read(file)
    assert workload.limit == 4096


def test_an_amount_that_cannot_be_read_is_not_shown_as_no_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["audit", str(pod(tmp_path, epc="1Mi ")), "--no-tree"])
    text = capsys.readouterr().out
    assert "asked not readable" in text
    assert "asks for EPC, and nothing hands a limit over" in text


def test_a_container_s_cgroup_is_not_that_of_its_monitor(tmp_path: Path) -> None:
    """CRI-O may keep crio-conmon-ID.scope beside crio-ID.scope."""
    live = tree(tmp_path, "1048576")
    place = live.root / "kubepods" / f"cri-containerd-{CONTAINER}.scope"
    (monitor := place.with_name(f"crio-conmon-{CONTAINER}.scope")).mkdir()
    for file in ("cgroup.controllers", "misc.max"):
        (monitor / file).write_text("sgx_epc max\n")
    place.rename(place.with_name(f"crio-{CONTAINER}.scope"))
    assert [gap.kind for gap in compare(read(pod(tmp_path, LIMITED)), live) if gap.level == "error"] == []


@pytest.mark.parametrize("name", ["a: b", "A", "-a", "a" * 64, "a\n"])
def test_what_kubernetes_takes_for_no_name_is_not_written(name: str) -> None:
    with pytest.raises(BadInput, match="is no container's name"):
        annotation("pod", 4096, name)
