"""Runs on the node, beside the trainer: makes the run folder readable from afar through nothing but the job's log.

Shipped alone to the node and started by any Python 3.8 or later, so it imports the standard library only. Owns the start
of the trainer's supervisor, and the frames: one printed line for each line of the run folder's growing files, numbered,
so that a reader puts them together once each, in order, whatever reconnects, replays and recoveries it sees them through.

    ~dolphin JOURNAL KIND NUMBER TIME JSON      a line (kinds below); TIME is seconds since the epoch, 0 where unknown
    ~dolphin JOURNAL Z BASE64                   zlib of many such lines: what earlier nodes left in the run folder

JOURNAL names the run folder's contents (`branch`): it stays the same over recoveries where the folder outlives the node.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import zlib
from types import FrameType
from typing import Any

MARK = "~dolphin"
LOG, EVENTS, METRICS, NODES, SAMPLES = "log.txt", "events.jsonl", "metrics.jsonl", "nodes.jsonl", "samples.jsonl"
OUTCOME, TRAIN, LOG_TIMES, BRANCH = "outcome.json", "train.json", "log.times", "B"
FILES = {"L": LOG, "E": EVENTS, "M": METRICS, "N": NODES, "S": SAMPLES}
"""Kind of a frame to the file whose lines it carries. Kind O carries outcome.json, numbered by the start it ended; kind B what
the journal goes back to."""
POLL_S = 0.5
KEPT_AGAIN_S = 30.0
"""Who keeps the records in a bucket is started again after so long, where that ended."""
REPLAY_BYTES = 64_000
PHASE, RESUMED, ATTEMPT_STARTED, STOPPED, FINISHED = "phase", "resumed", "attempt_started", "preempted", "finished"
"""Events of the trainer."""
PULLING_IMAGE = "pulling image"
PREEMPTED, WITH_MODEL = 75, (0, 76, 77)
"""Exit code of a trainer that was asked to stop and has saved; of a bucket that does not answer now. And those with a model."""
TAKEN = 73
"""Exit code of bucket.py: another node writes this run now, or home stopped it."""
LEASE, _PR_SET_PDEATHSIG = "DOLPHIN_LEASE", 1


def frame(journal: str, kind: str, number: int, at: float, text: str) -> str:
    return f"{MARK} {journal} {kind} {number} {at:.3f} {json.dumps(text)}"


def packed(journal: str, frames: list[str]) -> str:
    """Frames as one line."""
    return f"{MARK} {journal} Z " + base64.b64encode(zlib.compress("\n".join(frames).encode())).decode()


def time_line(number: int, at: float) -> str:
    """A line of log.times: when a line of the log was seen."""
    return f"{number} {at:.3f}\n"


def read_times(text: str) -> dict[int, float]:
    """Number of a line of the log to its time, of the whole lines of log.times."""
    times = {}
    for line in text.split("\n")[:-1]:
        number, _, at = line.partition(" ")
        try:
            times[int(number)] = float(at)
        except ValueError:  # torn by a node that was taken away
            continue
    return times


def without_secrets(line: str) -> str:
    """A line that leaves the node, with no value of the job's secrets in it; what is packed was cleaned before."""
    for name in os.environ.get("DOLPHIN_SECRET_NAMES", "").split(","):
        value = os.environ.get(name, "") if name else ""
        if len(value) >= 4:
            line = line.replace(value, "<" + name + ">").replace(json.dumps(value)[1:-1], "<" + name + ">")
    return line


class Tail:
    """New whole lines of a growing file. `number` counts the lines given out."""

    def __init__(self, path: str) -> None:
        self.path, self.number, self._offset = path, 0, 0

    def read(self, last: bool = False) -> list[str]:
        """Lines since the last call; with `last` also one that lacks its newline."""
        try:
            with open(self.path, "rb") as handle:
                handle.seek(self._offset)
                data = handle.read()
        except FileNotFoundError:
            return []
        end = len(data) if last else data.rfind(b"\n") + 1
        self._offset += end
        lines = data[:end].decode("utf-8", "replace").split("\n")
        if lines[-1] == "":
            lines.pop()
        self.number += len(lines)
        return lines


