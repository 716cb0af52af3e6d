"""Adapters: gradients as peft's own, files that peft loads as they were trained, a merge that is the sum, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("peft")

from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.support import tiny_job
from trainer.data.batch import IGNORE
from trainer.export import adapter_folder, load_folder, merge
from trainer.model import adapter as adapters
from trainer.model import build, token_rows
from trainer.model.packed import PackedModel, Way
from trainer.run.exits import BadInput, TrainingFailed
from trainer.run.run_folder import RunDir
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob

ADDED = (320, 321)
IDS = torch.tensor([[3, 9, 320, 40, 7, 321, 12, 5]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, and `tied` with one matrix for both embeddings."""
    root = tmp_path_factory.mktemp("adapters")
    tiny_job.write_model(root / "base")
    model = AutoModelForCausalLM.from_pretrained(root / "base")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(root / "tied")
    for path in (root / "base").glob("tokenizer*"):
        (root / "tied" / path.name).write_bytes(path.read_bytes())
    return root


def spec(**settings: Any) -> AdapterSpec:
    return AdapterSpec(**{"type": "lora", "rank": 4, "alpha": 8, **settings})


def load(base: Path, grown: bool = False) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if grown:
        build.grow_vocabulary(model, 322)
    return model


def shaken(model: Any) -> None:
    """Trained parameters as training might leave them: a fresh adapter adds nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.05)


def test_gradients_are_those_of_peft(bases: Path) -> None:
    ours, theirs = load(bases / "base"), load(bases / "base")
    adapters.inject(ours, spec(), (), seed=1)
    torch.manual_seed(1)
    reference = get_peft_model(
        theirs, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    )
    for model in (ours, theirs):
        shaken(model)
    ids = IDS % 300
    labels = torch.cat([ids[:, 1:], torch.full((1, 1), IGNORE)], dim=1)
    packed = PackedModel(ours, 4, Way())
    boundaries = torch.tensor([0, 8], dtype=torch.int32)
    weights = (labels != IGNORE).float()
    packed(ids, labels, weights, torch.arange(8)[None], boundaries, 8).backward()
    (reference(input_ids=ids, labels=ids).loss * 7).backward()
    wanted = {n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert wanted
    for name, gradient in wanted.items():
        assert gradient is not None
        assert torch.allclose(found[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("base", ["base", "tied"])
def test_rows_of_added_tokens_are_trained_as_rows_of_the_matrices(bases: Path, base: str) -> None:
    """The same loss and gradients as training the whole matrices, of those rows and no other."""
    alone, whole = load(bases / base, grown=True), load(bases / base, grown=True)
    adapters.inject(alone, spec(trainable_tokens=True), ADDED, seed=1)
    adapters.inject(whole, spec(modules_to_save=("embed_tokens", "lm_head")), ADDED, seed=1)
    labels, boundaries = IDS.roll(-1, 1), torch.tensor([0, 8], dtype=torch.int32)
    losses = []
    for model in (alone, whole):
        packed = PackedModel(model, 4, Way())
        loss = packed(IDS, labels, torch.ones(1, 8), torch.arange(8)[None], boundaries, 8)
        loss.backward()
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    embedding, head = alone.model.embed_tokens, alone.get_output_embeddings()
    assert embedding.weight.grad is None
    pairs = {embedding: whole.model.embed_tokens.weight, head: whole.get_output_embeddings().weight}
    for module, matrix in pairs.items():
        assert torch.allclose(getattr(module, token_rows.NAME).grad, matrix.grad[list(ADDED)], atol=1e-6)
    assert (getattr(head, token_rows.NAME) is getattr(embedding, token_rows.NAME)) == (base == "tied")


KINDS: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "lora": ("base", {}, ()),
    "rslora on two names": ("base", {"rslora": True, "target": ("q_proj", "down_proj")}, ()),
    "dora": ("base", {"dora": True}, ()),
    "one layer": ("base", {"layers": (1,), "exclude": ("k_proj",)}, ()),
    "pissa": ("base", {"init": "pissa"}, ()),
    "olora, rank stabilised": ("base", {"init": "olora", "rslora": True}, ()),
    "whole embeddings": ("base", {"modules_to_save": ("embed_tokens", "lm_head")}, ADDED),
    "whole embeddings, tied": ("tied", {"modules_to_save": ("embed_tokens", "lm_head")}, ADDED),
    "rows": ("base", {"trainable_tokens": True}, ADDED),
    "rows, tied": ("tied", {"trainable_tokens": True}, ADDED),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_loads_in_peft_as_what_was_trained_and_merges_into_it(
    bases: Path, kind: str, tmp_path: Path
) -> None:
    base, settings, added = KINDS[kind]
    model = load(bases / base, grown=bool(added))
    adapter = adapters.inject(model, spec(**settings), added, seed=1)
    shaken(model)
    folder = exported(bases / base, model, adapter, tmp_path)
    rows = [[i % 300 for i in range(5, 25)], [int(i) if added else int(i) % 300 for i in IDS[0]]]
    expected = logits_of(model, rows)

    loaded = load(bases / base, grown=bool(added))
    assert torch.allclose(logits_of(PeftModel.from_pretrained(loaded, folder), rows), expected, atol=2e-4)
    merge.merge(folder, tmp_path / "merged", rows)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert (logits_of(merged, rows) - expected).abs().max() < merge.TOLERANCE * expected.std()
    assert not list(tmp_path.glob(".*"))


def test_a_merge_that_is_not_the_sum_is_not_kept(bases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(bases / "base")
    adapter = adapters.inject(model, spec(), (), seed=1)
    shaken(model)
    folder = exported(bases / "base", model, adapter, tmp_path)
    monkeypatch.setattr(merge._Changes, "_layer", lambda self, module, tensor: tensor)  # the base's own weights
    with pytest.raises(TrainingFailed, match="differ from those of base and adapter"):
        merge.merge(folder, tmp_path / "merged", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "job"]


@pytest.mark.parametrize(
    ("base", "settings", "added", "message"),
    [
        ("base", {"target": ("q_proj", "nowhere")}, (), "'nowhere' names no linear layer of the base; it has down_proj"),
        ("base", {"target": r"model\.nothing.*"}, (), "names no linear layer"),
        ("base", {"target": ("lm_head",)}, (), r"train it whole by train.adapter.modules_to_save: \[lm_head\]"),
        ("base", {"modules_to_save": ("wte",)}, (), "'wte' names no module of the base"),
        ("tied", {"modules_to_save": ("embed_tokens",)}, (), "and not lm_head, which is the same matrix"),
        ("base", {}, ADDED, "adds 2 tokens .ids 320, 321. whose embedding rows no adapter trains.*trainable_tokens: true"),
        ("base", {"modules_to_save": ("embed_tokens",)}, ADDED, "whose embedding rows no adapter trains"),
        ("base", {"modules_to_save": ("lm_head",), "trainable_tokens": True}, ADDED, "trains lm_head whole; remove one"),
    ],
)  # fmt: skip
def test_what_would_train_nothing_or_half_is_refused(
    bases: Path, base: str, settings: dict[str, Any], added: tuple[int, ...], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        adapters.inject(load(bases / base, grown=bool(added)), spec(**settings), added, seed=1)


def test_what_cannot_be_read_is_told_in_a_line_and_leaves_nothing(bases: Path, tmp_path: Path) -> None:
    model = load(bases / "base")
    folder = exported(bases / "base", model, adapters.inject(model, spec(), (), seed=1), tmp_path)
    weights, config = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    whole, settings = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(folder, "adapter_model.safetensors cannot be read")
    weights.unlink()
    refused(folder, "adapter_model.safetensors cannot be read")
    weights.write_bytes(whole)
    config.write_text(settings.replace(str(bases / "base"), "/nowhere/at/all"))
    refused(folder, "model.base '/nowhere/at/all' does not load")
    config.write_text("{")
    refused(folder, "is no adapter folder")


def test_an_adapter_folder_answers_beside_its_base_and_says_where_that_is_missing(bases: Path, tmp_path: Path) -> None:
    model = load(bases / "base", grown=True)
    adapter = adapters.inject(model, spec(trainable_tokens=True), ADDED, seed=1)
    shaken(model)
    folder = exported(bases / "base", model, adapter, tmp_path)
    rows = [[int(i) for i in IDS[0]]]
    found = load_folder.model_of(folder, torch.float32)
    assert not found.training
    assert torch.allclose(logits_of(found, rows), logits_of(model, rows), atol=2e-4)
    whole = (bases / "base" / "model.safetensors").stat().st_size
    assert load_folder.size_bytes(folder) > 0.9 * whole, "the base's weights are read too"

    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace(str(bases / "base"), "/nowhere/at/all"))
    with pytest.raises(BadInput, match=f"the base of {folder}, /nowhere/at/all, does not load") as raised:
        load_folder.model_of(folder, torch.float32)
    assert "\n" not in str(raised.value)
    again = load_folder.model_of(folder, torch.float32, str(bases / "base"))
    assert torch.allclose(logits_of(again, rows), logits_of(model, rows), atol=2e-4)
    with pytest.raises(BadInput, match="there is no base to name"):
        load_folder.model_of(bases / "base", torch.float32, "x")


def test_what_reads_a_model_takes_an_adapter_for_its_base_and_not_for_a_model_of_small_matrices(
    bases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launcher.commands.spectrum import names_command
    from trainer.model.spectrum import main as scan

    model = load(bases / "base")
    folder = exported(bases / "base", model, adapters.inject(model, spec(), (), seed=1), tmp_path)
    assert scan([str(folder), "--out", str(tmp_path / "adapter.json")]) == 0
    assert scan([str(bases / "base"), "--out", str(tmp_path / "base.json")]) == 0
    assert (tmp_path / "adapter.json").read_bytes() == (tmp_path / "base.json").read_bytes()
    assert names_command(str(folder)) == 0
    assert "model.layers.1.mlp.down_proj.weight" in capsys.readouterr().out


def refused(folder: Path, message: str) -> None:
    with pytest.raises(BadInput, match=message) as raised:
        merge.merge(folder, folder.parent / "merged", None)
    assert "\n" not in str(raised.value)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["adapter", "job"]


def test_a_server_is_told_what_it_takes() -> None:
    plain = {"r": 64, "bias": "none", "modules_to_save": None, "use_dora": False}
    assert "--max-lora-rank 64" in adapter_folder.where_it_loads(plain)
    for change in ({"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": {"lm_head": [1]}}):
        assert "vLLM cannot serve it" in adapter_folder.where_it_loads(plain | change)


def logits_of(model: Any, rows: list[list[int]]) -> torch.Tensor:
    head = getattr(model, "lm_head", None)
    with torch.no_grad():
        if head is not None and hasattr(head, token_rows.NAME):  # asked for a loss in training, for logits only here
            hidden = torch.cat([model.model(torch.tensor([row])).last_hidden_state[0] for row in rows])
            return hidden @ token_rows.effective(head.weight, head).T
        return torch.cat([model(torch.tensor([row])).logits[0] for row in rows])


def exported(base: Path, model: Any, adapter: adapters.Adapter, root: Path) -> Path:
    """The adapter's folder with a tokenizer as large as the model's vocabulary."""
    from transformers import AutoTokenizer

    folder = root / "adapter"
    folder.mkdir()
    run: RunDir = tiny_job_of(base, root / "job")
    state = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    adapter_folder.write_files(adapter, NodeJob.read(run.train_json), state, folder)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens([f"<{n}>" for n in range(model.get_input_embeddings().weight.shape[0] - len(tokenizer))])
    tokenizer.save_pretrained(folder)
    return folder


def tiny_job_of(base: Path, folder: Path) -> RunDir:
    """A train.json whose base is `base`."""
    folder.mkdir()
    spec = {"name": "x", "model": {"base": str(base)}, "data": {"sources": [{"path": "x.jsonl"}]},
            "train": {"global_batch": 1, "zero": 0, "adapter": {"type": "lora"}}}  # fmt: skip
    job = {"run_id": "x", "run_dir": str(folder), "cache_dir": str(folder), "nproc": 1, "device": "cpu", "spec": spec}
    (folder / "train.json").write_text(json.dumps(job))
    return RunDir(folder)
