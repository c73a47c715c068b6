"""The alerts and the dashboard in examples/observe fit the metrics that are really written."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.unit.observe.test_metrics import SNAPSHOT, samples

from epcgroup.observe.metrics import Metrics

EXAMPLES = Path(__file__).parents[3] / "examples" / "observe"
WRITTEN = {name for name, _ in samples(Metrics().text(SNAPSHOT))}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bepc_\w+", text))


def test_every_metric_of_the_alerts_exists() -> None:
    assert named((EXAMPLES / "alerts.yml").read_text()) <= WRITTEN


def test_every_metric_of_the_dashboard_exists_and_nearly_all_are_shown() -> None:
    board: dict[str, Any] = json.loads((EXAMPLES / "grafana.json").read_text())
    shown = named(json.dumps(board))
    assert shown <= WRITTEN
    assert WRITTEN - shown == {
        "epc_cgroup_faults_total",
        "epc_cgroup_peak_bytes",
        "epc_cgroup_stall_seconds_total",
        "epc_machine_info",
    }
    ids = [panel["id"] for panel in board["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.needs("promtool")
def test_prometheus_reads_every_query_of_the_dashboard_and_its_panels_have_a_place(tmp_path: Path) -> None:
    """No Grafana is here: what it would ask is asked of promtool, and what it would lay out is laid out."""
    board: dict[str, Any] = json.loads((EXAMPLES / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    variables = {one["name"] for one in board["templating"]["list"]}
    text = json.dumps(board)
    assert set(re.findall(r"\$\{?(\w+)", text)) - {"__rate_interval", "__all"} <= variables
    plain = [query.replace("$__rate_interval", "5m") for query in queries]
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    words = ["promtool", "check", "rules", str(tmp_path / "rules.yml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
    taken = set[tuple[int, int]]()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not cells & taken, panel["title"]
        taken |= cells
        ids = [target["refId"] for target in panel["targets"]]
        assert len(ids) == len(set(ids)), panel["title"]


@pytest.mark.needs("promtool")
def test_promtool_accepts_the_alerts_and_they_fire_when_they_should(tmp_path: Path) -> None:
    """One series for each alert that should raise it, and a quiet cgroup that should not."""
    current, some = "epc_cgroup_current_bytes", "epc_cgroup_stall_some_seconds_total"
    cases = tmp_path / "cases.yml"
    cases.write_text(f"""
rule_files: [{EXAMPLES / "alerts.yml"}]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {{series: '{some}{{instance="n", cgroup="/tight"}}', values: '0+30x1600'}}
      - {{series: 'epc_cgroup_limit_hits_total{{instance="n", cgroup="/tight"}}', values: '0+9x1600'}}
      - {{series: '{some}{{instance="n", cgroup="/ok"}}', values: '0+1x1600'}}
      - {{series: 'epc_cgroup_limit_hits_total{{instance="n", cgroup="/ok"}}', values: '0+9x1600'}}
      - {{series: 'epc_cgroup_limit_bytes{{instance="n", cgroup="/loose"}}', values: '1000x1600'}}
      - {{series: 'epc_cgroup_current_bytes{{instance="n", cgroup="/loose"}}', values: '100x1600'}}
      - {{series: 'epc_cgroup_limit_bytes{{instance="n", cgroup="/ok"}}', values: '1000x1600'}}
      - {{series: '{current}{{instance="n", cgroup="/ok", container="c"}}', values: '900x1600'}}
      - {{series: '{current}{{instance="n", cgroup="/free", container="c"}}', values: '7x1600'}}
      - {{series: 'epc_node_free_bytes{{instance="n", numa_node="0"}}', values: '4x1600'}}
      - {{series: 'epc_node_capacity_bytes{{instance="n", numa_node="0"}}', values: '100x1600'}}
    promql_expr_test:
      - expr: count by (alertname, cgroup) (ALERTS{{alertstate="firing"}})
        eval_time: 1550m
        exp_samples:
          - {{labels: '{{alertname="EpcLimitTooTight", cgroup="/tight"}}', value: 1}}
          - {{labels: '{{alertname="EpcLimitTooLoose", cgroup="/loose"}}', value: 1}}
          - {{labels: '{{alertname="EpcLimitMissing", cgroup="/free"}}', value: 1}}
          - {{labels: '{{alertname="EpcNodeNearlyFull"}}', value: 1}}
""")
    for words in (["check", "rules", str(EXAMPLES / "alerts.yml")], ["test", "rules", str(cases)]):
        done = subprocess.run(["promtool", *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
