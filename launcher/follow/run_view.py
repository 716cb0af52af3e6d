"""RunView: what a run's events and metrics say, as numbers for a progress bar and as calm lines for a person. Pure.

Fed with lines of events.jsonl and metrics.jsonl in the order they were written, across attempts. Refuses to know
where they came from, and the terminal.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.units import count, seconds, size
from trainer.run.run_folder import EventKind, Phase

_RECENT_STEPS = 20


@dataclass(slots=True)
class RunView:
    """What is known so far; None where nothing said it yet."""

    phase: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    attempt: int = 0
    evaluations: dict[int, tuple[float | None, float]] = field(default_factory=dict)
    """Step to epoch and validation loss; a step measured again after a resume keeps the last."""
    measures: dict[int, dict[str, float]] = field(default_factory=dict)
    """Step to everything that was measured after it, by its name in metrics.jsonl."""
    best_step: int | None = None
    """By `checkpoint.keep_best`."""
    stopped_early: dict[str, Any] | None = None
    """Of a run that `train.stop` ended: metric, best_step, steps_left, seconds_left."""
    saved_step: int | None = None
    model: str | None = None
    sample: dict[str, Any] | None = None
    story: list[str] = field(default_factory=list)
    gauges: dict[str, float] = field(default_factory=dict)
    """Of the last step, what else was measured, by its name in metrics.jsonl."""
    _recent_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))
    _recent_waits: deque[tuple[float, ...]] = field(default_factory=lambda: deque(maxlen=_RECENT_STEPS))

    @property
    def seconds_left(self) -> float | None:
        """Of training, at the pace of the last steps; evaluations, saves and the export are not in it."""
        if self.step is None or self.total_steps is None or not self._recent_seconds:
            return None
        return max(0, self.total_steps - self.step) * statistics.median(self._recent_seconds)

    @property
    def eval_loss(self) -> float | None:
        return self.evaluations[max(self.evaluations)][1] if self.evaluations else None

    def add_metric(self, line: Mapping[str, Any]) -> None:
        line = _known(line)
        step = line.get("step")
        if not isinstance(step, int):
            return
        if line.get("loss") is None:
            self._evaluated(step, line.get("epoch"), line)
            return
        self.step = step
        self.loss = float(line["loss"])  # may be nan: the run says so itself
        self.tokens_per_second = line.get("tokens_per_second")
        self.gauges = {name: float(line[name]) for name in _GAUGES if isinstance(line.get(name), int | float)}
        if isinstance(line.get("seconds"), int | float):
            self._recent_seconds.append(float(line["seconds"]))
            self._recent_waits.append(tuple(self.gauges.get(name, 0.0) for name in _WAITS))

    def _evaluated(self, step: int, epoch: float | None, measures: Mapping[str, Any]) -> None:
        if isinstance(measures.get("eval_loss"), int | float):
            self.evaluations[step] = (epoch, float(measures["eval_loss"]))
        values = {name: value for name, value in measures.items() if _is_measure(name, value)}
        if values:
            self.measures[step] = values

    @property
    def shares_waited(self) -> tuple[float, float] | None:
        """Of the last steps' seconds, for data and for saves; None where the trainer does not say."""
        total = sum(self._recent_seconds)
        if not total or not set(_WAITS) <= set(self.gauges):
            return None
        data_s, save_s = (sum(waits) for waits in zip(*self._recent_waits, strict=True))
        return data_s / total, save_s / total

    def add_event(self, event: Mapping[str, Any]) -> str | None:
        """Take an event in; returns its line for a person, None for one that is not worth a line. A field of another kind
        than it should be, from a newer trainer or a damaged file, counts as not there."""
        line = self._line_of(_known(event))
        if line is not None:
            self.story.append(line)
        return line

    def _line_of(self, event: Mapping[str, Any]) -> str | None:
        kind, get = event.get("event"), event.get
        prefix = f"attempt {get('attempt')}: " if (get("attempt") or 1) > 1 else ""
        match kind:
            case EventKind.ATTEMPT_STARTED:
                self.attempt = max(self.attempt, int(get("attempt") or 1))
                self.phase = None
                self._recent_seconds.clear()
                self._recent_waits.clear()
                return f"attempt {get('attempt')}: started on {_ranks(get('nproc'), get('device'))}"
            case EventKind.PHASE:
                self.phase = get("phase")
                return None if self.phase == Phase.DONE else f"{prefix}{self.phase}"
            case EventKind.PLAN:
                self.total_steps = get("total_steps")
                return prefix + _plan_line(event)
            case EventKind.RESUMED:
                self.step = get("step")
                self.total_steps = get("total_steps") or self.total_steps
                return (
                    f"attempt {get('attempt')}: resumed at step {get('step')} of {self.total_steps} "
                    f"from {get('checkpoint')}{_lost(get('lost_steps'), get('lost_seconds'))}"
                )
            case EventKind.CHECKPOINT_REFUSED:
                return f"{prefix}checkpoint {get('checkpoint')} refused: {get('reason')}"
            case EventKind.CHECKPOINT_SAVED:
                self.saved_step = get("step")
                return f"{prefix}saved step {get('step')} ({size(get('size_bytes'))}, {seconds(get('seconds'))})"
            case EventKind.EVALUATED:
                step = get("step")
                if not isinstance(step, int):
                    return None
                self._evaluated(step, get("epoch"), {"eval_loss": get("eval_loss"), **(get("measures") or {})})
                self.best_step = step if get("is_best") is True else self.best_step
                told = measures_text(self.measures.get(step, {}))
                best = ", the best so far" if get("is_best") is True else ""
                return f"{prefix}{told} at step {step}{best}" if told else None
            case EventKind.STOPPED_EARLY:
                self.stopped_early = dict(event)
                return f"{prefix}stopped early at step {get('step')}: {_unspent_steps(event)}"
            case EventKind.STOP_REQUESTED:
                return f"{prefix}asked to stop ({get('reason')}); saving"
            case EventKind.PREEMPTED:
                return f"{prefix}stopped at step {get('step')} with everything saved ({get('reason')})"
            case EventKind.RESTARTING:
                return f"{prefix}restarting: {get('reason')}"
            case EventKind.LIMIT_NEAR:
                return f"{prefix}{get('limit')}: {get('reason')}"
            case EventKind.EXPORTED:
                self.model = get("model")
                self.sample = get("sample") or self.sample
                return f"{prefix}model written to {get('model')}"
            case EventKind.AFTERWARDS:
                return f"{prefix}{get('what')}{'' if get('ok') else ' failed'}: {get('detail')}"
            case _:
                return None  # the end, which the status tells; an event of a newer trainer, whose log is shown all the same


