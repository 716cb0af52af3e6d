"""MinHash signatures of texts, and the groups of near-duplicates among them (Broder 1997). Numpy alone.

A text's set is its runs of 5 words. Two texts whose sets overlap by 80% or more are near-duplicates: candidates come from
equal bands of the signature, and are then compared by the whole signature.
"""

from __future__ import annotations

import zlib

import numpy as np

PERMUTATIONS = 128
BANDS = 16
THRESHOLD = 0.8
WORDS = 5

_PRIME = np.uint64((1 << 31) - 1)
_GENERATOR = np.random.Generator(np.random.PCG64(20240726))
_A = _GENERATOR.integers(1, int(_PRIME), PERMUTATIONS, dtype=np.uint64)
_B = _GENERATOR.integers(0, int(_PRIME), PERMUTATIONS, dtype=np.uint64)


def signature(texts: list[str]) -> np.ndarray:
    """uint32 (texts, PERMUTATIONS)."""
    out = np.zeros((len(texts), PERMUTATIONS), np.uint32)
    for i, text in enumerate(texts):
        words = np.array([zlib.crc32(word.encode("utf-8")) for word in text.split()] or [0], np.uint64)
        runs = max(1, len(words) - WORDS + 1)
        shingles = np.zeros(runs, np.uint64)
        for offset in range(min(WORDS, len(words))):
            shingles = (shingles * np.uint64(1_000_003) + words[offset : offset + runs]) % _PRIME
        out[i] = ((np.unique(shingles)[:, None] * _A + _B) % _PRIME).min(axis=0)
    return out


def near_duplicates(signatures: np.ndarray) -> np.ndarray:
    """bool: whether each text is nearly the same as an earlier one that is kept."""
    total = len(signatures)
    repeated = np.zeros(total, bool)
    rows = PERMUTATIONS // BANDS
    earlier: list[list[int]] = [[] for _ in range(total)]
    for band in range(BANDS):
        part = np.ascontiguousarray(signatures[:, band * rows : (band + 1) * rows])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * rows))).ravel()
        _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
        crowded = np.flatnonzero(counts[inverse] > 1)
        for group in _groups(inverse[crowded], crowded):
            for position, text in enumerate(group.tolist()):
                earlier[text].extend(group[:position].tolist())
    for text in range(total):
        for candidate in sorted(set(earlier[text])):
            if not repeated[candidate] and np.mean(signatures[text] == signatures[candidate]) >= THRESHOLD:
                repeated[text] = True
                break
    return repeated


def _groups(labels: np.ndarray, members: np.ndarray) -> list[np.ndarray]:
    order = np.argsort(labels, kind="stable")
    cuts = np.flatnonzero(np.diff(labels[order])) + 1
    return np.split(members[order], cuts) if len(order) else []
