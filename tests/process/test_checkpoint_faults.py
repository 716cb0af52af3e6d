"""Whatever happens to a checkpoint: a retry, the one before it, or a clear stop. Never wrong weights, never silence.

Two real ranks under a real DeepSpeed engine; damage is done to real files, and the store is a real S3 server behind a
proxy that misbehaves.
"""

import json
import shutil
from pathlib import Path

import pytest
import xxhash

from tests.support import object_stores
from tests.support.checkpoint_runs import do_phases
from tests.support.fault_proxy import FaultProxy
from trainer.checkpoint.manifest import MANIFEST, REFUSED_MANIFEST
from trainer.checkpoint.writer import committed
from trainer.run.run_folder import RunDir
from trainer.run.stores.base import FolderStore

NEWEST, BEFORE, STEPS = "step-00000004", "step-00000002", 6


def run_of(root: Path, name: str, **more: object) -> dict:
    return {"run_dir": str(root / name), "stage": 2, "precision": "fp32", "seed": 1, "steps": STEPS, **more}


def shard(folder: Path) -> Path:
    return min(folder.glob("rank-00001-*.safetensors"))


def flip_a_bit(checkpoints: Path) -> None:
    path = shard(checkpoints / NEWEST)
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def truncate_a_shard(checkpoints: Path) -> None:
    path = shard(checkpoints / NEWEST)
    path.write_bytes(path.read_bytes()[:-8])


def delete_a_shard(checkpoints: Path) -> None:
    shard(checkpoints / NEWEST).unlink()


def delete_the_manifest(checkpoints: Path) -> None:
    (checkpoints / NEWEST / MANIFEST).unlink()


def lie_in_the_manifest(checkpoints: Path) -> None:
    """The older checkpoint's files under the newer one's name, with every checksum right."""
    body = json.loads((checkpoints / BEFORE / MANIFEST).read_bytes())
    shutil.rmtree(checkpoints / NEWEST)
    shutil.copytree(checkpoints / BEFORE, checkpoints / NEWEST)
    del body["manifest_checksum"]
    body["step"] = 4
    body["manifest_checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    (checkpoints / NEWEST / MANIFEST).write_text(json.dumps(body))


def cut_the_manifest(checkpoints: Path) -> None:
    path = checkpoints / NEWEST / MANIFEST
    path.write_bytes(path.read_bytes()[:-300])


DAMAGE = {
    "flip": (flip_a_bit, "does not match its checksum"),
    "truncate": (truncate_a_shard, "bytes"),
    "delete": (delete_a_shard, "is missing"),
    "no manifest": (delete_the_manifest, None),
    "lie": (lie_in_the_manifest, "speaks of step"),
    "cut": (cut_the_manifest, "is not whole"),
}
OTHER_JOBS = {
    "learning rate": (
        {"train": {"learning_rate": 5e-4}},
        "train.learning_rate: 0.002 in the checkpoint, 0.0005 in the",
    ),
    "batch": ({"train": {"seed": 7}}, "train.seed: 42 in the checkpoint, 7 in the job"),
    "data": ({"plan_key": "other"}, "was trained on other data"),
}
"""Settings that would change results, and what is said."""


@pytest.fixture(scope="module")
def s3():
    with object_stores.serving() as address, FaultProxy(*address) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def results(root, s3):
    """Name -> result. One start makes the checkpoints, the test damages copies of them, one start resumes them all."""
    counts = {"upload": 0, "receipt": 0}

    def misbehave(request):
        """Every third upload of a shard is cut off, the first two receipts are answered with 503."""
        if request.method == "PUT" and ".safetensors" in request.path:
            counts["upload"] += 1
            return "cut-request" if counts["upload"] % 3 == 1 else None
        if request.method == "PUT" and "receipt" in request.path:
            counts["receipt"] += 1
            return "503" if counts["receipt"] <= 2 else None
        return None

    s3.rule = misbehave
    environment = object_stores.environment(s3.url, retry_s=60)
    remote = {"store": "s3://bucket/runs"}
    whole = run_of(root, "whole", save_at=[2, 4])
    first = [whole, run_of(root, "remote", save_at=[2, 4], **remote)]
    (outcomes,) = do_phases(root, [(2, first)], **environment)
    found = dict(zip(["whole", "remote"], outcomes, strict=True))
    assert counts["upload"] > 3
    assert [what for what, _ in s3.faults].count("503") == 2

    def lose_the_first_save(request):
        """Rank 1's upload of step 2 is refused for good, all else goes through."""
        return "403" if request.method == "PUT" and "step-00000002/rank-00001" in request.path else None

    s3.rule = lose_the_first_save
    refused = {**environment, "DOLPHIN_STORE_RETRY_S": "2"}
    lost = [run_of(root, "late", save_at=[2, 4], pause_s=0.5, store="s3://bucket/late")]
    ((found["late"],),) = do_phases(root, [(2, lost)], **refused)
    s3.faults.clear()
    s3.rule = misbehave
    counts["receipt"] = 9

    s3.rule = lambda request: "503" if request.method == "GET" and len(s3.requests) % 4 == 0 else None
    runs, more = {}, {"seed": 99, "attempt": 2}
    for name, (damage, _) in DAMAGE.items():
        shutil.copytree(root / "whole", root / name)
        damage(root / name / "checkpoints")
        runs[name] = run_of(root, name, **more)
    shutil.copytree(root / "whole", root / "all")
    for path in (root / "all").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5] + b"wrong")
    runs["all"] = run_of(root, "all", **more)
    for name, (change, _) in OTHER_JOBS.items():
        runs[name] = run_of(root, name, copy_from=whole["run_dir"], **more, **change)
    neutral = {"checkpoint": {"keep": 5}, "train": {"micro_batch": 2, "log_every": 9}}
    runs["neutral"] = run_of(root, "neutral", copy_from=whole["run_dir"], **more, **neutral)
    runs["new node"] = run_of(root, "new node", **more, **remote)
    shutil.copytree(root / "remote", root / "damaged node")
    flip_a_bit(root / "damaged node" / "checkpoints")
    runs["damaged node"] = run_of(root, "damaged node", **more, **remote)
    (root / "no disk" / "checkpoints").mkdir(parents=True)
    (root / "no disk" / "checkpoints" / BEFORE).symlink_to("/a/disk/that/is/gone")
    runs["no disk"] = run_of(root, "no disk", save_at=[2], pause_s=0.5)
    (outcomes,) = do_phases(root, [(2, list(runs.values()))], **environment)
    found.update(zip(runs, outcomes, strict=True))
    s3.rule = lambda request: None
    return found


