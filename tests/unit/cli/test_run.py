"""What `epcgroup run` makes of its options, before anything is started."""

from __future__ import annotations

import argparse

import pytest

from epcgroup.cli import exec as execute
from epcgroup.cli import run as command
from epcgroup.cli.main import main
from epcgroup.errors import BadInput


def parsed(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["run", *words])


@pytest.mark.parametrize(
    ("spec", "path", "limit"),
    [
        ("pods/a=16M", "/pods/a", 16 << 20),
        ("/web", "/web", None),
        ("web=max", "/web", None),
        ("//a//b//=2 pages", "/a/b", 8192),
    ],
)
def test_a_cgroup_is_a_path_and_perhaps_a_limit(spec: str, path: str, limit: int | None) -> None:
    assert command.parse_cgroup(spec) == (path, limit)


@pytest.mark.parametrize("spec", ["", "/", "=4M", "a/../b=4M", "a/./b", "a=lots"])
def test_a_bad_cgroup_is_named(spec: str) -> None:
    with pytest.raises(BadInput) as refused:
        command.parse_cgroup(spec)
    assert "size" in str(refused.value) or repr(spec) in str(refused.value)


def test_without_options_the_command_runs_in_a_group_of_its_own() -> None:
    assert command.groups_of(parsed("--", "true")) == [("/run", None)]
    assert command.groups_of(parsed("--max", "4M", "true")) == [("/run", 4 << 20)]


def test_the_last_group_is_the_commands_and_takes_the_limit() -> None:
    args = parsed("--cgroup", "pods=64M", "--cgroup", "pods/a", "--max", "16M", "--", "true")
    assert command.groups_of(args) == [("/pods", 64 << 20), ("/pods/a", 16 << 20)]


def test_run_and_exec_name_the_cgroup_alike() -> None:
    parser = argparse.ArgumentParser()
    execute.add_parser(parser.add_subparsers())
    for name in ("-g", "--cgroup"):
        assert command.groups_of(parsed(name, "pods/a", "true")) == [("/pods/a", None)]
        assert parser.parse_args(["exec", name, "pods/a", "true"]).cgroup == "pods/a"
    assert parser.parse_args(["exec", "true"]).cgroup == "/"
    assert parser.parse_args(["exec", "--group", "pods/a", "true"]).cgroup == "pods/a"  # its former name


def test_two_limits_for_one_group_contradict_each_other() -> None:
    with pytest.raises(BadInput, match="contradict"):
        command.groups_of(parsed("--cgroup", "a=1M", "--max", "2M", "true"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run"], "no command"),
        (["run", "--epc", "lots", "true"], "'lots' is not a size"),
        (["run", "--epc", "100", "true"], "0 pages"),
        (["run", "--policy", "v99", "true"], "no policy 'v99'"),
        (["run", "--inject", "bend@1", "true"], "bend@1"),
        (["run", "/nonexistent/program"], "no such program"),
        (["run", "--max", "lots", "true"], "--max 'lots' is not a size"),
        (["run", "--cgroup", "a=lots", "true"], "--cgroup a: 'lots' is not a size"),
        (["run", "--report-file", "/nonexistent/file", "true"], "there is no such directory"),
        (["run", "--report-file", "/", "true"], "it is a directory"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    errors = capsys.readouterr().err
    assert says in errors
    assert errors.count("\n") == 1
