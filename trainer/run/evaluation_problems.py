"""Settings of evaluation that contradict each other: validation sets, what the model is asked, the best checkpoint, an early stop.

Pure functions of a specification that has the right form; `trainer.run.contradictions` reports them with all others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from trainer.run.measures import COLUMNS, SCORES, directions, function_of, score_name, stated_best
from trainer.run.settings.checkpoint import BestMetric
from trainer.run.settings.train import StopSpec
from trainer.run.spec import TrainSpec


class Problem(NamedTuple):
    """One thing wrong with a specification: where (`("train", "warmup_steps")`), what and what to do."""

    where: tuple[str | int, ...]
    message: str


def evaluation_problems(spec: TrainSpec) -> list[Problem]:
    """Empty where there are none."""
    return [*_of_sets(spec), *_of_answers(spec), *_of_best(spec)]


def _of_sets(spec: TrainSpec) -> Iterator[Problem]:
    data, seen = spec.data, set[str]()
    if data.validation is None:
        return
    for key in ("validation_fraction", "validation_count"):
        if key in data.model_fields_set and getattr(data, key) is not None:
            yield Problem(("data", key), "contradicts data.validation, whose sets have sizes of their own; remove one")
    for index, entry in enumerate(data.validation):
        where = ("data", "validation", index)
        if entry.name in seen:
            yield Problem((*where, "name"), f"{entry.name} is the name of two sets; give each its own")
        seen.add(entry.name)
        if entry.fraction is not None and entry.count is not None:
            yield Problem((*where, "count"), "contradicts `fraction` of the same set: both size it; remove one")
        if entry.path is None and entry.fraction is None and entry.count is None:
            yield Problem(where, "says neither `path` nor how much to hold out; state path, fraction or count")
        reading = sorted(
            {"format", "fields", "split", "subset", "field", "filter"} & entry.model_fields_set
        )  # of a set that is held out, `sources` say them
        if entry.path is None and reading:
            yield Problem((*where, reading[0]), "needs `path`: what is held out is read as its source is; remove it")


def _of_answers(spec: TrainSpec) -> Iterator[Problem]:
    evaluate, names = spec.evaluate, list[str]()
    if evaluate.questions and not spec.data.holds_out:
        yield Problem(("evaluate", "questions"), "needs a validation set, and nothing is held out; set data.validation")
    known = [entry.name for entry in spec.data.validation_sets]
    if evaluate.questions_of is not None and evaluate.questions_of not in known:
        told = f"there are {', '.join(known)}" if known else "nothing is held out"
        yield Problem(("evaluate", "questions_of"), f"no validation set is called {evaluate.questions_of}; {told}")
    for index, metric in enumerate(evaluate.metrics):
        where = ("evaluate", "metrics", index)
        if metric not in SCORES and function_of(metric) is None:
            yield Problem(
                where, f"no score is called {metric!r}; there are {', '.join(SCORES)}; or write file.py:function"
            )
        if score_name(metric) in [*names, *COLUMNS]:
            yield Problem(
                where, f"{score_name(metric)} is the name of another measure; rename the function, or remove one"
            )
        names.append(score_name(metric))
    if evaluate.metrics and not evaluate.prompts and not (evaluate.num_questions and spec.data.holds_out):
        yield Problem(("evaluate", "metrics"), "score answers, and nothing is asked; set evaluate.prompts or questions")
    if evaluate.top_p < 1 and evaluate.temperature == 0:
        yield Problem(("evaluate", "top_p"), "contradicts evaluate.temperature 0, which takes the likeliest; set one")
    if evaluate.asks and spec.train.evaluate_every == "never":
        key = "prompts" if evaluate.prompts else "metrics" if evaluate.metrics else "questions"
        yield Problem(
            ("evaluate", key), "contradicts train.evaluate_every never: nothing would be asked; set an interval"
        )


def _of_best(spec: TrainSpec) -> Iterator[Problem]:
    best = stated_best(spec)
    for where, stated in ((("checkpoint", "keep_best"), best), (("train", "stop"), spec.train.stop)):
        if stated is not None:
            yield from _of_metric(spec, where, stated)
    if spec.export.which == "best" and best is None:
        yield Problem(("export", "which"), "best needs checkpoint.keep_best, which says by what; set it to eval_loss")


def _of_metric(spec: TrainSpec, where: tuple[str, str], stated: BestMetric | StopSpec) -> Iterator[Problem]:
    if spec.train.evaluate_every == "never":
        yield Problem(where, "contradicts train.evaluate_every never: nothing would be measured; set an interval")
        return
    known = directions(spec)
    if stated.metric not in known:
        told = (
            f"there are {', '.join(known)}"
            if known
            else "nothing is held out and nothing is scored; set data.validation"
        )
        yield Problem(where, f"nothing measures {stated.metric!r}; {told}")
    elif stated.direction is not None and stated.metric.endswith("loss") and stated.direction == "higher":
        yield Problem(where, f"direction higher would take the worst {stated.metric}; write lower, or leave it out")
