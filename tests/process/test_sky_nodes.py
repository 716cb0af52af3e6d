"""A run over two nodes: what SkyPilot starts on each of them, with the real trainer, makes the model that one node makes."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import yaml

from launcher.backends.sky.log.mirror import Mirror, frames_in
from launcher.backends.sky.ship import SHIPPED
from launcher.backends.sky.task import template_text
from tests.support import tiny_job
from tests.support.dolphin_cli import wait_until
from trainer.run.run_folder import RunDir

ROOT = Path(__file__).resolve().parents[2]
RUN = yaml.safe_load(template_text())["run"]


def node(home: Path, rank: int, port: int, run: RunDir) -> subprocess.Popen[str]:
    """`run` as on node `rank` of two, after its set-up."""
    inputs = home / "dolphin-inputs"
    inputs.mkdir(parents=True)
    for path in SHIPPED:
        shutil.copy(path, inputs / path.name)
    shutil.copy(run.train_json, inputs / "train.json")
    config = {"run_id": "tiny-1", "run_dir": str(run.path), "image": "", "env": [], "mounts": [], "bucket": None}
    (inputs / "relay.json").write_text(json.dumps(config))
    (home / ".dolphin-node").write_text(
        f"export DOLPHIN_CONTAINER=none DOLPHIN_PYTHON={sys.executable} PYTHONPATH={ROOT}\n"
    )
    environment = tiny_job.environment(
        HOME=str(home), SKYPILOT_NUM_NODES="2", SKYPILOT_NODE_RANK=str(rank), SKYPILOT_NODE_IPS="127.0.0.1\n127.0.0.1\n",
        DOLPHIN_MASTER_PORT=str(port),
    )  # fmt: skip
    return subprocess.Popen(["bash", "-c", RUN], env=environment, cwd=home, stdout=subprocess.PIPE, text=True)


def test_two_nodes_of_one_rank_make_the_model_of_one_node_with_two(tmp_path: Path) -> None:
    settings = {"train": {"zero": 3, "max_steps": 8}, "checkpoint": {"every": {"steps": 4}}}
    alone = tiny_job.train(tiny_job.write_job(tmp_path, "alone", nproc=2, **settings))
    run = tiny_job.write_job(tmp_path, "shared", nproc=1, **settings)
    job = json.loads(run.train_json.read_text())
    run.train_json.write_text(json.dumps(job | {"num_nodes": 2}))
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    nodes = [node(tmp_path / f"home-{rank}", rank, port, run) for rank in range(2)]
    said = [process.communicate(timeout=tiny_job.TIMEOUT_S)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [0, 0], said
    assert tiny_job.losses(run) == tiny_job.losses(alone)
    assert tiny_job.weights_sha256(run) == tiny_job.weights_sha256(alone)
    assert json.loads(run.outcome.read_text())["exit_code"] == 0
    manifest = json.loads(next(run.checkpoints.glob("step-*8/manifest.json")).read_text())
    assert manifest["world_size"] == 2
    # Home hears the first node alone, and all of it.
    (tmp_path / "mirror").mkdir()
    Mirror(tmp_path / "mirror").take(
        [frame for text in said for line in text.splitlines() for frame in frames_in(line)]
    )
    assert (tmp_path / "mirror" / "metrics.jsonl").read_bytes() == run.metrics.read_bytes()
    assert not [line for line in said[1].splitlines() if frames_in(line)]


def test_a_signal_to_every_node_saves_and_ends_with_75_on_all(tmp_path: Path) -> None:
    run = tiny_job.write_job(tmp_path, "stopped", nproc=1, train={"zero": 2, "max_steps": 100_000})
    job = json.loads(run.train_json.read_text())
    run.train_json.write_text(json.dumps(job | {"num_nodes": 2}))
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    nodes = [node(tmp_path / f"home-{rank}", rank, port, run) for rank in range(2)]
    wait_until(lambda: any("loss" in line for line in run.read_metrics()), tiny_job.TIMEOUT_S)
    for process in nodes:
        process.terminate()
    said = [process.communicate(timeout=tiny_job.TIMEOUT_S)[0] for process in nodes]
    assert [process.returncode for process in nodes] == [75, 75], said
    saved = [event["step"] for event in run.read_events() if event["event"] == "checkpoint_saved"]
    steps = [line["step"] for line in run.read_metrics() if "loss" in line]
    assert saved[-1] == steps[-1]
