"""A test split that is trained on makes every number of the model a lie, and nobody sees it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.inputs import files_of
from trainer.data.splits import keys_of_split, split_in_name
from trainer.run.exits import BadInput
from trainer.run.settings.data import SourceSpec


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"text": name}) + "\n")
    return root


def keys(root: Path, **source: str) -> list[str]:
    spec = SourceSpec.model_validate({"path": str(root)} | source)
    return [file.key for file in files_of(spec, "data.sources[0] clone")]


@pytest.mark.parametrize(
    ("key", "split"),
    [
        ("data/train-00000-of-00002.parquet", "train"),
        ("data/test-00000-of-00001.parquet", "test"),
        ("data/train_sft-00000-of-00001.parquet", "train_sft"),
        ("validation/part1.jsonl", "validation"),
        ("my_dev_set.JSONL", "validation"),
        ("eval.jsonl", "test"),
        ("train/test.jsonl", "test"),
        ("train1.jsonl", "train"),
        ("latest.jsonl", None),
        ("data-00000-of-00002.arrow", None),
        ("test/data-00000-of-00002.arrow", "test"),
        ("python-00000-of-00003.parquet", None),
        ("contest/medieval-training-camp.jsonl", "train"),
        ("chats.jsonl", None),
    ],
)
def test_the_split_that_a_name_says(key: str, split: str | None) -> None:
    assert split_in_name(key) == split


def test_a_folder_gives_the_files_of_its_split_alone_and_says_what_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder_of(tmp_path, "data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl", "data/more.jsonl")
    assert keys(root) == ["data/more.jsonl", "data/train-00000-of-00001.jsonl"]
    assert "left out: data/test-00000-of-00001.jsonl" in capsys.readouterr().err
    assert keys(root, split="test") == ["data/test-00000-of-00001.jsonl"]


def test_numbered_files_of_a_split_of_one_s_own_are_found_by_its_name(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "python-00000-of-00001.jsonl", "java-00000-of-00001.jsonl")
    assert keys(root, split="java") == ["java-00000-of-00001.jsonl"]
    assert len(keys(root)) == 2


def test_what_describes_a_data_set_is_none_of_its_rows(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.jsonl", "dataset_infos.json", "dataset_info.json", "state.json", "dataset_dict.json")
    assert keys(root) == ["a.jsonl"]


def test_a_folder_without_splits_is_the_training_split(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "a.jsonl", "b.jsonl")
    assert keys(root) == ["a.jsonl", "b.jsonl"]
    with pytest.raises(BadInput, match="no file of the split 'test'; its splits are: none by name"):
        keys(root, split="test")


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "train_sft-00000-of-00001.jsonl", "test_sft-00000-of-00001.jsonl")
    with pytest.raises(BadInput, match=r"split 'train'; its splits are: test_sft \(1 files\), train_sft \(1 files\)"):
        keys(root)
    assert keys(root, split="train_sft") == ["train_sft-00000-of-00001.jsonl"]
    with pytest.raises(BadInput, match="parts of a split exist on the hub only"):
        keys(root, split="train_sft[:10]")


README = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: "main/*"
  - split: test
    path: held/*.jsonl
- config_name: other
  data_files: other/**
---
"""


def test_a_clone_s_own_readme_says_which_files_are_which(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "main/test-of-time.jsonl", "held/a.jsonl", "other/deep/b.jsonl", "unnamed.jsonl")
    (root / "README.md").write_text(README)
    assert keys(root) == ["main/test-of-time.jsonl"]
    assert keys(root, split="test") == ["held/a.jsonl"]
    assert keys(root, subset="other") == ["other/deep/b.jsonl"]
    with pytest.raises(BadInput, match=r"no subset 'third'; its README\.md names default, other"):
        keys(root, subset="third")
    with pytest.raises(BadInput, match="no file of the split 'validation'"):
        keys(root, split="validation")


@pytest.mark.parametrize("head", ["---\n: : :\n---\n", "---\nconfigs: 3\n---\n", "no head", "---\n"])
def test_a_readme_that_says_nothing_is_no_error(tmp_path: Path, head: str) -> None:
    root = folder_of(tmp_path, "a.jsonl")
    (root / "README.md").write_text(head)
    assert keys(root) == ["a.jsonl"]


def test_a_file_or_a_glob_is_what_it_names(tmp_path: Path) -> None:
    root = folder_of(tmp_path, "test.jsonl", "other.jsonl")
    assert keys(root / "test.jsonl") == ["test.jsonl"]
    assert keys(root / "*.jsonl") == ["other.jsonl", "test.jsonl"]


def test_keys_of_an_object_store_are_chosen_alike() -> None:
    spec = SourceSpec(path="s3://bucket/data")
    assert keys_of_split(["train.jsonl", "val.jsonl"], spec, None, "it") == ["train.jsonl"]
