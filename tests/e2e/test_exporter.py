"""Metrics of a served machine: from inside the server and from beside it."""

from __future__ import annotations

import re
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.e2e.served import EPCGROUP, NEEDS, eventually, served

EXAMPLES = Path(__file__).parents[2] / "examples" / "observe"
USED = {name for file in EXAMPLES.iterdir() for name in re.findall(r"\bepc_\w+", file.read_text())}

pytestmark = pytest.mark.needs(*NEEDS)


def scrape(url: str) -> dict[tuple[str, str], float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    return {
        (sample.name, sample.labels.get("cgroup", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_paging_of_a_real_program_is_scraped_inside_and_beside_the_server(tmp_path: Path) -> None:
    with served(tmp_path, "--metrics", "0", "--compat", "cadvisor") as server:
        assert server.process.stderr is not None
        inside = re.search(r"http://\S+", server.process.stderr.readline())
        assert inside is not None
        server.path("busy").mkdir()
        server.write("busy/misc.max", f"sgx_epc {4 << 20}")
        words = [EPCGROUP, "exporter", "--dir", str(tmp_path), "--listen", "0"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as beside:
            assert beside.stderr is not None
            url = re.search(r"http://\S+", beside.stderr.readline())
            assert url is not None
            stress = (EPCGROUP, "stress", "--heap", "8M", "--seconds", "1")
            assert server.exec("busy", *stress).returncode == 0
            for found in (scrape(inside[0]), scrape(url[0])):
                assert found["epc_cgroup_pages_in_total", "/busy"] > 500
                assert found["epc_cgroup_limit_hits_total", "/busy"] > 0
                assert found["epc_cgroup_limit_bytes", "/busy"] == 4 << 20
                assert found["epc_cgroup_stall_some_seconds_total", "/busy"] > 0
                assert {name for name, _ in found} >= USED
            words = [EPCGROUP, "exporter", "--dir", str(tmp_path), "--once"]
            once = subprocess.run(words, capture_output=True, text=True, check=True)
            assert 'epc_cgroup_limit_bytes{cgroup="/busy"} 4194304' in once.stdout
            server.stop()
            with pytest.raises(urllib.error.HTTPError, match="503"):
                scrape(url[0])
            with served(tmp_path):
                eventually(lambda: scrape(url[0])["epc_cgroup_limit_bytes", "/busy"] == 4 << 20)
            beside.send_signal(signal.SIGTERM)
            assert beside.wait(60) == 0
