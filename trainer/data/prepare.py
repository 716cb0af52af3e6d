"""Prepares the data of a job once: `python -m trainer.data.prepare TRAIN_JSON [--show N]`, run before the ranks start.

Owns the cache: its key, its lock and its commit. An entry is named by a hash over everything that decides its content
(the files' content, the tokenizer, the template, the settings, the version of this code), is built under another name,
and gets its own only when it is complete. Two processes that want the same entry build it once.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock
from pydantic import ValidationError

from trainer.data.build import build
from trainer.data.checksums import DamagedEntry
from trainer.data.endings import stop_tokens
from trainer.data.inputs import files_of, fingerprints, place_of
from trainer.data.kept import KeptEntry
from trainer.data.kept_base import bring_base
from trainer.data.prepared import REPORT, VERSION, Prepared
from trainer.data.progress import Progress
from trainer.data.questions import PROMPTS, questions_of
from trainer.data.readers import InputFile
from trainer.data.report import bad_share_problem, write_report
from trainer.data.tokenizer import load_tokenizer
from trainer.run.exits import INTERRUPTED, BadInput, ExitCode, leave
from trainer.run.run_folder import make_private
from trainer.run.spec import NodeJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def prepare(job: NodeJob, progress: Progress | None = None) -> Prepared:
    """The prepared data of a job, from the cache or made now; leaves prepared.json and data_report.json in the run folder.

    Raises BadInput where the data cannot be used: then data_report.json says why as far as it is known.
    """
    progress = progress or Progress()
    tokenizer = load_tokenizer(job.spec.model)
    stops = stop_tokens(job.spec.model, tokenizer)
    Path(job.run_dir).mkdir(parents=True, exist_ok=True)
    cache = Path(job.cache_dir) / "data"
    make_private(cache)
    files = [files_of(source, place_of(key, source)) for key, source in job.spec.data.inputs]
    contents = fingerprints([file for own in files for file in own], cache)
    key = cache_key(job, tokenizer, stops, files, contents)
    entry = cache / key
    data = _whole(entry, key)
    if data is None:
        with FileLock(cache / f"{key}.lock"):
            data = _whole(entry, key, progress)
            if data is None:
                for stale in cache.glob(f"{key}.tmp-*"):  # of a killed run: whoever builds this entry holds the lock
                    shutil.rmtree(stale, ignore_errors=True)
                kept = KeptEntry(job, key, progress.finish)
                kept.take(entry)
                data = _whole(entry, key, progress)
                if data is None:
                    build(job, tokenizer, stops, files, entry, progress)
                    data = Prepared.load(entry, key)
                    kept.publish(entry)
    report = json.loads((entry / REPORT).read_text(encoding="utf-8"))
    write_report(job.run_dir, report)
    problem = bad_share_problem(report, job.spec.data.max_bad_fraction)
    if problem is not None:
        raise BadInput(problem)
    for warning in report["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    data.point_to(job.run_dir)
    return data


def _whole(entry: Path, key: str, progress: Progress | None = None) -> Prepared | None:
    """The entry; None where there is none. One that is not what was written is removed, and that is said, where `progress`
    is given: by whoever holds the lock."""
    if not entry.is_dir():
        return None
    try:
        return Prepared.load(entry, key)
    except DamagedEntry as error:
        if progress is not None:
            progress.finish(f"the prepared data in the cache is damaged ({entry.name}: {error}); it is made again")
            aside = entry.with_name(f"{key}.tmp-damaged")  # a run that has it mapped keeps what it has
            shutil.rmtree(aside, ignore_errors=True)
            entry.rename(aside)
        return None


def cache_key(
    job: NodeJob,
    tokenizer: PreTrainedTokenizerFast,
    stops: Sequence[int],
    files: Sequence[Sequence[InputFile]],
    contents: Sequence[str],
) -> str:
    """Hash over everything that decides the content of an entry; paths do not, so that it is the same on every node."""
    data = job.spec.data
    decides = {
        "version": VERSION,
        "settings": data.model_dump(mode="json", exclude={"workers", "sources", "max_bad_fraction", "validation"}),
        "sources": [
            {**spec.model_dump(mode="json", exclude={"path"}), "files": [file.key for file in own]}
            for (_, spec), own in zip(data.inputs, files, strict=True)
        ],
        "contents": list(contents),
        "seed": job.spec.train.seed,
        "tokenizer": tokenizer.backend_tokenizer.to_str(),
        "template": tokenizer.chat_template,
        "special": dict(tokenizer.special_tokens_map),
        "stops": list(stops),
    }
    if data.validation is not None:  # without, an entry and a run of before such sets existed keep their key
        decides["validation"] = [
            {**entry.model_dump(mode="json", exclude={"path"}), "has_files": entry.path is not None}
            for entry in data.validation
        ]
    text = json.dumps(decides, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.data.prepare", description="Prepare the data of a job.")
    parser.add_argument("train_json", help="the train.json of a run")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print N conversations as JSON lines of tokens"
    )
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        job = NodeJob.read(options.train_json)
        data = prepare(job)
        if job.spec.evaluate.asks:
            _check_questions(job, data)
        bring_base(job, Progress().finish)
        if options.show:
            from trainer.data.show import show

            show(data, load_tokenizer(job.spec.model), options.show, sys.stdout)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except (ValidationError, FileNotFoundError) as error:
        print(f"error: {options.train_json}: {error}", file=sys.stderr)
        return ExitCode.BAD_INPUT
    except OSError as error:
        where = error.filename or job.cache_dir
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        print(
            f"error: the disk of {where} is full" if is_full else f"error: {where}: {error.strerror or error}",
            file=sys.stderr,
        )
        return ExitCode.FAILED
    except KeyboardInterrupt:
        print("interrupted: nothing half-made is left in the cache", file=sys.stderr)
        return INTERRUPTED
    return ExitCode.DONE


def _check_questions(job: NodeJob, data: Prepared) -> None:
    """A prompt that cannot be asked ends no paid run: raises BadInput here."""
    asked = questions_of(job.spec, load_tokenizer(job.spec.model), data)
    if job.spec.evaluate.num_questions and job.spec.data.holds_out and all(one.origin == PROMPTS for one in asked):
        print(
            "warning: no conversation of the validation set asks something before what is trained on (a plain text, or "
            "data.train_on_inputs); none of its questions is asked",
            file=sys.stderr,
        )


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    # All is written and closed. Threads that a hub's or a file's library left behind can abort an orderly end (-6).
    leave(main())
