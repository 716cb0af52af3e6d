"""SaveWriter: from a snapshot in memory to a committed checkpoint, in a thread, without a collective.

Every rank writes its files and then a receipt that names them. Rank 0 waits for the receipts of all ranks of this very
save, checks the sizes, and writes the manifest last. With a remote store the same happens twice: in the run folder
first, so that a crash of a process costs no upload, then in the store.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from trainer.checkpoint import fault
from trainer.checkpoint.manifest import MANIFEST, CorruptCheckpoint, FileEntry, Manifest, folder_name, step_of
from trainer.checkpoint.shards import HashingWriter, write_shard
from trainer.checkpoint.snapshot import ShardSnapshot, Snapshot
from trainer.checkpoint.trainer_state import Best
from trainer.run.exits import StoreGone
from trainer.run.stores.base import CheckpointStore, FolderStore, NotInStore, StoreError

FIRST_POLL_S, LONGEST_POLL_S = 0.02, 2.0


class NotPublished(Exception):
    """The checkpoint stands in the run folder; the store failed. The next one is published."""

    def __init__(self, reason: str, size_bytes: int) -> None:
        super().__init__(reason)
        self.size_bytes = size_bytes


CompleteManifest = Callable[[Sequence[FileEntry]], Manifest]
"""Rank 0's: everything about the save but the files is known when it begins."""


