"""Seven of eight ranks took half a gigabyte of GPU 0 with the first save: a thread that is new has GPU 0 as its device."""

from __future__ import annotations

import threading

import pytest
import torch

from trainer.engine import threads


class Driver:
    """The CUDA calls behind torch's: the current device is of the thread, 0 in a new one."""

    def __init__(self) -> None:
        self.of_thread = threading.local()
        self.calls: list[tuple[str, str, int]] = []

    def get(self) -> int:
        device: int = getattr(self.of_thread, "device", 0)
        self.calls.append((threading.current_thread().name, "get", device))
        return device

    def set(self, device: int) -> None:
        self.calls.append((threading.current_thread().name, "set", device))
        self.of_thread.device = device


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    stand_in = Driver()
    monkeypatch.setattr(torch.cuda, "_initialized", True)
    monkeypatch.setattr(torch._C, "_cuda_getDevice", stand_in.get, raising=False)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", stand_in.set, raising=False)
    return stand_in


def test_a_plain_thread_is_on_gpu_0_as_cuda_has_it(driver: Driver) -> None:
    torch.cuda.set_device(3)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.cuda.current_device()))
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_thread_of_a_rank_sets_its_device_before_anything_else(driver: Driver) -> None:
    torch.cuda.set_device(3)
    seen: list[int] = []
    threads.start(lambda: seen.append(torch.cuda.current_device()), "save-step-4").join()
    assert seen == [3]
    assert [call[1:] for call in driver.calls if call[0] == "save-step-4"] == [("set", 3), ("get", 3)]


def test_the_threads_of_a_pool_do_too(driver: Driver) -> None:
    torch.cuda.set_device(5)
    with threads.pool(2, "read") as reading:
        assert {reading.submit(torch.cuda.current_device).result() for _ in range(8)} == {5}
    assert {call[1:] for call in driver.calls if call[0].startswith("read")} == {("set", 5), ("get", 5)}


def test_without_a_gpu_a_thread_asks_nothing_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: pytest.fail("asked for a device"))
    ran: list[bool] = []
    threads.start(lambda: ran.append(True), "plain").join()
    assert ran == [True]
