"""Nothing but what was saved may ever be read back: not half of it, not a neighbour's, not what a bit flip made of it."""

import dataclasses
import json
import threading

import pytest
import torch
import xxhash
from safetensors.torch import load_file

from tests.support.checkpoint_folder import ADAMW, completer, save, snapshot, writer
from trainer.checkpoint import manifest as manifest_module
from trainer.checkpoint import random_state, shards
from trainer.checkpoint.manifest import (
    MANIFEST,
    CorruptCheckpoint,
    FileEntry,
    Manifest,
    Piece,
    differences,
    step_of,
)
from trainer.checkpoint.shards import ShardReader, plan_files
from trainer.run.stores.base import FolderStore, StoreError

CPU = torch.device("cpu")


def manifest_of(root, step):
    return Manifest.decode((root / f"step-{step:08d}" / MANIFEST).read_bytes(), f"step-{step:08d}")


def shard_of(root, step):
    return next((root / f"step-{step:08d}").glob("*.safetensors"))


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def test_a_checkpoint_reads_back_and_opens_with_the_safetensors_library(tmp_path):
    save(tmp_path, 3)
    reader = ShardReader(manifest_of(tmp_path, 3), [FolderStore(tmp_path)])
    master, first, second = reader.read("w", 4, 20)
    expected = 3 + torch.arange(35)[4:24] / 35
    assert torch.equal(master, expected)
    assert torch.equal(first, -expected)
    assert torch.equal(second, expected * expected)
    tensors = load_file(shard_of(tmp_path, 3))
    assert torch.equal(tensors["w[0:35].master"][4:24], expected)
    assert torch.equal(tensors["b[0:5].exp_avg"], -(3 + torch.arange(5) / 5))


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_any_range_can_be_put_together_from_the_shards_of_several_ranks(tmp_path, world_size):
    ranks = [
        threading.Thread(
            target=lambda rank=rank: writer(tmp_path, rank=rank, world_size=world_size).save(
                6, "id", snapshot(6, rank=rank, world_size=world_size), completer(6, "id", world_size=world_size)
            )
        )
        for rank in range(world_size)
    ]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    folder = tmp_path / "step-00000006"
    assert len(list(folder.iterdir())) == 2 * world_size + 1  # shards, random states, the manifest; no receipts
    reader = ShardReader(manifest_of(tmp_path, 6), [FolderStore(tmp_path)])
    for start in range(35):
        for numel in range(1, 36 - start):
            assert torch.equal(reader.read("w", start, numel)[0], 6 + torch.arange(35)[start : start + numel] / 35)


def test_the_manifest_waits_for_every_rank(tmp_path):
    first = threading.Thread(
        target=lambda: writer(tmp_path, world_size=2).save(
            6, "id", snapshot(6, world_size=2), completer(6, "id", world_size=2)
        )
    )
    stale = snapshot(6, rank=1, world_size=2)
    writer(tmp_path, rank=1, world_size=2).save(6, "earlier", stale, completer(6, "earlier", world_size=2))
    first.start()
    first.join(0.3)
    assert first.is_alive()  # the receipt of an earlier save of this step does not count
    assert not (tmp_path / "step-00000006" / MANIFEST).exists()
    writer(tmp_path, rank=1, world_size=2).save(6, "id", stale, completer(6, "id", world_size=2))
    first.join(10)
    assert manifest_of(tmp_path, 6).save_id == "id"
    assert len(list((tmp_path / "step-00000006").iterdir())) == 5  # and its leftovers are gone


def test_a_rank_that_failed_ends_the_wait_with_its_reason(tmp_path):
    writer(tmp_path, rank=1, world_size=2).report_failure(6, "id", "the disk is full")
    with pytest.raises(StoreError, match="rank 1 could not save its part: the disk is full"):
        writer(tmp_path, world_size=2).save(6, "id", snapshot(6, world_size=2), completer(6, "id", world_size=2))
    assert not (tmp_path / "step-00000006" / MANIFEST).exists()


def test_a_flipped_bit_is_never_read(tmp_path):
    save(tmp_path, 3)
    manifest, shard = manifest_of(tmp_path, 3), shard_of(tmp_path, 3)
    for position in (0, 300, manifest.files[0].pieces[0].offset + 5, shard.stat().st_size - 1):
        flip(shard, position)
        with pytest.raises(CorruptCheckpoint, match="does not match its checksum"):
            ShardReader(manifest, [FolderStore(tmp_path)]).read("w", 0, 35)
        flip(shard, position)
    ShardReader(manifest, [FolderStore(tmp_path)]).read("w", 0, 35)


