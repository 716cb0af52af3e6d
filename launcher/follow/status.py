"""What a run is doing, joined from the backend, the ledger and the run's own events; as data and as lines. Starts nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from launcher.backends.base import Backend, BackendStatus, get_backend
from launcher.follow import standing
from launcher.follow.readers import read_outcome, read_view
from launcher.follow.run_view import RunView, measures_text
from launcher.follow.screen import numbers
from launcher.runs.errors import BackendError
from launcher.runs.ledger import REQUEST_FILE, RunRecord
from launcher.runs.states import LIMIT_STATES, EndReason, RunState, is_over
from launcher.units import count, seconds, size
from trainer.run.limits import limits_in
from trainer.run.paid import paid

_SUBMIT_ERRORS = {EndReason.NO_CAPACITY: RunState.NO_CAPACITY}


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at a run."""

    record: RunRecord
    status: BackendStatus
    view: RunView
    outcome: dict[str, Any]


def observe(backend: Backend, record: RunRecord) -> Observation:
    return Observation(record, status_of(backend, record), read_view(backend, record), read_outcome(backend, record))


def observe_record(record: RunRecord) -> Observation:
    """As `observe`, through the record's own backend; of a start that failed also where that backend cannot be asked."""
    try:
        return observe(get_backend(record.backend), record)
    except BackendError:
        if not was_refused(record):
            raise
        return Observation(record, _not_started(record), RunView(), {})


def status_of(backend: Backend, record: RunRecord) -> BackendStatus:
    """The backend's word; where the submit failed and the backend has nothing of the run, or does not answer, why."""
    if not was_refused(record):
        return backend.status(record)
    with contextlib.suppress(BackendError):
        if backend.find(record.run_id) is not None:
            return backend.status(record)
    return _not_started(record)


def was_refused(record: RunRecord) -> bool:
    """Whether the newest start failed before the backend took it in."""
    return record.submit_error is not None and record.handle is None


def was_never_taken_in(record: RunRecord) -> bool:
    """Whether its one start failed, and nothing was sent that somebody may still be working on."""
    return was_refused(record) and record.submissions <= 1 and not (record.folder / REQUEST_FILE).exists()


def _not_started(record: RunRecord) -> BackendStatus:
    error = record.submit_error or {}
    state = _SUBMIT_ERRORS.get(EndReason(error["reason"]), RunState.FAILED)
    return BackendStatus(state, f"was not started: {error['message']}", price_usd_so_far=0.0)


def model_of(seen: Observation) -> str | None:
    """The exported model of a run that is done, or that a limit ended: its URL in the run's bucket, else the folder on the run's
    node."""
    written: str | None = seen.outcome.get("model")
    if seen.status.state is RunState.SUCCEEDED:
        written = written or seen.view.model
    elif seen.status.state not in LIMIT_STATES:
        return None
    return (written and seen.status.model_url) or written


def as_json(seen: Observation) -> dict[str, Any]:
    """For scripts. Keys are never removed; None is not known."""
    record, status, view = seen.record, seen.status, seen.view
    return {
        "run": record.run_id,
        "name": record.name,
        "backend": record.backend,
        "state": status.state.value,
        "detail": status.detail,
        "phase": view.phase,
        "step": view.step,
        "total_steps": view.total_steps,
        "loss": view.loss,
        "eval_loss": view.eval_loss,
        "tokens_per_second": view.tokens_per_second,
        "gauges": view.gauges,
        "seconds_left": None if is_over(status.state) else view.seconds_left,
        "saved_step": view.saved_step,
        "attempts": view.attempt,
        "recoveries": status.recoveries,
        "exit_code": status.exit_code,
        "node": status.node,
        "price_usd_per_hour": status.price_usd_per_hour,
        "price_usd_so_far": status.price_usd_so_far,
        **standing.as_values(standing_of(seen)),
        "node_attempts": [asdict(attempt) for attempt in status.attempts],
        "created_at": record.created_at,
        "folder": str(record.folder),
        "model": model_of(seen),
        "evaluations": [{"step": s, "epoch": e, "eval_loss": x} for s, (e, x) in sorted(view.evaluations.items())],
        "measures": [{"step": step, **values} for step, values in sorted(view.measures.items())],
        "best_step": view.best_step,
        "stopped_early": view.stopped_early,
        "story": list(view.story),
    }


