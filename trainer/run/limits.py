"""Limits: until when a run may take and what it may cost, what it was planned to, and whom it tells. A block of train.json.

Owns the facts alone; the supervisor keeps a run within them (trainer.supervise.limits). Refuses to know clouds: prices are numbers.
Plain data, so that whoever only reads a run needs no pydantic.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

MARGIN = 1.5
"""The save and the export may take this many times what is known of them."""
MARGIN_S = 10.0
"""Beside it, and the step that is being computed: the ranks' end."""


@dataclass(frozen=True, slots=True)
class Limits:
    deadline_at: float | None = None
    """Seconds since the epoch; None: no deadline."""
    budget_usd: float | None = None
    """US dollars in all, over every start of the run; None: no budget."""
    price_usd_per_hour: float | None = None
    """Of the machine; of all nodes, where a node does not tell its own (nodes.jsonl). None: not known."""
    upkeep_usd_per_hour: float = 0.0
    """What is paid for beside the nodes from the first start on, waits included."""
    egress_usd_per_save: float = 0.0
    """Of a checkpoint that leaves its region."""
    save_s: float = 0.0
    """Planned, until a save was measured."""
    export_s: float = 0.0
    """Planned: writing the model folder, and an answer of it."""
    planned_hours: float | None = None
    planned_usd: float | None = None
    notify: tuple[str, ...] = ()
    """Hooks as the job states them: a URL, or ${NAME} of the variable that holds one."""

    def ending_s(self, save_s: float = 0.0) -> float:
        """Seconds that are kept for the end of a run; `save_s` is what a save was measured to take."""
        return MARGIN * (max(self.save_s, save_s) + self.export_s) + MARGIN_S


def limits_in(train_json: Path) -> Limits:
    """Of a train.json, without reading the rest of it; none where there is none, or it is damaged."""
    try:
        told = json.loads(train_json.read_bytes())["limits"]
        return Limits(**{field.name: told[field.name] for field in dataclasses.fields(Limits) if field.name in told})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return Limits()
