"""`evaluate:` of a job: what the model is asked besides its loss, while it trains and once it is exported."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from trainer.run.settings.base import PositiveInt, SpecModel

DEFAULT_QUESTIONS = 4
"""Held-out questions that are asked where prompts or metrics are stated and no number is."""


class EvaluateSpec(SpecModel):
    prompts: Annotated[str, Field(min_length=1)] | tuple[Annotated[str, Field(min_length=1)], ...] | None = None
    """Prompts that the model answers at every evaluation: a list, or a file: .txt with one a line, .jsonl with `prompt` or `messages` and, where an answer is known, `answer`."""
    questions: Annotated[int, Field(ge=0)] | None = None
    """Ask the first so many held-out questions too; where not given 4 with prompts or metrics, else none."""
    questions_of: str | None = None
    """Validation set whose questions are asked; the first where not given."""
    max_new_tokens: PositiveInt = 64
    """Tokens of an answer at most."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token; above it tokens are drawn, by train.seed and the step."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw among the likeliest tokens that make up this share of the probability."""
    metrics: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Scores of the answers by step: exact_match, contains, json_valid, tool_call_match, or a Python function as `file.py:function`."""
    tasks: tuple[str, ...] = ()
    """Of the exported model, before its node is given back: tasks of EleutherAI's lm-evaluation-harness by name (leaderboard, gsm8k), or paths of task files of your own (.yaml)."""
    limit: PositiveInt | None = None
    """Questions of each task; all where not given."""
    base: bool = True
    """Ask the base model the same tasks, for a table of both."""
    chat_template: bool = False
    """Put the tasks' questions into the model's chat template."""
    max_minutes: Annotated[float, Field(gt=0)] | None = None
    """Begin no task after this many minutes; what is left out is told, and `dolphin eval RUN` does it later."""

    @property
    def num_questions(self) -> int:
        if self.questions is not None:
            return self.questions
        return DEFAULT_QUESTIONS if self.prompts or self.metrics else 0

    @property
    def asks(self) -> bool:
        """Whether the model answers anything while it trains."""
        return bool(self.prompts) or self.num_questions > 0