def test_a_cut_or_missing_file_is_never_read(tmp_path):
    save(tmp_path, 3)
    manifest, shard = manifest_of(tmp_path, 3), shard_of(tmp_path, 3)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpoint, match="is cut off"):
        ShardReader(manifest, [FolderStore(tmp_path)]).read("b", 0, 5)
    shard.unlink()
    with pytest.raises(CorruptCheckpoint, match="is missing"):
        ShardReader(manifest, [FolderStore(tmp_path)]).read("b", 0, 5)


def test_a_damaged_local_copy_is_mended_from_the_store(tmp_path):
    save(tmp_path / "local", 3, remote=FolderStore(tmp_path / "remote"))
    stores = [FolderStore(tmp_path / "local"), FolderStore(tmp_path / "remote")]
    manifest = manifest_of(tmp_path / "local", 3)
    flip(shard_of(tmp_path / "local", 3), 700)
    assert torch.equal(ShardReader(manifest, stores).read("w", 0, 35)[0], 3 + torch.arange(35) / 35)
    flip(shard_of(tmp_path / "remote", 3), 700)
    with pytest.raises(CorruptCheckpoint):
        ShardReader(manifest, stores).read("w", 0, 35)


def test_a_rank_reads_only_the_blocks_that_it_needs(tmp_path, monkeypatch):
    block = 1 << 14
    for module in (manifest_module, shards):
        monkeypatch.setattr(module, "BLOCK_BYTES", block)
    shapes = {"w": (block, 6)}
    big = snapshot(1, shapes)
    writer(tmp_path).save(1, "id", big, completer(1, "id", shapes))
    assert len(manifest_of(tmp_path, 1).files[0].blocks) > 72
    asked = []

    class Counting(FolderStore):
        def get_range(self, name, start, length):
            asked.append(length)
            return super().get_range(name, start, length)

    reader = ShardReader(manifest_of(tmp_path, 1), [Counting(tmp_path)])
    start, numel = 3 * block, block // 2
    assert torch.equal(reader.read("w", start, numel)[1], big.shards[0].tensors[0][6 * block :][start : start + numel])
    reader.close()
    assert sum(asked) <= (1 + 3 * (3 + shards.READ_AHEAD_BLOCKS)) * block
    # and a bit anywhere in a large file is noticed by whoever reads there
    flip(shard_of(tmp_path, 1), 40 * block + 17)
    with pytest.raises(CorruptCheckpoint, match="block 40"):
        ShardReader(manifest_of(tmp_path, 1), [FolderStore(tmp_path)]).read("w", 0, 6 * block)


def test_a_large_state_becomes_several_files():
    assert plan_files([("a", 0, 10), ("a", 10, 10), ("b", 0, 1)], ADAMW, file_bytes=240) == [
        [("a", 0, 10), ("a", 10, 10)],
        [("b", 0, 1)],
    ]
    assert plan_files([("a", 0, 1000), ("b", 0, 1)], ADAMW, file_bytes=10) == [[("a", 0, 1000)], [("b", 0, 1)]]
    assert plan_files([], ADAMW) == []


def lie(root, step, change):
    """Alter a manifest and give it the right checksum again: whoever did it knew the format."""
    path = root / f"step-{step:08d}" / MANIFEST
    body = json.loads(path.read_bytes())
    del body["manifest_checksum"]
    change(body)
    body["manifest_checksum"] = xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True).encode())
    path.write_text(json.dumps(body))


def drop_a_piece(body):
    body["files"][0]["pieces"].pop()


def swap_names(body):
    for piece in body["files"][0]["pieces"]:
        piece[0] = {"w": "b", "b": "w"}[piece[0]]


LIES = {
    "speaks of step 4": lambda body: body.update(step=4),
    "speaks of step 3": lambda body: body["state"].update(step=4),
    "b has 0 of 5 elements": drop_a_piece,
    "w has 5 of 35 elements": swap_names,
    "not covered exactly once": lambda body: body["files"][0]["pieces"][0].__setitem__(1, 3),
    "outside": lambda body: body["files"][0]["pieces"][0].__setitem__(3, 10**9),
    "wrong number of blocks": lambda body: body["files"][0].update(size_bytes=10**9),
    "its format is 2": lambda body: body.update(format=2),
    "does not make sense": lambda body: body.update(world_size="many"),
    "random states of all ranks": lambda body: body.update(world_size=2),
    "not trained": lambda body: body["shapes"].pop("b"),
    "names a file twice": lambda body: body["files"].append(body["files"][0]),
}


