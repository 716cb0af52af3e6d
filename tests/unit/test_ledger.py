"""Runs that share a folder, a run that is not found again, a record torn by a crash."""

import json
import threading

import pytest

from launcher.runs import ledger
from launcher.runs.errors import BadUsage, LauncherError


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "home"))


def make(run_id, created_at=None, **fields):
    record = ledger.create(run_id, "demo", "local", **fields)
    return ledger.update(record, created_at=created_at) if created_at is not None else record


def test_two_launches_never_share_a_run():
    """Twenty at once want one id: one gets it, the others hear of it."""
    made, refused = [], []
    gate = threading.Barrier(20)

    def claim():
        gate.wait()
        try:
            made.append(ledger.create("demo-1", "demo", "local"))
        except FileExistsError:
            refused.append(1)

    threads = [threading.Thread(target=claim) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(made), len(refused)) == (1, 19)


def test_a_run_id_fits_where_labels_are_short():
    run_id = ledger.new_id("a" * 48)
    assert len(run_id) <= 63
    assert "--" not in ledger.new_id("a" * 39 + "-bcd")
    assert len({ledger.new_id("demo") for _ in range(50)}) > 45


def test_an_id_is_known_as_one_of_its_own_job_and_of_no_other():
    for name in ("demo", "a" * 48, "a" * 39 + "-bcd"):
        assert ledger.is_id_of(ledger.new_id(name), name)
    assert not ledger.is_id_of(ledger.new_id("demo-2"), "demo")
    assert not ledger.is_id_of("demo", "demo")


def test_the_record_comes_back_as_it_was():
    record = make("demo-1", options={"cluster": "c"}, secret_names=("HF_TOKEN",))
    record = ledger.update(record, handle={"pid": 7}, submissions=2)
    assert ledger.load(record.folder) == record
    assert ledger.find("demo-1").handle == {"pid": 7}


def test_an_update_keeps_what_another_command_wrote_meanwhile():
    stale = make("demo-1")
    ledger.update(stale, handle={"pid": 7})
    assert ledger.update(stale, down_requested_at=1.0).handle == {"pid": 7}


def test_a_record_of_a_newer_dolphin_is_read():
    record = make("demo-1")
    path = record.folder / ledger.RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"invented_later": 1}))
    assert ledger.load(record.folder).run_id == "demo-1"


def test_newest_run_is_meant_where_none_is_named():
    make("a-old", created_at=1.0)
    make("z-older", created_at=0.5)
    make("b-new", created_at=2.0)
    assert ledger.find().run_id == "b-new"
    assert [record.run_id for record in ledger.all_runs()] == ["b-new", "a-old", "z-older"]


def test_a_beginning_names_a_run_where_it_is_the_only_one():
    make("demo-1-aaaa")
    make("demo-1-bbbb")
    make("demo-2")
    assert ledger.find("demo-2").run_id == "demo-2"
    assert ledger.find("demo-1-b").run_id == "demo-1-bbbb"
    with pytest.raises(BadUsage, match="2 runs begin so"):
        ledger.find("demo-1")


def test_a_whole_id_wins_over_longer_ones():
    make("demo-1")
    make("demo-11")
    assert ledger.find("demo-1").run_id == "demo-1"


def test_an_unknown_run_names_the_nearest():
    make("quickstart-1")
    with pytest.raises(BadUsage, match="did you mean quickstart-1"):
        ledger.find("quickstrat-1")
    with pytest.raises(BadUsage, match="no such run"):
        ledger.find("../x")
    with pytest.raises(BadUsage, match="no such run"):
        ledger.find("")


def test_no_run_at_all_says_how_to_make_one():
    with pytest.raises(BadUsage, match="dolphin launch"):
        ledger.find()


def test_a_launch_that_died_at_once_hides_no_other_run():
    make("demo-1")
    (ledger.runs_dir() / "empty").mkdir()
    (ledger.runs_dir() / "torn").mkdir()
    (ledger.runs_dir() / "torn" / ledger.RECORD_FILE).write_text('{"run_id": "to')
    assert [record.run_id for record in ledger.all_runs()] == ["demo-1"]
    with pytest.raises(LauncherError, match="cannot read"):
        ledger.find("torn")


def test_one_command_at_a_time_starts_or_stops_a_run():
    record = make("demo-1")
    with ledger.locked(record):
        assert ledger.is_locked(record)
        with pytest.raises(LauncherError, match="another dolphin command"):
            with ledger.locked(record, wait_s=0):
                pass
    assert not ledger.is_locked(record)
    with ledger.locked(record, wait_s=0):
        pass


def test_a_home_that_cannot_be_written_is_said_in_a_line(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(LauncherError, match="set DOLPHIN_HOME"):
        ledger.create("demo-1", "demo", "local")
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "runs").write_text("")
    with pytest.raises(LauncherError, match="set DOLPHIN_HOME"):
        ledger.create("demo-1", "demo", "local")


def test_two_long_names_that_begin_alike_are_two_jobs():
    """A sweep over names that part after their fortieth letter: each may run, and each is found by its name."""
    a, b = "llama-3-1-8b-instruct-customer-support-lr1e5", "llama-3-1-8b-instruct-customer-support-lr2e5"
    assert ledger.name_in_id(a) != ledger.name_in_id(b)
    assert ledger.name_in_id(a) == ledger.name_in_id(a)
    assert ledger.new_id(a).startswith("llama-3-1-8b-instruct-customer-su")
    assert ledger.name_in_id("demo") == "demo"
