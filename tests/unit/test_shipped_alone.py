"""What travels to a node without the rest of dolphin repeats facts of the rest: one that differs is a run that nobody can read."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

from launcher.backends.sky.deadline import names, progress
from launcher.backends.sky.node import branch, bucket, deadline, instance, relay
from launcher.backends.sky.ship import SHIPPED
from launcher.runs.policy.decide import LONGER_STARTS
from launcher.runs.policy.situation import Market
from tests.support.rooms import nodes_of
from trainer.run import run_folder
from trainer.run.exits import ExitCode
from trainer.run.run_folder import EventKind, Phase, RunDir
from trainer.run.stores import lease

TASK = Path(__file__).parents[2] / "sky" / "task.yaml"


def test_a_node_that_is_told_to_stop_is_recovered_and_one_that_cannot_train_is_not() -> None:
    assert relay.PREEMPTED == ExitCode.PREEMPTED
    codes = {int(code) for code in re.findall(r"\bexit (\d+)", TASK.read_text())}
    assert codes == {ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.PREEMPTED}


def test_the_relay_reads_and_writes_the_files_that_the_trainer_and_the_launcher_mean() -> None:
    assert relay.FILES == {
        "L": run_folder.LOG_FILE,
        "E": run_folder.EVENTS_FILE,
        "M": run_folder.METRICS_FILE,
        "N": run_folder.NODES_FILE,
        "S": run_folder.SAMPLES_FILE,
    }
    assert instance.OUTCOME == run_folder.OUTCOME_FILE
    assert (relay.OUTCOME, relay.TRAIN) == (run_folder.OUTCOME_FILE, run_folder.TRAIN_FILE)
    assert (branch.JOURNAL, relay.LOG_TIMES) == (run_folder.JOURNAL_FILE, run_folder.LOG_TIMES_FILE)


def test_the_relay_speaks_of_the_events_that_there_are(tmp_path: Path) -> None:
    assert (relay.PHASE, relay.RESUMED) == (EventKind.PHASE, EventKind.RESUMED)
    assert relay.PULLING_IMAGE == Phase.PULLING_IMAGE
    run = RunDir(tmp_path)
    its = relay.Relay({"run_dir": str(run.path), "bucket": None}, str(tmp_path))
    its._phase(relay.PULLING_IMAGE)
    run.emit(EventKind.PHASE, attempt=1, phase=Phase.PULLING_IMAGE.value)
    by_relay, by_trainer = run.read_events()
    assert by_relay.keys() == by_trainer.keys()


def test_a_node_is_never_said_to_be_reclaimed_before_the_step_that_the_next_one_resumes_from(tmp_path: Path) -> None:
    its = relay.Relay({"run_dir": str(tmp_path), "bucket": None}, str(tmp_path))
    its._learn("M", json.dumps({"step": 178, "loss": 1.0}))
    its._replay()
    its._learn("E", json.dumps({"event": relay.RESUMED, "step": 180}))
    assert RunDir(tmp_path).log.read_text() == "dolphin: node reclaimed at step 180; resuming from 180\n"


def test_a_line_about_a_node_has_the_fields_that_prices_are_counted_from(tmp_path: Path) -> None:
    its = relay.Relay({"run_dir": str(tmp_path), "bucket": None}, str(tmp_path))
    node, _, _ = instance.begin(its.config, its.began)
    assert tuple(node) == run_folder.NODE_FIELDS
    its._append("N", json.dumps(node))
    assert next(run_folder.read_lines(RunDir(tmp_path).nodes))["time"] == its.began


def test_a_nodes_progress_is_told_and_read_by_the_same_names() -> None:
    assert (deadline.PROGRESS, deadline.MACHINE) == (progress.FILE, names.MACHINE)
    assert (Market.SPOT.value, Market.ON_DEMAND.value) == (deadline.SPOT, deadline.ON_DEMAND)
    assert (deadline.EVENTS, deadline.METRICS) == (run_folder.EVENTS_FILE, run_folder.METRICS_FILE)
    assert deadline.STOP == run_folder.STOP_FILE
    events = (EventKind.PLAN, EventKind.CHECKPOINT_SAVED, EventKind.RESUMED, EventKind.PHASE)
    assert events == (deadline.PLAN, deadline.SAVED, deadline.RESUMED, deadline.PHASE)
    assert deadline.PREPARING == Phase.PREPARING_DATA
    assert deadline.LONGER_STARTS == LONGER_STARTS
    assert f"({deadline.GIVEN_BACK}" in Path(str(relay.__file__)).read_text()


def test_a_bucket_holds_everything_that_a_run_is_read_and_resumed_from() -> None:
    assert set(bucket.RECORDS) == {
        branch.JOURNAL, relay.LOG_TIMES, relay.OUTCOME, deadline.PROGRESS, *relay.FILES.values()
    }  # fmt: skip
    assert bucket.RECORDS[0] == run_folder.JOURNAL_FILE  # lines without it could not be put in their place
    assert (bucket.MODEL, bucket.ATTEMPTS) == (run_folder.MODEL_FOLDER, run_folder.ATTEMPTS_FOLDER)
    assert run_folder.node_mark(0) == bucket.MARK
    assert set(bucket.REQUESTS) == {run_folder.STOP_FILE, run_folder.SAVE_FILE}
    assert (relay.TAKEN, relay.LEASE) == (bucket.TAKEN, lease.HOLDER_VARIABLE)
    assert bucket.SAVE_EVERY_S * 3 <= lease.LASTS_S


def test_what_is_written_of_a_logs_times_is_read_back_but_for_what_a_dying_node_tore() -> None:
    text = "".join(relay.time_line(number, 1000.5 + number) for number in (1, 21, 41))
    assert relay.read_times(text) == {1: 1001.5, 21: 1021.5, 41: 1041.5}
    assert relay.read_times(text + "61 10") == relay.read_times(text + "6") == relay.read_times(text)
    assert relay.read_times("61 10" + text)[21] == 1021.5


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_ships_alone_is_read_by_an_old_python_and_names_no_file_of_a_run_twice(path: Path) -> None:
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    top = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {(node.module or "").split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top <= set(sys.stdlib_module_names) | {"__future__"}
    names = {value for key, value in vars(run_folder).items() if key.endswith(("_FILE", "_FOLDER"))}
    constants = {id(inner) for node in tree.body if isinstance(node, ast.Assign) for inner in ast.walk(node)}
    again = [
        f"{path.name}:{node.lineno}: {node.value}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in names and id(node) not in constants
    ]
    assert again == []


def test_no_other_module_writes_down_the_name_of_a_runs_file() -> None:
    """A literal here is a file that is looked for under its old name after the next change."""
    names = {
        value
        for key, value in vars(run_folder).items()
        if key.endswith("_FILE") and value not in ("journal", "job.yaml")
    }
    assert len(names) >= 10
    root = TASK.parents[1]
    found = []
    for package in ("launcher", "trainer"):
        for path in sorted((root / package).rglob("*.py")):
            if path in SHIPPED or path == Path(run_folder.__file__):
                continue
            for node in nodes_of(path):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\n" not in node.value:
                    found += [
                        f"{path.relative_to(root)}:{node.lineno}: {node.value}"
                        for name in names
                        if node.value.endswith(name)
                    ]
    assert found == []
