"""Choosing layers by signal-to-noise ratio: the wrong sixteen layers train for days before anyone notices."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path

import pytest

from launcher.models.spectrum import read_snr, select, share_of
from launcher.plan.unfrozen import resolve_unfrozen
from trainer.run.exits import BadInput
from trainer.run.settings.data import DataSpec, SourceSpec
from trainer.run.settings.model import ModelSpec
from trainer.run.settings.train import OptimizerSettings, SpectrumSpec, UnfrozenSpec
from trainer.run.spec import TrainSpec

REFERENCE = os.environ.get("DOLPHIN_REFERENCE")
needs_reference = pytest.mark.skipif(
    REFERENCE is None, reason="DOLPHIN_REFERENCE names no folder with the reference job"
)


def snr_of(modules: dict[str, float]) -> dict[str, dict[str, object]]:
    kinds = {name: re.sub(r"^.*?\.\d+\.", "", name) for name in modules}
    return {name: {"snr": ratio, "type": kinds[name]} for name, ratio in modules.items()}


@needs_reference
def test_the_reference_jobs_112_layers_come_out_in_the_cards_order() -> None:
    folder = Path(str(REFERENCE))
    lines = next(folder.glob("*.axolotl.yml")).read_text().splitlines()
    on_the_card = [line[2:].strip() for line in lines if line.startswith("- ")]
    layers = [pattern for pattern in on_the_card if pattern.startswith("model.layers.")]
    snr = read_snr(next(folder.glob("snr_results_*.json")))
    assert len(layers) == 112
    assert list(select(snr, "50%")) == layers


@needs_reference
def test_the_reference_snr_file_resolves_to_all_118_patterns() -> None:
    folder = Path(str(REFERENCE))
    on_the_card = [
        line[2:].strip()
        for line in next(folder.glob("*.axolotl.yml")).read_text().splitlines()
        if line.startswith("- ")
    ]
    written = tuple(on_the_card[:6])
    spectrum = SpectrumSpec(snr=str(next(folder.glob("snr_results_*.json"))), top="50%")
    spec = TrainSpec(
        name="x", model=ModelSpec(base="x"), data=DataSpec(sources=(SourceSpec(path="x"),)),
        train=OptimizerSettings(unfrozen=UnfrozenSpec(spectrum=spectrum, patterns=written)),
    )  # fmt: skip
    assert resolve_unfrozen(spec) == tuple(on_the_card)


def test_highest_first_within_a_type_and_the_share_rounded_down() -> None:
    snr = snr_of({f"model.layers.{i}.mlp.up_proj": float(i % 4) for i in range(5)})
    assert select(snr, "50%") == ("model.layers.3.mlp.up_proj", "model.layers.2.mlp.up_proj")


def test_vectors_and_what_is_outside_the_layers_have_no_ranking() -> None:
    norms = {f"model.layers.{i}.input_layernorm": math.inf for i in range(4)}
    outside = {"lm_head": 9.0, "model.norm": math.inf}
    snr = snr_of({**norms, **outside, "model.layers.0.mlp.up_proj": 1.0, "model.layers.1.mlp.up_proj": 2.0})
    assert select(snr, "50%") == ("model.layers.1.mlp.up_proj",)


def test_a_head_is_a_type_of_its_own_and_trained_at_100_per_cent_alone() -> None:
    snr = snr_of({"lm_head": 9.0, "model.layers.0.mlp.up_proj": 1.0, "model.layers.1.mlp.up_proj": 2.0})
    assert select(snr, "99%") == ("model.layers.1.mlp.up_proj",)
    assert select(snr, "100%")[-1] == "lm_head"
    assert len(select(snr, "100%")) == 3


def test_the_grouped_layout_chooses_the_same_layers_as_the_flat_one(tmp_path: Path) -> None:
    flat = snr_of({f"model.layers.{i}.mlp.{kind}": 9.0 - i for i in range(4) for kind in ("up_proj", "down_proj")})
    flat |= snr_of({f"model.layers.{i}.input_layernorm": math.inf for i in range(4)} | {"lm_head": math.inf})
    grouped: dict[str, dict[str, object]] = {}
    for module, entry in flat.items():
        grouped.setdefault(str(entry["type"]), {})[module] = entry["snr"]
    for name, content in {"flat.json": flat, "grouped.json": grouped}.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert "Infinity" in (tmp_path / "grouped.json").read_text()
    assert read_snr(tmp_path / "grouped.json") == read_snr(tmp_path / "flat.json") == flat
    assert select(read_snr(tmp_path / "grouped.json"), "50%")[0] == "model.layers.0.mlp.down_proj"


def test_layer_1_never_drags_in_layer_11() -> None:
    snr = snr_of({f"model.layers.{i}.mlp.up_proj": 100.0 - i for i in range(32)})
    chosen = select(snr, "10%")
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(32)]
    hit = [name for name in names if any(re.search(pattern, name) for pattern in chosen)]
    assert hit == names[:3]


def test_a_router_does_not_drag_in_the_projection_whose_name_it_begins() -> None:
    snr = snr_of({"model.layers.0.mlp.gate": 2.0, "model.layers.1.mlp.gate": 1.0, "model.layers.0.mlp.gate_proj": 1.0,
                  "model.layers.1.mlp.gate_proj": 2.0})  # fmt: skip
    chosen = select(snr, "50%")
    hit = [f"{name}.weight" for name in snr if any(re.search(pattern, f"{name}.weight") for pattern in chosen)]
    assert sorted(hit) == ["model.layers.0.mlp.gate.weight", "model.layers.1.mlp.gate_proj.weight"]


def test_names_behind_a_prefix_are_found() -> None:
    (pattern,) = select(snr_of({"model.layers.0.mlp.up_proj": 1.0}), "100%")
    assert re.search(pattern, "base_model.model.layers.0.mlp.up_proj.weight")


def test_selecting_nothing_is_an_error_and_not_a_frozen_model() -> None:
    with pytest.raises(BadInput, match="nothing would be trained"):
        select(snr_of({"model.layers.0.mlp.up_proj": 1.0}), "50%")


@pytest.mark.parametrize("top", ["0%", "101%", "half", "-5%"])
def test_a_share_that_is_none_is_refused(top: str) -> None:
    with pytest.raises(BadInput):
        share_of(top)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({"a": {"type": "x"}}),
        '{"a": {"snr": NaN, "type": "x"}}',
        '{"a": {}}',
        '{"a": {"b": NaN}}',
        '{"a": {"b": true}}',
        '{"a": {"b": 1.0}, "c": {"b": 2.0}}',
        '{"a": {"b": "1"}}',
    ],
)
def test_a_file_that_is_no_snr_file_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "snr.json"
    path.write_text(content)
    with pytest.raises(BadInput, match=r"snr\.json"):
        read_snr(path)
