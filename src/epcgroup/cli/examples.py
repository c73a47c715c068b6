"""The lines at the end of each command's help: an example, and how sizes are written."""

from __future__ import annotations

import argparse

EXAMPLES = {
    "run": "epcgroup run --epc 64M --max 16M -- ./my-sgx-program",
    "serve": "epcgroup serve --epc 64M --web",
    "exec": "epcgroup exec --create -g pods/a -- ./my-sgx-program",
    "attach": "epcgroup attach -g pods/a 4711",
    "tree": "epcgroup tree --json",
    "get": "epcgroup get pods/a",
    "set": "epcgroup set pods/a 16M",
    "reclaim": "epcgroup reclaim pods/a 4M",
    "watch": "epcgroup watch pods/a --interval 0.5",
    "events": "epcgroup events --timeout 60 pods/a",
    "audit": "kubectl get pods -A -o yaml > pods.yaml; epcgroup audit pods.yaml",
    "annotate": "epcgroup annotate 64M --as crio --container web",
    "top": "epcgroup top --once",
    "record": "epcgroup record node.parquet --seconds 60",
    "replay": "epcgroup replay node.parquet --epc 64M --max 8M",
    "web": "epcgroup web --listen 8080",
    "exporter": "epcgroup exporter --once",
    "why": "epcgroup why pods/a --at 12:03",
    "doctor": "epcgroup doctor --json",
    "stress": "epcgroup run --max 16M -- epcgroup stress --heap 48M --pattern zipf",
    "demo": "epcgroup demo --seconds 20 --policy v5",
    "selftest": "epcgroup selftest --form v17",
    "conform": "epcgroup conform recordings/epc_hand_v5.jsonl",
    "sim": "epcgroup sim examples/sim/too_tight.toml -o result --plot result.png",
    "calibrate": "epcgroup calibrate mine.toml",
    "report": "epcgroup report before.json after.json --html both.html",
    "trace": "epcgroup trace convert sort.lackey sort.parquet --from lackey",
}


def add(parser: argparse.ArgumentParser, command: str) -> None:
    """Put them below the help of a command."""
    lines = []
    if any("SIZE" in str(action.metavar or "") for action in parser._actions):
        lines.append("SIZE is 64M, 1G, 4096 (bytes) or '16384 pages'.")
    if command in EXAMPLES:
        lines.append(f"Example: {EXAMPLES[command]}")
    parser.epilog = " ".join([*([parser.epilog] if parser.epilog else []), *lines]) or None
