"""What the report says a run went through: attempts, what each interruption cost, curves that hide no spike."""

import math

from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.base import NodeAttempt
from launcher.follow.history import History, label_of, smoothed, thinned
from tests.support.written_run import START, STEP_S, evaluation, event, metric, preempted
from trainer.run.run_folder import EventKind


def history_of(events, metrics):
    history = History()
    history.add_events(events)
    history.add_metrics(metrics)
    history.settle()
    return history


def test_each_interruption_is_told_with_what_it_cost():
    history = history_of(*preempted((60, 110)))
    nodes = [NodeAttempt(START, START + 1e6, price_usd_per_hour=3.6)]
    first, second = history.interruptions(nodes)
    assert (first.attempt, first.step, first.lost_steps, first.why) == (1, 60, 10, "the node was taken away")
    assert (second.step, second.lost_steps) == (110, 10)
    # 300 s until the next node, 60 s of start, 10 steps again and the first new one
    assert first.seconds == 360 + 11 * STEP_S
    assert math.isclose(first.usd, first.seconds / 1000)


def test_nobody_says_a_price_that_is_not_known():
    history = history_of(*preempted((60,)))
    assert history.interruptions()[0].usd is None
    assert history.interruptions([NodeAttempt(START, None)])[0].usd is None


def test_an_interruption_that_was_not_made_up_for_yet_has_no_end():
    events = [
        event(EventKind.ATTEMPT_STARTED, START, nproc=1, device="cpu"),
        event(EventKind.ATTEMPT_STARTED, START + 100, 2, nproc=1, device="cpu"),
    ]
    history = history_of(events, [metric(1, START + 10)])
    assert history.interruptions()[0].seconds is None
    assert history.interruptions()[0].why == "ended without a word"


def test_a_step_that_was_computed_again_counts_once_and_the_last_is_shown():
    history = history_of([], [metric(1, 1.0, loss=5.0), metric(1, 9.0, 2, loss=4.0), evaluation(1, 9.0)])
    assert history.series("loss") == [(1, 4.0)]
    assert history.evaluation_names() == ["eval_loss"]


def test_losses_of_several_sets_come_before_scores_and_other_measures():
    told = {"mine/entropy": 0.5, "held-out/loss": 1.0, "mine/loss": 2.0, "exact_match": 0.25}
    history = history_of([], [evaluation(5, 1.0, **told)])
    assert history.evaluation_names() == ["held-out/loss", "mine/loss", "exact_match", "mine/entropy"]
    assert [label_of(name) for name in history.evaluation_names()][1:3] == ["mine loss", "exact match"]


def test_a_run_whose_only_set_has_no_name_tells_its_loss_first():
    history = history_of([], [evaluation(5, 1.0, exact_match=0.25, eval_entropy=0.5)])
    assert history.evaluation_names() == ["eval_loss", "exact_match", "eval_entropy"]


def test_an_evaluation_that_measured_scores_alone_is_one():
    history = history_of([], [{"step": 5, "epoch": 1.0, "time": 1.0, "attempt": 1, "contains": 0.5}])
    assert history.evaluated("contains") == [(5, 0.5)]


def test_steps_without_a_number_are_named():
    assert history_of([], [metric(1, 1.0), metric(2, 2.0, loss=math.nan)]).not_finite() == [2]


VALUES = st.sampled_from(
    [None, True, 3, -1, 2**70, 0.5, math.nan, math.inf, "", "7", [], {}, *(kind.value for kind in EventKind)]
)
NAMES = st.sampled_from(["time", "event", "attempt", "step", "loss", "phase", "reason", "exit_code", "lost_steps", "eval_loss", "nproc"])  # fmt: skip


@given(st.lists(st.dictionaries(NAMES, VALUES), max_size=8))
def test_a_damaged_record_costs_no_page(lines):
    history = history_of(lines, lines)
    history.interruptions()
    for name in ("loss", "seconds"):
        history.series(name)


@given(st.lists(st.floats(allow_nan=True), min_size=1, max_size=400), st.integers(1, 50))
def test_a_thinned_curve_keeps_its_lowest_and_its_highest_point(values, buckets):
    points = list(enumerate(values))
    kept = thinned(points, buckets)
    assert len(kept) <= 3 * buckets + 2
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    finite = [value for value in values if math.isfinite(value)]
    if finite:
        shown = [value for _, value in kept if math.isfinite(value)]
        assert (min(shown), max(shown)) == (min(finite), max(finite))


def test_a_smooth_curve_starts_at_its_first_value_and_passes_over_what_is_no_number():
    assert smoothed([(1, 4.0), (2, math.nan), (3, 4.0)] * 60)[0] == (1, 4.0)
    assert all(value == 4.0 for _, value in smoothed([(1, 4.0)] * 200))
