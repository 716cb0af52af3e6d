"""What this machine knows of a SkyPilot run without asking SkyPilot: its folder, and the store where it can be reached.

Readers over the run's files; writes what a node was seen to cost. Imports no sky.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from launcher.backends.base import NodeAttempt
from launcher.backends.sky import status
from launcher.backends.sky.log.mirror import Mirror
from launcher.backends.sky.node.instance import price_at
from launcher.backends.sky.reach import InBucket, Reach, reach
from launcher.backends.sky.store_access import environment_of_run
from launcher.backends.sky.task import NODE_PRICES_FILE, PRICES_FILE
from launcher.runs.errors import BackendError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from trainer.run.run_folder import EVENTS_FILE, MODEL_FOLDER, EventKind, read_lines, write_atomic
from trainer.run.spec import NodeJob


def reach_of(record: RunRecord) -> Reach | None:
    with contextlib.suppress(OSError, ValueError, BackendError):
        train = NodeJob.read(record.files.train_json)
        if "://" in train.store:
            return InBucket(train.store, train.run_dir, environment_of_run(record.folder))
    nodes = list(read_lines(record.files.nodes))
    infra = nodes[-1].get("infra") if nodes else None
    if not infra:
        with contextlib.suppress(OSError, ValueError, IndexError):
            places = json.loads((record.folder / PRICES_FILE).read_bytes())
            infra = places[0][0] if len({place for place, _, _ in places}) == 1 else None
    return reach(infra)


def run_dir_of(record: RunRecord) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        return NodeJob.read(record.files.train_json).run_dir
    return None


def model_url_of(record: RunRecord) -> str | None:
    """Where the model lies for good once it is written: in the run's bucket, where it has one."""
    with contextlib.suppress(OSError, ValueError):
        store = NodeJob.read(record.files.train_json).store
        return f"{store}/{MODEL_FOLDER}" if "://" in store else None
    return None


def last_step(record: RunRecord) -> int | None:
    steps = [line.get("step") for line in read_lines(record.files.metrics) if line.get("loss") is not None]
    return steps[-1] if steps else None


def hourly_price(record: RunRecord, job: Any) -> float | None:
    """Price of the present node: what it said itself at its start, else by the offers of the submit and what SkyPilot says of
    it. None where neither is known, as of a run that is over: SkyPilot then tells what was asked for."""
    with contextlib.suppress(OSError, ValueError):
        nodes = list(read_lines(record.files.nodes))
        own = nodes[-1].get("price_usd_per_hour") if nodes else None
        if isinstance(own, int | float):
            return float(own)
        if job is not None and job.spot is not None and nodes:
            return price_at(json.loads((record.folder / PRICES_FILE).read_bytes()), nodes[-1].get("infra"), job.spot)[0]
    return None


def keep_price(record: RunRecord, hourly: float | None) -> None:
    """Write down what the present node was seen to cost, while SkyPilot still tells what it is; nothing where the node did."""
    nodes, kept = list(read_lines(record.files.nodes)), _kept_prices(record)
    if not nodes or hourly is None or nodes[-1].get("price_usd_per_hour") is not None or str(len(nodes)) in kept:
        return
    with contextlib.suppress(OSError):  # a price is no reason to fail
        write_atomic(record.folder / NODE_PRICES_FILE, json.dumps({**kept, str(len(nodes)): hourly}))


def _kept_prices(record: RunRecord) -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads((record.folder / NODE_PRICES_FILE).read_bytes())
        return {str(number): float(price) for number, price in kept.items()}
    return {}


def node_attempts(
    record: RunRecord, job: Any, state: RunState, now: float, hourly: float | None
) -> tuple[NodeAttempt, ...]:
    """The nodes that worked on the run; of one whose job SkyPilot does not tell of (None) to the last that was heard."""
    kept = _kept_prices(record)
    nodes = [
        node | {"price_usd_per_hour": node.get("price_usd_per_hour", kept.get(str(number)))}
        for number, node in enumerate(read_lines(record.files.nodes), 1)
        if isinstance(node.get("setup_at") or node.get("time"), int | float)
    ]
    heard = [at for _, at in Mirror(record.folder).times()]
    heard += [
        float(event["time"]) for event in read_lines(record.files.events) if isinstance(event.get("time"), int | float)
    ]
    ended_at = job.ended_at if job is not None else max(heard, default=now)
    return status.node_attempts(nodes, heard, state=state, now=now, ended_at=ended_at, price_usd_per_hour=hourly)


def saved_at(there: Reach, run_dir: str) -> float:
    """Time of the newest checkpoint_saved event in the store; 0 where there is none."""
    times = [0.0]
    with contextlib.suppress(BackendError):
        for line in (there.read(f"{run_dir}/{EVENTS_FILE}") or b"").splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == EventKind.CHECKPOINT_SAVED:
                    times.append(float(event["time"]))
    return max(times)
