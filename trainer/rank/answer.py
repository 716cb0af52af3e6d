"""The model's answers to questions, by the ranks that train it, under every ZeRO stage.

Owns how questions are dealt to ranks and how a token is chosen. Under ZeRO-3 a forward pass gathers layers from all ranks, so that
every rank makes the same number of them. There is no cache of keys and values: the model is called as in an evaluation, which
its self-test knows to be right for every family. Random states of the training are not touched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist

from trainer.data.batch import IGNORE, Batch, Share
from trainer.data.plan import UNPACKED_MULTIPLE
from trainer.data.questions import Question
from trainer.engine.engine import Engine, sum_over_ranks
from trainer.run.settings.evaluate import EvaluateSpec


class Decoding(NamedTuple):
    """How answers are made."""

    settings: EvaluateSpec
    stops: frozenset[int]
    """Tokens that end an answer."""
    vocabulary_size: int
    """Of the tokenizer: a matrix may have more rows, which are no tokens."""
    seed: int
    pad_token: int


def answers(
    engine: Engine,
    questions: Sequence[Question],
    share: Share,
    decoding: Decoding,
    step: int,
    alive: Callable[[], None],
) -> list[list[int]]:
    """Token ids of the answer to each question, without the token that ended it: the same list on every rank. All ranks call it.

    Many parameters: an evaluation's, and what is asked.
    """
    per_rank = -(-len(questions) // share.world_size)
    mine = list(range(share.rank, len(questions), share.world_size))
    mine += [0] * (per_rank - len(mine))  # asked again on a rank that would have none
    longest = max(len(question.ids) for question in questions) + decoding.settings.max_new_tokens
    at_once = max(1, share.micro_batch * engine.job.spec.data.sequence_length // longest)
    found: dict[int, list[int]] = {}
    for start in range(0, per_rank, at_once):
        numbers = mine[start : start + at_once]
        prompts = [questions[number].ids for number in numbers]
        choosers = [Chooser(decoding, step, number) for number in numbers]
        found |= dict(zip(numbers, _generate(engine, prompts, choosers, decoding, alive), strict=True))
    everywhere: list[dict[int, list[int]]] = [{} for _ in range(share.world_size)]
    dist.all_gather_object(everywhere, found)
    merged = {number: ids for part in reversed(everywhere) for number, ids in part.items()}
    return [merged[number] for number in range(len(questions))]


def _generate(
    engine: Engine,
    prompts: Sequence[tuple[int, ...]],
    choosers: Sequence[Chooser],
    decoding: Decoding,
    alive: Callable[[], None],
) -> list[list[int]]:
    rows = [list(prompt) for prompt in prompts]
    is_open = [True] * len(rows)
    for _ in range(decoding.settings.max_new_tokens):
        shown = [row if still else row[:1] for row, still in zip(rows, is_open, strict=True)]
        logits = engine.labelled_logits(batch_of(shown, decoding.pad_token))[:, : decoding.vocabulary_size]
        for index, choose in enumerate(choosers):
            if is_open[index]:
                token = choose(logits[index])
                is_open[index] = token not in decoding.stops
                if is_open[index]:
                    rows[index].append(token)
        alive()
        (num_open,) = sum_over_ranks(float(sum(is_open)), device=engine.device)
        if not num_open:
            break
    return [row[len(prompt) :] for row, prompt in zip(rows, prompts, strict=True)]


class Chooser:
    """The next token of one answer. Tokens that are drawn depend on seed, step and question alone."""

    def __init__(self, decoding: Decoding, step: int, number: int) -> None:
        self._settings = decoding.settings
        text = f"{decoding.seed}/{step}/{number}/answer"
        self._generator = torch.Generator()
        self._generator.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1)

    def __call__(self, logits_V: torch.Tensor) -> int:
        if self._settings.temperature == 0:
            return int(logits_V.argmax())
        shares_V = torch.softmax(logits_V.double().cpu() / self._settings.temperature, -1)
        ordered_V, tokens_V = shares_V.sort(descending=True, stable=True)
        ordered_V[ordered_V.cumsum(0) - ordered_V >= self._settings.top_p] = 0.0  # the likeliest one always stays
        return int(tokens_V[torch.multinomial(ordered_V, 1, generator=self._generator)])


def batch_of(rows: Sequence[Sequence[int]], pad_token: int) -> Batch:
    """A row for each, padded at its end, with a label at its last token alone: where its next one is predicted."""
    length = -(-max(map(len, rows)) // UNPACKED_MULTIPLE) * UNPACKED_MULTIPLE
    ids = np.full((len(rows), length), pad_token, np.int64)
    labels = np.full((len(rows), length), IGNORE, np.int64)
    positions = np.zeros((len(rows), length), np.int64)
    boundaries = [0]
    for number, row in enumerate(rows):
        end = len(row)
        ids[number, :end] = row
        labels[number, end - 1] = row[-1]
        positions[number, :end] = np.arange(end)
        positions[number, end:] = np.arange(length - end)
        boundaries += [number * length + end] + ([(number + 1) * length] if end < length else [])
    weights = (labels != IGNORE).astype(np.float32)
    return Batch.of(*map(torch.from_numpy, (ids, labels, weights, positions, np.array(boundaries, np.int32))))
