"""Builds one entry of the cache: every row of every source through the workers, the choice among them, the report.

Owns the order of things. Refuses to know keys and locks (prepare.py) and what happens to a single row (pipeline.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.filters import Filter
from trainer.data.inputs import blocks_of, place_of
from trainer.data.packing import Layout, one_a_row, pack
from trainer.data.pipeline import Fate, Pipeline
from trainer.data.prepared import Writer
from trainer.data.progress import Progress
from trainer.data.readers import Block, InputFile
from trainer.data.report import Report, SourceReport, bad_share_problem, describe_lengths, write_report
from trainer.data.select import Pool, Selection, select
from trainer.data.workers import Workers, available_cores
from trainer.run.exits import BadInput
from trainer.run.formats.base import DatasetFormat
from trainer.run.formats.registry import choose
from trainer.run.settings.data import DataSpec
from trainer.run.spec import NodeJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


BYTES_WORTH_A_WORKER = 1 << 20
"""Input below which a second process costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Source:
    """A source, settled: its files, their shape and its filter."""

    place: str
    files: list[InputFile]
    shape: DatasetFormat
    keep: Filter | None


def build(
    job: NodeJob,
    tokenizer: PreTrainedTokenizerFast,
    stops: list[int],
    files: list[list[InputFile]],
    entry: Path,
    progress: Progress,
) -> None:
    """Write `entry` from the files of each source; `stops` are the ids that generation stops at. Raises BadInput, with
    data_report.json in the run folder, where the data cannot be used; then, and on any other error, nothing is left in
    the cache."""
    data = job.spec.data
    sources = [_settle(job, number, own) for number, own in enumerate(files)]
    report = Report(
        [
            SourceReport(spec.path, own.shape.name, validation_set=_set_of(data, where))
            for (where, spec), own in zip(data.inputs, sources, strict=True)
        ],
        tokenizer.eos_token,
    )
    totals: dict[str, Any] = {}
    writer = Writer(entry.with_name(f"{entry.name}.tmp-{os.getpid()}"), len(tokenizer))
    try:
        pool, sequence_sources = _tokenize(job, tokenizer, stops, sources, writer, report, progress)
        selection = select(pool, data, job.spec.train.seed)
        totals = _describe(job, writer, selection, sequence_sources, report)
        finished = report.finish(**totals)
        problem = bad_share_problem(finished, data.max_bad_fraction) or report.told.problem(tokenizer.eos_token)
        if problem is not None:
            raise BadInput(problem)
        if totals["train_conversations"] == 0:
            raise BadInput(f"no conversation is left to train on{report.left_out()}; data_report.json has each row")
        names = [file.name for own in files for file in own]
        writer.finish(
            entry,
            selection.train,
            selection.validation,
            names,
            finished,
            pad_token=tokenizer.pad_token_id,
            end_tokens=_end_tokens(tokenizer, stops, report),
        )
    except BadInput:
        write_report(job.run_dir, report.finish(**totals))
        raise
    finally:
        writer.abandon()
    progress.finish(
        f"{totals['train_conversations']:,} conversations, {totals['tokens']:,} tokens, "
        f"{totals['packed_sequences']:,} packed sequences"
    )


def _set_of(data: DataSpec, where: tuple[str | int, ...]) -> str | None:
    _, key, index = where
    return data.validation_sets[int(index)].name if key == "validation" else None


def _settle(job: NodeJob, number: int, files: list[InputFile]) -> Source:
    key, spec = job.spec.data.inputs[number]
    place = place_of(key, spec)
    columns = _columns(files, place)
    keep = Filter(spec.filter, place) if spec.filter else None
    if keep is not None and not keep.columns <= set(columns):
        missing = sorted(keep.columns - set(columns))[0]
        raise BadInput(f"{place}: the filter names '{missing}', but the columns are {', '.join(sorted(columns))}")
    return Source(place, files, choose(spec, columns, place), keep)


def _columns(files: list[InputFile], place: str) -> list[str]:
    """Columns of the first row that can be read."""
    for file in files:
        for block in blocks_of(file):
            for row in block.read():
                if isinstance(row, dict):
                    return list(row)
            break
    raise BadInput(
        f"{place}: no row can be read from the beginning of any file; is it JSON Lines, JSON, Parquet or CSV?"
    )


