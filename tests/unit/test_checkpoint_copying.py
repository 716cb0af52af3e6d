"""What a save takes from the training is the wait for the copy, and nothing that happens beside it."""

from __future__ import annotations

import threading
import time

import pytest

from trainer.checkpoint.manager import Copying


def test_an_update_waits_for_the_copy_and_the_wait_is_counted() -> None:
    copying, is_copied = Copying(), threading.Event()

    def copy() -> None:
        time.sleep(0.2)
        is_copied.set()

    thread = threading.Thread(target=copying.run, args=(copy,))
    thread.start()
    copying.wait()
    assert is_copied.is_set()
    assert 0 < copying.blocked_s < 10
    thread.join()


def test_a_copy_that_ended_beside_the_training_held_nothing_up() -> None:
    copying = Copying(0.25)
    copying.run(lambda: time.sleep(0.05))
    copying.wait()
    assert copying.blocked_s == 0.25


def test_a_copy_that_fails_does_not_hang_the_training() -> None:
    copying = Copying()
    with pytest.raises(MemoryError):
        copying.run(lambda: (_ for _ in ()).throw(MemoryError()))
    waiting = threading.Thread(target=copying.wait, daemon=True)
    waiting.start()
    waiting.join(timeout=10)
    assert not waiting.is_alive()
