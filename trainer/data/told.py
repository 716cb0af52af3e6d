"""Told: what rendering did to conversations, counted, and the sentences in which a person is told of it.

Owns the counts that say whether what is trained is what the model must write. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

EARLIER_THOUGHTS = "thoughts of earlier answers"
THOUGHTS = "thoughts"


@dataclass
class Told:
    """Counts of conversations where not said otherwise."""

    answers: int = 0
    """Trained answers."""
    endless: int = 0
    """Trained answers that end with no token that stops generation."""
    ends: dict[str, int] = field(default_factory=dict)
    """Trained answers by the token that ends them."""
    said: int = 0
    """Characters that the assistants say: answers, thoughts, calls."""
    trained: int = 0
    """Those that are trained."""
    gone: dict[str, int] = field(default_factory=dict)
    """What the chat template leaves out of the text."""
    changed: dict[str, int] = field(default_factory=dict)
    """What was changed before the template saw it."""

    def add(self, other: Told) -> None:
        self.answers += other.answers
        self.endless += other.endless
        self.said += other.said
        self.trained += other.trained
        for mine, theirs in ((self.ends, other.ends), (self.gone, other.gone), (self.changed, other.changed)):
            for what, count in theirs.items():
                mine[what] = mine.get(what, 0) + count

    def end(self, marker: str | None) -> None:
        """Count a trained answer that ends with `marker`."""
        self.answers += 1
        if marker is None:
            self.endless += 1
        else:
            self.ends[marker] = self.ends.get(marker, 0) + 1

    def leave_out(self, what: Iterable[str]) -> None:
        """Count a conversation that lost these."""
        for one in what:
            self.gone[one] = self.gone.get(one, 0) + 1

    def change(self, what: str) -> None:
        self.changed[what] = self.changed.get(what, 0) + 1

    def problem(self, end_token: str) -> str | None:
        """Why no run must start: of everything that is trained, nothing teaches the model to stop."""
        if not self.answers or self.endless < self.answers:
            return None
        return (
            f"none of the {self.answers:,} trained answers ends with a token that stops generation, so that the model would "
            f"never stop: the chat template writes no {end_token} behind an answer; add it there ({{{{ eos_token }}}}), or name "
            "what it writes as model.special_tokens.eos_token"
        )

    def warnings(self, end_token: str) -> list[str]:
        """What a person must know before paying for a run; `end_token` is the tokenizer's."""
        out = []
        for what, count in self.gone.items():
            remedy = {
                EARLIER_THOUGHTS: "; data.unroll: true trains each of these answers as the last of a conversation of its own",
                THOUGHTS: "; name a model.chat_template that writes them, such as qwen3 or deepseek_v3",
            }.get(what, "")
            out.append(f"the chat template leaves out the {what} of {count:,} conversations{remedy}")
        if self.endless:
            out.append(
                f"{self.endless:,} of {self.answers:,} trained answers end with no token that stops generation: nothing "
                "teaches the model to stop there; write {{ eos_token }} behind each answer in the chat template"
            )
        others = [marker for marker in self.ends if marker != end_token]
        if others:
            out.append(
                f"answers end with {' and '.join(others)}, and the tokenizer's end token is {end_token}: the exported model "
                "stops at each of them"
            )
        share = 1.0 - self.trained / self.said if self.said else 0.0
        if share >= 0.0005:
            out.append(f"{share:.1%} of what the assistants say is not trained")
        return out
