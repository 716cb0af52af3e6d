"""The scan of signal-to-noise ratios: against a singular value decomposition, and over an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from launcher.commands.spectrum import names_command
from trainer.model import spectrum
from trainer.run.exits import BadInput
from trainer.run.weights_index import fingerprint, stored_tensors


@pytest.fixture
def model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, signal: float) -> torch.Tensor:
        noise = torch.randn(rows, columns, generator=generator) * 0.02
        left, right = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator)
        return (noise + signal * left @ right).to(torch.bfloat16)

    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {}
    for layer in range(3):
        tensors[f"model.layers.{layer}.mlp.up_proj.weight"] = matrix(96, 32, 0.01 * layer)
        tensors[f"model.layers.{layer}.mlp.down_proj.weight"] = matrix(32, 96, 0.02)
        tensors[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(32, dtype=torch.bfloat16)
        tensors[f"model.layers.{layer}.self_attn.q_proj.bias"] = torch.ones(32, dtype=torch.bfloat16)
    tensors["model.embed_tokens.weight"] = matrix(512, 32, 0.5)
    first = {name: tensor for name, tensor in tensors.items() if "layers.0" in name}
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file({n: t for n, t in tensors.items() if n not in first}, folder / "model-00002-of-00002.safetensors")
    return folder


def expected(weight: torch.Tensor) -> float:
    """The published definition, by a singular value decomposition."""
    values = torch.linalg.svdvals(weight.double())
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=torch.float64))
    sigma = (quartiles[1] - quartiles[0]) / 1.349
    edge = sigma * (1 + math.sqrt(min(weight.shape) / max(weight.shape)))
    noise = values[values <= edge].sum()
    return math.inf if noise == 0 else float(values[values > edge].sum() / noise / values[0])


def test_ratios_are_those_of_a_singular_value_decomposition(model: Path, tmp_path: Path) -> None:
    from safetensors import safe_open

    found = spectrum.scan(model, tmp_path / "snr.json", progress=False)
    for path in model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                weight = file.get_tensor(name)
                if weight.ndim == 2:
                    module = name.removesuffix(".weight")
                    assert found[module]["snr"] == pytest.approx(expected(weight), rel=1e-9)


def test_the_file_has_the_published_shape(model: Path, tmp_path: Path) -> None:
    spectrum.scan(model, tmp_path / "snr.json", progress=False)
    text = (tmp_path / "snr.json").read_text()
    record = json.loads(text)
    assert record["model.layers.2.input_layernorm"] == {"snr": math.inf, "type": "input_layernorm"}
    assert '"snr": Infinity' in text
    assert list(record)[:3] == [f"model.layers.{i}.input_layernorm" for i in range(3)]
    assert not any("bias" in name for name in record)
    assert not (tmp_path / "snr.json.partial").exists()


def test_batches_do_not_change_a_ratio(model: Path, tmp_path: Path) -> None:
    one = spectrum.scan(model, tmp_path / "one.json", batch=1, progress=False)
    many = spectrum.scan(model, tmp_path / "many.json", batch=3, progress=False)
    assert {name: entry["snr"] for name, entry in many.items()} == pytest.approx(
        {name: entry["snr"] for name, entry in one.items()}, rel=1e-12
    )


def test_a_killed_scan_keeps_what_it_measured(model: Path, tmp_path: Path) -> None:
    out, module = tmp_path / "snr.json", "model.layers.1.mlp.up_proj"
    partial = {"model": fingerprint(stored_tensors(model)), "snr": {module: 123.0}}
    (tmp_path / "snr.json.partial").write_text(json.dumps(partial))
    assert spectrum.scan(model, out, progress=False)[module]["snr"] == 123.0


def test_what_another_model_left_is_measured_again(model: Path, tmp_path: Path) -> None:
    module = "model.layers.1.mlp.up_proj"
    (tmp_path / "snr.json.partial").write_text(json.dumps({"model": "another", "snr": {module: 123.0}}))
    assert spectrum.scan(model, tmp_path / "snr.json", progress=False)[module]["snr"] != 123.0


def test_a_fine_tuned_model_has_another_fingerprint(model: Path) -> None:
    before = fingerprint(stored_tensors(model))
    path = model / "model-00002-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    assert fingerprint(stored_tensors(model)) != before


def test_weights_that_are_not_finite_are_named(model: Path, tmp_path: Path) -> None:
    tensors = {"model.layers.0.mlp.up_proj.weight": torch.full((8, 4), math.nan)}
    (model / "model-00002-of-00002.safetensors").unlink()
    save_file(tensors, model / "model-00001-of-00002.safetensors")
    with pytest.raises(BadInput, match=r"model\.layers\.0\.mlp\.up_proj\.weight"):
        spectrum.scan(model, tmp_path / "snr.json", progress=False)


def test_a_file_cut_short_is_named(model: Path) -> None:
    path = model / "model-00002-of-00002.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadInput, match="cut short"):
        stored_tensors(model)


def test_names_and_shapes_need_no_weights(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert names_command(str(model), as_json=True) == 0
    shapes = json.loads(capsys.readouterr().out)
    assert shapes["model.embed_tokens.weight"] == [512, 32]
    assert len(shapes) == 13
