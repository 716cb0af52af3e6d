"""Telling people: what happens to a run, posted to the hooks that its job names, from the one process that always lives.

A thread a hook reads events.jsonl, which is its queue: whatever a hook does, the run neither waits for it nor ends of it. An event
`notified` says what was posted, so that the next start on any node goes on there. Owns which events are told, and in which
words; a hook's URL stays in memory.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from trainer.run.exits import EXIT_CODES, LIMITS, ExitCode
from trainer.run.paid import paid
from trainer.run.run_folder import EventKind
from trainer.run.spec import NodeJob
from trainer.supervise.outcome import PastEvents

POLL_S = 1.0
TIMEOUT_S = 10.0
"""For each answer."""
WAITS_S = (1.0, 5.0)
"""Before the second and the third try."""
MOST_BEHIND = 20
"""Events that a hook which was away is told afterwards; the newest."""
CLOSE_S = 10.0
"""How long the end of the run waits for its own last message."""
_NAME = re.compile(r"\$\{(\w+)\}")
_FIELD_OF_TEXT = {"hooks.slack.com": "text", "discord.com": "content", "discordapp.com": "content"}
_LONGEST_TEXT = 1900
"""Discord takes 2,000 characters."""
_LIMIT_CODES = {int(EXIT_CODES[kind]): kind.value.replace("_", " ") for kind in LIMITS}

Say = Callable[[str], None]
Post = Callable[[str, bytes], None]
"""post(url, body) raises OSError or HTTPException where it was not taken."""


@dataclass(frozen=True, slots=True)
class Message:
    kind: str
    """started, preempted, recovered, warning, ended or failed."""
    text: str
    event: Mapping[str, Any]


class Story:
    """Turns events, in order, into what is told of them."""

    def __init__(self) -> None:
        self._total: int | None = None
        self._began: object = None
        self._is_open = False

    def take(self, event: Mapping[str, Any]) -> Message | None:
        get = event.get
        told: tuple[str, str] | None = None
        match get("event"):
            case EventKind.ATTEMPT_STARTED:
                told = self._started(get("began"), get("nproc"), get("device"))
            case EventKind.PLAN:
                self._total = get("total_steps")
            case EventKind.RESUMED:
                lost = f", {get('lost_steps')} steps to do again" if get("lost_steps") else ""
                told = "recovered", f"goes on from step {get('step')}{self._of()}{lost}"
            case EventKind.PREEMPTED:
                told = "preempted", f"preempted, saved at step {get('step') or 0}{self._of()} ({get('reason')})"
            case EventKind.RESTARTING:
                told = "warning", f"starts again on its machine: {get('reason')}"
            case EventKind.LIMIT_NEAR:
                told = "warning", f"{get('limit')}: {get('reason')}"
            case EventKind.FINISHED:
                self._is_open = False
                told = self._finished(get("exit_code"), get("reason"))
        return None if told is None else Message(*told, event)

    def _started(self, began: object, nproc: object, device: object) -> tuple[str, str] | None:
        was_first, was_open = self._began is None, self._is_open
        if began == self._began:
            return None
        self._began, self._is_open = began, True
        if was_first:
            return (
                "started",
                f"started on {nproc} {'GPU' if device == 'cuda' else 'CPU rank'}{'' if nproc == 1 else 's'}",
            )
        return ("preempted", "lost its machine without a word; starts again") if was_open else None

    def _finished(self, code: object, reason: object) -> tuple[str, str] | None:
        if code == ExitCode.PREEMPTED:
            return None  # told as such already
        if code == ExitCode.DONE:
            return "ended", f"done, {self._total} steps"
        if code in _LIMIT_CODES:
            return "ended", f"{_LIMIT_CODES[code]}: {reason}"
        return "failed", f"failed: {reason}"

    def _of(self) -> str:
        return f" of {self._total}" if self._total else ""


class Hooks:
    """Of one start of the trainer. Only the node that tells of the run has any."""

    def __init__(
        self, job: NodeJob, past: PastEvents, environment: Mapping[str, str], say: Say, post: Post | None = None
    ):
        self._closing = threading.Event()
        self._threads = []
        for number, text in enumerate(job.limits.notify):
            url = environment.get(found[1], "").strip() if (found := _NAME.fullmatch(text)) else text
            if not url:
                say(f"notify[{number}]: {text} is not set here; it is not told of anything")
                continue
            hook = _Hook(number, url, job, past, say, self._closing, post or post_to)
            self._threads.append(threading.Thread(target=hook.run, name=f"hook-{number}", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, within_s: float = CLOSE_S) -> None:
        """Behind the last event: wait for it to be told, but not for long."""
        self._closing.set()
        until = time.monotonic() + within_s
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))


@dataclass
class _Hook:
    number: int
    url: str
    job: NodeJob
    past: PastEvents
    say: Say
    closing: threading.Event
    post: Post

    def __post_init__(self) -> None:
        self._size, self._told_until, self._has_failed = -1, None, False
        self._began = time.time()

    def __repr__(self) -> str:
        return f"notify[{self.number}]"

    def run(self) -> None:
        while True:
            is_last = self.closing.is_set()
            with contextlib.suppress(OSError):
                for message in self._new():
                    self._tell(message)
            if is_last:
                return
            self.closing.wait(POLL_S)

    def _new(self) -> list[Message]:
        """What is to be told by now, of this start or since this hook was told last."""
        size = self.past.run_dir.events.stat().st_size
        if size == self._size:
            return []
        self._size = size
        story, found, since = Story(), list[Message](), self._told_until
        events = self.past.run_dir.read_events()
        if since is None:
            marks = [
                event["of"]
                for event in events
                if event.get("event") == EventKind.NOTIFIED and event.get("hook") == self.number
            ]
            since = max((at for at in marks if isinstance(at, int | float)), default=self._began - POLL_S)
        for event in events:
            message, at = story.take(event), event.get("time")
            if message is not None and isinstance(at, int | float) and at > since:
                found.append(message)
        return found[-MOST_BEHIND:]

    def _tell(self, message: Message) -> None:
        posted, why = False, ""
        body = body_for(self.url, self._fields(message))
        for wait_s in (0.0, *WAITS_S):
            if wait_s:
                self.closing.wait(wait_s)
            try:
                self.post(self.url, body)
                posted = True
                break
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}"
                if error.code < 500 and error.code != 429:
                    break
            except (OSError, HTTPException, ValueError) as error:
                why = type(error).__name__  # its text may hold the URL
        self._told_until = message.event["time"]
        self.past.run_dir.emit(
            EventKind.NOTIFIED, attempt=message.event.get("attempt", 1), hook=self.number, of=self._told_until, posted=posted
        )  # fmt: skip
        if not posted and not self._has_failed:
            self._has_failed = True
            self.say(f"notify[{self.number}]: {message.kind} could not be posted ({why}); the run goes on")

    def _fields(self, message: Message) -> dict[str, Any]:
        usd = paid(self.past.run_dir, self.job.limits, time.time()).usd
        cost = f" (${usd:,.2f} {'in all' if message.kind == 'ended' else 'so far'})" if usd else ""
        return {
            "run": self.job.run_id,
            "name": self.job.spec.name,
            "event": message.kind,
            "text": f"{self.job.run_id}: {message.text}{cost}",
            "time": message.event["time"],
            "attempt": message.event.get("attempt"),
            "step": message.event.get("step"),
            "paid_usd": usd,
        }


def body_for(url: str, fields: Mapping[str, Any]) -> bytes:
    """As the hook's host reads it: Slack's and Discord's own field, else all of it as JSON."""
    host = (urlsplit(url).hostname or "").lower()
    name = next((field for known, field in _FIELD_OF_TEXT.items() if host == known or host.endswith("." + known)), None)
    return json.dumps(fields if name is None else {name: fields["text"][:_LONGEST_TEXT]}).encode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        """A hook that moved is one that does not answer: nobody else is told the run's business."""


def post_to(url: str, body: bytes) -> None:
    """Raises HTTPError for any answer but a success, OSError where there is none in time."""
    headers = {"Content-Type": "application/json", "User-Agent": "dolphin"}
    request = urllib.request.Request(url, body, headers, method="POST")
    with urllib.request.build_opener(_NoRedirects).open(request, timeout=TIMEOUT_S):
        return
