"""A GGUF file that another program reads as another model: rotary pairs in the wrong order, norms off by one, a tokenizer that cuts
otherwise. transformers has a reader of its own for GGUF, which is the judge here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("gguf")

import gguf

from launcher.commands.export import export_command
from launcher.runs.errors import BadUsage
from tests.support.tiny_job import write_model
from trainer.finished.gguf import convert, modelfile, read_back, tokens
from trainer.run.chat_templates.registry import TEMPLATES
from trainer.run.exits import BadInput, TrainingFailed

IDS = list(range(5, 55))
KEYS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "max_position_embeddings", "rms_norm_eps",
)  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 54321.0}
GEMMA = {"query_pre_attn_scalar": 16, "sliding_window": 8, "tie_word_embeddings": True, "head_dim": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3},
    "mistral": {"rope_parameters": PLAIN, "sliding_window": None},
    "qwen2": {"rope_parameters": PLAIN, "tie_word_embeddings": True},
    "qwen3": {"rope_parameters": PLAIN, "head_dim": 32},
    "gemma2": GEMMA | {"rope_parameters": PLAIN},
    "gemma3_text": GEMMA | {
        "layer_types": ["sliding_attention"] * 2,
        "rope_parameters": {
            "full_attention": PLAIN | {"rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1234.0},
        },
    },
}  # fmt: skip


def folder_of(family: str, folder: Path, **settings: Any) -> Path:
    """A random model of the family with norms that are not 1, beside a tokenizer with a chat template."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

    write_model(folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATES["chatml"].text
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        **{
            "vocab_size": len(tokenizer) + 3, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 256, "tie_word_embeddings": False,
            "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        } | json.loads(json.dumps(settings))
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    ids = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end_of_text|>")]
    GenerationConfig(eos_token_id=ids, bos_token_id=tokenizer.bos_token_id).save_pretrained(folder)
    return folder


def logits(folder: Path, **options: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_computes_the_same_when_another_reader_takes_it(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    folder = folder_of(family, tmp_path / "model", **FAMILIES[family])
    said: list[str] = []
    files = convert.write(folder, ("f16", "q8_0"), "tiny", said.append)
    assert [path.name for path in files] == ["tiny-f16.gguf", "tiny-q8_0.gguf"]
    assert all("read back" in line for line in said)
    config = AutoConfig.from_pretrained(folder)
    expected = logits(folder)
    given = {"config": config} if family != "mistral" else {}  # which is a llama there
    found = logits(folder / "gguf", gguf_file="tiny-f16.gguf", **given)
    assert float((found - expected).abs().max() / expected.std()) < 0.02
    read = AutoConfig.from_pretrained(folder / "gguf", gguf_file="tiny-f16.gguf")
    for name in KEYS:
        assert getattr(read, name) == pytest.approx(getattr(config, name)), name
    rounded = logits(folder / "gguf", gguf_file="tiny-q8_0.gguf", **given)
    assert float((rounded - expected).abs().median() / expected.std()) < 0.1


def test_the_frequencies_of_llama_3_1_are_those_that_transformers_computes(tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    folder = folder_of("llama", tmp_path / "model", rope_parameters=LLAMA3)
    (path,) = convert.write(folder, ("bf16",), "tiny", print)
    reader = gguf.GGUFReader(path)
    (factors,) = [tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"]
    config = convert.Source.read(folder).config
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 16, 2).float() / 16)
    torch.testing.assert_close(plain / torch.tensor(factors), scaled)
    assert reader.get_field("llama.rope.scaling.type") is None


def test_what_ends_an_answer_and_what_begins_one_is_in_the_file(tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path / "model", rope_parameters=PLAIN)
    (path,) = convert.write(folder, ("f16",), "tiny", print)
    held = {
        field: value.contents()
        for field, value in gguf.GGUFReader(path).fields.items()
        if field.startswith("tokenizer.")
    }
    by_text = {text: number for number, text in enumerate(held["tokenizer.ggml.tokens"])}
    assert held["tokenizer.ggml.eos_token_id"] == by_text["<|im_end|>"]
    assert held["tokenizer.ggml.eot_token_id"] == by_text["<|end_of_text|>"]
    assert held["tokenizer.ggml.pre"] == "gpt-2"
    assert held["tokenizer.ggml.token_type"][by_text["<|im_start|>"]] == tokens.CONTROL
    assert held["tokenizer.ggml.token_type"][-3:] == [tokens.UNUSED] * 3
    assert held["tokenizer.chat_template"] == TEMPLATES["chatml"].text
    ollama = (folder / "gguf" / "Modelfile").read_text()
    assert "FROM ./tiny-f16.gguf" in ollama
    assert 'PARAMETER stop "<|im_end|>"' in ollama
    assert '{{ if eq .Role "system" }}<|im_start|>system\n{{ .Content }}<|im_end|>\n' in ollama


def test_a_file_that_does_not_read_as_the_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disaster: q and k in transformers' order, which a reader turns into noise in silence."""
    folder = folder_of("qwen3", tmp_path / "model", **FAMILIES["qwen3"])
    (path,) = convert.write(folder, ("f16",), "tiny", print)
    source = convert.Source.read(folder)
    convert.write(folder, ("q8_0",), "tiny", print)
    convert.write(folder, ("bf16",), "tiny", print)
    assert "FROM ./tiny-q8_0.gguf" in (folder / "gguf" / "Modelfile").read_text(), "the smallest that is there"
    read_back.check(source, path, "f16")
    content = bytearray(path.read_bytes())
    content[-4:] = b"\x00\x40\x00\x40"
    path.write_bytes(content)
    with pytest.raises(TrainingFailed, match="does not read as the model's"):
        read_back.check(source, path, "f16")


def test_a_kind_that_only_llama_cpp_makes_is_said_where_it_is_not_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = convert.importlib.util.find_spec
    monkeypatch.setattr(convert.importlib.util, "find_spec", lambda name: None if name == "llama_cpp" else find(name))
    folder = folder_of("qwen2", tmp_path / "model", **FAMILIES["qwen2"])
    said: list[str] = []
    files = convert.write(folder, ("q8_0", "q4_k_m"), "tiny", said.append)
    assert [path.name for path in files] == ["tiny-q8_0.gguf"]
    assert any("q4_k_m not written" in line for line in said)


def test_a_model_that_gguf_would_compute_otherwise_is_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="gpt_neox is not written"):
        convert.write(folder_of("gpt_neox", tmp_path / "neox"), ("f16",), "tiny", print)
    scalar = GEMMA | {"rope_parameters": PLAIN, "query_pre_attn_scalar": 100}
    with pytest.raises(BadInput, match="query_pre_attn_scalar is 100"):
        convert.write(folder_of("gemma2", tmp_path / "gemma", **scalar), ("f16",), "tiny", print)
    window = {"rope_parameters": PLAIN, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    with pytest.raises(BadInput, match="window"):
        convert.write(folder_of("qwen2", tmp_path / "qwen", **window), ("f16",), "tiny", print)


@pytest.mark.parametrize(
    ("pattern", "ignores", "name"),
    [
        (next(iter(tokens.CUTS)), True, "llama-bpe"),
        (next(iter(tokens.CUTS)), False, "dbrx"),
        (list(tokens.CUTS)[1], False, "qwen2"),
        (list(tokens.CUTS)[2], True, "tekken"),
    ],
)
def test_the_way_to_cut_text_is_known_by_its_expression(pattern: str, ignores: bool, name: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    assert tokens.cut_of({"pre_tokenizer": steps, "model": {"ignore_merges": ignores}}) == name


def test_another_way_to_cut_text_is_not_guessed() -> None:
    steps = {"type": "Split", "pattern": {"Regex": r"\w+"}}
    with pytest.raises(BadInput, match="no name in GGUF here"):
        tokens.cut_of({"pre_tokenizer": steps, "model": {}})


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma3"])
def test_ollama_s_template_writes_the_conversations_of_the_tokenizer_s(name: str, tmp_path: Path) -> None:
    """Where roles have something around them each; another template is left to Ollama, and said."""
    from transformers import PreTrainedTokenizerFast

    write_model(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.chat_template = TEMPLATES[name].text
    tokenizer.save_pretrained(tmp_path)
    held = tokens.read(tokenizer, len(tokenizer), [])
    _, has_template = modelfile.of(held, "x.gguf", tmp_path)
    assert has_template == (name != "gemma3"), "gemma's system words stand in the user's turn"


def test_a_number_format_that_is_none_is_a_mistake_of_the_command_line(tmp_path):
    with pytest.raises(BadUsage, match="--kind q9: is no number format of GGUF; use f16"):
        export_command(str(tmp_path), ["f16", "q9"])