def losses_after(result: dict, step: int) -> dict[str, str]:
    return {s: loss for s, loss in result["losses"].items() if int(s) > step}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_goes_on_bit_for_bit(results, root, name):
    result, said = results[name], DAMAGE[name][1]
    assert result["error"] is None
    assert result["resumed_at"] == 2
    assert result["losses"] == losses_after(results["whole"], 2)
    events = RunDir(root / name).read_events()
    refused = [event for event in events if event["event"] == "checkpoint_refused"]
    assert [said in event["reason"] for event in refused] == ([True] if said else [])
    resumed = [event for event in events if event["event"] == "resumed"]
    assert [event["step"] for event in resumed] == [2]
    if said:  # it is kept to be looked at, and is no checkpoint any more
        assert (root / name / "checkpoints" / NEWEST / REFUSED_MANIFEST).exists()
    assert committed(FolderStore(root / name / "checkpoints").list()) == [BEFORE]


def test_where_none_verifies_the_run_stops_instead_of_starting_over(results):
    error = results["all"]["error"]
    assert error.startswith("TrainingFailed: no checkpoint of this run can be used (step-00000004: ")
    assert "step-00000002: " in error
    assert "To start again from step 0, delete " in error
    assert results["all"]["losses"] == {}


@pytest.mark.parametrize("name", OTHER_JOBS)
def test_a_job_that_would_change_results_is_refused(results, name):
    assert results[name]["error"].startswith("BadInput: run run-1 has a checkpoint at step 4")
    assert OTHER_JOBS[name][1] in results[name]["error"]
    assert results[name]["losses"] == {}


def test_harmless_changes_go_on(results):
    assert results["neutral"]["error"] is None
    assert results["neutral"]["resumed_at"] == 4


def test_a_store_that_breaks_connections_gets_every_checkpoint(results, root):
    assert results["remote"]["error"] is None
    assert results["remote"]["losses"] == results["whole"]["losses"]
    saved = [event for event in RunDir(root / "remote").read_events() if event["event"] == "checkpoint_saved"]
    assert [event["checkpoint"] for event in saved] == [
        f"s3://bucket/runs/run-1/checkpoints/{folder}" for folder in (BEFORE, NEWEST)
    ]
    assert all(event["size_bytes"] > 100_000 and event["blocked_seconds"] < event["seconds"] for event in saved)


def test_a_new_node_goes_on_from_the_store_bit_for_bit(results):
    assert results["new node"]["resumed_at"] == 4
    assert results["new node"]["losses"] == losses_after(results["whole"], 4)


def test_a_damaged_local_copy_is_mended_from_the_store(results):
    assert results["damaged node"]["error"] is None
    assert results["damaged node"]["resumed_at"] == 4
    assert results["damaged node"]["losses"] == losses_after(results["whole"], 4)


def test_a_save_that_fails_in_the_background_stops_the_run_with_its_cause(results):
    assert results["no disk"]["error"].startswith("TrainingFailed: a checkpoint could not be saved: ")
    assert "/checkpoints/" in results["no disk"]["error"]
    assert 2 <= len(results["no disk"]["losses"]) < STEPS


def test_an_upload_that_fails_for_good_ends_no_run_and_the_next_save_is_published(results, root):
    """The checkpoint stands in the run folder; rank 0, whose own part arrived, must not wait for a receipt for ever."""
    assert results["late"]["error"] is None
    assert len(results["late"]["losses"]) == STEPS
    saved = [
        event["checkpoint"] for event in RunDir(root / "late").read_events() if event["event"] == "checkpoint_saved"
    ]
    assert saved == [str(root / "late" / "checkpoints" / BEFORE), f"s3://bucket/late/run-1/checkpoints/{NEWEST}"]
    assert committed(FolderStore(root / "late" / "checkpoints").list()) == [NEWEST, BEFORE]
    log = "".join(path.read_text() for path in root.glob("plan-*.log"))
    assert f"the checkpoint of step 2 is kept in {root}/late/checkpoints/{BEFORE} and could not be published" in log
    assert "the store refuses these credentials" in log
