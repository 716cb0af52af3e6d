"""Chooses, from everything that was tokenized, what is trained on and what is held out.

Owns deduplication and the size of each source: pure functions of arrays and seeds; validation sets are chosen in
`trainer.data.hold_out`. Works on conversations; a split one goes with all of its pieces. Inputs are the sources, and
behind them the files of validation sets (`DataSpec.inputs`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainer.data.hold_out import first_of_each, held_out, taken_of_files
from trainer.data.minhash import near_duplicates
from trainer.data.packing import generator
from trainer.run.settings.data import DataSpec

_SAMPLE_STREAM = 1 << 40
"""Stream of random numbers that no epoch uses."""


@dataclass(frozen=True, slots=True)
class Pool:
    """All usable conversations, in order of input, file and row."""

    sources: np.ndarray
    """int32: input of each conversation."""
    hashes: np.ndarray
    """uint64."""
    pieces: np.ndarray
    """int64: sequences of each."""
    signatures: np.ndarray | None


@dataclass(frozen=True, slots=True)
class Selection:
    train: np.ndarray
    """int64: sequences, those of a conversation taken twice twice."""
    validation: dict[str, np.ndarray]
    """Sequences of each set, by its name, in the order of the sets."""
    validation_sizes: dict[str, int]
    """Conversations of each set."""
    duplicates: np.ndarray
    """Conversations of each input dropped as exact duplicates."""
    near: np.ndarray
    """Conversations of each input dropped as near-duplicates."""
    unsampled: np.ndarray
    """Conversations of each input that `samples`, `weight` or a set's size left out."""
    copies_of_held_out: np.ndarray
    """Conversations of each input kept out of training because the same one is in a validation set."""
    train_conversations: np.ndarray
    """Of each input, counting one that is taken twice twice."""
    validation_conversations: np.ndarray


def select(pool: Pool, data: DataSpec, seed: int) -> Selection:
    """Deduplicate across inputs, size each source, choose the validation sets. Raises BadInput where nothing would be left."""
    inputs = data.inputs
    by_index = {where[2]: number for number, (where, _) in enumerate(inputs) if where[1] == "validation"}

    def per_input(conversations: np.ndarray) -> np.ndarray:
        return np.bincount(pool.sources[conversations], minlength=len(inputs))

    alive = pool.pieces > 0
    of_sets = pool.sources >= len(data.sources)
    is_first = first_of_each(
        pool.hashes, alive & of_sets
    )  # a set's own files have none twice, and no two sets the same
    exact = alive & of_sets & ~is_first
    barred = alive & ~of_sets & np.isin(pool.hashes, pool.hashes[is_first])
    alive &= ~exact & ~barred
    near = np.zeros(len(alive), bool)
    if data.deduplicate != "none":
        repeated = alive & ~of_sets & ~first_of_each(pool.hashes, alive & ~of_sets)
        exact |= repeated
        alive &= ~repeated
    if data.deduplicate == "near":
        candidates = np.concatenate([np.flatnonzero(alive & of_sets), np.flatnonzero(alive & ~of_sets)])
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
    chosen = np.flatnonzero(copies)
    drawn, also_held = held_out(pool.hashes[chosen], data, seed)
    sets = {name: chosen[positions] for name, positions in drawn.items()}
    for index, entry in enumerate(data.validation_sets):
        if entry.path is not None:
            members = np.flatnonzero(alive & (pool.sources == by_index[index]))
            sets[entry.name] = taken_of_files(members, entry, seed, index)
    sets = {entry.name: sets[entry.name] for entry in data.validation_sets if entry.name in sets}
    held = np.concatenate([*sets.values(), np.zeros(0, np.int64)])
    unsampled = alive & (copies == 0)
    unsampled[held] = False
    copies[held] = 0
    barred[chosen[also_held]] = True
    copies[barred] = 0
    taken = np.flatnonzero(copies)
    return Selection(
        train=_sequences(pool.pieces, np.repeat(taken, copies[taken])),
        validation={name: _sequences(pool.pieces, members) for name, members in sets.items()},
        validation_sizes={name: len(members) for name, members in sets.items()},
        duplicates=per_input(np.flatnonzero(exact)),
        near=per_input(np.flatnonzero(near)),
        unsampled=per_input(np.flatnonzero(unsampled)),
        copies_of_held_out=per_input(np.flatnonzero(barred)),
        train_conversations=np.bincount(pool.sources[taken], weights=copies[taken], minlength=len(inputs)).astype(
            np.int64
        ),
        validation_conversations=per_input(held),
    )


def _copies(members: int, size: int, seed: int, source: int) -> np.ndarray:
    """How often each is taken: every one size // members times, and a seeded choice once more."""
    if members == 0:
        return np.zeros(0, np.int64)
    each, more = divmod(size, members)
    copies = np.full(members, each, np.int64)
    copies[generator(seed, _SAMPLE_STREAM + source).permutation(members)[:more]] += 1
    return copies


def _sequences(pieces: np.ndarray, conversations: np.ndarray) -> np.ndarray:
    """All sequences of conversations, in order."""
    starts = (np.cumsum(pieces) - pieces)[conversations]
    counts = pieces[conversations]
    offsets = np.cumsum(counts) - counts
    found: np.ndarray = np.arange(int(counts.sum())) + np.repeat(starts - offsets, counts)
    return found
