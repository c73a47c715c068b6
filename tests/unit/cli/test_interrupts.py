"""An interrupt ends the work once, and never what is made of it."""

from __future__ import annotations

import os
import signal

import pytest

from epcgroup.cli import main as frame
from epcgroup.cli.interrupts import Interrupted, Interrupts


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


def test_the_first_is_raised_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)
        send()
        send(signal.SIGHUP)
    assert interrupts.status == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == ""


def test_what_comes_when_there_is_a_result_is_ignored() -> None:
    with Interrupts() as interrupts:
        interrupts.keep()
        send()
    assert interrupts.status == 0


def test_work_that_is_asked_for_is_ended_where_it_asks() -> None:
    with Interrupts() as interrupts:
        interrupts.ask()
        send()
        with pytest.raises(Interrupted):
            interrupts.ask()
        send()
        interrupts.ask()  # once


def test_without_a_result_it_is_said_and_the_status_tells_why(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(Interrupted) as raised, Interrupts():
        send(signal.SIGHUP)
    assert raised.value.number == signal.SIGHUP
    assert "nothing was written" in capsys.readouterr().err


def test_the_command_line_ends_with_the_status_of_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_words: object) -> None:
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(frame, "_parsed", interrupted)
    assert frame.main([]) == 143
