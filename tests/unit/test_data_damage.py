"""What a disk or a crash did to prepared data is found before it is trained on, and mended where it can be."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from tests.support.data_job import chat, data_job, write_rows
from trainer.data import checksums
from trainer.data.prepare import prepare
from trainer.data.prepared import Prepared
from trainer.run.exits import TrainingFailed

ROWS = [chat(f"question {i}", f"answer {i}: the sea is blue and deep") for i in range(40)]


@pytest.fixture
def job(tmp_path: Path):
    return data_job(tmp_path, write_rows(tmp_path / "data.jsonl", ROWS))


def flip_bits(path: Path, num_bits: int, seed: int = 0) -> None:
    content, chance = bytearray(path.read_bytes()), random.Random(seed)
    for place in chance.sample(range(len(content) * 8), min(num_bits, len(content))):
        content[place // 8] ^= 1 << place % 8
    path.write_bytes(bytes(content))


def everything(data: Prepared) -> list[bytes]:
    return [array.tobytes() for array in (data.tokens, data.weight_codes, data.offsets, data.train, data.validation)]


def names(data: Prepared) -> list[str]:
    return sorted(path.name for path in data.path.iterdir())


@pytest.mark.parametrize("harm", ["bits", "empty", "gone", "short"])
def test_no_harm_to_any_file_of_the_cache_ends_in_another_model_or_a_broken_run(job, harm: str, capsys) -> None:
    """Another model, because tokens.bin was read as it was; a broken run, because an empty file raised in numpy."""
    entry = prepare(job)
    whole, files = everything(entry), names(entry)
    assert len(files) == 13
    for name in files if harm in ("bits", "empty") else files[::5]:
        path = entry.path / name
        if harm == "bits":
            flip_bits(path, 499)
        elif harm == "gone":
            path.unlink()
        else:
            path.write_bytes(b"" if harm == "empty" else path.read_bytes()[: path.stat().st_size // 2])
        capsys.readouterr()
        entry = prepare(job)
        assert everything(entry) == whole, name
        said = capsys.readouterr().err
        assert "is damaged" in said, name
        assert "made again" in said, name
        assert names(entry) == files
    capsys.readouterr()
    prepare(job)
    assert "damaged" not in capsys.readouterr().err


def test_a_block_of_a_large_file_is_held_against_its_sum_before_a_rank_trains_on_it(job, monkeypatch) -> None:
    data = prepare(job)
    whole = everything(data)
    monkeypatch.setattr(checksums, "WHOLE_BYTES", 0)
    opened = Prepared.open(job.run_dir)
    assert set(opened.guards) == {"tokens.bin", "weights.bin"}
    assert np.array_equal(opened.token_ids(0), data.token_ids(0))
    flip_bits(data.path / "tokens.bin", 1)
    again = Prepared.open(job.run_dir)  # the sizes are right: what nobody reads costs nothing
    with pytest.raises(TrainingFailed, match=r"tokens\.bin is not what was written, in its block 0.*dolphin resume"):
        again.token_ids(0)
    monkeypatch.undo()
    assert everything(prepare(job)) == whole, "the start after it makes the data again"


def test_a_rank_never_reads_what_was_damaged_since_the_preparation(job) -> None:
    data = prepare(job)
    flip_bits(data.path / "train.npy", 1)
    with pytest.raises(TrainingFailed, match=r"train\.npy is not what was written"):
        Prepared.open(job.run_dir)


def test_a_finished_entry_is_on_disk_before_it_has_its_name(job, monkeypatch) -> None:
    """Else a power cut leaves an entry whose files are empty."""
    done: list[str] = []
    fsync, replace = checksums.os.fsync, checksums.os.replace
    monkeypatch.setattr(checksums.os, "fsync", lambda handle: (done.append(_name(handle)), fsync(handle))[1])
    monkeypatch.setattr(checksums.os, "replace", lambda a, b: (done.append(f"-> {Path(b).name}"), replace(a, b))[1])
    path = prepare(job).path
    named = done.index(f"-> {path.name}")
    before = {Path(name).name for name in done[:named] if ".tmp-" in name}
    assert {file.name for file in path.iterdir()} < before
    assert any(Path(name).name.startswith(f"{path.name}.tmp-") for name in done[:named]), "the folder itself"
    assert str(path.parent) in done[named:], "the folder that holds its name"


def _name(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


@pytest.mark.parametrize("content", ["", "[]", "{", '{"X": 3}', '{"X": [null]}'])
def test_a_damaged_memory_of_fingerprints_is_no_error(job, content: str, tmp_path: Path) -> None:
    first = prepare(job)
    memory = Path(job.cache_dir) / "data" / "fingerprints.json"
    memory.write_text(content.replace("X", str(tmp_path / "data.jsonl")))
    assert prepare(job).key == first.key
