"""DataPlan: which packed sequences make up which global step, for any number of ranks.

Owns epochs, steps, and the cut of a step into micro batches. The plan depends on the prepared data, the seed and the
specification alone: the number of ranks and the micro batch only cut the rows of a step differently. A *row* is one
packed sequence of `data.sequence_length` tokens.

The rule for what does not divide: every epoch has ceil(rows / global_batch) steps; the last one is short, and whatever is
missing on some rank (there, or because ranks x micro batch does not divide the global batch) is filled with rows of
padding that have no labels. Nothing is lost, nothing is repeated, and every rank does the same number of micro batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from trainer.data.batch import IGNORE, Batch, Share
from trainer.data.packing import Layout, by_falling_length, deal, one_a_row, pack, row_order
from trainer.data.prepared import Prepared
from trainer.run.exits import BadInput
from trainer.run.spec import NodeJob

UNPACKED_MULTIPLE = 8
"""Without packing a micro batch is as long as its longest conversation, rounded up to this many tokens."""


def num_steps(epochs: float, max_steps: int | None, steps_per_epoch: int) -> int:
    """Steps of a whole run."""
    return max_steps if max_steps is not None else max(1, math.ceil(epochs * steps_per_epoch - 1e-6))


@dataclass(frozen=True, slots=True)
class _Epoch:
    sequence_of: np.ndarray
    """Sequence of each rank of the layout."""
    rows: np.ndarray
    """Row of the layout at each place of the epoch."""


@dataclass
class DataPlan:
    """Open it with `DataPlan.open`; steps count from 0."""

    data: Prepared
    sequence_length: int
    packing: bool
    seed: int
    global_batch: int
    epochs: float
    max_steps: int | None
    pad_token: int
    _epochs: dict[int, _Epoch] = field(default_factory=dict, repr=False)
    """The one or two that are at work: batches are made ahead, in another thread."""

    @classmethod
    def open(cls, job: NodeJob) -> DataPlan:
        """The plan of a prepared run. Raises BadInput where the data was not prepared or holds nothing to train on."""
        data = Prepared.open(job.run_dir)
        if len(data.train) == 0:
            raise BadInput("no conversation is left to train on; data_report.json says what became of each row")
        train = job.spec.train
        return cls(
            data=data,
            sequence_length=job.spec.data.sequence_length,
            packing=job.spec.data.packing,
            seed=train.seed,
            global_batch=job.global_batch,
            epochs=train.epochs,
            max_steps=train.max_steps,
            pad_token=data.meta["pad_token"],
        )

    # -- size ---------------------------------------------------------------------------------------------------------

    @property
    def key(self) -> str:
        return self.data.key

    @property
    def num_conversations(self) -> int:
        """Conversations in an epoch (pieces, where over-long ones are split)."""
        return len(self.data.train)

    @property
    def num_sequences(self) -> int:
        """Packed sequences in an epoch; the same in all of them."""
        return self._layout.num_rows

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.num_sequences // self.global_batch)

    @property
    def total_steps(self) -> int:
        return num_steps(self.epochs, self.max_steps, self.steps_per_epoch)

    @cached_property
    def tokens_per_epoch(self) -> int:
        """Without padding."""
        return int(self._sorted_lengths.sum())

    @cached_property
    def trained_tokens_per_epoch(self) -> int:
        return int(self.data.trained[self.data.train].sum())

    @property
    def has_validation(self) -> bool:
        return len(self.data.validation) > 0

    # -- a step -------------------------------------------------------------------------------------------------------

    def epoch_of(self, step: int) -> float:
        """Epochs done once `step` steps are."""
        return step / self.steps_per_epoch

    def step_weight(self, step: int) -> float:
        """Sum of the label weights of a whole global step, the same on every rank without asking another."""
        return float(self.data.weight_sum[self._step_sequences(step)].sum())

    def step_tokens(self, step: int) -> int:
        return int(self.data.lengths(self._step_sequences(step)).sum())

    def step_trained_tokens(self, step: int) -> int:
        return int(self.data.trained[self._step_sequences(step)].sum())

    def step_pairs(self, step: int) -> int:
        """Pairs of a token and one before it in its conversation: what attention is computed for."""
        lengths = self.data.lengths(self._step_sequences(step)).astype(np.int64)
        return int((lengths * (lengths - 1) // 2).sum())

    def num_micro_batches(self, share: Share) -> int:
        """Micro batches of every step on every rank."""
        return share.num_micro_batches(self.global_batch)

    def batch(self, step: int, share: Share, micro_index: int) -> Batch:
        """Micro batch `micro_index` of a rank's share of `step`; any step costs the same."""
        rows = self._micro_rows(step, share, micro_index)
        return self._assemble([self._row_sequences(step, row) for row in rows], share.micro_batch)

    def conversations(self, step: int, share: Share | None = None, micro_index: int | None = None) -> list[str]:
        """`file:row` of the conversations of a step; of a rank's share of it, or of one micro batch of that."""
        if share is None:
            sequences = self._step_sequences(step)
        else:
            chosen = range(self.num_micro_batches(share)) if micro_index is None else [micro_index]
            rows = [row for index in chosen for row in self._micro_rows(step, share, index)]
            sequences = np.concatenate([self._row_sequences(step, row) for row in rows] or [np.zeros(0, np.int64)])
        return [self.data.name_of(int(sequence)) for sequence in sequences]

    # -- evaluation ---------------------------------------------------------------------------------------------------

    @cached_property
    def validation_names(self) -> tuple[str, ...]:
        """Of the validation sets, in the job's order."""
        return tuple(self.data.validation_sets)

    def eval_num_micro_batches(self, share: Share, name: str) -> int:
        """Micro batches of an evaluation on the set of that name, on every rank."""
        return share.num_micro_batches(self._validation[name][1].num_rows)

    def eval_batch(self, share: Share, name: str, micro_index: int) -> Batch:
        """A micro batch of a validation set, always packed and dealt in the same way."""
        order, layout = self._validation[name]
        rows = share.rows(micro_index, layout.num_rows)
        return self._assemble(
            [order[layout.slots[layout.starts[row] : layout.starts[row + 1]]] for row in rows], share.micro_batch
        )

    # -- within -------------------------------------------------------------------------------------------------------

    @cached_property
    def _order(self) -> np.ndarray:
        train = np.asarray(self.data.train)
        found: np.ndarray = train[by_falling_length(self.data.lengths(train))]
        return found

    @cached_property
    def _sorted_lengths(self) -> np.ndarray:
        return self.data.lengths(self._order)

    @cached_property
    def _layout(self) -> Layout:
        return self._lay_out(self._sorted_lengths)

    @cached_property
    def _validation(self) -> dict[str, tuple[np.ndarray, Layout]]:
        """Of each set its sequences, by falling length, and how they share rows."""
        found = {}
        for name, members in self.data.validation_sets.items():
            order = np.asarray(members)[by_falling_length(self.data.lengths(members))]
            found[name] = (order, self._lay_out(self.data.lengths(order)))
        return found

    def _lay_out(self, lengths: np.ndarray) -> Layout:
        return pack(lengths, self.sequence_length) if self.packing else one_a_row(lengths)

    def _epoch_at(self, step: int) -> tuple[_Epoch, int]:
        """The epoch that `step` lies in, and the step's number within it."""
        number, within = divmod(step, self.steps_per_epoch)
        epoch = self._epochs.get(number)
        if epoch is None:
            dealt = deal(self._order, self._sorted_lengths, self.seed, number)
            epoch = _Epoch(dealt, row_order(self.num_sequences, self.seed, number))
            kept = {other: known for other, known in list(self._epochs.items()) if abs(other - number) == 1}
            self._epochs = {**kept, number: epoch}
        return epoch, within

    def _rows_in_step(self, step: int) -> int:
        within = step % self.steps_per_epoch
        return min(self.global_batch, self.num_sequences - within * self.global_batch)

    def _row_sequences(self, step: int, row: int) -> np.ndarray:
        epoch, within = self._epoch_at(step)
        place = epoch.rows[within * self.global_batch + row]
        layout = self._layout
        found: np.ndarray = epoch.sequence_of[layout.slots[layout.starts[place] : layout.starts[place + 1]]]
        return found

    def _step_sequences(self, step: int) -> np.ndarray:
        return np.concatenate([self._row_sequences(step, row) for row in range(self._rows_in_step(step))])

    def _micro_rows(self, step: int, share: Share, micro_index: int) -> range:
        if not 0 <= micro_index < self.num_micro_batches(share):
            raise IndexError(f"no micro batch {micro_index} on rank {share.rank} of {share.world_size}")
        return share.rows(micro_index, self._rows_in_step(step))

    def _assemble(self, rows: list[np.ndarray], micro_batch: int) -> Batch:
        """Lay the sequences of each row behind one another; rows that are missing are padding."""
        length = self.sequence_length if self.packing else self._unpacked_length(rows)
        ids = np.full((micro_batch, length), self.pad_token, np.int64)
        labels = np.full((micro_batch, length), IGNORE, np.int64)
        weights = np.zeros((micro_batch, length), np.float32)
        positions = np.zeros((micro_batch, length), np.int64)
        boundaries = [0]
        for b in range(micro_batch):
            at = 0
            for sequence in rows[b].tolist() if b < len(rows) else ():
                tokens = self.data.token_ids(sequence)
                target = self.data.token_weights(sequence)
                end = at + len(tokens)
                ids[b, at:end] = tokens
                weights[b, at : end - 1] = target[1:]
                labels[b, at : end - 1] = np.where(target[1:] > 0, tokens[1:].astype(np.int64), IGNORE)
                positions[b, at:end] = np.arange(len(tokens))
                boundaries.append(b * length + end)
                at = end
            if at < length:
                positions[b, at:] = np.arange(length - at)
                boundaries.append((b + 1) * length)
        return Batch.of(*map(torch.from_numpy, (ids, labels, weights, positions, np.array(boundaries, np.int32))))

    def _unpacked_length(self, rows: list[np.ndarray]) -> int:
        longest = max((int(self.data.lengths(row).max()) for row in rows), default=1)
        return min(-(-longest // UNPACKED_MULTIPLE) * UNPACKED_MULTIPLE, self.sequence_length)
