"""The HTTP end of the exporter."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence

import pytest

from epcgroup.errors import BadInput, Refused
from epcgroup.observe import GroupView, Snapshot
from epcgroup.observe.metrics import OPENMETRICS, TEXT, Metrics
from epcgroup.observe.model import Event
from epcgroup.observe.scrape import Exporter, _Handler, parse_address


class Machine:
    """A source whose machine can be gone."""

    name = "machine"

    def __init__(self) -> None:
        self.gone = False
        self.groups = 3

    def snapshot(self) -> Snapshot:
        if self.gone:
            raise Refused("the server is gone")
        groups = tuple(GroupView(f"/g{n}", None, n, n) for n in range(self.groups))
        return Snapshot(1.0, "v5", 10, 5, groups)

    def events(self, after: int = 0) -> Sequence[Event]:  # noqa: ARG002
        return ()

    def set_max(self, path: str, limit: int | None) -> None:  # noqa: ARG002
        raise AssertionError("an exporter sets nothing")

    def close(self) -> None:
        pass


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def exporter(machine: Machine) -> Iterator[Exporter]:
    exporter = Exporter(machine, Metrics(), ("127.0.0.1", 0))
    exporter.start()
    yield exporter
    exporter.close()


def get(url: str, **headers: str) -> tuple[int, str, str]:
    """Status, content type, body."""
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_an_exporter_that_never_began_ends_at_once(machine: Machine) -> None:
    """A server that could not begin waited for it, for ever."""
    exporter = Exporter(machine, Metrics(), ("127.0.0.1", 0))
    exporter.close()
    exporter.close()


def test_a_scrape_gets_the_form_it_asks_for(exporter: Exporter) -> None:
    status, kind, body = get(exporter.url)
    assert (status, kind) == (200, TEXT)
    assert 'epc_cgroup_current_bytes{cgroup="/g2"} 2' in body
    status, kind, body = get(exporter.url, Accept="application/openmetrics-text")
    assert (status, kind) == (200, OPENMETRICS)
    assert body.endswith("# EOF\n")


def test_a_machine_that_is_gone_is_an_error_and_not_old_values(exporter: Exporter, machine: Machine) -> None:
    assert get(exporter.url)[0] == 200
    machine.gone = True
    assert get(exporter.url)[::2] == (503, "the server is gone\n")
    machine.gone = False
    assert get(exporter.url)[0] == 200


def test_other_paths_say_where_the_metrics_are(exporter: Exporter) -> None:
    base = exporter.url.removesuffix("/metrics")
    assert "/metrics" in get(base + "/")[2]
    assert get(base + "/moon")[0] == 404
    assert get(exporter.url + "?x=1")[0] == 200


def test_a_big_scrape_is_compressed_for_whoever_is_far_and_can_read_it(
    exporter: Exporter, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.groups = 2000
    sizes = []
    for far in (False, True):
        monkeypatch.setattr(_Handler, "_far", lambda _self, far=far: far)
        request = urllib.request.Request(exporter.url, headers={"Accept-Encoding": "gzip"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.headers["Content-Encoding"] == ("gzip" if far else None)
            sizes.append(len(answer.read()))
    assert sizes[1] < sizes[0] / 5


def test_an_address_that_is_taken_or_wrong_is_said(exporter: Exporter, machine: Machine) -> None:
    taken = parse_address(exporter.url.removeprefix("http://").removesuffix("/metrics"))
    with pytest.raises(BadInput, match=r"127\.0\.0\.1:\d+: Address already in use"):
        Exporter(machine, Metrics(), taken)
    for text in ("localhost:80", "127.0.0.1", "127.0.0.1:99999", "[::1]", ""):
        with pytest.raises(BadInput):
            parse_address(text)
