"""Hours of training end in a folder: nothing that only describes the model may cost it, and no folder that would load as
something else may be called a success."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
)

from tests.support.data_job import FIXTURES, data_job
from trainer.data.prepare import prepare
from trainer.data.tokenizer import load_tokenizer
from trainer.export import card_text, example, model_folder, older_tools, same_logits, shards, weights
from trainer.run.exits import TrainingFailed
from trainer.run.run_folder import RunDir
from trainer.run.spec import NodeJob
from trainer.run.weights_index import StoredTensor, stored_tensors

SHAPE = {"hidden_size": 8, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}


def tiny_model(vocabulary: int = 320, **settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, num_hidden_layers=1, **SHAPE, **settings))


def state_of(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}


def export(job: NodeJob, model: LlamaForCausalLM, state: dict[str, torch.Tensor]) -> Path:
    tokenizer = load_tokenizer(job.spec.model)
    return model_folder.write(job, model, tokenizer, gathered(state), [], lambda: "a card")


def gathered(state: dict[str, torch.Tensor]) -> Iterator[shards.Gathered]:
    """As the engine hands weights out: names that share a tensor together."""
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    for name, tensor in state.items():
        if names[id(tensor)][0] == name:
            yield tuple(names[id(tensor)]), tensor


def base_of(job: NodeJob, model: LlamaForCausalLM, stored: dict[str, torch.Tensor]) -> dict[str, StoredTensor]:
    """Give the job's base these weights."""
    folder = Path(job.spec.model.base)
    model.config.save_pretrained(folder)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    return model_folder.base_tensors(job)


@pytest.fixture
def job(tmp_path: Path) -> NodeJob:
    job = data_job(tmp_path, FIXTURES / "systemchat-2.0.jsonl")
    prepare(job)
    return job


def test_a_card_that_cannot_be_made_costs_no_model(job: NodeJob, capsys: pytest.CaptureFixture[str]) -> None:
    def describe() -> str:
        raise KeyError("a fact that is not there")

    model, tokenizer = tiny_model(), load_tokenizer(job.spec.model)
    folder = model_folder.write(job, model, tokenizer, gathered(state_of(model)), [], describe)
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= {
        path.name for path in folder.iterdir()
    }
    assert not (folder / "README.md").exists()
    assert "warning: the model card could not be made" in capsys.readouterr().out


def test_a_sample_that_cannot_be_drawn_is_told_and_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert model_folder.sample_of(tmp_path / "no-such-model", RunDir(tmp_path)) is None
    assert "the sample answer could not be made" in capsys.readouterr().out


def test_sampling_settings_that_transformers_refuses_to_write_cost_no_model(job: NodeJob) -> None:
    model = tiny_model()
    model.generation_config = GenerationConfig(temperature=0.6, top_p=0.9, do_sample=False)
    folder = export(job, model, state_of(model))
    settings = json.loads((folder / "generation_config.json").read_text())
    assert (settings["temperature"], settings["top_p"], settings["do_sample"]) == (0.6, 0.9, True)
    assert (folder / "model.safetensors").exists()


def test_a_parameter_that_was_not_gathered_is_no_success(job: NodeJob) -> None:
    state = state_of(tiny_model())
    del state["model.layers.0.mlp.up_proj.weight"]
    with pytest.raises(TrainingFailed, match=r"would lack model.layers.0.mlp.up_proj.weight"):
        export(job, tiny_model(), state)
    assert not RunDir(job.run_dir).model.exists()


def test_a_tied_head_is_written_once(job: NodeJob) -> None:
    model = tiny_model(tie_word_embeddings=True)
    state = state_of(model)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    folder = export(job, model, state)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")


