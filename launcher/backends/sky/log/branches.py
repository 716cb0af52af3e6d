"""Which line of which branch is the next one at home. Pure, over the part of the mirror's state that is about it.

A node that goes on from a bucket begins a branch (`node.branch`): its first lines are those of the branch before. What home has of
that one beyond them stays; what comes of it later is too late, for the run has gone on without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from launcher.backends.sky.node.branch import Ancestors


class Branches:
    def __init__(self, state: dict[str, Any]) -> None:
        """`state` is kept from one call to the next: `taken` (BRANCH KIND to the number of lines that are home), `branches` and
        `newest` are its parts."""
        self._state = state
        self._taken: dict[str, int] = state["taken"]
        self._known: dict[str, Ancestors] = state.setdefault("branches", {})
        for key in self._taken:  # of an older dolphin, which knew one alone
            self.meet(key.partition(" ")[0], [])

    def meet(self, branch: str, ancestors: Ancestors) -> None:
        """Hear of a branch: one that is new is where the run goes on now."""
        if branch not in self._known:
            self._known[branch] = ancestors
            for nth, (ancestor, _) in enumerate(ancestors, 1):
                self._known.setdefault(ancestor, ancestors[nth:])
            self._state["newest"] = branch

    def is_newest(self, branch: str) -> bool:
        return self._state.get("newest") == branch

    def take(self, branch: str, kind: str, number: int) -> bool:
        """Whether this line is the next one; then it counts as taken. The first line of an unknown branch is of one without
        ancestors, later ones wait until it is known."""
        if number == 1:
            self.meet(branch, [])
        if branch not in self._known:
            return False
        own = self._owner(branch, kind, number)
        if not self._goes_on(own, kind, number) or self._home(own, kind) != number - 1:
            return False
        before = self._owner(branch, kind, number - 1)
        if before != own and self._home(before, kind) < number - 1:
            return False
        self._taken[f"{own} {kind}"] = number
        return True

    def num_taken(self, branch: str, kind: str) -> int:
        return self._taken.get(f"{branch} {kind}", 0)

    def _owner(self, branch: str, kind: str, number: int) -> str:
        """The branch that said the line first."""
        for ancestor, counts in self._known.get(branch, []):
            if number > counts.get(kind, 0):
                break
            branch = ancestor
        return branch

    def _home(self, branch: str, kind: str) -> int:
        """Number of the branch's last line that is home, or that it begins with."""
        ancestors = self._known.get(branch) or [("", {})]
        return self._taken.get(f"{branch} {kind}", ancestors[0][1].get(kind, 0))

    def _goes_on(self, own: str, kind: str, number: int) -> bool:
        """Whether the newest branch is this one, or has the line from it."""
        if self.is_newest(own):
            return True
        counts = dict(self._known[self._state["newest"]]).get(own, {})
        return number <= counts.get(kind, 0)
