"""The report's page: it says how each kind of run stands, stands alone, and shows strangers' words as words."""

import json
import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from launcher.backends.base import BackendStatus, NodeAttempt
from launcher.follow.history import History
from launcher.follow.report.facts import RunFacts, facts_of
from launcher.follow.report.page import write_index, write_page
from launcher.follow.report.plots import Line, Plot, draw
from launcher.follow.run_view import RunView
from launcher.follow.status import Observation
from launcher.runs.ledger import RunRecord
from launcher.runs.states import RunState
from tests.support.written_run import START, evaluation, event, metric, preempted
from trainer.run.run_folder import EventKind


def facts(tmp_path, state=RunState.SUCCEEDED, events=(), metrics=(), **fields) -> RunFacts:
    status = fields.pop("status", BackendStatus(state, fields.pop("detail", "")))
    run_id = fields.pop("run_id", "demo-1")
    history = History()
    history.add_events(events)
    history.add_metrics(metrics)
    history.settle()
    seen = Observation(RunRecord(run_id, tmp_path, "demo", "local", START), status, RunView(), {})
    return RunFacts(seen, history, history.interruptions(status.attempts), **fields)


PLAN = {
    "steps": {"total": 200},
    "rows": [{"hours": {"mean": 2.0}}],
    "cost": {"expected": 10.0},
    "machines": [{"step_s": 1.0, "chosen": {"memory": {"parts": {"activations": 4_000_000_000}}}}],
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    """Of a run that was preempted three times."""
    events, metrics = preempted((60, 110, 160))
    status = BackendStatus(
        RunState.SUCCEEDED,
        price_usd_so_far=12.5,
        attempts=(NodeAttempt(START, START + 1e6, "node-1", "aws/us-east-1", 3.41),),
    )
    return write_page([facts(tmp_path_factory.mktemp("run"), events=events, metrics=metrics, status=status, plan=PLAN)])


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> str:
    """Of two runs side by side."""
    events, metrics = preempted(())
    runs = [
        facts(tmp_path_factory.mktemp("run"), events=events, metrics=metrics, run_id=name, job_text=f"name: x\ntrain: {{learning_rate: {rate}, epochs: 2}}\n")
        for name, rate in (("demo-1", "1.0e-5"), ("demo-2", "2.0e-5"))
    ]  # fmt: skip
    return write_page(runs)


def test_a_run_preempted_three_times_says_what_each_cost(page):
    assert "What interruptions cost" in page
    assert page.count("the node was taken away") == 6  # each as the end of an attempt, and as an interruption
    assert "6 min 22 s" in page
    assert "$0.36" in page
    assert "4 attempts over" in page
    assert "aws/us-east-1" in page


def test_each_set_s_loss_has_its_name_and_the_finished_model_its_table(tmp_path):
    losses = {"held-out/loss": 2.0, "mine/loss": 1.5, "contains": 0.25}
    row = {"alias": "ends", "task": "ends", "metric": "acc", "higher_is_better": True, "value": 0.5, "stderr": 0.2887}
    results = {"rows": [row | {"base_value": 0.25, "base_stderr": None}, "damaged"]}
    metrics = [metric(1, START), evaluation(1, START, **losses), evaluation(2, START, **losses)]
    page = write_page([facts(tmp_path, metrics=metrics, results=results)])
    for said in (
        "held-out loss",
        "mine loss from 1.5 to 1.5",
        "contains, on held-out data",
        "ends",
        "acc ↑",
        "0.5000 ± 0.2887",
    ):
        assert said in page, said
    assert "validation loss" not in page.split("Evaluations")[1]


def test_the_finished_model_s_table_is_read_from_its_folder(tmp_path):
    record = RunRecord("demo-1", tmp_path, "demo", "local", START)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "results.json").write_text('{"rows": []}')
    assert facts_of(record).results == {"rows": []}


