"""Packing: which sequences share a row of `capacity` tokens. Pure numpy on lengths; knows neither tokens nor ranks.

The layout (how many rows, and the lengths in each) is decided by the histogram of lengths alone, so that every epoch has
the same number of rows. An epoch then deals the sequences of a length to the slots of that length, and shuffles the rows,
from (seed, epoch) and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Layout:
    """Rows of slots. Slot s of row r is `slots[starts[r] + s]`: a rank in the order of sequences by falling length."""

    starts: np.ndarray
    """int64, rows + 1."""
    slots: np.ndarray
    """int64, one for each sequence."""

    @property
    def num_rows(self) -> int:
        return len(self.starts) - 1


def by_falling_length(lengths: np.ndarray) -> np.ndarray:
    """Indices of sequences, longest first, equal lengths in their own order. int64."""
    return np.argsort(-lengths.astype(np.int64), kind="stable")


def pack(lengths: np.ndarray, capacity: int) -> Layout:
    """Best-fit-decreasing by length class: each sequence goes into the fullest row that still holds it.

    Rows with the same room left are interchangeable, so a whole class is placed with one array operation instead of one
    at a time. Raises ValueError where a sequence is empty or longer than `capacity`.
    """
    if len(lengths) == 0:
        return Layout(np.zeros(1, np.int64), np.zeros(0, np.int64))
    if int(lengths.min()) < 1 or int(lengths.max()) > capacity:
        raise ValueError(f"lengths must lie in 1..{capacity}")
    counts = np.bincount(lengths, minlength=capacity + 1)
    rooms: list[int] = []  # distinct rooms left, rising
    rows_with_room: dict[int, list[np.ndarray]] = {}
    placed: list[np.ndarray] = []  # row of each sequence, in order of falling length
    num_rows = 0

    def add(room: int, rows: np.ndarray) -> None:
        if room > 0 and len(rows):
            if room not in rows_with_room:
                rows_with_room[room] = []
                insort(rooms, room)
            rows_with_room[room].append(rows)

    for length in np.flatnonzero(counts)[::-1].tolist():
        remaining = int(counts[length])
        while remaining:
            position = bisect_left(rooms, length)
            if position == len(rooms):
                break
            room = rooms.pop(position)
            groups = rows_with_room.pop(room)
            rows = groups[0] if len(groups) == 1 else np.concatenate(groups)
            remaining -= _place(placed, add, rows, room, length, remaining)
        if remaining:
            fresh = np.arange(num_rows, num_rows + -(-remaining // (capacity // length)), dtype=np.int64)
            num_rows += len(fresh)
            _place(placed, add, fresh, capacity, length, remaining)
    row_of = np.concatenate(placed)
    slots = np.argsort(row_of, kind="stable").astype(np.int64)
    starts = np.zeros(num_rows + 1, np.int64)
    np.cumsum(np.bincount(row_of, minlength=num_rows), out=starts[1:])
    return Layout(starts, slots)


def one_a_row(lengths: np.ndarray) -> Layout:
    """No packing: a row for each sequence."""
    return Layout(np.arange(len(lengths) + 1, dtype=np.int64), np.arange(len(lengths), dtype=np.int64))


def deal(order: np.ndarray, sorted_lengths: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The sequence behind every rank of a `Layout` in this epoch: `order` permuted among sequences of equal length."""
    shuffled = generator(seed, 2 * epoch).permutation(len(order))
    # A stable sort of shuffled ranks by length class leaves each class in shuffled order.
    classes = (int(sorted_lengths[0]) - sorted_lengths if len(order) else sorted_lengths).astype(np.int32)
    return order[shuffled[np.argsort(classes[shuffled], kind="stable")]]


def row_order(num_rows: int, seed: int, epoch: int) -> np.ndarray:
    """The rows of an epoch in the order of training."""
    return generator(seed, 2 * epoch + 1).permutation(num_rows)


def generator(seed: int, stream: int) -> np.random.Generator:
    """Random numbers that depend on (seed, stream) alone."""
    key = np.array([seed % 2**64, stream], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))


def _place(
    placed: list[np.ndarray],
    add: Callable[[int, np.ndarray], None],
    rows: np.ndarray,
    room: int,
    length: int,
    remaining: int,
) -> int:
    """Put up to `remaining` sequences of `length` into `rows`, as many into each as fit; returns how many."""
    each = room // length
    full, partial = divmod(min(remaining, each * len(rows)), each)
    taken = full * each
    placed.append(np.repeat(rows[:full], each))
    add(room - each * length, rows[:full])
    rest = rows[full:]
    if partial:
        placed.append(np.repeat(rest[:1], partial))
        add(room - partial * length, rest[:1])
        taken += partial
        rest = rest[1:]
    add(room, rest)
    return taken
