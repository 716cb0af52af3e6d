"""A repository that is called whole and is not: the hub dies half way, keeps a part of a file, or takes nothing at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.support.hub import TOKEN, Hub
from tests.unit.test_card import FACTS
from trainer.export import card_text
from trainer.export import hub as pushing
from trainer.run.exits import BadInput, TrainingFailed

REPO = "my-org/my-model"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(pushing, "PAUSE_S", 0.0)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    monkeypatch.setattr(pushing, "LARGE_BYTES", 1000)
    yield hub
    hub.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "gguf").mkdir(parents=True)
    (folder / "card.json").write_text(json.dumps(FACTS | {"final_loss": 0.5}))
    card_text.write(folder)
    (folder / "config.json").write_text("{}")
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "gguf/tiny-f16.gguf"):
        (folder / name).write_bytes(name.encode() * 100)
    (folder / ".partial").write_text("no part of it")
    (folder / "gguf" / ".tiny-q8_0.gguf.partial").write_text("no part of it")
    return folder


def test_a_push_makes_the_repository_and_what_makes_it_a_model_comes_last(hub: Hub, folder: Path) -> None:
    said: list[str] = []
    told = pushing.push(folder, REPO, True, said.append)
    assert told == f"{REPO}, 6 files verified by size and hash"
    held = hub.repos[REPO]
    assert held["private"]
    assert set(held["files"]) == {path for path, _ in pushing.files_of(folder)}
    assert not any("partial" in path for path in held["files"])
    for path, source in pushing.files_of(folder):
        assert hub.content(REPO, path) == source.read_bytes()
    assert len(held["commits"]) == 4
    assert held["commits"][-1] == ["README.md", "card.json", "config.json"]
    before = len(held["commits"])
    pushing.push(folder, REPO, True, said.append)
    assert len(held["commits"]) == before, "nothing was sent twice"


def test_a_hub_that_dies_half_way_leaves_no_model_and_the_next_push_goes_on(hub: Hub, folder: Path) -> None:
    hub.dies_after_uploads = 1
    said: list[str] = []
    with pytest.raises(TrainingFailed, match="push again"):
        pushing.push(folder, REPO, True, said.append)
    assert "config.json" not in hub.repos[REPO]["files"]
    assert len(hub.repos[REPO]["commits"]) == 1
    hub.dies_after_uploads, hub.uploads = None, 0
    pushing.push(folder, REPO, True, said.append)
    assert hub.uploads == 2, "what was there was not sent again"
    assert len(hub.repos[REPO]["files"]) == 6


def test_a_hub_that_kept_a_part_is_not_believed(hub: Hub, folder: Path) -> None:
    hub.cuts_uploads = True
    with pytest.raises(TrainingFailed, match="does not hold"):
        pushing.push(folder, REPO, True, print)


def test_a_file_that_has_changed_is_sent_again(hub: Hub, folder: Path) -> None:
    pushing.push(folder, REPO, True, print)
    (folder / "config.json").write_text('{"a": 1}')
    pushing.push(folder, REPO, True, print)
    assert hub.repos[REPO]["commits"][-1] == ["config.json"]


def test_a_token_that_may_not_write_is_refused_at_once_and_not_shown(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"does not take their-org/x .*correct push.repo or HF_TOKEN"):
        pushing.push(folder, "their-org/x", True, print)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong_but_still_a_secret")
    with pytest.raises(BadInput) as refused:
        pushing.push(folder, REPO, True, print)
    assert "hf_wrong" not in str(refused.value)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(BadInput, match="needs a token"):
        pushing.push(folder, REPO, True, print)


def test_a_card_that_the_hub_would_refuse_does_not_follow_hours_of_upload_with_silence(hub: Hub, folder: Path) -> None:
    (folder / "README.md").write_text("---\nmodel-index:\n- name: x\n  results:\n  - task: {}\n---\n")
    with pytest.raises(Exception, match=r"README|metadata"):
        pushing.push(folder, REPO, True, print)
    assert "config.json" not in hub.repos[REPO]["files"]


def test_an_adapter_beside_a_folder_of_this_machine_is_told(hub: Hub, folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/base"}')
    said: list[str] = []
    pushing.push(folder, REPO, True, said.append)
    assert any("names the folder /home/me/base" in line for line in said)
