"""Every recorded observation is reproduced; and what the judge says of bad input."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from epcgroup.cli.conform import add_parser
from epcgroup.conform import conform
from epcgroup.conform.ranges import parse_pages, ranges, run_lengths, tagged_ranges
from epcgroup.errors import BadInput

FILES = (
    "misc_conformance.jsonl",
    "epc_hand_v5.jsonl",
    "epc_hand_v17.jsonl",
    "epc_traces_v5.jsonl",
    "epc_traces_v17.jsonl",
)


def command(*arguments: str | Path) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    args = parser.parse_args(["conform", *map(str, arguments)])
    result = args.func(args)
    assert isinstance(result, int)
    return result


@pytest.mark.parametrize("name", FILES)
def test_the_engine_agrees_with_every_observation_recorded(golden_dir: Path, name: str) -> None:
    verdict = conform(golden_dir / name)
    assert verdict.steps > verdict.traces > 0
    assert verdict.differ == 0, str(verdict)


def test_the_command_counts_and_succeeds(golden_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(golden_dir / "epc_hand_v5.jsonl", golden_dir / "epc_hand_v17.jsonl") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("epc_hand_v5.jsonl: 17 traces, 424 steps, 0 differ")
    assert lines[1].endswith("epc_hand_v17.jsonl: 17 traces, 424 steps, 0 differ")


def altered(golden_dir: Path, tmp_path: Path, name: str, old: str, new: str) -> Path:
    path = tmp_path / name
    text = (golden_dir / name).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("epc_hand_v5.jsonl", '"k": "1*8 -2"', '"k": "1*9 -2"', "touch 2 0-19"),
        ("epc_hand_v17.jsonl", '"works_run": 0', '"works_run": 5', "works_run = 5"),
        ("misc_conformance.jsonl", r'[0,"sev 77\n"]', r'[0,"sev 78\n"]', '["read", "/a", "max"]'),
    ],
)
def test_one_altered_observation_is_found_and_shown(
    golden_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    old: str,
    new: str,
    told: str,
) -> None:
    text = (golden_dir / name).read_text()
    if old not in text:  # the files are written with or without blanks
        old, new = old.replace(": ", ":"), new.replace(": ", ":")
    path = altered(golden_dir, tmp_path, name, old, new)
    assert command(path) == 1
    output = capsys.readouterr().out
    assert ", 0 differ" not in output
    assert "expected" in output
    assert "got" in output
    assert told in output


def step(**fields: object) -> str:
    trace = {"id": 0, "name": "x", "impl": "v5", "epc": 64, "sgx2": 0, "steps": [fields]}
    return json.dumps(trace)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no records"),
        ('{"id": 0, "steps": [', "truncated"),
        ("[1]", "not a JSON object"),
        ('{"id": 0}', "neither"),
        ('{"id": 0, "ops": [["mkdir"]], "out": {"v5": []}}', "one result for each"),
        ('{"id": 0, "ops": [["mkdir"]], "out": {"v5": [0]}}', "mkdir"),
        ('{"id": 0, "ops": [["fly", "/"]], "out": {"v5": [0]}}', "'fly'"),
        ('{"id": 0, "ops": [["mkdir", "/a"]], "out": {"v9": [0]}}', "'v9'"),
        ('{"id": 0, "name": "x", "steps": []}', "'impl'"),
        (step(op="fly 1", r=0), "'fly'"),
        (step(op="mkcg", r=0), "mkcg"),
        (step(op="touch 1 a-b", r=0), "a-b"),
        (step(r=0), "step 1"),
    ],
)
def test_a_file_that_is_no_recording_is_refused_naming_file_and_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(text and f"{step(op='mkcg /a', r=0, free=64)}\n{text}\n")
    assert command(path) == 2
    error = capsys.readouterr().err
    assert (f"{path}:2:" if text else str(path)) in error
    assert told in error


def test_an_unknown_policy_is_named_with_those_there_are(tmp_path: Path) -> None:
    path = tmp_path / "v4.jsonl"
    path.write_text(step(op="mkcg /a", r=0).replace('"v5"', '"v4"'))
    with pytest.raises(BadInput, match=r"v4.jsonl:1: no policy 'v4'; there are standard, v5, v17"):
        conform(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert command(tmp_path / "nothing.jsonl") == 2


def test_the_standard_policy_can_be_recorded_too(tmp_path: Path) -> None:
    path = tmp_path / "standard.jsonl"
    path.write_text(step(op="mkcg /a", r=0, free=64).replace('"v5"', '"standard"'))
    assert conform(path).differ == 0


def test_short_forms_of_page_lists() -> None:
    assert parse_pages(["3", "7-9"]) == [3, 7, 8, 9]
    assert ranges([3, 7, 8, 9]) == "3 7-9"
    log = [("-1:", 4, ""), ("-1:", 5, ""), ("-1:", -1, ""), ("+1:", 6, "")]
    assert tagged_ranges(log) == "-1:4-5 -1:S +1:6"
    assert tagged_ranges([("1:", 1, "y"), ("1:", 2, "y"), ("1:", 3, "")]) == "1:1-2y 1:3"
    assert run_lengths([1, 1, 1, 0, 2]) == "1*3 0 2"
    assert run_lengths([]) == ""
