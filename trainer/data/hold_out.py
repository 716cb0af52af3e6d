"""Chooses the conversations of each validation set: from files of its own, or held out of what would be trained on.

Owns that a conversation is on one side only. Pure functions of hashes and seeds; positions are those of the arrays given.
"""

from __future__ import annotations

import numpy as np

from trainer.data.packing import generator
from trainer.run.exits import BadInput
from trainer.run.settings.data import DataSpec, ValidationSpec

VALIDATION_STREAM = 1 << 41
"""Stream of random numbers that no epoch uses; sets with files of their own take the ones behind it."""


def first_of_each(hashes: np.ndarray, among: np.ndarray) -> np.ndarray:
    """bool: whether a conversation is among those, and the first of them with its hash."""
    members = np.flatnonzero(among)
    _, first = np.unique(hashes[members], return_index=True)
    out = np.zeros(len(hashes), bool)
    out[members[first]] = True
    return out


def taken_of_files(members: np.ndarray, entry: ValidationSpec, seed: int, index: int) -> np.ndarray:
    """Of a set's own conversations those that it takes, in order. Raises BadInput where there are none."""
    if len(members) == 0:
        raise BadInput(
            f"data.validation: no conversation is left for {entry.name}; data_report.json says what became of each row"
        )
    size = len(members)
    if entry.count is not None:
        size = min(size, entry.count)
    elif entry.fraction is not None:
        size = max(1, round(entry.fraction * size))
    order = generator(seed, VALIDATION_STREAM + 1 + index).permutation(len(members))
    found: np.ndarray = members[np.sort(order[:size])]
    return found


def held_out(hashes: np.ndarray, data: DataSpec, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Positions that each set without files of its own holds out, by its name, and those of their copies, which may not be
    trained on either. Raises BadInput where what is stated leaves nothing to train on."""
    nothing = np.zeros(0, np.int64)
    drawn = [entry for entry in data.validation_sets if entry.path is None]
    is_stated = data.validation is not None or data.validation_count is not None
    if not drawn or (len(hashes) < 2 and not is_stated):
        return {}, nothing
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    sizes = [
        max(1, round((entry.fraction or 0) * len(first))) if entry.count is None else entry.count for entry in drawn
    ]
    if sum(sizes) >= len(first):
        if not is_stated:
            return {}, nothing
        key = "data.validation" if data.validation is not None else "data.validation_count"
        raise BadInput(
            f"{key} {sum(sizes)} leaves none of the {len(first)} different conversations to train on; lower it"
        )
    order = np.argsort(first)  # distinct conversations in the order in which they appear
    shuffled = order[generator(seed, VALIDATION_STREAM).permutation(len(first))]
    picked = np.split(shuffled[: sum(sizes)], np.cumsum(sizes)[:-1])
    is_held = np.zeros(len(first), bool)
    is_held[shuffled[: sum(sizes)]] = True
    also = is_held[inverse]
    also[first[shuffled[: sum(sizes)]]] = False
    sets = {entry.name: np.sort(first[members]) for entry, members in zip(drawn, picked, strict=True)}
    return sets, np.flatnonzero(also)
