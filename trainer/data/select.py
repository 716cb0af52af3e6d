"""Chooses, from everything that was tokenized, what is trained on and what is held out.

Owns deduplication, the size of each source and the held-out part: pure functions of arrays and seeds. Works on
conversations; a split one goes with all of its pieces.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.minhash import near_duplicates
from trainer.data.packing import generator
from trainer.run.exits import BadInput
from trainer.run.settings.data import DataSpec

_SAMPLE_STREAM, _VALIDATION_STREAM = 1 << 40, 1 << 41
"""Streams of random numbers that no epoch uses."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All usable conversations, in order of source, file and row."""

    sources: np.ndarray
    """int32: source of each conversation."""
    hashes: np.ndarray
    """uint64."""
    pieces: np.ndarray
    """int64: sequences of each."""
    signatures: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Selection:
    train: np.ndarray
    """int64: sequences, those of a conversation taken twice twice."""
    validation: np.ndarray
    duplicates: np.ndarray
    """Conversations of each source dropped as exact duplicates."""
    near: np.ndarray
    """Conversations of each source dropped as near-duplicates."""
    unsampled: np.ndarray
    """Conversations of each source that `samples` or `weight` left out."""
    copies_of_held_out: np.ndarray
    """Conversations of each source kept out of training because the same one is held out."""
    train_conversations: np.ndarray
    """Of each source, counting one that is taken twice twice."""
    validation_conversations: np.ndarray


def select(pool: Pool, data: DataSpec, seed: int) -> Selection:
    """Deduplicate across sources, size each source, hold out a part."""
    num_sources = len(data.sources)

    def per_source(conversations: np.ndarray) -> np.ndarray:
        return np.bincount(pool.sources[conversations], minlength=num_sources)

    alive = pool.pieces > 0
    exact, near = np.zeros(len(alive), bool), np.zeros(len(alive), bool)
    if data.deduplicate != "none":
        exact = alive & ~_first_of_each(pool.hashes, alive)
        alive &= ~exact
    if data.deduplicate == "near":
        candidates = np.flatnonzero(alive)
        assert pool.signatures is not None
        near[candidates[near_duplicates(pool.signatures[candidates])]] = True
        alive &= ~near
    copies = np.zeros(len(alive), np.int64)
    for number, source in enumerate(data.sources):
        members = np.flatnonzero(alive & (pool.sources == number))
        size = len(members)
        if source.samples is not None:
            size = min(size, source.samples)
        elif source.weight is not None:
            size = round(source.weight * len(members))
        own_seed = seed if source.shuffle_seed is None else source.shuffle_seed
        copies[members] = _copies(len(members), size, own_seed, number)
    unsampled = np.flatnonzero(alive & (copies == 0))
    chosen = np.flatnonzero(copies)
    held, also_held = _hold_out(pool.hashes[chosen], data, seed)
    validation, barred = chosen[held], chosen[also_held]
    copies[validation] = 0
    copies[barred] = 0
    taken = np.flatnonzero(copies)
    return Selection(
        train=_sequences(pool.pieces, np.repeat(taken, copies[taken])),
        validation=_sequences(pool.pieces, validation),
        duplicates=per_source(np.flatnonzero(exact)),
        near=per_source(np.flatnonzero(near)),
        unsampled=per_source(unsampled),
        copies_of_held_out=per_source(barred),
        train_conversations=np.bincount(pool.sources[taken], weights=copies[taken], minlength=num_sources).astype(
            np.int64
        ),
        validation_conversations=per_source(validation),
    )


def _first_of_each(hashes: np.ndarray, among: np.ndarray) -> np.ndarray:
    members = np.flatnonzero(among)
    _, first = np.unique(hashes[members], return_index=True)
    out = np.zeros(len(hashes), bool)
    out[members[first]] = True
    return out


def _copies(members: int, size: int, seed: int, source: int) -> np.ndarray:
    """How often each is taken: every one size // members times, and a seeded choice once more."""
    if members == 0:
        return np.zeros(0, np.int64)
    each, more = divmod(size, members)
    copies = np.full(members, each, np.int64)
    copies[generator(seed, _SAMPLE_STREAM + source).permutation(members)[:more]] += 1
    return copies


def _hold_out(hashes: np.ndarray, data: DataSpec, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions held out, and positions of their copies, which may not be trained on either. Raises BadInput where a
    stated count leaves nothing to train on."""
    count = data.validation_count
    if not data.holds_out or (len(hashes) < 2 and count is None):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)  # distinct conversations in the order in which they appear
    if count is not None and count >= len(first):
        raise BadInput(
            f"data.validation_count {count} leaves none of the {len(first)} different conversations to train on; lower it"
        )
    number = max(1, round(data.validation_fraction * len(first))) if count is None else count
    if number >= len(first):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    picked = order[generator(seed, _VALIDATION_STREAM).permutation(len(first))[:number]]
    held = np.sort(first[picked])
    is_held = np.zeros(len(first), bool)
    is_held[picked] = True
    also = is_held[inverse]
    also[held] = False
    return held, np.flatnonzero(also)


def _sequences(pieces: np.ndarray, conversations: np.ndarray) -> np.ndarray:
    """All sequences of conversations, in order."""
    starts = (np.cumsum(pieces) - pieces)[conversations]
    counts = pieces[conversations]
    offsets = np.cumsum(counts) - counts
    found: np.ndarray = np.arange(int(counts.sum())) + np.repeat(starts - offsets, counts)
    return found
