"""The lease of a run in a bucket: one object that says which node writes the run, so that two nodes never do.

It is taken and renewed with conditional writes. How old it is goes by the store's own clock, never by a node's. Owns the
object and its rules; refuses to know what a run consists of. In a folder the lock of the run folder does this.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from trainer.run.stores.base import Changed, CheckpointStore, NotInStore, StoreError
from trainer.run.stores.object_store import ObjectStore, Seen
from trainer.run.stores.opening import open_store

NAME = "run/lease.json"
HOLDER_VARIABLE = "DOLPHIN_LEASE"
"""This start's own word, in the environment of all that belongs to it."""
LASTS_S = 90.0
"""Without a renewal for so long a node counts as gone. It is renewed three times in that."""
PATIENCE_S = 300.0
"""How long a node that goes on renewing is waited for: it may be saving on its way out."""
LOOK_EVERY_S = 5.0


class HeldElsewhere(StoreError):
    """Another node writes this run."""


@dataclass(frozen=True, slots=True)
class Held:
    """What the lease says."""

    run_id: str
    attempt: int
    node: str
    holder: str
    renewed: float
    """When, by the node's own clock: seconds since the epoch."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A start's hold on the run at `store`."""

    store: ObjectStore
    run_id: str
    node: str
    holder: str

    def take(self, attempt: int = 0) -> None:
        """Wait until nobody else holds the run, and take it. Raises HeldElsewhere where somebody goes on holding it."""
        until = time.monotonic() + PATIENCE_S
        while True:
            seen = _look(self.store)
            held = None if seen is None else _read(seen)
            if held is None or held.holder == self.holder or age_s(self.store, seen) >= LASTS_S:
                with contextlib.suppress(Changed):  # somebody was quicker: look again
                    self._write(attempt, seen)
                    return
            elif time.monotonic() >= until:
                raise _elsewhere(self.store, held)
            time.sleep(LOOK_EVERY_S)

    def renew(self, attempt: int = 0) -> None:
        """Raises HeldElsewhere where the run was taken over meanwhile."""
        seen = self._mine()
        try:
            self._write(attempt, seen)
        except Changed:
            self._mine()

    def check(self) -> None:
        """Raises HeldElsewhere unless this start holds the run."""
        self._mine()

    def release(self) -> None:
        """Let the next node begin at once; as well as it goes."""
        with contextlib.suppress(StoreError):
            self._mine()
            self.store.delete(NAME)

    def _mine(self) -> Seen | None:
        seen = _look(self.store)
        held = None if seen is None else _read(seen)
        if held is not None and held.holder != self.holder:
            raise _elsewhere(self.store, held)
        return seen

    def _write(self, attempt: int, before: Seen | None) -> None:
        held = Held(self.run_id, attempt, self.node, self.holder, time.time())
        self.store.put_over(NAME, json.dumps(asdict(held)).encode(), before)


def holder_of(store: CheckpointStore) -> tuple[Held, float] | None:
    """Who holds the run at this store, and how many seconds ago that was renewed; None where nobody does."""
    seen = _look(store) if isinstance(store, ObjectStore) else None
    held = None if seen is None else _read(seen)
    return None if held is None or not isinstance(store, ObjectStore) else (held, age_s(store, seen))


def guard(url: str) -> Callable[[], None]:
    """What a writer asks right before it commits: HeldElsewhere where another node has the run by now."""
    holder = os.environ.get(HOLDER_VARIABLE)
    store = open_store(url)
    if not isinstance(store, ObjectStore) or not holder:
        return lambda: None
    return Lease(store, "", "", holder).check


def age_s(store: ObjectStore, seen: Seen | None) -> float:
    """Seconds since an object was written, by the store's clock, which a small object of this moment tells."""
    if seen is None:
        return float("inf")
    name = f"run/clock-{os.urandom(4).hex()}"
    store.put(name, b"")
    now = store.look(name).written_at
    store.delete(name)
    return now - seen.written_at


def _look(store: ObjectStore) -> Seen | None:
    try:
        return store.look(NAME)
    except NotInStore:
        return None


def _read(seen: Seen) -> Held | None:
    """None for what is no lease: whoever can write to the bucket can take the run anyway."""
    try:
        held = Held(**json.loads(seen.data))
        return held if isinstance(held.holder, str) and isinstance(held.node, str) else None
    except (ValueError, TypeError):
        return None


def _elsewhere(store: ObjectStore, held: Held) -> HeldElsewhere:
    return HeldElsewhere(
        f"{store.url}: node {held.node[:80]} writes this run (attempt {held.attempt}); two must not, so this one leaves"
    )