def as_rows(seen: Observation) -> list[tuple[str, str]]:
    """Label and value, for `dolphin status`."""
    record, status, view = seen.record, seen.status, seen.view
    over = is_over(status.state)
    rows = [("run", record.run_id), ("state", with_detail(status))]
    if not over and view.phase:
        rows.append(("phase", view.phase))
    if view.step is not None or view.total_steps is not None:
        rows.append(("progress", numbers(view, with_time_left=not over)))
    rows += [row for row in (("speed", speed_text(view)), ("first GPU", gpu_text(view))) if row[1] and not over]
    if view.measures:
        newest = max(view.measures)
        best = f" (the best was at step {view.best_step})" if view.best_step not in (None, newest) else ""
        rows.append(("evaluated", f"{measures_text(view.measures[newest])} at step {newest}{best}"))
    if view.saved_step is not None:
        rows.append(("saved", f"step {view.saved_step}"))
    if view.attempt > 1 or status.recoveries:
        rows.append(("attempts", f"{view.attempt} ({status.recoveries} recoveries by {record.backend})"))
    where = f"{record.backend}{f', {status.node}' if status.node else ''}"
    if record.nproc is not None:
        where += f", {record.nproc} x {'GPU' if record.device == 'cuda' else 'CPU rank'}"
    rows.append(("where", where))
    price = price_text(status)
    if price:
        rows.append(("price", price))
    rows += standing.bill_row(seen.outcome) if over else standing.rows(standing_of(seen))
    rows.append(("started", f"{when(record.created_at)} ({seconds(max(0.0, time.time() - record.created_at))} ago)"))
    rows.append(("folder", str(record.folder)))
    model = model_of(seen)
    if model:
        rows.append(("model", model))
    return rows


def standing_of(seen: Observation) -> standing.Standing:
    """Against the job's deadline and budget, from the records that are at home."""
    record, status = seen.record, seen.status
    limits, now, over = limits_in(record.files.train_json), time.time(), is_over(status.state)
    left = None if over else seen.view.seconds_left
    bill = paid(record.files, limits, None if over else now)
    return standing.standing(limits, bill, now, left, status.price_usd_per_hour)


def speed_text(view: RunView) -> str:
    """`8.1k trained tokens/s · 412 TFLOP/s a rank · 41% MFU · waits 0.1% for data, 0.0% for saves`, as far as known."""
    gauges, parts = view.gauges, []
    if "trained_tokens_per_second" in gauges:
        parts.append(f"{count(gauges['trained_tokens_per_second'])} trained tokens/s")
    if "tflops" in gauges:
        parts.append(f"{gauges['tflops']:.3g} TFLOP/s a rank")
    if "mfu" in gauges:
        parts.append(f"{gauges['mfu']:.0%} MFU")
    waited = view.shares_waited
    if waited is not None:
        parts.append(f"waits {waited[0]:.1%} for data, {waited[1]:.1%} for saves")
    return " · ".join(parts)


def gpu_text(view: RunView) -> str:
    """`61.2 GB at its peak, 63.0 GB reserved · 412 W · 61 °C`, as far as known."""
    gauges, parts = view.gauges, []
    if "gpu_memory_bytes" in gauges:
        reserved = f", {size(gauges['gpu_reserved_bytes'])} reserved" if "gpu_reserved_bytes" in gauges else ""
        parts.append(f"{size(gauges['gpu_memory_bytes'])} at its peak{reserved}")
    if "gpu_power_w" in gauges:
        parts.append(f"{gauges['gpu_power_w']:.0f} W")
    if "gpu_temperature_c" in gauges:
        parts.append(f"{gauges['gpu_temperature_c']:.0f} °C")
    return " · ".join(parts)


def with_detail(status: BackendStatus) -> str:
    return f"{status.state.value}: {status.detail}" if status.detail else status.state.value


def price_text(status: BackendStatus) -> str:
    """Empty for what costs nothing or has no known price."""
    parts = []
    if status.price_usd_so_far:
        parts.append(f"${status.price_usd_so_far:.2f} so far")
    if status.price_usd_per_hour:
        parts.append(f"${status.price_usd_per_hour:.2f}/h")
    return ", ".join(parts)


def when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def run_table(seen: Sequence[Observation]) -> list[list[str]]:
    """Rows of `dolphin status --all`."""
    rows = []
    for one in seen:
        view, loss = one.view, one.view.eval_loss if one.view.eval_loss is not None else one.view.loss
        step = f"{view.step or 0}/{view.total_steps}" if view.total_steps is not None else ""
        state = one.status.state.value
        shown = f"{loss:.4f}" if loss is not None else ""
        rows.append([one.record.run_id, one.record.backend, state, step, shown, when(one.record.created_at)])
    return rows
