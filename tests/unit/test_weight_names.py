"""Weights that are not in the files start from random values in silence: a run that was paid for trains noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from launcher.jobfile.model_checks import model_findings
from tests.support.tiny_job import write_job
from trainer.data.tokenizer import load_tokenizer
from trainer.model.build import build
from trainer.run.exits import BadInput
from trainer.run.spec import NodeJob

Weights = dict[str, torch.Tensor]


def prepared(root: Path, change: Callable[[Weights], Weights], **model: Any) -> NodeJob:
    """A job whose base's weights were changed."""
    run = write_job(root, "run", model=model, train={"unfrozen": None, "max_steps": 2})
    path = root / "base" / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})
    return NodeJob.read(run.train_json)


def verdicts(job: NodeJob) -> tuple[str, str]:
    """(what the launcher finds, what the trainer refuses with)"""
    findings = model_findings(job.spec)
    with pytest.raises(BadInput) as refused:
        build(job, load_tokenizer(job.spec.model))
    return "\n".join(finding.message for finding in findings), str(refused.value)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."])
def test_a_wrappers_prefix_is_no_random_start(prefix: str, tmp_path: Path) -> None:
    """Both sides name the prefix; the setting that they name takes it off, and then every weight is the stored one."""
    job = prepared(tmp_path, lambda weights: {prefix + name: value for name, value in weights.items()})
    for said in verdicts(job):
        assert "lacks 21 of 21 weights (" in said
        assert f"model.weights_prefix: {prefix}" in said
    model = job.spec.model.model_copy(update={"weights_prefix": prefix})
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})
    assert model_findings(job.spec) == []
    built = dict(build(job, load_tokenizer(job.spec.model)).named_parameters())
    for name, stored in load_file(tmp_path / "base" / "model.safetensors").items():
        assert torch.equal(built[name.removeprefix(prefix)], stored)


def test_one_compiled_layer_is_found_within_the_names(tmp_path: Path) -> None:
    job = prepared(
        tmp_path,
        lambda weights: {name.replace("layers.0.", "layers.0._orig_mod."): value for name, value in weights.items()},
    )
    assert all("model.weights_prefix: _orig_mod." in said for said in verdicts(job))


@pytest.mark.parametrize("lost", ["lm_head.weight", "model.layers.1.mlp.up_proj.weight"])
def test_a_lost_weight_is_named(lost: str, tmp_path: Path) -> None:
    job = prepared(tmp_path, lambda weights: {name: value for name, value in weights.items() if name != lost})
    for said in verdicts(job):
        assert f"lacks 1 of 21 weights ({lost})" in said
        assert "init: random" in said


def test_a_weight_of_another_shape_is_named(tmp_path: Path) -> None:
    def cut(weights: Weights) -> Weights:
        return weights | {"model.layers.0.mlp.up_proj.weight": torch.zeros(60, 32)}

    for said in verdicts(prepared(tmp_path, cut)):
        assert "model.layers.0.mlp.up_proj.weight is [60, 32], not [64, 32]" in said


def test_weights_with_no_place_are_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = prepared(tmp_path, lambda weights: weights | {"model.vision.patch.weight": torch.zeros(4)})
    assert model_findings(job.spec) == []
    build(job, load_tokenizer(job.spec.model))
    assert "warning: model.base has 1 weights" in (shown := capfd.readouterr().out)
    assert "model.vision.patch.weight" in shown


def test_random_weights_on_purpose_need_none_in_the_files(tmp_path: Path) -> None:
    job = prepared(tmp_path, lambda weights: {"other": torch.zeros(1)}, init="random")
    assert model_findings(job.spec) == []
    build(job, load_tokenizer(job.spec.model))


def test_a_shard_that_was_not_fetched_is_found_before_anything_is_paid(tmp_path: Path) -> None:
    job = prepared(tmp_path, lambda weights: weights)
    index = {"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "base" / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lacks model-00002-of-00002.safetensors" in model_findings(job.spec)[0].message
