"""Mirror: the run folder's files at home, put together from the frames in a job's log. Knows no SkyPilot.

Owns which frames were taken already, over reconnects, replays, recoveries and two commands at once: every line lands
once, in order. Writes log.txt, events.jsonl, metrics.jsonl, nodes.jsonl and outcome.json into the run's ledger folder.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.backends.sky.log.branches import Branches
from launcher.backends.sky.node.branch import parsed
from launcher.backends.sky.node.relay import BRANCH, FILES, MARK, read_times
from trainer.run.run_folder import JOURNAL_FILE, LOG_TIMES_FILE, OUTCOME_FILE, RunDir, write_atomic

STATE_FILE = "mirror.json"
TIMES_FILE = LOG_TIMES_FILE
"""At home it holds offsets in the log instead of numbers of lines."""
_FRAME = re.compile(rf"(?:^|\s){re.escape(MARK)} (\w+) (?:Z (\S+)|([A-Z]) (\d+) ([\d.]+) (.*))$")


@dataclass(frozen=True, slots=True)
class Frame:
    journal: str
    kind: str
    number: int
    time: float
    text: str


def frames_in(line: str) -> list[Frame]:
    """The frames of one printed line, whatever stands before the mark; none for a line of somebody else or a torn one."""
    match = _FRAME.search(line.rstrip("\r\n"))
    if match is None:
        return []
    journal, many, kind, number, at, text = match.groups()
    try:
        if many is None:
            return [Frame(journal, kind, int(number), float(at), json.loads(text))]
        inner = zlib.decompress(base64.b64decode(many, validate=True)).decode()
    except (ValueError, zlib.error):
        return []
    return [frame for one in inner.split("\n") for frame in frames_in(one)]


class Mirror:
    """The files of one run at home. Any number of processes may hold one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def take(self, frames: Iterable[Frame]) -> int:
        """Append what is new; returns how many lines were. A frame that comes before its turn is left for a later
        reading, which begins at the beginning again."""
        frames = list(frames)
        if not frames:
            return 0
        with self._locked() as state:
            taken = 0
            branches = Branches(state)
            new: dict[str, list[Frame]] = {kind: [] for kind in FILES}
            for frame in frames:
                if frame.kind == BRANCH:
                    branches.meet(frame.journal, parsed(f"{frame.journal}\n{frame.text}")[1])
                elif frame.kind == "O":
                    taken += self._outcome(state, branches, frame)
                elif frame.kind in FILES and branches.take(frame.journal, frame.kind, frame.number):
                    new[frame.kind].append(frame)
                    if frame.kind == "N":
                        state["starts"] += 1
                        RunDir(self._folder).outcome.unlink(missing_ok=True)  # a new start speaks for itself
            for kind, lines in new.items():
                if lines:
                    self._append(state, kind, lines)
                    taken += len(lines)
            return taken

    def take_files(self, read: Callable[[str], bytes | None]) -> int | None:
        """Take the same lines from the run folder itself, by `read(name)`; how many were new, None where it is not there."""
        said = (read(JOURNAL_FILE) or b"").decode(errors="replace")
        journal, _ = parsed(said)
        if not journal:
            return None
        times = read_times((read(LOG_TIMES_FILE) or b"").decode(errors="replace"))
        frames = [Frame(journal, BRANCH, 1, 0.0, said.partition("\n")[2])]
        for kind in "NEMSL":
            lines = (
                (read(FILES[kind]) or b"").decode(errors="replace").split("\n")[:-1]
            )  # one being written is for later
            for nth, line in enumerate(lines, 1):
                frames.append(Frame(journal, kind, nth, times.get(nth, 0.0) if kind == "L" else 0.0, line))
        outcome = read(OUTCOME_FILE)
        if outcome:
            starts = sum(frame.kind == "N" for frame in frames)
            frames.append(Frame(journal, "O", starts, 0.0, outcome.decode(errors="replace")))
        if (read(JOURNAL_FILE) or b"").decode(errors="replace") != said:  # another node took the run over meanwhile
            return 0
        return self.take(frames)

    def times(self) -> list[tuple[int, float]]:
        """Offsets in log.txt, and when the lines from there on were written."""
        return list(self._times())

    def _outcome(self, state: dict, branches: Branches, frame: Frame) -> int:  # type: ignore[type-arg]
        journal, number = frame.journal, frame.number
        is_past = number <= branches.num_taken(journal, "O") or number < branches.num_taken(journal, "N")
        if is_past or not branches.is_newest(journal):
            return 0
        state["taken"][f"{journal} O"] = number
        write_atomic(RunDir(self._folder).outcome, frame.text)
        return 1

    def _append(self, state: dict, kind: str, lines: list[Frame]) -> None:  # type: ignore[type-arg]
        path = self._folder / FILES[kind]
        size = state["sizes"].get(kind, 0)
        with open(path, "ab") as handle:
            for frame in lines:
                data = frame.text.encode() + b"\n"
                if kind == "L" and frame.time and int(frame.time) != state["time"]:
                    state["time"] = int(frame.time)
                    with open(self._folder / TIMES_FILE, "a") as times:
                        times.write(f"{size} {frame.time:.3f}\n")
                handle.write(data)
                size += len(data)
        state["sizes"][kind] = size

    def _times(self) -> Iterator[tuple[int, float]]:
        with contextlib.suppress(FileNotFoundError), open(self._folder / TIMES_FILE) as handle:
            for line in handle:
                offset, _, at = line.strip().partition(" ")
                with contextlib.suppress(ValueError):
                    yield int(offset), float(at)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[dict]:  # type: ignore[type-arg]
        """The state, alone. What a killed command appended without recording it is cut off, to be taken again."""
        descriptor = os.open(self._folder / ".mirror.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            path = self._folder / STATE_FILE
            state = {"taken": {}, "sizes": {}, "starts": 0, "time": 0}
            with contextlib.suppress(FileNotFoundError):
                state = json.loads(path.read_bytes())
            for kind, name in FILES.items():
                size = state["sizes"].get(kind, 0)  # type: ignore[attr-defined]
                file = self._folder / name
                if file.exists() and file.stat().st_size > size:
                    os.truncate(file, size)
            yield state
            write_atomic(path, json.dumps(state))
        finally:
            os.close(descriptor)