@pytest.mark.parametrize("said", LIES)
def test_a_manifest_that_lies_is_refused(tmp_path, said):
    save(tmp_path, 3)
    lie(tmp_path, 3, LIES[said])
    with pytest.raises(CorruptCheckpoint, match=said):
        manifest_of(tmp_path, 3)


def test_a_manifest_that_points_at_the_wrong_bytes_of_a_good_file_is_caught_when_it_is_read(tmp_path):
    shapes = {"w": (5,), "b": (5,)}
    for step, change in ((1, lambda pieces: pieces[0].__setitem__(3, pieces[0][3] - 4)), (2, swap_two_names)):
        writer(tmp_path).save(step, f"id-{step}", snapshot(step, shapes), completer(step, f"id-{step}", shapes))
        lie(tmp_path, step, lambda body, change=change: change(body["files"][0]["pieces"]))
        with pytest.raises(CorruptCheckpoint, match="does not hold what its manifest says"):
            ShardReader(manifest_of(tmp_path, step), [FolderStore(tmp_path)]).read("w", 0, 5)


def swap_two_names(pieces):
    pieces[0][0], pieces[1][0] = pieces[1][0], pieces[0][0]


def test_every_cut_and_every_changed_byte_of_a_manifest_is_noticed(tmp_path):
    save(tmp_path, 3)
    data = (tmp_path / "step-00000003" / MANIFEST).read_bytes()
    Manifest.decode(data, "step-00000003")
    for length in range(0, len(data) - 1, 97):
        with pytest.raises(CorruptCheckpoint):
            Manifest.decode(data[:length], "step-00000003")
    digits = [i for i, byte in enumerate(data) if chr(byte).isdigit()]
    for position in digits[::11]:
        changed = bytearray(data)
        changed[position] = ord("1") if data[position] != ord("1") else ord("2")
        with pytest.raises(CorruptCheckpoint):
            Manifest.decode(bytes(changed), "step-00000003")


def test_only_checkpoint_folders_are_taken_for_such():
    assert step_of("step-00000840") == 840
    assert step_of("step-840") is None
    assert step_of("model") is None


def test_differences_name_the_setting_and_both_values():
    then = {"train.learning_rate": 5e-6, "data.seed": 1, "old": True}
    now = {"train.learning_rate": 1e-5, "data.seed": 1, "new": None}
    assert differences(then, now) == [
        "new: nothing in the checkpoint, null in the job",
        "old: true in the checkpoint, nothing in the job",
        "train.learning_rate: 5e-06 in the checkpoint, 1e-05 in the job",
    ]


def test_random_states_come_back():
    import random

    import numpy

    random_state.derive(1, 2, 3)
    random.gauss(0, 1)
    saved = random_state.capture(CPU)
    first = random.random(), random.gauss(0, 1), numpy.random.rand(), torch.rand(4).tolist()
    random_state.restore(saved, CPU)
    assert (random.random(), random.gauss(0, 1), numpy.random.rand(), torch.rand(4).tolist()) == first
    random_state.derive(1, 2, 4)
    assert torch.rand(4).tolist() != first[3]


def test_a_cpu_rank_on_a_machine_with_gpus_leaves_them_alone(monkeypatch):
    """A context on a GPU, half a gigabyte, for a state that the rank does not have; and a run beside it on that GPU."""

    def touched(*_):
        raise AssertionError("a CPU rank asked a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state", "init"):
        monkeypatch.setattr(torch.cuda, name, touched)
    of_a_gpu = json.loads(random_state.capture(CPU)) | {"cuda": "AAAA"}
    random_state.restore(json.dumps(of_a_gpu).encode(), CPU)


def test_an_entry_has_one_checksum_for_each_block():
    assert (
        FileEntry(name="x", size_bytes=1, checksum="c", blocks=("b",), pieces=(Piece("w", 0, 1, 0),)).pieces[0].name
        == "w"
    )


def test_whoever_waits_for_a_long_save_hears_of_every_file(tmp_path):
    heard = []
    saving = dataclasses.replace(
        writer(tmp_path / "here", FolderStore(tmp_path / "there")), got_on=lambda: heard.append(1)
    )
    saving.save(3, "id", snapshot(3), completer(3, "id"))
    assert len(heard) == 3, "the shard is written; the shard and the random state are sent"
