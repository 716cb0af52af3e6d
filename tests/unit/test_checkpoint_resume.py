"""The right checkpoint is taken, and said to be; nothing that is still needed is swept away or pruned."""

import json
from dataclasses import replace

import pytest

from tests.support.checkpoint_folder import SETTINGS, completer, save, snapshot, writer
from trainer.checkpoint.manifest import MANIFEST, REFUSED_MANIFEST, Manifest
from trainer.checkpoint.resume import Course, Search, check_same_job, lost_work, rounding_line
from trainer.checkpoint.writer import NotPublished, SaveWriter, committed
from trainer.run.exits import BadInput
from trainer.run.run_folder import EventKind, RunDir, append_line
from trainer.run.stores.base import FolderStore, StoreError
from trainer.run.stores.lease import HeldElsewhere


def search(root, remote=None):
    return Search(FolderStore(root), FolderStore(remote) if remote else None, is_local_whole=True)


def folders(root):
    return sorted(path.name for path in root.iterdir())


def test_the_newest_whole_checkpoint_comes_first_and_the_others_are_refused_with_their_reason(tmp_path):
    for step in (2, 4, 6, 8, 10):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000010" / MANIFEST).unlink()
    next((tmp_path / "step-00000008").glob("*.safetensors")).unlink()
    shard = next((tmp_path / "step-00000006").glob("*.safetensors"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes()[:100])
    found = search(tmp_path)
    assert [c.manifest.step for c in found.candidates()] == [4, 2]
    assert list(found.refused) == ["step-00000008", "step-00000006"]
    assert "is missing" in found.refused["step-00000008"]
    assert f"has 100 of {size} bytes" in found.refused["step-00000006"]


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert list(search(tmp_path / "not" / "yet").candidates()) == []


def test_a_store_that_does_not_answer_is_no_reason_to_start_again_from_step_0(tmp_path):
    class Away(FolderStore):
        url = "away"

        def list(self, prefix=""):
            raise StoreError("no route to host")

    with pytest.raises(StoreError):
        list(Search(FolderStore(tmp_path), Away(tmp_path), is_local_whole=True).candidates())


def test_a_local_copy_comes_before_the_store_s_and_what_was_not_published_is_known(tmp_path):
    local, remote = tmp_path / "local", tmp_path / "remote"
    save(local, 2, remote=FolderStore(remote))
    save(local, 4)
    found = [(c.manifest.step, c.is_published) for c in search(local, remote).candidates()]
    assert found == [(4, False), (2, True)]
    # a new node has no local copies
    assert [c.manifest.step for c in search(tmp_path / "new", remote).candidates()] == [2]


def test_sweeping_takes_what_is_no_checkpoint_and_puts_refused_ones_aside(tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000006" / MANIFEST).unlink()
    (tmp_path / "step-00000002" / ".writing-shard-12").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "probe-123").write_bytes(b"of a start that was killed")
    found = search(tmp_path)
    used = next(c for c in found.candidates() if c.manifest.step == 2)
    found.refused["step-00000004"] = "does not match its checksum"
    found.sweep(used)
    assert folders(tmp_path) == ["notes.txt", "step-00000002", "step-00000004"]
    assert (tmp_path / "step-00000004" / REFUSED_MANIFEST).exists()
    assert committed(FolderStore(tmp_path).list()) == ["step-00000002"]
    assert not list(tmp_path.glob("*/.writing*"))
    search(tmp_path).sweep(used)  # on the next start
    assert folders(tmp_path) == ["notes.txt", "step-00000002"]


def test_an_upload_that_was_cut_off_is_kept_to_be_finished(tmp_path):
    local, remote = tmp_path / "local", FolderStore(tmp_path / "remote")
    save(local, 4)
    name = next((local / "step-00000004").glob("*.safetensors")).name
    remote.put_file(f"step-00000004/{name}", local / "step-00000004" / name)
    remote.put("step-00000003/stale", b"")
    found = search(local, tmp_path / "remote")
    used = next(found.candidates())
    found.sweep(used)
    assert list(remote.list()) == [f"step-00000004/{name}"]
    sent = []

    class Watched(FolderStore):
        def put_file(self, name, path):
            sent.append(name)
            super().put_file(name, path)

    manifest = used.manifest
    writer(local, Watched(tmp_path / "remote")).publish(
        manifest.folder, manifest.save_id, manifest.files, lambda _: manifest
    )
    assert len(sent) == 1  # the random states; the shard is there
    assert name not in sent[0]
    assert committed(remote.list()) == ["step-00000004"]


def test_retention_counts_only_what_could_be_resumed_from(tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, step, keep=9)
    (tmp_path / "step-00000006" / MANIFEST).unlink()
    (tmp_path / "step-00000006" / REFUSED_MANIFEST).write_bytes(b"")
    save(tmp_path, 8, keep=2)
    assert committed(FolderStore(tmp_path).list()) == ["step-00000008", "step-00000004"]
    assert not (tmp_path / "step-00000002").exists()


def test_a_deletion_that_fails_warns_and_goes_on(tmp_path):
    warnings = []

    class Stubborn(FolderStore):
        def delete(self, name):
            if "00000002" in name:
                raise StoreError("permission denied")
            super().delete(name)

    local = tmp_path / "local"
    for step in (2, 4, 6):
        save(local, step, remote=Stubborn(tmp_path / "remote"), warnings=warnings)
    assert "an old checkpoint could not be deleted, training goes on: permission denied" in warnings
    assert committed(FolderStore(tmp_path / "remote").list()) == ["step-00000006", "step-00000004", "step-00000002"]
    assert committed(FolderStore(local).list()) == ["step-00000006", "step-00000004"]


def test_a_store_that_is_away_fills_no_disk_and_gets_the_save_after_it(tmp_path):
    class Away(FolderStore):
        is_away = True

        def put_file(self, name, path):
            if self.is_away:
                raise StoreError("reset by peer")
            super().put_file(name, path)

    remote = Away(tmp_path / "remote")
    for step in (2, 4, 6):
        with pytest.raises(NotPublished, match="reset by peer") as late:
            save(tmp_path / "local", step, remote=remote)
        assert late.value.size_bytes > 1000
    assert committed(FolderStore(tmp_path / "local").list()) == ["step-00000006", "step-00000004"]
    remote.is_away = False
    save(tmp_path / "local", 8, remote=remote)
    assert committed(FolderStore(tmp_path / "remote").list()) == ["step-00000008"]


def manifest_of(tmp_path) -> Manifest:
    save(tmp_path, 2)
    return next(search(tmp_path).candidates()).manifest


def same(manifest, settings, plan_key="plan", total_steps=9, steps_per_epoch=1):
    check_same_job(manifest, settings, "run-1", Course(plan_key, total_steps, steps_per_epoch))


@pytest.mark.parametrize(
    ("before", "now", "total_steps"),
    [
        ({"train.epochs": 2.0, "train.max_steps": None}, {"train.epochs": 4.0}, 4),
        ({"train.epochs": 1.0, "train.max_steps": 2}, {"train.max_steps": 3}, 3),
        ({"train.epochs": 2.0, "train.max_steps": None}, {"train.max_steps": 7}, 7),
    ],
)
def test_a_run_that_came_to_its_end_may_be_longer_and_a_stopped_one_may_not(tmp_path, before, now, total_steps):
    """The end of this one is step 2; a schedule that is redrawn in the middle would be another run's."""
    settings = {**SETTINGS, **before}
    manifest = manifest_of(tmp_path).model_copy(update={"result_settings": settings})
    same(manifest, {**settings, **now}, total_steps=total_steps)
    with pytest.raises(BadInput, match=r"train.learning_rate"):
        same(manifest, {**settings, **now, "train.learning_rate": 2e-5}, total_steps=total_steps)
    with pytest.raises(BadInput, match=r"train\.(epochs|max_steps)"):
        same(manifest, {**settings, **now}, total_steps=2)
    longer = {"train.epochs": 3.0} if before["train.max_steps"] is None else {"train.max_steps": 3}
    stopped = manifest.model_copy(update={"result_settings": {**settings, **longer}})
    with pytest.raises(BadInput, match=r"train\.(epochs|max_steps)"):
        same(stopped, {**settings, "train.epochs": 9.0, "train.max_steps": 9}, total_steps=9)


def test_a_job_with_other_results_is_refused_with_the_difference(tmp_path):
    manifest = manifest_of(tmp_path)
    same(manifest, dict(SETTINGS))
    with pytest.raises(
        BadInput, match=r"run run-1 has a checkpoint at step 2 .* train.learning_rate: 1e-05 in the chec"
    ):
        same(manifest, {**SETTINGS, "train.learning_rate": 2e-5})
    with pytest.raises(BadInput, match="trained on other data"):
        same(manifest, dict(SETTINGS), "other plan")


def test_a_job_survives_a_version_of_this_program_that_has_more_settings(tmp_path):
    now = dict(SETTINGS)
    before = json.loads(json.dumps(now))
    del before["train.min_lr_ratio"], before["data.deduplicate"], before["data.sources"][0]["weight"]
    manifest = manifest_of(tmp_path).model_copy(update={"result_settings": before})
    same(manifest, now)
    with pytest.raises(BadInput, match=r"train.min_lr_ratio: 0.0 in the checkpoint, 0.1 in the job"):
        same(manifest, {**now, "train.min_lr_ratio": 0.1})
    gone = manifest.model_copy(update={"result_settings": {**before, "train.dropout": 0.1}})
    with pytest.raises(BadInput, match=r"train.dropout: 0.1 in the checkpoint, nothing in the job"):
        same(gone, now)


def test_lost_steps_are_those_beyond_the_checkpoint_in_the_life_before(tmp_path):
    run = RunDir(tmp_path)
    assert lost_work(run, 1, 0) == (0, 0.0)
    for step in range(1, 9):
        append_line(run.metrics, {"step": step, "loss": 1.0, "seconds": 2.0, "attempt": 1})
    append_line(run.metrics, {"step": 8, "eval_loss": 1.0, "attempt": 1})
    assert lost_work(run, 2, 6) == (2, 4.0)
    run.emit(EventKind.RESUMED, attempt=2, step=6)
    assert lost_work(run, 3, 6) == (0, 0.0)  # attempt 2 died before its first step
    append_line(run.metrics, {"step": 7, "loss": 1.0, "seconds": 3.0, "attempt": 2})
    assert lost_work(run, 3, 6) == (1, 3.0)
    assert lost_work(run, 3, 4) == (3, 7.0)  # and the newest checkpoint did not verify


class RefusesRank1(FolderStore):
    def put_file(self, name, path):
        if "rank-00001" in name:
            raise StoreError("the store refuses these credentials")
        super().put_file(name, path)


@pytest.mark.parametrize("is_early", [True, False])
def test_a_rank_that_cannot_publish_neither_fails_the_local_save_nor_is_waited_for(tmp_path, monkeypatch, is_early):
    """Rank 1's upload fails before rank 0 has committed here, or at the moment before rank 0 tidies up behind itself."""
    local, remote = tmp_path / "local", RefusesRank1(tmp_path / "remote")
    ranks = [writer(local, remote, rank=rank, world_size=2) for rank in (0, 1)]
    entries = [one.write(2, "id", snapshot(2, rank=rank, world_size=2)) for rank, one in enumerate(ranks)]
    complete = completer(2, "id", world_size=2)

    def fail_to_publish() -> None:
        with pytest.raises(NotPublished, match="refuses these credentials"):
            ranks[1].commit(2, "id", entries[1], complete)

    if is_early:
        fail_to_publish()
    else:
        tidy = SaveWriter._tidy

        def late(self, store, folder, wanted):
            if self.rank == 0 and store is self.local:
                with pytest.raises(StoreError):
                    ranks[1].publish(folder, "id", entries[1], complete)
            tidy(self, store, folder, wanted)

        monkeypatch.setattr(SaveWriter, "_tidy", late)
        ranks[1]._commit(ranks[1].local, "step-00000002", "id", entries[1], complete)
    monkeypatch.setattr("trainer.checkpoint.writer.time.sleep", lambda seconds: pytest.fail("rank 0 waits"))
    with pytest.raises(NotPublished, match="rank 1 could not save its part"):
        ranks[0].commit(2, "id", entries[0], complete)
    assert committed(FolderStore(local).list()) == ["step-00000002"]
    ranks[0].try_again("step-00000002", "id")
    assert not list(local.rglob("unpublished-*"))


def test_a_node_that_lost_the_run_to_another_commits_nothing_to_the_store(tmp_path):
    """It comes back from behind a broken network with a save in hand; the store has the other node's by now."""
    one = replace(writer(tmp_path / "local", FolderStore(tmp_path / "remote")), may_commit=refuse_to_commit)
    with pytest.raises(NotPublished, match="node-b writes this run"):
        one.save(2, "id", snapshot(2), completer(2, "id"))
    assert committed(FolderStore(tmp_path / "remote").list()) == []
    assert committed(FolderStore(tmp_path / "local").list()) == ["step-00000002"]


def refuse_to_commit() -> None:
    raise HeldElsewhere("node node-b writes this run")


def test_a_state_that_another_cut_rounds_once_more_says_so(tmp_path):
    def saved_of(optimizer):
        settings = {**SETTINGS, "train.optimizer": optimizer}
        return completer(4, "id", result_settings=settings)(())

    exact, rounded = (saved_of(optimizer) for optimizer in ("muon", "adamw_8bit"))
    assert rounding_line(exact, 3, 2) is None
    assert rounding_line(rounded, 2, 1) is None
    assert "of another cut (1 ranks, ZeRO-2)" in rounding_line(rounded, 2, 4)
    assert "not with the same bits" in rounding_line(rounded, 3, 1)


def test_another_base_under_the_same_name_is_refused(tmp_path):
    """A checkpoint holds what is trained; what is not comes from the base, which may have been put in another's place."""
    manifest = completer(4, "id", base_key="one")(())
    settings = dict(SETTINGS)
    for known in ("", "one"):
        check_same_job(manifest, settings, "run-1", Course("plan", 9, 1, known))
    with pytest.raises(BadInput, match="trained on another base"):
        check_same_job(manifest, settings, "run-1", Course("plan", 9, 1, "other"))
