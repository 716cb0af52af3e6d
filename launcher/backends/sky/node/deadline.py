"""How far the run is, for who decides on its next machine (progress.json), and whether this machine must give the run back.

Shipped to the node beside the relay, which calls `look` while the trainer runs. A spot machine is given back when the slack (deadline -
now - work left) no longer holds a start on demand; one on demand at the moment that came with it. Giving back is the file STOP: the
trainer saves and ends with 75. The standard library alone, Python 3.8 or later. Refuses to know what comes next.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

PROGRESS, SPENT, EVENTS, METRICS, STOP = "progress.json", "spent.json", "events.jsonl", "metrics.jsonl", "STOP"
"""The supervisor writes what the run has cost so far into the second."""
MACHINE = "DOLPHIN_MACHINE"
SPOT, ON_DEMAND = "spot", "on demand"
PLAN, SAVED, RESUMED, PHASE, PREPARING = "plan", "checkpoint_saved", "resumed", "phase", "preparing data"
GIVEN_BACK = "node given back"
"""How the reason of such a stop begins."""
LOOK_EVERY_S = 5.0
WRITE_EVERY_S = 30.0
LONGER_STARTS = 2.0
"""As the policy has it: the last start on demand may take this many times what was measured."""
STEPS_MEASURED = 5
"""Steps behind which the speed of this machine counts; until then that of the one before."""


class Watch:
    def __init__(self, config: dict[str, Any], run_dir: str, node: dict[str, Any]) -> None:
        """`config` is relay.json, `node` the record of this node. Without terms there is nothing to watch."""
        self.terms: dict[str, Any] = config.get("terms") or {}
        self.run_dir, self.node = run_dir, node
        self.machine = _object(os.environ.get(MACHINE, ""))
        before = _object(_text(os.path.join(run_dir, PROGRESS)))
        self.known = {name: before[name] for name in before if name != "left"}
        self.left: str | None = None
        self._offsets = {EVENTS: 0, METRICS: 0}
        self._first: tuple[float, int] | None = None
        self._newest: tuple[float, int] | None = None
        """Time and step of this node's first and newest step."""
        self._prepared_s = 0.0
        self._preparing_at: float | None = None
        self._looked_at = self._written_at = float("-inf")

    def look(self, last: bool = False) -> None:
        """Now and then, and once more at the end: learn, write, and give the run back where that is due. Raises nothing: a full
        disk or a strange record must not end the run."""
        now = time.time()
        if self.terms and (last or now - self._looked_at >= LOOK_EVERY_S):
            self._looked_at = now
            try:
                self._look(now, last)
            except (OSError, ValueError, TypeError, KeyError, ArithmeticError) as error:
                print("dolphin: progress.json could not be written: " + " ".join(str(error).split())[:200], flush=True)

    def _look(self, now: float, last: bool) -> None:
        self._learn()
        reason = None if last or self.left else self._why_leave(now)
        if reason is not None:
            self.left = reason
            with open(os.path.join(self.run_dir, STOP), "w") as handle:
                handle.write(reason + "\n")
        if last or reason or now - self._written_at >= WRITE_EVERY_S:
            self._written_at = now
            self._write(now)

    def slack_s(self, now: float) -> float | None:
        """Time that may still be lost; None before the speed or the length of the run is known."""
        deadline, pace, total = (
            self.terms.get("deadline"),
            self.known.get("seconds_a_step"),
            self.known.get("total_steps"),
        )
        if deadline is None or pace is None or total is None:
            return None
        return float(deadline - now - (total - self.known.get("reached", 0)) * pace - self.terms["end_s"])

    def reserve_s(self) -> float:
        """Slack that the last start on demand may take."""
        restart = self.known.get("restart_s", self.terms["restart_s"])
        return float(LONGER_STARTS * restart + self.known.get("save_s", self.terms["save_s"]))

    def _vain_try_s(self) -> float:
        """What looking for a spot machine may cost where there is none, as `launcher.runs.policy.live` counts it."""
        return float(2 * self.known.get("restart_s", self.terms["restart_s"]) + self.terms["tick_s"])

    def _why_leave(self, now: float) -> str | None:
        slack, market, leave_at = self.slack_s(now), self.machine.get("market"), self.machine.get("leave_at")
        if slack is None:
            return None
        above = slack - self.reserve_s()
        if market == SPOT and above < (0.0 if self._first else self.terms["tick_s"]):
            return (
                f"{GIVEN_BACK}: the deadline leaves {max(0.0, slack):.0f} s to lose, which a start on demand may take"
            )
        if market == ON_DEMAND and leave_at is not None and now >= leave_at and above >= self._vain_try_s():
            return GIVEN_BACK + ": spot machines are likely to be had again, for less"
        return None

    def _learn(self) -> None:
        began = float(self.node["time"])
        for event in self._new(EVENTS):
            kind, at = event.get("event"), event.get("time")
            if not isinstance(at, (int, float)):
                continue
            if kind == PLAN:
                self.known["total_steps"] = int(event["total_steps"])
            elif kind in (SAVED, RESUMED) and isinstance(event.get("step"), int):
                self.known["step"] = event["step"]
                self.known["reached"] = max(event["step"], self.known.get("reached", 0) if kind == SAVED else 0)
                if kind == SAVED and isinstance(event.get("seconds"), (int, float)):
                    self.known["save_s"] = event["seconds"]
            if kind == PHASE and at >= began:
                if self._preparing_at is not None:
                    self._prepared_s += at - self._preparing_at
                self._preparing_at = at if event.get("phase") == PREPARING else None
        for record in self._new(METRICS):
            step, at = record.get("step"), record.get("time")
            if record.get("loss") is None or not isinstance(step, int) or not isinstance(at, (int, float)):
                continue
            if at < began:
                continue
            if self._first is None:
                self._first = (at, step)
                self._measure_start(at)
            self._newest = (at, step)
            self.known["reached"] = step
        if self._first and self._newest and self._newest[1] - self._first[1] >= STEPS_MEASURED:
            self.known["seconds_a_step"] = (self._newest[0] - self._first[0]) / (self._newest[1] - self._first[1])

    def _measure_start(self, at: float) -> None:
        """Data that was prepared anew is not part of a restart. The longest start counts, but the first one only until another is
        known: what it fetched may be there the next time."""
        asked = self.machine.get("asked_at") or self.node.get("setup_at") or self.node["time"]
        took = max(0.0, at - float(asked) - self._prepared_s)
        longest = self.known.get("restart_s") if self.known.get("restarts") else None
        self.known["restart_s"] = took if longest is None else max(took, longest)
        self.known["restarts"] = self.known.get("restarts", -1) + 1

    def _write(self, now: float) -> None:
        usd = _object(_text(os.path.join(self.run_dir, SPENT))).get("usd")
        if isinstance(usd, (int, float)):
            self.known["spent_usd"] = usd
        record = {**self.known, "time": now, "left": self.left}
        path = os.path.join(self.run_dir, PROGRESS)
        with open(path + ".new", "w") as handle:
            json.dump(record, handle)
        os.replace(path + ".new", path)

    def _new(self, name: str) -> list[dict[str, Any]]:
        """Whole lines since the last look."""
        try:
            with open(os.path.join(self.run_dir, name), "rb") as handle:
                handle.seek(self._offsets[name])
                data = handle.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offsets[name] += end
        return [_object(line) for line in data[:end].decode("utf-8", "replace").split("\n")]


def _object(text: str) -> dict[str, Any]:
    """What a line or a file says; nothing where it is no JSON object."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: str) -> str:
    try:
        with open(path) as handle:
            return handle.read()
    except FileNotFoundError:
        return ""
