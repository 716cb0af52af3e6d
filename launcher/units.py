"""Sizes, times and counts: one printer and one parser each, for every screen, message and option. Pure.

Memory of cards and nodes is counted in MiB and GiB, as their makers and clouds list it; everything else (files, traffic,
memory that a plan adds up) in powers of ten.
"""

from __future__ import annotations

import re

MIB = 2**20
GIB = 2**30
MB = 10**6
GB = 10**9

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def size(size_bytes: float | None) -> str:
    """For a person: `54.2 GB`."""
    if size_bytes is None:
        return "size unknown"
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" or size_bytes >= 100 else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def gigabytes(size_bytes: float) -> str:
    """As `size`, for columns that are compared: in GB, in MB where that would be under 0.1 GB."""
    return f"{size_bytes / GB:,.1f} GB" if size_bytes >= 0.1 * GB else f"{size_bytes / MB:,.1f} MB"


def seconds(value: float | None) -> str:
    """For a person: `0.4 s`, `41 s`, `3 min 20 s`, `5 h 12 min`, `2 d 3 h`."""
    if value is None:
        return "unknown time"
    if value < 10:
        return f"{value:.1f} s"
    if value < 60:
        return f"{value:.0f} s"
    whole = round(value)
    if whole < 3600:
        return _two(whole // 60, "min", whole % 60, "s")
    if whole < 86_400:
        return _two(whole // 3600, "h", whole % 3600 // 60, "min")
    return _two(whole // 86_400, "d", whole % 86_400 // 3600, "h")


def _two(large: int, unit: str, rest: int, smaller: str) -> str:
    return f"{large} {unit} {rest} {smaller}" if rest else f"{large} {unit}"


def count(value: float | None) -> str:
    """For a person: `940`, `12.3k`, `1.24M`, `8.03B`."""
    if value is None:
        return "?"
    for limit, divisor, unit in ((1e4, 1, ""), (1e6, 1e3, "k"), (1e9, 1e6, "M")):
        if abs(value) < limit:
            return f"{value / divisor:,.0f}" if divisor == 1 else f"{value / divisor:.4g}{unit}"
    return f"{value / 1e9:.4g}B"


def parse_seconds(text: str) -> float:
    """`90s`, `10m`, `1.5h` or `3d` in seconds. ValueError, with the grammar, for anything else."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])", text.strip())
    if found is None:
        raise ValueError("write a number and s, m, h or d, for example 10m, 2h or 3d")
    return float(found[1]) * _SECONDS[found[2]]