def measures_text(measures: Mapping[str, float]) -> str:
    """`validation loss 0.5671, mine/loss 0.6012, exact_match 0.25`; perplexity, accuracy and entropy are left out."""
    parts = [f"validation loss {measures['eval_loss']:.4f}"] if "eval_loss" in measures else []
    parts += [f"{name} {shown_measure(name, measures[name])}" for name in told_of(measures)]
    return ", ".join(parts)


def shown_measure(name: str, value: float) -> str:
    """A loss to four places, a score as short as it is."""
    return f"{value:.4f}" if name.endswith("loss") else f"{value:.4g}"


def told_of(measures: Mapping[str, float]) -> list[str]:
    """Names of the losses of all sets but the first, and of the scores."""
    losses = [name for name in measures if name.endswith("/loss")][1:]
    return losses + [name for name in measures if "/" not in name and not name.startswith("eval_")]


def _is_measure(name: str, value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
    return is_number and name not in ("step", "epoch", "time", "attempt")


def _unspent_steps(event: Mapping[str, Any]) -> str:
    return f"{event.get('metric')} was best at step {event.get('best_step')}; {event.get('steps_left')} steps are not trained"


_COUNTS = frozenset(
    [
        "best_step",
        "steps_left",
        "attempt",
        "nproc",
        "step",
        "total_steps",
        "lost_steps",
        "conversations",
        "sequences",
        "tokens",
        "trained_tokens",
        "parameters",
        "trained_parameters",
    ]
)
_WAITS = ("data_wait_s", "save_stall_s")
_GAUGES = (
    "trained_tokens_per_second", *_WAITS, "tflops", "mfu", "gpu_memory_bytes", "gpu_reserved_bytes", "gpu_power_w",
    "gpu_temperature_c",
)  # fmt: skip
_AMOUNTS = frozenset(
    ["size_bytes", "seconds", "blocked_seconds", "lost_seconds", "seconds_left", "tokens_per_second", "epoch", *_GAUGES]
)
_LOSSES = frozenset(("loss", "eval_loss"))
_TEXTS = frozenset(
    ["event", "phase", "device", "checkpoint", "reason", "model", "store", "limit", "what", "detail", "metric"]
)


def _known(record: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that are what they should be."""
    return {name: value for name, value in record.items() if _is_of_its_kind(name, value)}


def _is_of_its_kind(name: str, value: Any) -> bool:
    if name in _COUNTS:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63
    if name in _AMOUNTS or name in _LOSSES:
        is_number = (
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
        ) or value != value
        return is_number and (name in _LOSSES or value == value)
    if name in _TEXTS:
        return isinstance(value, str)
    return name not in ("sample", "measures") or isinstance(value, dict)


def _ranks(nproc: int | None, device: str | None) -> str:
    if nproc is None:
        return "an unknown number of ranks"
    return f"{nproc} {'GPU' if device == 'cuda' else 'CPU rank'}{'' if nproc == 1 else 's'}"


def _plan_line(event: Mapping[str, Any]) -> str:
    parts = [f"{event.get('total_steps')} steps"]
    if event.get("conversations") is not None:
        parts.append(f"{count(event['conversations'])} conversations in {count(event.get('sequences'))} sequences")
    if event.get("tokens") is not None:
        parts.append(f"{count(event['tokens'])} tokens, {count(event.get('trained_tokens'))} of them trained on")
    if event.get("parameters") is not None:
        parts.append(f"{count(event.get('trained_parameters'))} of {count(event['parameters'])} parameters train")
    return ": ".join([parts[0], "; ".join(parts[1:])]) if parts[1:] else parts[0]


def _lost(steps: int | None, lost_seconds: float | None) -> str:
    if steps is None:
        return ""
    return f" (lost {steps} step{'' if steps == 1 else 's'}, {seconds(lost_seconds)})"