@dataclass(frozen=True, slots=True)
class SaveWriter:
    """Where a save goes and which part of it is this rank's."""

    local: FolderStore
    """The run folder, or the store itself where that is a folder."""
    remote: CheckpointStore | None
    rank: int
    world_size: int
    commits_locally: bool
    """Whether `local` is one folder for all ranks; with several nodes and a remote store it is not."""
    is_node_leader: bool
    """The rank that looks after its node's `local` where that is not one folder for all."""
    keep: int
    warn: Callable[[str], None]
    got_on: Callable[[], object]
    """Called after every file that is written or sent."""
    may_commit: Callable[[], None] = lambda: None
    """Raises StoreError where another node has this run's place in the remote store by now (`trainer.run.stores.lease`)."""
    keeps_best: bool = False
    """Spare, besides, the checkpoint that a kept one's state calls the best."""

    @property
    def stores(self) -> list[CheckpointStore]:
        """The nearest first."""
        return [self.local] if self.remote is None else [self.local, self.remote]

    def save(self, step: int, save_id: str, snapshot: Snapshot, complete: CompleteManifest) -> int:
        """Write, commit and publish; returns the checkpoint's size in bytes (rank 0; 0 elsewhere)."""
        return self.commit(step, save_id, self.write(step, save_id, snapshot), complete)

    def write(self, step: int, save_id: str, snapshot: Snapshot) -> list[FileEntry]:
        """Write this rank's files to `local`; afterwards the snapshot is not needed any more."""
        fault.point("before-first-byte", step, self.rank)
        folder = folder_name(step)
        entries = []
        for index, shard in enumerate(snapshot.shards):
            name = f"rank-{self.rank:05d}-{index:03d}-{save_id}.safetensors"
            entries.append(self._write_shard(step, folder, name, shard, snapshot))
            self.got_on()
        name = random_file(self.rank, save_id)
        entries.append(
            self.local.write(f"{folder}/{name}", lambda handle: _write_random(handle, name, snapshot.random))
        )
        fault.point("after-shards", step, self.rank)
        return entries

    def commit(self, step: int, save_id: str, entries: Sequence[FileEntry], complete: CompleteManifest) -> int:
        """Make a checkpoint of what all ranks have written, here and in the store; its size in bytes, as `save`.

        Raises NotPublished where it stands here and the store failed, StoreGone where only the store could have held it.
        """
        folder, size_bytes = folder_name(step), 0
        if self.commits_locally:
            size_bytes = self._commit(self.local, folder, save_id, entries, complete)
        if self.remote is not None:
            try:
                size_bytes = self.publish(folder, save_id, entries, complete)
            except StoreError as error:
                if not self.commits_locally:
                    raise StoreGone(str(error)) from error
                if self.rank == 0:
                    self._prune(self.local, partial(self._superfluous, self.local))
                raise NotPublished(str(error), size_bytes) from error
        self.prune()
        return size_bytes

    def publish(self, folder: str, save_id: str, entries: Sequence[FileEntry], complete: CompleteManifest) -> int:
        """Upload this rank's files from the run folder and commit in the remote store."""
        assert self.remote is not None
        try:
            there = self.remote.list(folder)
            for entry in entries:
                name = f"{folder}/{entry.name}"
                if (
                    there.get(name) != entry.size_bytes
                ):  # a name is used for one save only: same name and size, same file
                    self.remote.put_file(name, self.local.root / name)
                self.got_on()
            return self._commit(self.remote, folder, save_id, entries, complete)
        except StoreError as error:
            if self.commits_locally:  # rank 0 waits for this rank's receipt, and the store cannot tell it
                self.local.put(f"{folder}/{unpublished_file(self.rank, save_id)}", str(error).encode())
            raise

    def try_again(self, folder: str, save_id: str) -> None:
        """Rank 0, before any rank publishes a checkpoint of an earlier attempt: what failed then does not count now."""
        for rank in range(self.world_size):
            self.local.delete(f"{folder}/{unpublished_file(rank, save_id)}")

    def prune(self) -> None:
        """Delete the oldest committed checkpoints beyond `keep`. What cannot be deleted is said and left."""
        if self.rank == 0:
            for store in (self.local if self.commits_locally else None, self.remote):
                if store is not None:
                    self._prune(store, partial(self._superfluous, store))
        if self.is_node_leader and not self.commits_locally:
            self._prune(self.local, self._older_than_the_store_keeps)

    def _superfluous(self, store: CheckpointStore, listing: dict[str, int]) -> list[str]:
        found = committed(listing)
        kept, beyond = found[: self.keep], found[self.keep :]
        spared = {best_of(store, folder) for folder in kept} if self.keeps_best and beyond else set()
        return [folder for folder in beyond if folder not in spared]

    def _older_than_the_store_keeps(self, listing: dict[str, int]) -> list[str]:
        """This node has files and no manifests: the store knows what is old."""
        kept = committed(self.remote.list())[: self.keep] if self.remote is not None else []
        return [folder for folder in folders(listing) if kept and folder < kept[-1]]

    def _prune(self, store: CheckpointStore, choose: Callable[[dict[str, int]], list[str]]) -> None:
        try:
            listing = store.list()
            for folder in choose(listing):
                delete_folder(store, folder, listing)
        except StoreError as error:
            self.warn(f"an old checkpoint could not be deleted, training goes on: {error}")

    def _write_shard(self, step: int, folder: str, name: str, shard: ShardSnapshot, snapshot: Snapshot) -> FileEntry:
        def fill(handle: BinaryIO) -> FileEntry:
            target = fault.CutHandle(handle, shard.num_bytes // 2, step, self.rank) if fault.is_asked() else handle
            return write_shard(target, name, shard.pieces, snapshot.shapes, shard.state, shard.parts())

        return self.local.write(f"{folder}/{name}", fill)

    def _commit(
        self,
        store: CheckpointStore,
        folder: str,
        save_id: str,
        entries: Sequence[FileEntry],
        complete: CompleteManifest,
    ) -> int:
        receipt = json.dumps([entry.model_dump(mode="json") for entry in entries]).encode()
        store.put(f"{folder}/{receipt_file(self.rank, save_id)}", receipt)
        if self.rank != 0:
            return 0
        files = self._await_receipts(store, folder, save_id)
        manifest = complete(files)
        present = store.list(folder)
        for file in files:
            size = present.get(f"{folder}/{file.name}")
            if size != file.size_bytes:
                raise StoreError(f"{store.url}/{folder}/{file.name}: {size} bytes arrived of {file.size_bytes}")
        if store is self.remote:
            self.may_commit()
        name = f"{folder}/{MANIFEST}"
        if fault.is_asked() and isinstance(store, FolderStore):
            store.write(name, lambda handle: self._write_in_halves(handle, manifest))
            fault.point("after-manifest", manifest.step, self.rank)
        else:
            store.put(name, manifest.encode())
        wanted = {MANIFEST, *(file.name for file in files)}
        if store is self.local and self.remote is not None:  # another rank may have failed to publish by now
            for rank in range(self.world_size):
                wanted |= {unpublished_file(rank, save_id), failure_file(rank, save_id)}
        self._tidy(store, folder, wanted)
        return manifest.size_bytes

    def _write_in_halves(self, handle: BinaryIO, manifest: Manifest) -> None:
        data = manifest.encode()
        handle.write(data[: len(data) // 2])
        fault.point("mid-manifest", manifest.step, self.rank)
        handle.write(data[len(data) // 2 :])

    def _await_receipts(self, store: CheckpointStore, folder: str, save_id: str) -> list[FileEntry]:
        """Files of all ranks, by rank. Raises StoreError where another rank reports that it failed.

        Waits without limit: a rank that dies is noticed by the supervisor, which then ends this one too.
        """
        files: dict[int, list[FileEntry]] = {}
        pause_s = FIRST_POLL_S
        while True:
            present = store.list(folder)
            here = self.local.list(folder) if self.commits_locally and store is self.remote else {}
            for rank in range(self.world_size):
                failed, unpublished = (
                    f"{folder}/{name_of(rank, save_id)}" for name_of in (failure_file, unpublished_file)
                )
                for teller, listing, told in (
                    (store, present, failed),
                    (self.local, here, failed),
                    (self.local, here, unpublished),
                ):
                    if told in listing:
                        raise StoreError(f"rank {rank} could not save its part: {teller.get(told).decode()}")
                name = f"{folder}/{receipt_file(rank, save_id)}"
                if rank not in files and name in present:
                    files[rank] = [FileEntry.model_validate(entry) for entry in json.loads(store.get(name))]
            if len(files) == self.world_size:
                return [entry for rank in sorted(files) for entry in files[rank]]
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, LONGEST_POLL_S)

    def report_failure(self, step: int, save_id: str, reason: str) -> None:
        """Let rank 0 know that no receipt will come. Best effort: the store may be what failed."""
        for store in (self.local, self.remote):
            if store is not None:
                try:
                    store.put(f"{folder_name(step)}/{failure_file(self.rank, save_id)}", reason.encode())
                except StoreError as error:
                    self.warn(f"rank 0 cannot be told of a failed save: {error}")

    def _tidy(self, store: CheckpointStore, folder: str, wanted: set[str]) -> None:
        """Delete receipts, and files of an earlier save of the same step."""
        try:
            for name in store.list(folder):
                if name.removeprefix(f"{folder}/") not in wanted:
                    store.delete(name)
        except StoreError as error:
            self.warn(f"leftovers of a save could not be deleted, training goes on: {error}")


def _write_random(handle: BinaryIO, name: str, data: bytes) -> FileEntry:
    writer = HashingWriter(handle)
    writer.write(memoryview(data))
    return writer.entry(name)


def random_file(rank: int, save_id: str) -> str:
    return f"rank-{rank:05d}-{save_id}.json"


def receipt_file(rank: int, save_id: str) -> str:
    return f"receipt-{rank:05d}-{save_id}.json"


def failure_file(rank: int, save_id: str) -> str:
    return f"failed-{rank:05d}-{save_id}.txt"


def unpublished_file(rank: int, save_id: str) -> str:
    """In the run folder: this rank's part stands there and could not be sent to the store."""
    return f"unpublished-{rank:05d}-{save_id}.txt"


def committed(listing: dict[str, int]) -> list[str]:
    """Folders of a store's listing that have a manifest, newest first."""
    return folders({name: size for name, size in listing.items() if name.endswith(f"/{MANIFEST}")})


def folders(listing: dict[str, int]) -> list[str]:
    """Folders with a checkpoint's name, newest first, whether they are checkpoints or not."""
    found = {name.split("/")[0] for name in listing}
    return sorted((folder for folder in found if step_of(folder) is not None), reverse=True)


def best_of(store: CheckpointStore, folder: str) -> str | None:
    """Folder of the checkpoint that was the best when this one was saved; None where there was none, or nothing can be read."""
    try:
        best = Manifest.decode(store.get(f"{folder}/{MANIFEST}"), folder).state.get("best")
    except (CorruptCheckpoint, NotInStore):
        return None
    return None if best is None else folder_name(Best(*best).step)


def delete_folder(store: CheckpointStore, folder: str, listing: dict[str, int]) -> None:
    """Delete a checkpoint, its manifest first: from then on it is none, also if the rest fails."""
    names = [name for name in listing if name.startswith(f"{folder}/")]
    for name in sorted(names, key=lambda name: not name.endswith(f"/{MANIFEST}")):
        store.delete(name)
