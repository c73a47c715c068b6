"""`epcgroup stress`: what it says before there is an enclave."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from epcgroup.cli.main import main
from epcgroup.stress import device


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heap", "lots"], "'lots' is not a size"),
        (["--heap", "8K", "--touch", "12K"], "--touch 12K"),
        (["--heap", "0"], "0 pages of heap"),
        (["--threads", "0"], "0 threads: from 1 to 256"),
        (["--heap", "8K", "--threads", "3"], "take at least 12K for 3"),
        (["--heap", "1T"], "an enclave may have 64G"),
        (["--seconds", "0"], "--seconds 0.0: must be more than 0"),
        (["--seconds", "nan"], "--seconds nan"),
        (["--passes", "-1"], "--passes -1"),
        (["--rate", "0"], "--rate 0.0"),
        (["--seed", "-1"], "--seed -1: must be from 0"),
    ],
)
def test_bad_options_are_named(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stress", *words]) == 2
    assert said in capsys.readouterr().err


def test_missing_device_points_to_the_emulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device.Enclave.__init__, "__defaults__", (str(tmp_path / "sgx_enclave"),))
    assert main(["stress"]) == 2
    error = capsys.readouterr().err
    assert "epcgroup run -- epcgroup stress" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("contents", "said"),
    [(None, "No such file"), ("nonsense", "no private key in PEM"), ("rsa", "an enclave needs 3")],
)
def test_unusable_key_is_named_with_the_way_to_a_right_one(
    contents: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    path, present = tmp_path / "key.pem", tmp_path / "sgx_enclave"
    present.touch()
    monkeypatch.setattr(device.Enclave.__init__, "__defaults__", (str(present),))
    if contents == "rsa":
        key = rsa.generate_private_key(public_exponent=65537, key_size=3072)
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
    elif contents is not None:
        path.write_text(contents)
    assert main(["stress", "--key", str(path)]) == 2
    error = capsys.readouterr().err
    assert f"--key {path}: " in error
    assert said in error


def test_client_loads_nothing_of_the_emulator() -> None:
    """It must run where there is SGX hardware and no emulator."""
    code = (
        "import sys\n"
        "import epcgroup.cli.stress, epcgroup.stress.load, epcgroup.stress.report\n"
        "import epcgroup.stress.patterns, epcgroup.stress.enter\n"
        "rooms = 'misc epc driver live observe testing conform'.split()\n"
        "print([room for room in rooms if f'epcgroup.{room}' in sys.modules])\n"
        "print(sorted(name for name in sys.modules if name.startswith('epcgroup.sgx.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "[]",
        "['epcgroup.sgx.layouts', 'epcgroup.sgx.measure', 'epcgroup.sgx.sign']",
    ]