def _tokenize(
    job: NodeJob,
    tokenizer: PreTrainedTokenizerFast,
    stops: list[int],
    sources: list[Source],
    writer: Writer,
    report: Report,
    progress: Progress,
) -> tuple[Pool, np.ndarray]:
    """Everything usable into the writer; the pool to choose from, and the source of each of its sequences.

    Many parameters: what `build` has opened so far.
    """
    pipeline = Pipeline(tokenizer, job.spec.data, stops)
    drops_system = [source.drop_system for _, source in job.spec.data.inputs]

    def work(task: tuple[int, int, Block]) -> tuple[int, int, int, Fate]:
        source, file, block = task
        fate = pipeline.run(block.read(), sources[source].shape, sources[source].keep, drops_system[source])
        return source, file, block.size_bytes, fate

    total_bytes = sum(file.size_bytes for source in sources for file in source.files)
    workers = job.spec.data.workers or available_cores()
    if all(file.size_bytes for source in sources for file in source.files):
        workers = min(workers, 1 + total_bytes // BYTES_WORTH_A_WORKER)
    owners, hashes, pieces, signatures, owner_of_sequence = [], [], [], [], []
    current, first_row, done = -1, 0, 0
    with Workers(work, workers) as pool:
        for source, file, size, fate in pool.map(_tasks(sources)):
            if file != current:
                current, first_row = file, 0
            own = report.sources[source]
            report.count(own, _file_name(sources, file), first_row, fate.num_rows - fate.num_blank, fate.bad)
            own.change(fate.changed)
            own.filtered += fate.num_filtered
            own.over_long += int(fate.over_long.sum())
            own.nothing_trained += fate.untrained
            own.tools_in_system += fate.tools_in_system
            own.told.add(fate.told)
            fate.sequences.rows += first_row
            writer.append(file, fate.sequences)
            owners.append(np.full(len(fate.hashes), source, np.int32))
            owner_of_sequence.append(np.full(len(fate.sequences.lengths), source, np.int32))
            hashes.append(fate.hashes)
            pieces.append(fate.pieces)
            if fate.signatures is not None:
                signatures.append(fate.signatures)
            first_row += fate.num_rows
            done += size
            progress.update(done, total_bytes, report.rows, writer.num_tokens)
    if not owners:
        raise BadInput("the data has no rows")
    joined = Pool(
        np.concatenate(owners),
        np.concatenate(hashes),
        np.concatenate(pieces),
        np.concatenate(signatures) if signatures else None,
    )
    return joined, np.concatenate(owner_of_sequence)


def _end_tokens(tokenizer: PreTrainedTokenizerFast, stops: list[int], report: Report) -> list[int]:
    """Ids that the trained model stops at, ascending: those that the base stops at and those that answers end with."""
    vocabulary = tokenizer.get_vocab()
    return sorted({*stops, *(vocabulary[marker] for marker in report.told.ends)})


def _tasks(sources: list[Source]) -> Iterator[tuple[int, int, Block]]:
    """(source, file, block), files numbered over all sources."""
    number = 0
    for index, source in enumerate(sources):
        for file in source.files:
            for block in blocks_of(file):
                yield index, number, block
            number += 1


def _file_name(sources: list[Source], number: int) -> str:
    return [file for source in sources for file in source.files][number].name


def _describe(
    job: NodeJob, writer: Writer, selection: Selection, sequence_sources: np.ndarray, report: Report
) -> dict[str, Any]:
    """Complete the report of each source; the totals."""
    lengths, trained = writer.lengths(), writer.trained()
    train_lengths = lengths[selection.train]
    for number, own in enumerate(report.sources):
        own.duplicates = int(selection.duplicates[number])
        own.near_duplicates = int(selection.near[number])
        own.unsampled = int(selection.unsampled[number])
        own.copies_of_held_out = int(selection.copies_of_held_out[number])
        own.train_conversations = int(selection.train_conversations[number])
        own.validation_conversations = int(selection.validation_conversations[number])
        members = selection.train[sequence_sources[selection.train] == number]
        describe_lengths(own, lengths[members], trained[members])
    data = job.spec.data
    layout = _lay_out(train_lengths, data)
    tokens = int(train_lengths.sum())
    return {
        "train_conversations": int(selection.train_conversations.sum()),
        "validation_conversations": int(selection.validation_conversations.sum()),
        "tokens": tokens,
        "trained_tokens": int(trained[selection.train].sum()),
        "packed_sequences": layout.num_rows,
        "packing_efficiency": round(tokens / max(1, layout.num_rows * data.sequence_length), 6),
        "sequence_length": data.sequence_length,
        "validation": [
            {
                "name": name,
                "conversations": selection.validation_sizes[name],
                "tokens": int(lengths[members].sum()),
                "trained_tokens": int(trained[members].sum()),
                "packed_sequences": _lay_out(lengths[members], data).num_rows,
            }
            for name, members in selection.validation.items()
        ],
    }


def _lay_out(lengths: np.ndarray, data: DataSpec) -> Layout:
    return pack(lengths, data.sequence_length) if data.packing else one_a_row(lengths)
