"""What was seen of spot machines, and how long a spell is still likely to last. Knows no money and no deadline.

Spells of availability and of want are short or long, seldom middling: the hazard (chance an hour that a spell ends) falls
with its age. Its fall over the age is taken from published traces; its level is learnt from this run's own zones.
"""

from __future__ import annotations

from dataclasses import dataclass, field

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How the hazard of a kind of spell falls with its age, before anything was seen."""

    ages_h: tuple[float, ...]
    """Where its phases begin; the first at 0."""
    per_hour: tuple[float, ...]
    """Hazard in each phase."""
    prior_spells: float
    """How many spells' worth of trust this deserves against what is seen."""

    def phase(self, age_h: float) -> int:
        return sum(age_h >= start for start in self.ages_h[1:])

    def exposures(self, spell_h: float) -> list[float]:
        """Hours of a spell in each phase."""
        ends = (*self.ages_h[1:], float("inf"))
        return [max(0.0, min(spell_h, end) - start) for start, end in zip(self.ages_h, ends, strict=True)]


UP = Shape((0.0, 0.5, 1.5, 4.0), (1.2, 0.9, 0.5, 0.25), 16.0)
DOWN = Shape((0.0, 0.5, 1.5, 4.0), (1.6, 0.8, 0.45, 0.25), 16.0)


@dataclass(slots=True)
class Spells:
    """Of one thing that comes and goes: a zone's machines, or those of any zone."""

    is_up: bool | None = None
    since_s: float = 0.0
    seen_at_s: float = 0.0
    ended: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    """Spells that were seen to end, by whether they were up."""
    weighed: dict[bool, float] = field(default_factory=lambda: {True: 0.0, False: 0.0})
    """Hours lived by ended ones, weighed with the prior hazard of their age: the ends that the prior expected."""

    def see(self, now_s: float, is_up: bool) -> None:
        if self.is_up is None:
            self.is_up, self.since_s = is_up, now_s
        elif is_up != self.is_up:
            self.weighed[self.is_up] += expected_ends(self.is_up, (now_s - self.since_s) / HOUR)
            self.ended[self.is_up] += 1
            self.is_up, self.since_s = is_up, now_s
        self.seen_at_s = now_s

    def age_h(self) -> float:
        return (self.seen_at_s - self.since_s) / HOUR

    def level(self, is_up: bool) -> float:
        """Hazard against the prior's: a gamma prior of mean 1, and the ends seen for those expected."""
        prior = shape_of(is_up).prior_spells
        running = expected_ends(is_up, self.age_h()) if self.is_up is is_up else 0.0
        return (prior + self.ended[is_up]) / (prior + self.weighed[is_up] + running)


def shape_of(is_up: bool) -> Shape:
    return UP if is_up else DOWN


def expected_ends(is_up: bool, spell_h: float) -> float:
    shape = shape_of(is_up)
    return sum(hours * rate for hours, rate in zip(shape.exposures(spell_h), shape.per_hour, strict=True))


@dataclass(slots=True)
class Sightings:
    """Of every zone that the run may use, from its first decision on."""

    zones: dict[str, Spells] = field(default_factory=dict)
    anywhere: Spells = field(default_factory=Spells)
    num_ends: int = 0
    """Spells of availability that ended, in any zone."""
    num_ends_elsewhere: int = 0
    """Those at whose end another zone had machines."""

    def see(self, now_s: float, is_up: dict[str, bool]) -> None:
        """What each zone had at a moment; moments come in order."""
        any_up = any(is_up.values())
        for zone, up in is_up.items():
            spells = self.zones.setdefault(zone, Spells())
            if spells.is_up and not up:
                self.num_ends += 1
                self.num_ends_elsewhere += any_up
            spells.see(now_s, up)
        self.anywhere.see(now_s, any_up)

    def elsewhere(self) -> float:
        """Chance that another zone has machines when one's spell ends (Laplace's rule of succession)."""
        if len(self.zones) < 2:
            return 0.0
        return (1 + self.num_ends_elsewhere) / (2 + self.num_ends)
