"""Answering: the questions of a run, asked at every evaluation. All ranks hold the same ones.

Owns what becomes of an answer: its text, its scores, its record. Refuses to know how it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from transformers import PreTrainedTokenizerBase

from trainer.data.batch import Share
from trainer.data.plan import DataPlan
from trainer.data.questions import questions_of
from trainer.engine.engine import Engine
from trainer.rank.answer import Decoding, answers
from trainer.rank.scores import Scorer, means
from trainer.run.run_folder import SAMPLE_FIELDS
from trainer.run.spec import NodeJob


class Answering:
    def __init__(self, job: NodeJob, tokenizer: PreTrainedTokenizerBase, plan: DataPlan) -> None:
        spec, meta = job.spec, plan.data.meta
        self.questions = questions_of(spec, tokenizer, plan.data) if spec.evaluate.asks else []
        stops = frozenset(meta["end_tokens"])
        self._decoding = Decoding(spec.evaluate, stops, len(tokenizer), spec.train.seed, plan.pad_token)
        self._tokenizer = tokenizer
        self._scorer = Scorer(spec.evaluate.metrics) if dist.get_rank() == 0 and self.questions else None

    def ask(
        self, engine: Engine, share: Share, step: int, get_on: Callable[[], None], alive: Callable[[], None]
    ) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """(a record of each answer, SAMPLE_FIELDS; the mean of each score): the records on rank 0, the means on every rank.
        All ranks call it; `get_on` is called by all of them after every token, `alive` by rank 0 after every score."""
        if not self.questions:
            return [], {}
        given = answers(engine, self.questions, share, self._decoding, step, get_on)
        records, scores = [], list[dict[str, float]]()
        if self._scorer is not None:
            for number, (question, ids) in enumerate(zip(self.questions, given, strict=True)):
                text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()
                scores.append(self._scorer.of(question.text, text, question.expected))
                alive()
                ended = len(ids) < self._decoding.settings.max_new_tokens
                told = (question.origin, question.text, question.expected, text, len(ids), ended, scores[-1])
                records.append(dict(zip(SAMPLE_FIELDS, (step, number, *told), strict=True)))
        box = [means(scores)]
        dist.broadcast_object_list(box, src=0)
        return records, box[0]
