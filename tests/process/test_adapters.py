"""Adapter runs in real processes: every sharding gives the same losses, a killed run ends with the same bits, and what is left
loads where it must."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from tests.support import tiny_job
from trainer.run.run_folder import RunDir

LORA = {"type": "lora", "rank": 4, "alpha": 8}
QLORA = {"type": "qlora", "rank": 4, "alpha": 8, "dropout": 0.1}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose sides are whole blocks of 4-bit codes."""
    folder = tmp_path_factory.mktemp("adapters")
    tiny_job.write_model(folder / "base", hidden=64)
    return folder


def job(root: Path, name: str, adapter: dict, **train: object) -> RunDir:
    settings = {"unfrozen": None, "adapter": adapter, "max_steps": 6, **train}
    every = {"every": {"steps": 2}, "max_restarts": 0}
    return tiny_job.write_job(root, name, nproc=2, train=settings, checkpoint=every, export={"merged": True})


def test_lora_gives_the_same_losses_under_every_sharding(root: Path) -> None:
    runs = {zero: tiny_job.train(job(root, f"zero-{zero}", LORA, zero=zero)) for zero in (0, 2, 3)}
    expected = tiny_job.losses(runs[0])
    assert len(expected) == 6
    assert expected[-1] < expected[0]
    for zero, run in runs.items():
        assert tiny_job.losses(run) == pytest.approx(expected, rel=1e-5), zero
        assert re.search(r"loaded again, its logits differ by 0(\.0\d+)? of", run.log.read_text())
        config = json.loads((run.model / "adapter" / "adapter_config.json").read_text())
        assert (config["r"], config["base_model_name_or_path"]) == (4, str(root / "base"))
        assert "adapter | lora, rank 4, alpha 8" in (run.model / "README.md").read_text()


def test_eva_begins_alike_under_every_sharding_and_not_again_when_a_run_goes_on(root: Path) -> None:
    eva = LORA | {"init": "eva"}
    runs = {zero: tiny_job.train(job(root, f"eva-{zero}", eva, zero=zero)) for zero in (0, 3)}
    expected = tiny_job.losses(runs[3])
    assert tiny_job.losses(runs[0]) == pytest.approx(expected, rel=1e-5)
    assert runs[3].log.read_text().count("eva: 14 of 14 adapters begin with the directions of") == 1
    killed = job(root, "eva-killed", eva, zero=3)
    tiny_job.train(killed, expect=1, DOLPHIN_FAULT="mid-shard@4/1")
    tiny_job.train(killed)
    assert tiny_job.losses(killed) == expected
    assert adapter_bytes(killed) == adapter_bytes(runs[3])
    assert killed.log.read_text().count("eva: ") == 1, "the second attempt takes what was saved"


def test_a_killed_qlora_run_ends_with_the_same_bits(root: Path) -> None:
    whole = tiny_job.train(job(root, "whole", QLORA, zero=2, evaluate_every=2))
    killed = job(root, "killed", QLORA, zero=2, evaluate_every=2)
    tiny_job.train(killed, expect=1, DOLPHIN_FAULT="mid-shard@4/1")
    tiny_job.train(killed)
    assert len([e for e in killed.read_events() if e["event"] == "resumed"]) == 1
    assert tiny_job.losses(killed) == tiny_job.losses(whole)
    assert adapter_bytes(killed) == adapter_bytes(whole)
    size = sum(p.stat().st_size for p in (killed.path / "checkpoints").rglob("*.safetensors"))
    assert size < 1.2 * 2 * 3 * 4 * sum(t.numel() for t in tensors(whole).values()), (
        "a checkpoint holds the adapter alone"
    )


def test_the_merged_model_answers_as_base_and_adapter(root: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = tiny_job.train(job(root, "rows", LORA | {"trainable_tokens": True}, zero=3, precision="bf16"))
    merged = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    both = PeftModel.from_pretrained(base, run.model / "adapter")
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        expected, found = both(ids).logits, merged(ids).logits
    assert (expected - found).abs().max() < 0.05 * expected.std()

    dolphin = Path(sys.executable).with_name("dolphin")
    asked = [str(dolphin), "sample", str(run.model / "adapter"), "--prompt", "the sea is blue", "--max-tokens", "4"]
    answers = [subprocess.run(asked, capture_output=True, text=True, timeout=300, check=True).stdout for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(answers[0].strip().splitlines()) == 1, "an answer, and nothing that libraries say while they load"


def tensors(run: RunDir) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(run.model / "adapter" / "adapter_model.safetensors")


def adapter_bytes(run: RunDir) -> bytes:
    return (run.model / "adapter" / "adapter_model.safetensors").read_bytes()
