"""The root key is made once, is nobody else's to read, and never half there."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from epcgroup.errors import BadInput
from epcgroup.live import rootkey

KEY = "00112233445566778899AABBccddeeff"


def test_the_first_run_makes_a_key_and_the_second_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "state" / "epcgroup" / "root.key"
    key = rootkey.kept(path)
    assert len(key) == 16
    assert rootkey.kept(path) == key
    assert path.read_text() == key.hex() + "\n"


def test_another_machine_has_another_key(tmp_path: Path) -> None:
    assert rootkey.kept(tmp_path / "a") != rootkey.kept(tmp_path / "b")


def test_only_its_owner_may_read_the_key(tmp_path: Path) -> None:
    """Whatever the umask lets through, and no draft of it is left."""
    path = tmp_path / "new" / "root.key"
    before = os.umask(0)
    try:
        rootkey.kept(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_two_first_runs_at_once_agree_on_one_key(tmp_path: Path) -> None:
    path = tmp_path / "root.key"
    keys: list[bytes] = []
    gate = threading.Barrier(8)

    def first_run() -> None:
        gate.wait(60)
        keys.append(rootkey.kept(path))

    runs = [threading.Thread(target=first_run) for _ in range(8)]
    for run in runs:
        run.start()
    for run in runs:
        run.join(60)
    assert len(keys) == 8
    assert len(set(keys)) == 1


def test_a_fast_rival_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other run's key appears between our look and our link: ours is dropped."""
    path = tmp_path / "root.key"
    link = os.link

    def late(draft: Path, target: Path) -> None:
        path.write_text(KEY)
        link(draft, target)

    monkeypatch.setattr(os, "link", late)
    assert rootkey.kept(path) == bytes.fromhex(KEY)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("contents", ["", "0011", KEY + "00", "x" * 32, KEY + "\n" + KEY])
def test_a_file_without_a_key_is_refused_and_kept(tmp_path: Path, contents: str) -> None:
    """To replace it would make every sealed file useless."""
    path = tmp_path / "root.key"
    path.write_text(contents)
    with pytest.raises(BadInput, match="32 hexadecimal digits") as refused:
        rootkey.kept(path)
    assert str(path) in str(refused.value)
    assert path.read_text() == contents


def test_a_seed_is_digits_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "seed"
    path.write_text(f"  {KEY}\n")
    assert rootkey.from_seed(KEY) == rootkey.from_seed(str(path)) == bytes.fromhex(KEY)


@pytest.mark.parametrize("seed", ["", "1234", "not/there", KEY + "0"])
def test_any_other_seed_is_refused_and_named(seed: str) -> None:
    if not seed:
        with pytest.raises(BadInput):
            rootkey.from_seed(seed)
        return
    with pytest.raises(BadInput, match=f"--seed '{seed}': give 32 hexadecimal digits"):
        rootkey.from_seed(seed)


def test_the_state_directory_is_that_of_the_xdg_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    assert rootkey.default_path() == Path("/h/.local/state/epcgroup/root.key")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    assert rootkey.default_path() == Path("/s/epcgroup/root.key")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert rootkey.default_path() == Path("/h/.local/state/epcgroup/root.key")