def test_an_export_holds_one_file_of_the_model_in_memory(job: NodeJob, tmp_path: Path) -> None:
    """A model of 141 GB on a host of 128."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, num_hidden_layers=24, **SHAPE))
    whole = state_of(model)
    sizes = {name: tensor.numel() * 2 for name, tensor in whole.items()}
    layer = sum(size for name, size in sizes.items() if ".layers.0." in name)
    alive: dict[str, int] = {}
    most = 0

    def as_they_come() -> Iterator[shards.Gathered]:
        nonlocal most
        for name in whole:
            tensor = whole[name].clone()
            alive[name] = sizes[name]
            weakref.finalize(tensor, alive.pop, name)
            most = max(most, sum(alive.values()))
            yield (name,), tensor
            del tensor

    shards.write(model, tmp_path / "model", as_they_come(), {}, limit=3 * layer)
    index = json.loads((tmp_path / "model" / shards.INDEX).read_text())
    assert len(set(index["weight_map"].values())) >= 6
    assert index["metadata"]["total_size"] == sum(sizes.values())
    assert most <= max(4 * layer, sizes["lm_head.weight"] + 4 * layer) < sum(sizes.values()) / 2
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).state_dict()
    assert {name for name in whole if not torch.equal(loaded[name], whole[name])} == set()


def test_experts_that_a_family_keeps_apart_in_its_files_are_apart_in_every_one(tmp_path: Path) -> None:
    settings = {
        "num_hidden_layers": 3,
        "moe_intermediate_size": 8,
        "num_experts": 4,
        "shared_expert_intermediate_size": 8,
    }
    model = Qwen2MoeForCausalLM(Qwen2MoeConfig(vocab_size=64, tie_word_embeddings=True, **SHAPE, **settings))
    state = {name: tensor.detach().bfloat16() for name, tensor in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.save_pretrained(tmp_path / "at-once", state_dict=dict(state))
    shards.write(model, tmp_path / "by-file", gathered(state), {}, limit=1)
    at_once, by_file = (stored_tensors(tmp_path / name) for name in ("at-once", "by-file"))
    assert len({tensor.file for tensor in by_file.values()}) == 5
    assert "model.layers.2.mlp.experts.3.up_proj.weight" in by_file
    assert by_file.keys() == at_once.keys()
    files = {tensor.file: load_file(tensor.file) for tensor in (*at_once.values(), *by_file.values())}
    assert all(torch.equal(files[at_once[name].file][name], files[by_file[name].file][name]) for name in at_once)


def test_the_base_s_names_shapes_and_exceptions_of_type_are_kept(job: NodeJob) -> None:
    """A base in bf16 that holds one tensor in fp32: untouched by training, it is exported to its last digit."""
    model, precise = tiny_model(), "model.norm.weight"
    stored = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    stored[precise] = torch.full((8,), 1.2345678)
    choose = weights.dtype_chooser(model, base_of(job, model, stored))
    assert choose(precise, stored[precise]) == torch.float32
    assert choose("lm_head.weight", stored[precise]) == torch.bfloat16
    trained = {name: tensor.to(torch.bfloat16).to(choose(name, tensor)) for name, tensor in stored.items()}
    written = load_file(export(job, model, trained) / "model.safetensors")
    assert {name: (t.dtype, t.shape) for name, t in written.items()} == {
        name: (t.dtype, t.shape) for name, t in stored.items()
    }
    assert torch.equal(written[precise], stored[precise])


def test_a_base_in_fp32_is_exported_in_bf16(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(4)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert weights.dtype_chooser(tiny_model(), stored_tensors(tmp_path))("a", torch.zeros(4)) == torch.bfloat16


def test_another_shape_than_the_base_s_is_no_success(job: NodeJob) -> None:
    stored = dict(tiny_model().state_dict())
    stored["model.norm.weight"] = torch.ones(16)
    base_of(job, tiny_model(), stored)
    with pytest.raises(TrainingFailed, match=r"model.norm.weight in the shape \(8,\), the base in \(16,\).*\.partial"):
        export(job, tiny_model(), state_of(tiny_model()))


def test_names_that_only_the_base_has_are_told(job: NodeJob, capsys: pytest.CaptureFixture[str]) -> None:
    stored = dict(tiny_model().state_dict()) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    base_of(job, tiny_model(), stored)
    export(job, tiny_model(), state_of(tiny_model()))
    assert "rotary_emb.inv_freq, which the model does not use: left out" in capsys.readouterr().out


def test_a_folder_that_would_load_with_random_weights_is_no_success(job: NodeJob, tmp_path: Path) -> None:
    """Were the names written otherwise than transformers reads them, it would fill the gaps at random."""
    model = tiny_model()
    model.save_pretrained(tmp_path / "base")
    written = load_file(tmp_path / "base" / "model.safetensors")
    folder = tmp_path / "export"
    model.save_pretrained(folder)
    renamed = {name.replace("up_proj", "w3"): tensor for name, tensor in written.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(TrainingFailed, match=r"mlp\.up_proj\.weight would be random"):
        weights.compare(folder, model, stored_tensors(tmp_path / "base"))


def test_the_card_shows_a_conversation_as_it_was_rendered_and_what_ends_an_answer(job: NodeJob) -> None:
    shown = example.of_run(job.run_dir, load_tokenizer(job.spec.model))
    assert shown is not None
    assert shown.text.startswith(
        "<|im_start|>system\nSpeak like a pirate.<|im_end|>\n<|im_start|>user\nHello<|im_end|>"
    )
    assert shown.text.endswith("Ahoy!<|im_end|>")
    assert shown.end == "<|im_end|>"


def test_a_conversation_with_code_in_it_does_not_end_the_card_s_fence() -> None:
    assert card_text.fence_around("a ```python\nx``` b") == "````"
    assert card_text.fence_around("no ticks") == "```"


def test_keys_that_only_the_base_s_configuration_has_are_kept_and_changed_ones_are_not() -> None:
    written = {"model_type": "llama", "dtype": "bfloat16"}
    full = written | {"vocab_size": 32000, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}}
    base = {"vocab_size": 31999, "pretraining_tp": 1, "torch_dtype": "float32", "_name_or_path": "x", "auto_map": {}}
    merged = older_tools.with_older_names(written, full, base)
    assert merged == written | {
        "vocab_size": 32000, "pretraining_tp": 1, "torch_dtype": "bfloat16", "rope_theta": 7.0, "rope_scaling": None,
    }  # fmt: skip


def reference_of(model: LlamaForCausalLM) -> same_logits.Reference:
    rows = ((5, 6, 7, 8, 9, 10, 11, 12), (20, 30, 40, 50, 60))
    with torch.no_grad():
        return same_logits.Reference(rows, tuple(model.eval()(torch.tensor([row])).logits[0] for row in rows))


def test_an_export_of_another_model_than_the_trained_one_is_no_success(
    job: NodeJob, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names, shapes and types are right, and one matrix is not what was trained."""
    model, tokenizer = tiny_model(), load_tokenizer(job.spec.model)
    reference, state = reference_of(model), state_of(model)
    model_folder.write(job, model, tokenizer, gathered(state), [], lambda: "a card", reference)
    assert "logits differ by 0.0" in capsys.readouterr().out
    state["model.embed_tokens.weight"] = state["model.embed_tokens.weight"].flip(0)
    with pytest.raises(TrainingFailed, match="another model than the trained one"):
        model_folder.write(job, model, tokenizer, gathered(state), [], lambda: "a card", reference)