@pytest.mark.parametrize("state", [RunState.QUEUED, RunState.FAILED])
def test_a_run_without_a_step_has_a_page_that_says_why(tmp_path, state):
    page = write_page([facts(tmp_path, state, detail="no capacity in us-east-1")])
    assert "no capacity in us-east-1" in page
    assert ("no step was made yet" in page) == (state is RunState.QUEUED)
    assert "<svg" not in page


def test_a_loss_that_is_no_number_is_said_before_the_curves(tmp_path):
    metrics = [metric(step, START + step, loss=math.nan if step in (7, 8) else 2.0) for step in range(1, 20)]
    page = write_page([facts(tmp_path, metrics=metrics)])
    assert "the loss is no finite number at 2 steps, first at step 7" in page
    assert page.index("first at step 7") < page.index("<svg")


def test_strangers_words_are_words(tmp_path):
    samples = [{"step": 3, "question": "<img src=x onerror=alert(1)>", "answer": "</td><script>alert(2)</script>"}]
    page = write_page(
        [facts(tmp_path, samples=samples, job_text="name: </code><script>alert(3)</script>", run_id="a<b>")]
    )
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(2)" in page


def test_the_page_needs_nothing_else(page):
    places = re.findall(r"""\b(?:src|(?:xlink:)?href)=["']?([^"' >]*)""", page)
    assert places
    assert [place for place in places if not place.startswith(("data:", "#"))] == []
    assert "@import" not in page
    assert "<script" not in page
    assert "default-src 'none'" in page


def test_every_drawing_is_well_formed_and_its_ids_are_the_pages_only_ones(two):
    drawings = re.findall(r"<svg.*?</svg>", two, re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        assert ElementTree.fromstring(drawing).get("aria-label")
        for used in re.findall(r"url\(#([^)]+)\)", drawing):
            assert f'id="{used}"' in drawing
    ids = re.findall(r'\bid="([^"]+)"', two)
    assert len(ids) == len(set(ids))


def test_several_runs_begin_with_the_settings_that_differ(two):
    assert two.index("Settings that differ") < two.index("How they went") < two.index("<svg")
    differing = two[two.index("Settings that differ") : two.index("How they went")]
    assert "train.learning_rate" in differing
    assert "train.epochs" not in differing


def test_planned_is_held_against_actual(page):
    rows = page[page.index("Planned against actual") :]
    assert "1.25" in rows  # of the price
    assert "2.00" in rows  # seconds a step: planned 1.00, were 2.00


@pytest.mark.parametrize("plan", [{}, {"rows": [], "machines": None, "cost": None}, {"rows": [None], "machines": [3]}])
def test_a_plan_that_says_nothing_costs_no_page(tmp_path, plan):
    assert "Planned against actual" not in write_page([facts(tmp_path, plan=plan)])


def test_the_same_curve_is_drawn_the_same(tmp_path):
    plot = Plot("loss", "Loss", "loss", [Line("training", [(1, 2.0), (2, 1.0)])])
    assert draw(plot) == draw(plot)


def test_answers_stand_beside_each_other_by_step(tmp_path):
    samples = [
        {"step": step, "question": "Where?", "expected": "there", "answer": f"answer {step}"} for step in (0, 50)
    ]
    page = write_page([facts(tmp_path, samples=samples)])
    assert page.count("Where?") == 1
    assert page.index("answer 0") < page.index("answer 50")


def test_the_index_leads_to_every_run(tmp_path):
    record = RunRecord("demo-1", tmp_path, "demo", "local", START)
    (tmp_path / "outcome.json").write_text(json.dumps({"state": "done"}))
    page = write_index([record, replace(record, run_id="demo-2")])
    assert 'href="demo-1"' in page
    assert 'href="demo-2"' in page
    assert "done" in page


def test_a_refused_checkpoint_is_told(tmp_path):
    events = [
        event(EventKind.ATTEMPT_STARTED, START, nproc=1, device="cpu"),
        event(EventKind.CHECKPOINT_REFUSED, START + 1, checkpoint="step-00000050", reason="block 3 does not match"),
    ]
    assert "checkpoint refused: step-00000050: block 3 does not match" in write_page([facts(tmp_path, events=events)])
