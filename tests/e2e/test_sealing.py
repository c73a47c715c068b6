"""What an enclave seals in one run it can open in another: EGETKEY gives the same key."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.e2e.machine import NEEDS, Ended, programs, run
from tests.e2e.served import NEEDS as NEEDS_OF_SERVERS
from tests.e2e.served import served

pytestmark = [pytest.mark.needs(*NEEDS), pytest.mark.timeout(240)]
both_ways = pytest.mark.usefixtures("enclu")

SEED, OTHER = "000102030405060708090a0b0c0d0e0f", "ff" * 16


def seal(*options: str) -> Ended:
    ended = run("keys", "seal", epc=128, options=options)
    assert ended.status == 0, ended.errors
    return ended


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


@both_ways
def test_two_runs_derive_the_same_sealing_key(state: Path) -> None:
    first = seal().output
    assert len(first) == 33
    assert (state / "epcgroup" / "root.key").stat().st_mode & 0o777 == 0o600
    assert seal().output == first


@both_ways
def test_another_machine_derives_another_key(state: Path) -> None:
    first = seal().output
    (state / "epcgroup" / "root.key").unlink()
    assert seal().output != first


@pytest.mark.needs(*NEEDS_OF_SERVERS)
def test_a_server_derives_the_keys_of_the_runs_before_it(tmp_path: Path) -> None:
    """So containers can open again what they sealed, after a restart and anywhere else on this machine."""
    keys = str(programs() / "keys")
    with served(tmp_path / "one") as server:
        kept = server.exec("/", keys, "seal").stdout
    with served(tmp_path / "two", "--seed", SEED) as server:
        named = server.exec("/", keys, "seal").stdout
    assert kept == seal().output
    assert named == seal("--seed", SEED).output != kept


def test_a_seed_overrides_the_kept_key_and_leaves_it_alone(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "seed"
    file.write_text(SEED)
    named = seal("--seed", SEED).output
    assert not (state / "epcgroup").exists()
    assert seal("--seed", str(file)).output == named
    assert seal("--seed", OTHER).output != named
    assert seal().output not in (named, seal("--seed", OTHER).output)


def test_a_run_without_a_place_for_its_key_says_so_and_goes_on(state: Path) -> None:
    (state / "epcgroup").write_text("in the way")
    ended = seal()
    assert len(ended.output) == 33
    assert "key cannot be kept" in ended.errors
    assert "--seed" in ended.errors


def test_a_bad_seed_is_refused_before_anything_runs() -> None:
    ended = run("keys", "seal", epc=128, options=("--seed", "12ab"))
    assert ended.status == 2
    assert "--seed '12ab': give 32 hexadecimal digits" in ended.errors
    assert ended.output == ""
