"""The node's relay with a trainer beneath it: what it prints is the run, whatever happened to the node before."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.sky.bucket_copy import copy_prefix
from launcher.backends.sky.log.mirror import Mirror, frames_in
from launcher.backends.sky.node import bucket as sky_bucket
from launcher.backends.sky.ship import SHIPPED
from launcher.backends.sky.task import template_text
from tests.support import object_stores
from tests.support.dolphin_cli import FAKE_TRAINER, wait_until
from tests.support.fault_proxy import FaultProxy
from trainer.run.run_folder import read_lines
from trainer.run.settings.data import DataSpec, SourceSpec
from trainer.run.settings.model import ModelSpec
from trainer.run.settings.train import OptimizerSettings
from trainer.run.spec import NodeJob, TrainSpec
from trainer.run.stores.object_store import ObjectStore
from trainer.run.stores.opening import open_store

ROOT = Path(__file__).resolve().parents[2]


def ship(folder: Path, run_dir: Path, bucket: Path | str | None = None, submission: int = 1) -> Path:
    inputs = folder / "dolphin-inputs"
    inputs.mkdir(exist_ok=True)
    for path in SHIPPED:
        (inputs / path.name).write_text(path.read_text())
    spec = TrainSpec(
        name="demo",
        model=ModelSpec(base="@DATA@/0/model"),
        data=DataSpec(sources=(SourceSpec(path="@DATA@/1/data.jsonl"),)),
        train=OptimizerSettings(global_batch=2),
    )
    job = NodeJob(
        run_id="demo-1", run_dir=str(run_dir), cache_dir=str(folder / "cache"), nproc=2, device="cpu", spec=spec
    )
    (inputs / "train.json").write_text(job.model_dump_json())
    config = {
        "run_id": "demo-1",
        "submission": submission,
        "run_dir": str(run_dir),
        "image": "",
        "env": [],
        "mounts": [],
        "bucket": str(bucket) if bucket else None,
    }
    (inputs / "relay.json").write_text(json.dumps(config))
    return inputs


def start(inputs: Path, cluster: dict[str, str] | None = None, **wish: Any) -> subprocess.Popen[str]:
    environment = {
        **os.environ, "FAKE": json.dumps(wish), "PYTHONPATH": f"{FAKE_TRAINER}:{ROOT}", "DOLPHIN_PYTHON": sys.executable,
        "DOLPHIN_CONTAINER": "none", "SKYPILOT_CLUSTER_INFO": json.dumps(cluster or {"cloud": "Slurm", "region": "lab"}),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, str(inputs / "relay.py")], env=environment, stdout=subprocess.PIPE, text=True, cwd=inputs
    )


def mirrored(folder: Path, *outputs: str) -> Mirror:
    folder.mkdir(exist_ok=True)
    mirror = Mirror(folder)
    for output in outputs:
        mirror.take([frame for line in output.splitlines() for frame in frames_in(f"(demo, pid=7) {line}")])
    return mirror


def test_a_node_taken_away_in_mid_training_is_one_calm_line_and_nothing_is_lost(tmp_path: Path) -> None:
    run_dir, home = tmp_path / "run", tmp_path / "home"
    inputs = ship(tmp_path, run_dir)
    first = start(inputs, steps=400, pause_s=0.05)
    wait_until(lambda: len(list(read_lines(run_dir / "metrics.jsonl"))) > 4)
    first.send_signal(signal.SIGKILL)  # the node is gone: no trap runs, and the trainer goes with its relay
    before = first.communicate()[0]
    wait_until(lambda: (run_dir / "outcome.json").exists())
    step = max(line["step"] for line in read_lines(run_dir / "metrics.jsonl"))
    second = start(inputs, steps=step + 3)
    after = second.communicate(timeout=60)[0]
    assert second.returncode == 0
    for outputs in ((before, after), (after,), (before, after, before, after)):
        mirrored(home, *outputs)
        for name in ("log.txt", "events.jsonl", "metrics.jsonl", "nodes.jsonl"):
            assert (home / name).read_bytes() == (run_dir / name).read_bytes(), name
    told = [line for line in (home / "log.txt").read_text().splitlines() if "node reclaimed" in line]
    assert told == [f"dolphin: node reclaimed at step {step}; resuming from {step}"]
    assert json.loads((home / "outcome.json").read_text())["exit_code"] == 0
    assert [node["infra"] for node in read_lines(home / "nodes.jsonl")] == ["Slurm/lab", "Slurm/lab"]
    assert NodeJob.read(run_dir / "train.json").spec.model.base == str(tmp_path / "dolphin-data" / "0" / "model")


def test_the_exit_code_of_the_trainer_decides_about_a_recovery_so_it_must_pass(tmp_path: Path) -> None:
    bad = start(ship(tmp_path, tmp_path / "bad"), steps=1, exit=64, reason="no row can be used")
    out = bad.communicate(timeout=60)[0]
    assert bad.returncode == 64
    mirrored(tmp_path / "home", out)
    assert json.loads((tmp_path / "home" / "outcome.json").read_text())["reason"] == "no row can be used"


def test_a_reclaim_with_a_warning_passes_the_signal_on_and_ends_with_75(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = start(ship(tmp_path, run_dir), steps=400, pause_s=0.05)
    wait_until(lambda: len(list(read_lines(run_dir / "metrics.jsonl"))) > 3)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 75


def test_nodes_that_share_nothing_but_a_bucket_tell_one_story(tmp_path: Path) -> None:
    bucket, home = tmp_path / "bucket", tmp_path / "home"
    first = start(ship(tmp_path, tmp_path / "node-a", bucket), steps=1, exit=75)
    before = first.communicate(timeout=60)[0]
    assert first.returncode == 75
    second = start(ship(tmp_path, tmp_path / "node-b", bucket), steps=2)
    after = second.communicate(timeout=60)[0]
    assert second.returncode == 0
    mirrored(home, after, before)
    assert (home / "log.txt").read_bytes() == (tmp_path / "node-b" / "log.txt").read_bytes()
    assert len(list(read_lines(home / "nodes.jsonl"))) == 2
    assert (bucket / "model" / "config.json").exists()
    assert copy_prefix(f"{bucket}/model", tmp_path / "fetched") == tmp_path / "fetched"
    assert (tmp_path / "fetched" / "config.json").exists()


def test_what_a_node_said_after_its_last_upload_hides_nothing_of_the_next_one(tmp_path: Path) -> None:
    """The lines of a node's last seconds come home and not into the bucket: the next node's had the same numbers, and were lost."""
    bucket, second_dir = tmp_path / "bucket", tmp_path / "node-b"
    first = start(ship(tmp_path, tmp_path / "node-a", bucket), steps=12, exit=75)
    before = first.communicate(timeout=60)[0]
    for name in ("log.txt", "metrics.jsonl", "events.jsonl"):  # as if it had gone before its last upload
        lines = (bucket / "run" / name).read_bytes().splitlines(keepends=True)
        (bucket / "run" / name).write_bytes(b"".join(lines[: 8 if len(lines) > 10 else 2]))
    (bucket / "run" / "outcome.json").unlink()
    (bucket / "run" / sky_bucket.TAILS).unlink(missing_ok=True)
    second = start(ship(tmp_path, second_dir, bucket), steps=7)
    after = second.communicate(timeout=60)[0]
    assert second.returncode == 0
    for number, outputs in enumerate(((before, after), (before, after, before, after), (after,), (after, before))):
        home = tmp_path / f"home-{number}"
        mirror = mirrored(home, *outputs)
        mirror.take_files(lambda name: path.read_bytes() if (path := bucket / "run" / name).exists() else None)
        for name in ("log.txt", "events.jsonl", "metrics.jsonl", "nodes.jsonl"):
            there = (second_dir / name).read_text().splitlines()
            here = (home / name).read_text().splitlines()
            assert not Counter(there) - Counter(here), name
            if number >= 2:
                assert here == there, "what the first node said is told once it is too late for it"
        assert len(list(read_lines(home / "nodes.jsonl"))) == 2
        assert json.loads((home / "outcome.json").read_text())["exit_code"] == 0
    assert len((tmp_path / "home-0" / "log.txt").read_text().splitlines()) > len(
        (second_dir / "log.txt").read_text().splitlines()
    )


def test_a_node_that_is_gone_without_a_word_is_told_of_by_what_the_bucket_heard_in_its_last_seconds(
    tmp_path: Path,
) -> None:
    """It read as reclaimed at step 178 where 198 had been reached: the records went there every 30 s."""
    bucket = tmp_path / "bucket"
    first = start(ship(tmp_path, tmp_path / "node-a", bucket), steps=4000, pause_s=0.05)
    reached = 40

    def is_kept() -> bool:
        texts = [path.read_text() for path in (bucket / "run").glob("[mt]*s*.json*")]
        return any(f'"step": {reached},' in text.replace("\\", "") for text in texts)

    wait_until(is_kept, 25)  # of 30 between one upload of the records and the next
    first.send_signal(signal.SIGKILL)
    first.communicate()
    second = start(ship(tmp_path, tmp_path / "node-b", bucket), steps=3)
    second.communicate(timeout=60)
    [told] = [line for line in (tmp_path / "node-b" / "log.txt").read_text().splitlines() if "node reclaimed" in line]
    step = int(told.split("at step ")[1].split(",")[0])
    assert step >= reached


def test_a_run_that_a_person_stopped_or_that_failed_does_not_read_as_a_reclaimed_node(tmp_path: Path) -> None:
    def run(submission: int, stop_at: int | None = None, **wish: Any) -> str:
        process = start(ship(tmp_path, tmp_path / "run", submission=submission), **wish)
        if stop_at is not None:
            wait_until(lambda: any(line["step"] >= stop_at for line in read_lines(tmp_path / "run" / "metrics.jsonl")))
            process.terminate()
        process.communicate(timeout=60)
        told = [line for line in (tmp_path / "run" / "log.txt").read_text().splitlines() if "resuming from" in line]
        return told[-1] if told else ""

    run(1, stop_at=3, steps=400, pause_s=0.05)
    step = int((tmp_path / "run" / "checkpoints" / "saved").read_text())
    told = run(2, steps=step + 2, exit=1, reason="the disk of the node is full")
    assert told == f"dolphin: stopped with everything saved (SIGTERM) at step {step}; resuming from {step}"
    told = run(3, steps=step + 400, vanish_at=step + 4)
    assert told == (
        f"dolphin: ended with exit code 1 (the disk of the node is full) at step {step + 2}; resuming from {step}"
    )
    told = run(4, steps=step + 5)
    assert told == (
        f"dolphin: cut off without a word (cancelled, or its node is gone) at step {step + 3}; resuming from {step}"
    )


@pytest.fixture
def metadata() -> Iterator[str]:
    """AWS's metadata service on a node that was bought on demand, in the zone use1-az6; its address."""
    facts = {"instance-life-cycle": "on-demand", "placement/availability-zone-id": "use1-az6"}

    class Service(http.server.BaseHTTPRequestHandler):
        def _answer(self, text: str | None) -> None:
            self.send_response(200 if text is not None else 404)
            self.end_headers()
            self.wfile.write((text or "").encode())

        def do_PUT(self) -> None:
            self._answer("token")

        def do_GET(self) -> None:
            has_token = self.headers["X-aws-ec2-metadata-token"] == "token"
            self._answer(facts.get(self.path.partition("/latest/meta-data/")[2]) if has_token else None)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_node_that_is_not_what_was_planned_says_so_first_and_above_the_cap_trains_nothing(
    tmp_path: Path, metadata: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOLPHIN_AWS_METADATA", metadata)
    offers = [["aws/eu-south-2/eus2-az2", True, 3.41], ["aws/us-east-1", False, 30.13]]
    for name, cap, code in (("dear", None, 0), ("refused", 15.0, 1)):
        inputs, run_dir = ship(tmp_path, tmp_path / name), tmp_path / name
        config = json.loads((inputs / "relay.json").read_text())
        (inputs / "relay.json").write_text(json.dumps(config | {"offers": offers, "max_hourly_cost": cap}))
        cluster = {"cloud": "AWS", "region": "us-east-1", "zone": "us-east-1d"}
        process = start(inputs, cluster=cluster, steps=2)
        out = process.communicate(timeout=60)[0]
        assert process.returncode == code
        mirrored(tmp_path / f"home-{name}", out)
        (node,) = read_lines(tmp_path / f"home-{name}" / "nodes.jsonl")
        assert (node["spot"], node["price_usd_per_hour"]) == (False, 30.13)
        log = (tmp_path / f"home-{name}" / "log.txt").read_text()
        assert log.startswith("dolphin: this node ")
        assert "on demand" in log.splitlines()[0]
        assert (run_dir / "metrics.jsonl").exists() == (code == 0)
    outcome = json.loads((tmp_path / "home-refused" / "outcome.json").read_text())
    assert "above resources.max_hourly_cost $15.00" in outcome["reason"]


def test_records_that_cannot_be_read_for_now_are_never_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One outage of the store at a node's start made attempt 2 a first one: the log and the metrics of the run were gone."""
    url, node = "s3://bucket/demo-1", tmp_path / "node-b"
    with object_stores.serving() as address, FaultProxy(*address) as proxy:
        for name, value in object_stores.environment(proxy.url, retry_s=0.5).items():
            monkeypatch.setenv(name, value)
        start(ship(tmp_path, tmp_path / "node-a", url), steps=1, exit=75).communicate(timeout=60)
        store = open_store(url)
        kept = {name: store.get(name) for name in store.list("run")}
        assert {"run/journal", "run/metrics.jsonl"} <= kept.keys()
        for fault, code in (("503", 75), ("403", 64)):
            proxy.rule = lambda request, fault=fault: fault if request.path.endswith("/run/metrics.jsonl") else None
            second = start(ship(tmp_path, node, url), steps=2)
            said = second.communicate(timeout=60)[0]
            assert second.returncode == code, said
            assert f"restore of the run's records: {url}/run/metrics.jsonl" in said
            proxy.rule = lambda request: None
            assert {name: store.get(name) for name in store.list("run")} == kept
        third = start(ship(tmp_path, node, url), steps=2)
        third.communicate(timeout=60)
        assert third.returncode == 0
        assert store.get("run/metrics.jsonl").startswith(kept["run/metrics.jsonl"])


def test_what_home_asks_reaches_the_trainer_through_the_bucket_and_a_second_node_ends_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SkyPilot starts a run anew where it lost sight of a node; one that is only out of sight would write the same run."""
    url, run_dir = "s3://bucket/asked/demo-1", tmp_path / "node-a"
    with object_stores.serving() as address:
        for name, value in object_stores.environment("http://{}:{}".format(*address), retry_s=5).items():
            monkeypatch.setenv(name, value)
        process = start(ship(tmp_path, run_dir, url), steps=4000, pause_s=0.05)
        wait_until(lambda: len(list(read_lines(run_dir / "metrics.jsonl"))) > 3)
        store = ObjectStore(url)
        assert json.loads(store.get("run/lease.json"))["node"] == socket.gethostname()
        store.put("run/SAVE", b"")
        wait_until(lambda: (run_dir / "SAVE").exists())
        wait_until(lambda: "run/metrics.jsonl" in store.list("run"))
        assert "run/SAVE" not in store.list("run"), "it would be asked again"
        other = json.loads(store.get("run/lease.json")) | {"holder": "other", "node": "node-b"}
        store.put("run/lease.json", json.dumps(other).encode())
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 1, said
        assert "node node-b writes this run (attempt 0)" in said
        assert "another node writes this run now; stopping here" in said
        assert "run/outcome.json" not in store.list("run")
        assert json.loads(store.get("run/lease.json")) == other


def test_a_node_that_is_about_to_be_torn_down_is_left_when_everything_is_saved(tmp_path: Path) -> None:
    """`down` of a run in a bucket saved nothing: SkyPilot tore the node down under a trainer that knew of nothing."""
    template, home, run_dir = yaml.safe_load(template_text()), tmp_path / "node", tmp_path / "run dir"
    home.mkdir()

    def hook() -> subprocess.CompletedProcess[str]:
        command = ["bash", "-c", template["hook"]]
        return subprocess.run(command, env={**os.environ, "HOME": str(home)}, capture_output=True, text=True, timeout=15, check=False)  # fmt: skip

    assert hook().returncode == 0, "nothing ever ran here"
    ship(home, run_dir, tmp_path / "bucket")
    relay_json = home / "dolphin-inputs" / "relay.json"
    relay_json.write_text(json.dumps(json.loads(relay_json.read_text()), indent=2))
    (home / ".dolphin-node").write_text(
        f"export DOLPHIN_CONTAINER=none DOLPHIN_PYTHON={sys.executable} PYTHONPATH={FAKE_TRAINER}:{ROOT}\n"
    )
    environment = {
        **os.environ, "HOME": str(home), "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0", "SKYPILOT_NODE_IPS": "127.0.0.1",
        "FAKE": json.dumps({"steps": 4000, "pause_s": 0.05}),
    }  # fmt: skip
    node = subprocess.Popen(["bash", "-c", template["run"]], env=environment, cwd=home, stdout=subprocess.DEVNULL)
    wait_until(lambda: len(list(read_lines(run_dir / "metrics.jsonl"))) > 3)
    reaper = threading.Thread(target=node.wait)  # as SkyPilot's daemon does; a zombie still has its name
    reaper.start()
    assert hook().returncode == 0
    assert json.loads((tmp_path / "bucket" / "run" / "outcome.json").read_text())["exit_code"] == 75
    reaper.join()
    assert node.returncode == 75
    (home / ".dolphin-running").write_text(f"{os.getpid()} {run_dir}\n")
    (run_dir / "STOP").unlink(missing_ok=True)
    assert hook().returncode == 0
    assert not (run_dir / "STOP").exists(), "another program has that number by now"
