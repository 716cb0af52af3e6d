"""What a command says of a module of the trainer that it ran: an interrupt is an interrupt, whatever the module exits with."""

import signal
import sys

import pytest

from launcher.commands import trainer_side
from launcher.runs.errors import BadUsage, LauncherError

INTERRUPT = "import os, signal, sys; os.kill(os.getppid(), signal.SIGINT); sys.exit({})"


def run(monkeypatch, program: str) -> None:
    monkeypatch.setattr(trainer_side.python, "command", lambda module: [sys.executable, "-c", program])
    trainer_side.run("module", failed="it was not done")


def test_an_interrupt_that_a_server_answers_with_a_code_of_its_own_is_no_failure(monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, INTERRUPT.format(1))


def test_a_conversation_that_an_interrupt_ends_well_is_done(monkeypatch):
    run(monkeypatch, INTERRUPT.format(0))


@pytest.mark.parametrize(("code", "error"), [(64, BadUsage), (1, LauncherError)])
def test_a_failure_is_told(monkeypatch, code, error):
    with pytest.raises(error, match="it was not done; the reason is above"):
        run(monkeypatch, f"import sys; sys.exit({code})")


def test_the_handler_of_before_is_back(monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    run(monkeypatch, "")
    assert signal.getsignal(signal.SIGINT) is before
