"""Runs a function over many inputs in several processes, and gives the results in the order of the inputs.

Owns processes and pipes. Refuses to know what is computed. Memory stays flat: an input is read only when a worker is free
for it, and only a few results wait for their turn. Workers are forked before any thread or tokenizer has run in the
parent, so that none inherits a held lock, and they encode without threads of their own (TOKENIZERS_PARALLELISM). A worker
ends when its pipe does, however the parent ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

MAX_AHEAD = 4
"""Results for each worker that may wait for an earlier one."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Workers(Generic[Task, Result]):
    """`map` in order. With one worker everything happens in this process. Use as a context manager.

    `function` must exist before the fork; it is called in the workers.
    """

    def __init__(self, function: Callable[[Task], Result], workers: int) -> None:
        self._function = function
        self._num_workers = workers
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Workers[Task, Result]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        if self._num_workers == 1:
            return self
        context = multiprocessing.get_context("fork")
        for number in range(self._num_workers):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve,
                args=(self._function, theirs, [*self._pipes, ours]),
                name=f"prepare-{number}",
                daemon=True,
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=1.0)
            if process.is_alive():
                process.kill()
                process.join()

    def map(self, tasks: Iterable[Task]) -> Iterator[Result]:
        """Results in the order of `tasks`. An exception of a worker is raised here, in its turn."""
        if not self._pipes:
            yield from map(self._function, tasks)
            return
        pending = iter(tasks)
        free, busy = list(self._pipes), {}
        done: dict[int, Any] = {}
        sent = given = 0
        exhausted = False
        while True:
            while free and not exhausted and sent - given < MAX_AHEAD * self._num_workers:
                try:
                    task = next(pending)
                except StopIteration:
                    exhausted = True
                    break
                pipe = free.pop()
                pipe.send(task)
                busy[pipe] = sent
                sent += 1
            if not busy and given == sent:
                return
            if given not in done:
                for ready in wait(list(busy)):
                    pipe = ready  # type: ignore[assignment]
                    try:
                        done[busy.pop(pipe)] = pipe.recv()
                    except (EOFError, OSError) as error:  # OSError: it was killed in the middle of an answer
                        raise RuntimeError(
                            "a worker that prepares data was killed (out of memory?); lower data.workers"
                        ) from error
                    free.append(pipe)
            while given in done:
                ok, value = done.pop(given)
                given += 1
                if not ok:
                    raise value
                yield value
                if free and not exhausted:
                    break


def _serve(function: Callable[[Any], Any], pipe: Connection, others: list[Connection]) -> None:
    for other in others:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        while True:
            try:
                task = pipe.recv()
            except EOFError:
                break
            try:
                answer = (True, function(task))
            except Exception as error:
                answer = (False, error)
            pipe.send(answer)
    except (BrokenPipeError, ConnectionResetError):
        pass
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