class Relay:
    def __init__(self, config: dict[str, Any], inputs: str) -> None:
        self.run_dir = os.path.expanduser(config["run_dir"])
        self.config, self.inputs = config, inputs
        os.makedirs(self.run_dir, exist_ok=True)
        os.environ[LEASE] = os.urandom(8).hex() if config.get("bucket") else ""
        self._keeper: subprocess.Popen[bytes] | None = None
        self._kept_at, self._is_taken = -KEPT_AGAIN_S, False
        self._not_restored = self._bucket("restore").wait() if config.get("bucket") else 0
        self.tails = {kind: Tail(os.path.join(self.run_dir, name)) for kind, name in FILES.items()}
        self.journal = self.ancestors = ""
        self.began = time.time()
        self.child: subprocess.Popen[bytes] | None = None
        self.stops = self.start_number = 0
        self._marks: list[tuple[str, float]] = []
        self._last_step: int | None = None
        self._past_step: int | None = None
        self._past_end: str | None = None
        self._past_submission: int | None = None
        self._told_resume = self._told_timing = False

    def run(self) -> int:
        """Everything, to the trainer's exit code."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        if self._not_restored:  # a run without its past would begin anew, and its records take the old ones' place
            return self._not_restored
        branch = self._shipped("branch.py")
        self.journal, self.ancestors = branch["begin"](self.run_dir, FILES, bool(self.config.get("bucket")))
        self._replay()
        branch["end_torn_lines"](tail.path for tail in self.tails.values())
        node, said, is_refused = self._shipped("instance.py")["begin"](self.config, self.began)
        self._append("N", json.dumps(node))
        for line in said:
            self._say(line)
        if is_refused:
            self._forward(last=True)
            self._outcome()
            if self.config.get("bucket"):
                self._bucket("save")
            return 1
        watch = runpy.run_path(os.path.join(self.inputs, "deadline.py"))["Watch"](self.config, self.run_dir, node)
        command = self._command()
        with open(os.path.join(self.run_dir, LOG), "ab") as log:
            if self.stops:
                return PREEMPTED
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, preexec_fn=die_with_parent
            )
        while self.child.poll() is None:
            self._forward()
            self._keep_records()
            watch.look()
            time.sleep(POLL_S)
        watch.look(last=True)
        for _ in range(2):  # the second time, what the relay itself said of the last lines
            self._forward(last=True)
        self._outcome()
        code = self.child.returncode
        if self.config.get("bucket"):
            if self._keeper is not None:
                self._keeper.terminate()
                self._is_taken |= self._keeper.wait() == TAKEN
            if self._is_taken:
                return 1
            if code in WITH_MODEL and self._bucket("publish").wait():
                self._say("the model could not be written to the bucket; the lines above say why")
                self._forward(last=True)
                code = 1
            code = 1 if self._bucket("finish").wait() == TAKEN and code else code
        return 128 - code if code < 0 else code

    def run_beside(self) -> int:
        """On every node but the first, whose relay tells of the run: start the trainer and pass signals on."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)
        self.child = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
        code = self.child.wait()
        return 128 - code if code < 0 else code

    def _replay(self) -> None:
        """What earlier nodes left, for a reader that was not there."""
        first = [frame(self.journal, BRANCH, 1, 0.0, self.ancestors)] if self.ancestors else []
        frames, size = [*first], 0
        times = read_times(self._text(LOG_TIMES) or "")
        for kind in "NEMSL":
            at = 0.0
            tail = self.tails[kind]
            for number, line in enumerate(tail.read(), 1):
                self._learn(kind, line)
                at = times.get(number, at) if kind == "L" else 0.0
                frames.append(without_secrets(frame(self.journal, kind, number, at, line)))
                size += len(line)
                if size > REPLAY_BYTES:
                    self._print(packed(self.journal, frames))
                    frames, size = [*first], 0
        if frames:
            self._print(packed(self.journal, frames))
        self._past_step, self._marks = self._last_step, []
        self.start_number = self.tails["N"].number + 1

    def _shipped(self, name: str) -> dict[str, Any]:
        """A module that lies beside this one; found also where no folder is searched."""
        return runpy.run_path(os.path.join(self.inputs, name))

    def _bucket(self, action: str) -> subprocess.Popen[bytes]:
        """Start bucket.py with the trainer's Python, which has the stores."""
        python, script = self._python(self.config.get("image", ""), None), os.path.join(self.inputs, "bucket.py")
        command = [*python, script, action, self.run_dir, self.config["bucket"]]
        return subprocess.Popen(command, preexec_fn=die_with_parent)

    def _keep_records(self) -> None:
        """See that somebody keeps the records in the bucket; stop the trainer once another node has the run."""
        if not self.config.get("bucket") or (self._keeper is not None and self._keeper.poll() is None):
            return
        if self._keeper is not None and self._keeper.returncode == TAKEN:
            if not self._is_taken:
                self._is_taken = True
                self._say("another node writes this run now; stopping here")
                self._pass_on(signal.SIGTERM, None)
        elif time.monotonic() - self._kept_at >= KEPT_AGAIN_S:
            self._kept_at = time.monotonic()
            self._keeper = self._bucket("keep")

    def _command(self) -> list[str]:
        """The supervisor's command line; writes train.json with this node's paths."""
        with open(os.path.join(self.inputs, TRAIN)) as handle:
            text = handle.read().replace("@DATA@", os.path.join(os.path.dirname(self.inputs), "dolphin-data"))
        train = ["-m", "trainer.supervise", self._write(TRAIN, text)]
        image: str = self.config["image"]
        look = ["docker", "image", "inspect", image]
        if self._how() == "docker" and subprocess.run(look, capture_output=True, check=False).returncode:
            self._phase(PULLING_IMAGE)
            self._forward()
            with open(os.path.join(self.run_dir, LOG), "ab") as log:
                if subprocess.call(["docker", "pull", "-q", image], stdout=log, stderr=subprocess.STDOUT):
                    self._say(f"cannot pull {image} on this node; is the name right, and may this node read it?")
        return [*self._python(image, "dolphin-" + self.config["run_id"]), *train]

    def _how(self) -> str:
        return os.environ.get("DOLPHIN_CONTAINER", "none")

    def _python(self, image: str, name: str | None) -> list[str]:
        """The trainer's Python: of this node, or in a container of the image with the run's folders and variables."""
        if self._how() != "docker":
            os.environ["PYTHONUNBUFFERED"] = "1"
            os.environ["PYTHONSAFEPATH"] = "1"  # no module of the folder that SkyPilot starts jobs in
            return [os.environ.get("DOLPHIN_PYTHON") or sys.executable]
        asked = ["docker", "info", "-f", "{{.SecurityOptions}}"]
        told, users = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout, self.config["user_options"]
        user = users[next((mapping for mapping in users if mapping and "name=" + mapping in told), "")]
        command = ["docker", "run", "--rm", "--init", "--network=host", "--ipc=host", *self.config["options"]]
        command += [option.replace("@USER@", f"{os.getuid()}:{os.getgid()}") for option in user]
        command += ["--label", "dolphin.run=" + self.config["run_id"]]
        if name:
            command += ["--name", name]
        if shutil.which("nvidia-smi"):
            command += self.config["gpu_options"]
        reads = {self.inputs, *map(os.path.expanduser, self.config["reads"])}
        for folder in sorted({self.run_dir, *reads, *map(os.path.expanduser, self.config["mounts"])}):
            os.makedirs(folder, exist_ok=True)
            command += ["-v", folder + ":" + folder + (":ro" if folder in reads else "")]
        for variable in [*self.config["env"], LEASE]:
            command += ["-e", variable]
        return [*command, "--entrypoint", "python", image]

    def _forward(self, last: bool = False) -> None:
        at = time.time()
        for kind, tail in self.tails.items():
            first = tail.number + 1
            for number, line in enumerate(tail.read(last), first):
                self._print(frame(self.journal, kind, number, at, line))
                self._learn(kind, line)
                if kind == "L" and number % 20 == 1:
                    with open(os.path.join(self.run_dir, LOG_TIMES), "a") as handle:
                        handle.write(time_line(number, at))
        sys.stdout.flush()

    def _learn(self, kind: str, line: str) -> None:
        """Notice what makes a line of the relay's own: a resume, the first step."""
        if kind not in "NEM":
            return
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            return
        if not isinstance(record, dict):
            return
        if kind == "N":
            if not self.start_number:
                self._past_submission = record.get("submission")
        elif kind == "E":
            name = record.get("event")
            if not self.start_number and name in (ATTEMPT_STARTED, STOPPED, FINISHED):
                self._past_end = _end_of(record, self._past_end)
            elif name == PHASE and self.start_number and isinstance(record.get("time"), (int, float)):
                self._marks.append((str(record.get("phase")), record["time"]))
            elif name == RESUMED and self._past_step is not None and not self._told_resume:
                self._told_resume = True
                if isinstance(record.get("step"), int):  # a bucket may have heard of the checkpoint alone
                    self._past_step = max(self._past_step, record["step"])
                self._say(f"{self._what_happened()}; resuming from {record.get('step')}")
        elif record.get("loss") is not None:
            self._last_step = record.get("step")
            if self.start_number and not self._told_timing:
                self._told_timing = True
                if self._past_step is not None and not self._told_resume:
                    self._say(f"{self._what_happened()}, before the first save; starting over")
                self._say_timing(time.time())

    def _what_happened(self) -> str:
        """How the start before this one ended: what SkyPilot starts again by itself was on a node that was taken away; what
        a person did, as its own last words have it."""
        if self._past_submission == self.config.get("submission") and "(node given back" not in str(self._past_end):
            return f"node reclaimed at step {self._past_step}"
        end = self._past_end or "cut off without a word (cancelled, or its node is gone)"
        return f"{end} at step {self._past_step}"

    def _say_timing(self, now: float) -> None:
        """Phase by phase, from the first command on the node to the first step."""
        setup_at = float(os.environ.get("DOLPHIN_SETUP_AT") or self.began)
        marks = [("environment", setup_at), ("relay", self.began), *self._marks, ("", now)]
        parts = [f"{name} {max(0.0, end - at):.1f} s" for (name, at), (_, end) in zip(marks, marks[1:])]  # noqa: B905, RUF007 (Python 3.8)
        self._say(f"{now - setup_at:.1f} s from the node to step {self._last_step}: {', '.join(parts)}")

    def _phase(self, phase: str) -> None:
        record = {"time": time.time(), "event": PHASE, "attempt": self.start_number, "phase": phase}
        self._append("E", json.dumps(record))

    def _say(self, message: str) -> None:
        self._append("L", "dolphin: " + message)

    def _append(self, kind: str, line: str) -> None:
        with open(self.tails[kind].path, "a") as handle:
            handle.write(line + "\n")

    def _outcome(self) -> None:
        if (text := self._text(OUTCOME)) is not None:
            self._print(frame(self.journal, "O", self.start_number, time.time(), text))

    def _text(self, name: str) -> str | None:
        try:
            with open(os.path.join(self.run_dir, name)) as handle:
                return handle.read()
        except FileNotFoundError:
            return None

    def _write(self, name: str, text: str) -> str:
        """Put a whole file into the run folder; its path."""
        path = os.path.join(self.run_dir, name)
        with open(path + ".new", "w") as handle:
            handle.write(text)
        os.replace(path + ".new", path)
        return path

    def _print(self, line: str) -> None:
        sys.stdout.write(without_secrets(line) + "\n")

    def _pass_on(self, number: int, stack: FrameType | None) -> None:
        self.stops += 1
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signal.SIGTERM)


def _end_of(event: dict[str, Any], so_far: str | None) -> str | None:
    """How a start ended, after one more of its events; None while it goes on."""
    if event.get("event") == ATTEMPT_STARTED:
        return None
    reason = f" ({event['reason']})" if event.get("reason") else ""
    if event.get("event") == STOPPED:
        return f"stopped with everything saved{reason}"
    return so_far or f"ended with exit code {event.get('exit_code')}{reason}"


def die_with_parent() -> None:
    """The trainer must not outlive a relay that was killed: nobody would hear of it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def main() -> int:
    inputs = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(inputs, "relay.json")) as handle:
        config = json.load(handle)
    if os.environ.get("DOLPHIN_NODE_RANK", "0") == "0":
        return Relay(config, inputs).run()
    run_dir = config["run_dir"] + "/node-" + os.environ["DOLPHIN_NODE_RANK"]
    return Relay({**config, "run_dir": run_dir, "bucket": None}, inputs).run_beside()


if __name__ == "__main__":
    sys.exit(main())
