"""What earlier runs in the ledger measured: their data, speed, saves and preemptions. Reads run folders; decides nothing.

A run counts for speed where base model and card are the same, for data where the data settings are.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import yaml

from launcher.backends.sky.task import NO_SPOT, cloud_of
from launcher.models.adapters import trained_model
from launcher.models.architecture import Architecture
from launcher.plan.data_facts import DataFacts, from_plan_event
from launcher.plan.gpus import Card, find_card
from launcher.plan.throughput import step_flops
from launcher.runs import ledger
from launcher.runs.ledger import RunRecord
from trainer.run.exits import BadInput
from trainer.run.run_folder import EventKind, Phase, read_lines
from trainer.run.settings.train import OptimizerSettings
from trainer.run.spec import NodeJob, TrainSpec

WARM_UP_STEPS = 3
"""First steps of an attempt that say nothing about speed: caches fill, kernels are chosen."""


@dataclass(frozen=True, slots=True)
class PastRun:
    """One run, as far as its folder tells."""

    run_id: str
    job: NodeJob
    accelerator: str | None
    is_on_spot: bool
    data: DataFacts | None
    tokens_per_s: float | None
    """Median over the steps, over all ranks."""
    save_blocked_s: float | None
    save_whole_s: float | None
    export_s: float | None
    preemptions: int
    """Nodes that took the run over without having been asked for by a person."""
    observed_s: float


def past_runs(records: Iterable[RunRecord] | None = None) -> list[PastRun]:
    """Newest first. A folder that cannot be read tells nothing."""
    found = []
    for record in ledger.all_runs() if records is None else records:
        try:
            found.append(_read(record))
        except (OSError, ValueError, TypeError, KeyError, BadInput):
            continue
    return found


def known_data(runs: Iterable[PastRun], spec: TrainSpec) -> DataFacts | None:
    """The data of the newest run with the same sources, settings, tokenizer and seed."""
    for run in runs:
        same = run.job.spec
        is_same = same.data == spec.data and same.train.seed == spec.train.seed
        if run.data is not None and is_same and _tokenizes_alike(same, spec):
            return run.data
    return None


def measured_utilisation(
    runs: Iterable[PastRun], spec: TrainSpec, architecture: Architecture, card: Card
) -> tuple[float, str] | None:
    """(share of the card's peak that the newest run of this base model on this card reached, its run id). A run whose
    optimizer was elsewhere tells nothing: the copies and the update on the host are part of what was measured."""
    for run in runs:
        theirs = run.job.spec
        same_card = find_card(run.accelerator or "")
        if run.tokens_per_s is None or theirs.model.base != spec.model.base or same_card is not card:
            continue
        unfrozen = theirs.train.unfrozen
        if (unfrozen is not None and not isinstance(unfrozen, tuple)) or not _works_alike(theirs.train, spec.train):
            continue
        flops = step_flops(
            trained_model(architecture, theirs.train),
            tokens=run.tokens_per_s,
            labelled=run.tokens_per_s * (run.data.labelled_share if run.data else 1.0),
            attention_span=attention_span(theirs, run.data),
            gradient_checkpointing=theirs.train.recompute_every,
        )
        return flops.total / (run.job.world_size * card.bf16_tflops * 1e12), run.run_id
    return None


def _works_alike(one: OptimizerSettings, other: OptimizerSettings) -> bool:
    """Whether what one reached tells of the other: the same kind of arithmetic, in the same places."""
    kinds = [train.adapter.type if train.adapter is not None else None for train in (one, other)]
    places = [(train.offload, train.activation_offloading) for train in (one, other)]
    return places[0] == places[1] and kinds[0] == kinds[1]


def measured_speed_on_cpu(runs: Iterable[PastRun], spec: TrainSpec, ranks: int) -> tuple[float, str] | None:
    """(tokens per second, run id) of the newest run of this base model on as many CPU ranks."""
    for run in runs:
        is_same = run.job.spec.model.base == spec.model.base and run.job.world_size == ranks
        if run.tokens_per_s is not None and run.job.device == "cpu" and is_same:
            return run.tokens_per_s, run.run_id
    return None


def attention_span(spec: TrainSpec, data: DataFacts | None) -> float:
    """Mean number of tokens of its own conversation before a token.

    Half of its conversation's length, and long conversations hold most tokens: with the lengths that chats have (log-normal
    with a spread near 1) a token's conversation is about twice the mean length. A whole sequence where nothing is known.
    """
    longest = spec.data.sequence_length
    if data is None or data.mean_length is None or not spec.data.packing:
        return longest / 2
    return min(longest, 2 * data.mean_length) / 2


def _tokenizes_alike(one: TrainSpec, other: TrainSpec) -> bool:
    a, b = one.model, other.model
    return (a.tokenizer or a.base, a.chat_template) == (b.tokenizer or b.base, b.chat_template)


def _read(record: RunRecord) -> PastRun:
    files = record.files
    job = NodeJob.read(files.train_json)
    events = files.read_events()
    plans = [event for event in events if event.get("event") == EventKind.PLAN]
    saves = [event for event in events if event.get("event") == EventKind.CHECKPOINT_SAVED]
    times = [float(event["time"]) for event in events if isinstance(event.get("time"), int | float)]
    by_attempt: dict[int, list[float]] = {}
    for line in files.read_metrics():
        if isinstance(line.get("tokens_per_second"), int | float) and isinstance(line.get("attempt", 1), int):
            by_attempt.setdefault(line.get("attempt", 1), []).append(float(line["tokens_per_second"]))
    speeds = [speed for attempt in by_attempt.values() for speed in attempt[WARM_UP_STEPS:]]
    resources = _resources(files.job)
    nodes = list(read_lines(files.nodes))
    return PastRun(
        run_id=record.run_id,
        job=job,
        accelerator=str(resources["accelerators"]).partition(":")[0] if resources.get("accelerators") else None,
        is_on_spot=resources.get("spot") != "never" and any(_sells_spot(node.get("infra")) for node in nodes),
        data=from_plan_event(plans[-1], f"run {record.run_id}") if plans else None,
        tokens_per_s=statistics.median(speeds) if speeds else None,
        save_blocked_s=_mean(saves, "blocked_seconds"),
        save_whole_s=_mean(saves, "seconds"),
        export_s=_export_s(events),
        preemptions=max(0, len(nodes) - record.submissions),
        observed_s=max(times) - min(times) if times else 0.0,
    )


def _sells_spot(infra: object) -> bool:
    return cloud_of(str(infra)) not in NO_SPOT


def _resources(path: object) -> dict[str, object]:
    try:
        with open(str(path), encoding="utf-8") as handle:
            content = yaml.safe_load(handle)
    except (OSError, yaml.YAMLError):
        return {}
    resources = content.get("resources") if isinstance(content, dict) else None
    return resources if isinstance(resources, dict) else {}


def _export_s(events: list[dict[str, object]]) -> float | None:
    """Of the last export that came to its end."""
    began: float | None = None
    took = None
    for event in events:
        at = event.get("time")
        if not isinstance(at, int | float):
            continue
        if event.get("event") == EventKind.PHASE:
            began = float(at) if event.get("phase") == Phase.EXPORTING else None
        elif event.get("event") == EventKind.EXPORTED and began is not None:
            took = float(at) - began
    return took


def _mean(events: list[dict[str, object]], key: str) -> float | None:
    values = [float(value) for event in events if isinstance(value := event.get(key), int | float)]
    return statistics.fmean(values) if values else None