def test_an_export_that_does_not_fit_into_memory_is_not_loaded_and_it_is_told(
    job: NodeJob, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(same_logits, "free_memory_bytes", lambda: 1000)
    model, tokenizer = tiny_model(), load_tokenizer(job.spec.model)
    model_folder.write(job, model, tokenizer, gathered(state_of(model)), [], lambda: "a card", reference_of(model))
    assert "not compared with the trained model's" in capsys.readouterr().out


@pytest.mark.parametrize("tied", [True, False])
def test_what_vllm_s_loader_looks_at_is_there(job: NodeJob, tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the class from `architectures`, the type from `torch_dtype` or `dtype`, the files from the index (any other
    .safetensors beside them would be loaded too where there is none), leaves out a tied head, and stops at every stop token of
    generation_config.json."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 2000)
    monkeypatch.setattr(shards.write, "__defaults__", (2000,))
    model = tiny_model(tie_word_embeddings=tied)
    state = state_of(model)
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    folder = model_folder.write(job, model, load_tokenizer(job.spec.model), gathered(state), [5, 7], lambda: "a card")
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(places.values()) == {path.name for path in folder.glob("*.safetensors")}
    assert len(set(places.values())) > 1
    assert set(places) == set(stored_tensors(folder))
    assert ("lm_head.weight" in places) is not config["tie_word_embeddings"]
    assert {5, 7} <= set(json.loads((folder / "generation_config.json").read_text())["eos_token_id"])
