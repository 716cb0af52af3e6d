"""An axolotl configuration is taken as it is: nothing in it is dropped in silence, and nothing is trained that it did not ask for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.config.problems import SpecErrors
from launcher.config.yaml_lines import read_yaml
from launcher.jobfile.axolotl.account import Conversion
from launcher.jobfile.axolotl.convert import convert
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec

ROOT = Path(__file__).parents[2]

BASE = """\
base_model: Qwen/Qwen3-0.6B-Base
datasets:
  - path: owner/rows
    type: chat_template
learning_rate: 2e-5
"""


def configuration(changes: str, base: str = BASE) -> dict[str, Any]:
    """BASE with the keys of `changes` in the place of its own."""
    data = dict(read_yaml(base).data)
    data.update(read_yaml(changes).data or {})
    return data


def got(job: dict[str, Any], setting: str) -> Any:
    for part in setting.split("."):
        job = job[int(part)] if part.isdigit() else job.get(part, "(not stated)")  # type: ignore[assignment]
        if job == "(not stated)":
            break
    return job


def accounted(conversion: Conversion) -> set[str]:
    told = [entry.key for entry in conversion.mapped] + [key for key, _ in conversion.no_effect]
    return {key.partition("[")[0].partition(".")[0] for key in told} | {str(f.where[0]) for f in conversion.errors}


MAPPED: list[tuple[str, str, dict[str, Any]]] = [
    # (what it is, what it changes, what the job says)
    ("quoted-number", 'learning_rate: "5e-6"', {"train.learning_rate": 5e-6}),
    ("sharegpt-chatml", "datasets: [{path: owner/r, type: sharegpt, conversation: chatml}]", {"data.sources.0.format": "sharegpt", "model.chat_template": "chatml", "data.sources.0.path": "hf://owner/r"}),
    ("sharegpt-old-loader", "datasets: [{path: ./r.jsonl, type: 'sharegpt.load_role', conversation: chatml}]", {"data.sources.0.format": "sharegpt", "data.sources.0.path": "./r.jsonl"}),
    ("chat-template-own-field", "datasets: [{path: owner/r, type: chat_template, field_messages: conversations, message_property_mappings: {role: from, content: value}}]", {"data.sources.0.format": "sharegpt", "model.chat_template": "tokenizer"}),
    ("chat-template-odd-field", "datasets: [{path: owner/r, type: chat_template, field_messages: dialogue, message_field_role: from, message_field_content: value}]", {"data.sources.0.fields": {"messages": "dialogue"}}),
    ("family-template", "chat_template: gemma3\neot_tokens: [<end_of_turn>]", {"model.chat_template": "gemma3"}),
    ("chat-template-roles", "datasets: [{path: owner/r, type: chat_template, roles: {user: [human, user], assistant: [gpt]}, roles_to_train: [assistant], train_on_eos: turn}]", {"data.sources.0.format": "messages"}),
    ("alpaca", "datasets: [{path: ./r.json, type: alpaca, split: 'train[:10%]'}]\nchat_template: chatml", {"data.sources.0.format": "alpaca", "data.sources.0.weight": 0.1, "model.chat_template": "chatml"}),
    ("alpaca-qa", "datasets: [{path: owner/r, type: alpaca_chat.load_qa}]", {"data.sources.0.format": "question-answer"}),
    ("alpaca-system", "datasets: [{path: owner/r, type: alpaca_w_system.load_open_orca}]", {"data.sources.0.format": "alpaca"}),
    ("completion", "datasets: [{path: owner/r, type: completion}]", {"data.sources.0.format": "text", "model.chat_template": "(not stated)"}),
    ("completion-field", "datasets: [{path: owner/r, type: completion, field: body}]", {"data.sources.0.fields": {"text": "body"}}),
    ("segments", "datasets: [{path: owner/r, type: input_output}]", {"data.sources.0.format": "input-output", "model.chat_template": "(not stated)"}),
    ("pretraining", "datasets:\npretraining_dataset: [{path: allenai/c4, name: en, type: pretrain}]\nmax_steps: 100", {"data.sources.0.format": "text", "data.sources.0.subset": "en", "train.max_steps": 100}),
    ("pretraining-word", "datasets:\npretraining_dataset: owner/corpus\nmax_steps: 5", {"data.sources.0.path": "hf://owner/corpus"}),
    ("own-columns", "datasets: [{path: owner/r, type: {field_instruction: q, field_output: a, field_system: s, format: '[Q] {instruction}'}}]", {"data.sources.0.fields": {"prompt": "q", "response": "a", "system": "s"}}),
    ("own-columns-input", "datasets: [{path: owner/r, type: {field_instruction: instruction, field_input: input, field_output: output}}]", {"data.sources.0.format": "alpaca"}),
    ("loader-and-files", "datasets: [{path: json, data_files: [a.jsonl, b.jsonl], ds_type: json, type: chat_template}]", {"data.sources.1.path": "b.jsonl"}),
    ("folder-and-file", "datasets: [{path: ./rows, data_files: a.jsonl, type: chat_template}]", {"data.sources.0.path": "./rows/a.jsonl"}),
    ("shards", "datasets: [{path: owner/r, type: chat_template, shards: 4, shards_idx: 2}]", {"data.sources.0.weight": 0.25, "data.sources.0.shuffle_seed": 2}),
    ("split-count", "datasets: [{path: r.jsonl, type: chat_template, split: 'validation[:500]'}]", {"data.sources.0.split": "validation", "data.sources.0.samples": 500}),
    ("hub-slice", "datasets: [{path: owner/r, type: chat_template, split: 'train[10%:20%]', revision: abc123}]", {"data.sources.0.split": "train[10%:20%]", "data.sources.0.path": "hf://owner/r@abc123"}),
    ("repeats", "datasets: [{path: owner/r, type: chat_template, repeats: 2}]", {"data.sources.0.weight": 2}),
    ("bucket", "datasets: [{path: gcs://bucket/r.jsonl, type: chat_template}]", {"data.sources.0.path": "gs://bucket/r.jsonl"}),
    ("jinja", "chat_template: jinja\nchat_template_jinja: '{{ messages }}'", {"model.chat_template": "{{ messages }}"}),
    ("tokenizer-fallback", "chat_template: tokenizer_default_fallback_chatml", {"model.chat_template": "tokenizer"}),
    ("axolotls-defaults", "", {"data.sequence_length": 512, "data.packing": False, "data.validation_fraction": 0.0, "train.warmup_ratio": 0.03}),
    ("tokens", "tokens: [<a>]\nspecial_tokens: {pad_token: <p>, additional_special_tokens: [<b>]}", {"model.added_tokens": ["<a>", "<b>"], "model.special_tokens": {"pad_token": "<p>"}}),
    ("deepspeed-path", "deepspeed: deepspeed_configs/zero1.json", {"train.zero": 1}),
    ("deepspeed-name", "deepspeed: zero2", {"train.zero": 2}),
    ("deepspeed-old-path", "deepspeed: /workspace/axolotl/deepspeed/zero3_bf16.json", {"train.zero": 3}),
    ("deepspeed-offload", "deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_all.json", {"train.zero": 3, "train.offload": "optimizer"}),
    ("deepspeed-offload-params", "deepspeed: deepspeed_configs/zero3_bf16_cpuoffload_params.json", {"train.zero": 3, "train.offload": "(not stated)"}),
    ("deepspeed-offload-nothing", "deepspeed: {zero_optimization: {stage: 2, offload_optimizer: {device: none}}}", {"train.zero": 2, "train.offload": "(not stated)"}),
    ("deepspeed-inline", "deepspeed: {zero_optimization: {stage: 2, offload_optimizer: {device: cpu}}, bf16: {enabled: true}, gradient_clipping: 0.5}", {"train.zero": 2, "train.offload": "optimizer", "train.max_grad_norm": 0.5}),
    ("deepspeed-scheduler", "deepspeed: {zero_optimization: {stage: 1}, scheduler: {type: WarmupDecayLR, params: {total_num_steps: auto}}}\nlr_scheduler: cosine", {"train.schedule": "linear"}),
    ("fsdp-1", "fsdp: [full_shard, auto_wrap]\nfsdp_config: {fsdp_offload_params: true, fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer}", {"train.zero": 3, "train.offload": "optimizer"}),
    ("fsdp-offload", "fsdp: [full_shard, auto_wrap, offload]", {"train.zero": 3, "train.offload": "optimizer"}),
    ("fsdp-grad", "fsdp: [shard_grad_op, auto_wrap]", {"train.zero": 2}),
    ("fsdp-2", "fsdp_version: 2\nfsdp_config: {reshard_after_forward: true, activation_checkpointing: true, state_dict_type: FULL_STATE_DICT}", {"train.zero": 3, "train.gradient_checkpointing": True}),
    ("fsdp-none", "fsdp: [no_shard, offload]", {"train.zero": 0, "train.offload": "(not stated)"}),
    ("evals", "val_set_size: 0.05\nevals_per_epoch: 1\nsaves_per_epoch: 2", {"train.evaluate_every": "epoch", "checkpoint.every": {"epochs": 0.5, "minutes": 30}}),
    ("count-of-rows", "val_set_size: 2000\nevals_per_epoch: 1", {"data.validation_count": 2000, "data.validation_fraction": "(not stated)", "train.evaluate_every": "epoch"}),
    ("evals-often", "val_set_size: 0.05\nevals_per_epoch: 4", {"train.evaluate_every": {"epochs": 0.25}}),
    ("eval-share", "val_set_size: 0.05\neval_steps: 0.05\nnum_epochs: 3", {"train.evaluate_every": {"epochs": 0.05 * 3}}),
    ("eval-share-of-steps", "val_set_size: 0.05\neval_steps: 0.05\nmax_steps: 90", {"train.evaluate_every": 5}),
    ("eval-steps", "val_set_size: 0.05\neval_steps: 50\nsave_steps: 200\nsave_total_limit: 5", {"train.evaluate_every": 50, "checkpoint.every": {"steps": 200, "minutes": 30}, "checkpoint.keep": 5}),
    ("eval-stop", "val_set_size: 0.05\neval_steps: 50\nearly_stopping_patience: 3\nload_best_model_at_end: true", {"train.stop": {"patience": 3}, "checkpoint.keep_best": "eval_loss", "export.which": "best"}),
    ("eval-table", "val_set_size: 0.05\neval_steps: 50\neval_table_size: 5\neval_max_new_tokens: 64", {"evaluate": {"questions": 5, "max_new_tokens": 64}}),
    ("eval-nothing", "early_stopping_patience: 3\neval_table_size: 5\nload_best_model_at_end: true", {"train.stop": "(not stated)", "evaluate": "(not stated)"}),
    ("eval-never", "val_set_size: 0.05\nevaluation_strategy: 'no'", {"train.evaluate_every": "never"}),
    ("eval-yaml-1.1-no", "val_set_size: 0.05\neval_strategy: false", {"train.evaluate_every": "never"}),
    ("save-one", "save_total_limit: 1\nsave_strategy: epoch", {"checkpoint.keep": 2, "checkpoint.every": {"epochs": 1, "minutes": 30}}),
    ("batch-size", "batch_size: 8\nmicro_batch_size: 2", {"train.accumulation": 4}),
    ("paged-optimizer", "optimizer: paged_adamw_8bit", {"train.optimizer": "adamw_8bit"}),
    ("muon", "optimizer: muon", {"train.optimizer": "muon"}),
    ("betas", "adam_beta2: 0.95\nadam_epsilon: 1e-5\nmax_grad_norm: 1.0", {"train.betas": [0.9, 0.95], "train.epsilon": 1e-5}),
    ("constant", "lr_scheduler: constant\nwarmup_steps: 10", {"train.schedule": "constant", "train.warmup_steps": "(not stated)", "train.warmup_ratio": "(not stated)"}),
    ("constant-warmup", "lr_scheduler: constant_with_warmup\nwarmup_steps: 10", {"train.schedule": "constant", "train.warmup_steps": 10}),
    ("cosine-min", "lr_scheduler: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", {"train.schedule": "cosine", "train.min_lr_ratio": 0.1}),
    ("full-precision", "bf16: false\nfp16: false", {"train.precision": "fp32"}),
    ("half-beside-brain", "bf16: true\nfp16: true", {"train.precision": "bf16"}),
    ("offloaded-activations", "gradient_checkpointing: offload", {"train.gradient_checkpointing": True, "train.activation_offloading": True}),
    ("offloaded-activations-new", "gradient_checkpointing: true\nactivation_offloading: true", {"train.gradient_checkpointing": True, "train.activation_offloading": True}),
    ("offloaded-activations-alone", "activation_offloading: legacy", {"train.gradient_checkpointing": True, "train.activation_offloading": True}),
    ("activations-stay", "gradient_checkpointing: true\nactivation_offloading: false", {"train.gradient_checkpointing": True, "train.activation_offloading": "(not stated)"}),
    ("attention", "sdp_attention: true", {"model.attention": "sdpa"}),
    ("attention-new", "attn_implementation: eager", {"model.attention": "eager"}),
    ("attention-newer", "attention: flash", {"model.attention": "auto"}),
    ("fresh-weights", "reinit_weights: true", {"model.init": "random"}),
    ("liger", "plugins: [axolotl.integrations.liger.LigerPlugin]\nliger_rope: true\nliger_fused_linear_cross_entropy: true", {}),
    ("spectrum", "plugins: [axolotl.integrations.spectrum.SpectrumPlugin]\nspectrum_top_fraction: 0.25", {"train.unfrozen": {"spectrum": {"snr": "Qwen/Qwen3-0.6B-Base", "top": "25%"}, "patterns": ["^lm_head.weight$", "^model.embed_tokens.weight$"]}}),
    ("wandb-offline", "wandb_project: tide\nwandb_mode: offline\nwandb_entity: crew\nwandb_name: one", {"track.wandb": {"project": "tide", "entity": "crew", "name": "one", "mode": "offline"}, "secrets": "(not stated)"}),
    ("wandb-disabled", "wandb_project: tide\nwandb_mode: disabled", {"track": "(not stated)"}),
    ("mlflow", "use_mlflow: true\nmlflow_tracking_uri: https://mlflow.example\nmlflow_experiment_name: tide\nuse_tensorboard: true", {"track.mlflow.experiment": "tide", "track.tensorboard": True}),
    ("long-drop", "excess_length_strategy: truncate\ndataset_exact_deduplication: true\ndataset_processes: 4", {"data.over_long": "truncate", "data.deduplicate": "exact", "data.workers": 4}),
    ("name", "output_dir: ./outputs/My Model.v2", {"name": "my-model-v2"}),
    ("name-of-base", "output_dir: ./outputs/out", {"name": "qwen3-0-6b-base"}),
    ("lora", "adapter: lora\nload_in_8bit: true\nlora_r: 16\nlora_alpha: 32\nlora_dropout: 0.05\nlora_target_linear: true\nlora_mlp_kernel: true", {"train.adapter": {"type": "lora", "rank": 16, "alpha": 32, "dropout": 0.05, "target": "all-linear"}}),
    ("qlora", "adapter: qlora\nload_in_4bit: true\nlora_r: 8\nlora_alpha: 16\nlora_target_modules: [q_proj, v_proj]\nlora_modules_to_save: [embed_tokens, lm_head]\npeft_use_dora: true\npeft_use_rslora: true", {"train.adapter": {"type": "qlora", "rank": 8, "alpha": 16, "target": ["q_proj", "v_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "dora": True, "rslora": True}}),
    ("lora-in-4-bits", "adapter: lora\nload_in_4bit: true\nlora_r: 8\nlora_target_modules: 'model.layers.[0-9]+.mlp.*'\npeft_init_lora_weights: true\nbnb_config_kwargs: {bnb_4bit_use_double_quant: true}", {"train.adapter.type": "qlora", "train.adapter.target": "model.layers.[0-9]+.mlp.*", "train.adapter.init": "default"}),
    ("tokens-of-old", "tokens: {bos_token: <s>, eos_token: </s>}", {"model.special_tokens": {"bos_token": "<s>", "eos_token": "</s>"}}),
    ("tokens-in-groups", "tokens: [{content: <a>}, <b>]", {"model.added_tokens": ["<a>", "<b>"]}),
    ("bookkeeping", "use_swanlab: true\nplugins: [axolotl.integrations.swanlab.SwanLabPlugin, axolotl.integrations.kernels.KernelsPlugin]\nuse_scattermoe: true\nearly_stopping_patience: 3\ncontext_parallel_size: 1", {}),
    ("hub-files", "datasets: [{path: owner/r, data_files: [a/b.jsonl, 'c/*.jsonl'], type: completion}]", {"data.sources.0.path": "hf://owner/r", "data.sources.0.files": ["a/b.jsonl", "c/*.jsonl"]}),
    ("no-system", "datasets: [{path: owner/r, type: chat_template, drop_system_message: true}]", {"data.sources.0.drop_system": True}),
    ("half", "bf16: false\nfp16: true", {"train.precision": "bf16"}),
    ("half-beside-brain", "bf16: true\nfp16: true", {"train.precision": "bf16"}),
    ("half-alone", "float16: true", {"train.precision": "bf16"}),
    ("fp8", "fp8: true\nfp8_enable_fsdp_float8_all_gather: true\nfsdp_version: 2\nfsdp_config: {reshard_after_forward: true}", {"train.precision": "fp8", "train.zero": 2}),
    ("router", "model_config: {output_router_logits: true}", {"model.router_loss": "(not stated)"}),
    ("router-weight", "model_config: {output_router_logits: true, router_aux_loss_coef: 0.02}", {"model.router_loss": 0.02}),
    ("router-off", "model_config: {output_router_logits: false}", {"model.router_loss": 0}),
    ("context", "context_parallel_size: 2\ntensor_parallel_size: 2\ngradient_accumulation_steps: 8\nheads_k_stride: 1", {"train.accumulation": 2}),
    ("context-odd", "sequence_parallel_degree: 4\ngradient_accumulation_steps: 2", {"train.accumulation": 2}),
    ("experts-apart", "plugins: [axolotl.integrations.expert_parallel.ExpertParallelPlugin]\nexpert_parallel_size: 4", {}),
    ("eta-min", "eta_min: 7e-7", {"train.min_lr_ratio": "(not stated)"}),
    ("flat-cosine", "lr_scheduler: cosine\ncosine_min_lr_ratio: 1.0", {"train.schedule": "constant", "train.min_lr_ratio": "(not stated)"}),
    ("warmup-share", "warmup_steps: 0.1", {"train.warmup_ratio": 0.1, "train.warmup_steps": "(not stated)"}),
    ("underscores", "sequence_len: 500_000", {"data.sequence_length": 500000}),
    ("offload-of-bytes", "optimizer: adamw_torch_8bit\nfsdp_version: 2\nfsdp_config: {offload_params: true}", {"train.optimizer": "adamw_8bit", "train.offload": "(not stated)"}),
    ("token", "hf_use_auth_token: true", {"secrets": ["HF_TOKEN"]}),
    ("degree-one", "sequence_parallel_degree: 1\ntensor_parallel_size: 1\nrl:\nadapter:", {}),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), [case[1:] for case in MAPPED], ids=[case[0] for case in MAPPED])
def test_a_configuration_becomes_a_valid_job(changes: str, expected: dict[str, Any], tmp_path: Path) -> None:
    config = configuration(changes)
    conversion = convert(config, tmp_path)
    assert conversion.errors == []
    assert {setting: got(conversion.job, setting) for setting in expected} == expected
    JobSpec.model_validate_json(json.dumps(conversion.job), strict=True)
    assert set(config) <= accounted(conversion), "a key was dropped in silence"


REFUSED: list[tuple[str, str, str, str]] = [
    # (what it is, what it changes, place of the error, words of it)
    ("llama-adapter", "adapter: llama-adapter", "adapter", "write lora or qlora"),
    ("lora-of-nothing", "adapter: lora\nlora_r: 16", "lora_target_modules", "name the layers to adapt"),
    ("lora-without-rank", "adapter: lora\nlora_target_linear: true", "lora_r", "state the rank"),
    ("loftq", "adapter: lora\nlora_r: 8\nlora_target_linear: true\npeft_init_lora_weights: loftq", "peft_init_lora_weights", "pissa, olora or eva"),
    ("experts", "adapter: lora\nlora_r: 8\nlora_target_linear: true\nlora_target_parameters: [mlp.experts.gate_up_proj]", "lora_target_parameters", "linear layers"),
    ("lora-plus", "adapter: lora\nlora_r: 8\nlora_target_linear: true\nloraplus_lr_ratio: 16", "loraplus_lr_ratio", "one learning rate"),
    ("other-quantisation", "adapter: qlora\nlora_r: 8\nlora_target_linear: true\nbnb_config_kwargs: {bnb_4bit_quant_type: fp4}", "bnb_config_kwargs", "NF4"),
    ("dpo", "rl: dpo", "rl", "preference"),
    ("lion", "optimizer: lion_8bit", "optimizer", "AdamW is"),
    ("schedule", "lr_scheduler: rex", "lr_scheduler", "cosine, linear and constant"),
    ("neither-share-nor-count", "val_set_size: 1.5", "val_set_size", "whole number"),
    ("template-by-name", "chat_template: llava", "chat_template", "no template 'llava'"),
    ("two-templates", "datasets: [{path: a/b, type: sharegpt, conversation: chatml}, {path: a/c, type: sharegpt, conversation: llama-3}]", "datasets[1].conversation", "one template renders every dataset"),
    ("strange-type", "datasets: [{path: a/b, type: chatt_template}]", "datasets[0].type", "did you mean 'chat_template'?"),
    ("odd-roles", "datasets: [{path: a/b, type: chat_template, roles: {user: [klaus]}}]", "datasets[0].roles", "'klaus' is not read as user"),
    ("odd-columns", "datasets: [{path: a/b, type: chat_template, message_property_mappings: {role: who, content: what}}]", "datasets[0].message_property_mappings", "not who, what"),
    ("train-on-user", "datasets: [{path: a/b, type: chat_template, roles_to_train: [user]}]", "datasets[0].roles_to_train", "only the assistant"),
    ("odd-split", "datasets: [{path: b.jsonl, type: chat_template, split: 'train[5:10]'}]", "datasets[0].split", "name[:N]"),
    ("dataset-typo", "datasets: [{path: a/b, typ: alpaca}]", "datasets[0].typ", "did you mean 'type'?"),
    ("no-path", "datasets: [{type: alpaca}]", "datasets[0].path", "is missing"),
    ("web-address", "datasets: [{path: 'https://example.org/r.jsonl', type: alpaca}]", "datasets[0].path", "download it"),
    ("unknown-key", "micro_batchsize: 3", "micro_batchsize", "did you mean 'micro_batch_size'?"),
    ("unknown-to-axolotl", "wibble: 3", "wibble", "in axolotl too"),
    ("deepspeed-typo", "deepspeed: zero4.json", "deepspeed", "no such file"),
    ("deepspeed-numbers", "deepspeed: {zero_optimization: {stage: 1}, optimizer: {type: AdamW, params: {lr: 3e-4}}}", "deepspeed", "optimizer.lr"),
    ("deepspeed-half", "deepspeed: {zero_optimization: {stage: 1}, fp16: {enabled: true}}", "deepspeed", "fp16 is on"),
    ("deepspeed-nvme", "deepspeed: {zero_optimization: {stage: 3, offload_optimizer: {device: nvme, nvme_path: /nvme}}}", "deepspeed", "write cpu there"),
    ("fsdp-typo", "fsdp: [full_shard]\nfsdp_config: {fsdp_ofload_params: true}", "fsdp", "did you mean 'offload_params'?"),
    ("plugin", "plugins: [my.own.Plugin]", "plugins", "cannot be loaded"),
    ("rows-of-a-parameter", "unfrozen_parameters: ['embed_tokens.weight$[:32000]']", "unfrozen_parameters", "a range of rows"),
    ("scaled-softmax", "scaling_softmax: true", "scaling_softmax", "the attention computes"),
    ("neftune", "neftune_noise_alpha: 5", "neftune_noise_alpha", "not done"),
    ("pipeline", "pipeline_parallel_size: 4", "pipeline_parallel_size", "not split over GPUs"),
    ("other-configuration", "model_config: {num_hidden_layers: 3}", "model_config", "num_hidden_layers is not changed here"),
    ("images", "processor_type: AutoProcessor", "processor_type", "where every dataset is text, remove it"),
    ("quantised-files", "model_quantization_config: Mxfp4Config", "model_quantization_config", "whose files are in bf16"),
    ("test-sets", "test_datasets: [{path: a/b}]", "test_datasets", "data.validation"),
    ("both-warmups", "warmup_steps: 10\nwarmup_ratio: 0.1", "warmup_ratio", "contradicts warmup_steps"),
    ("quantized-base", "load_in_8bit: true", "load_in_8bit", "adapter: qlora"),
    ("no-data", "datasets:", "datasets", "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED]
)
def test_what_cannot_be_done_is_an_error_that_says_what_to_do(
    changes: str, place: str, words: str, tmp_path: Path
) -> None:
    from launcher.config.problems import key_name

    config = configuration(changes)
    conversion = convert(config, tmp_path)
    assert [(key_name(f.where), words in f.message) for f in conversion.errors] == [(place, True)]
    assert set(config) <= accounted(conversion), "a key was dropped in silence"


def test_a_deepspeed_file_beside_the_configuration_is_read_and_not_guessed_from_its_name(tmp_path: Path) -> None:
    (tmp_path / "zero3.json").write_text('{"zero_optimization": {"stage": 1}}')
    assert convert(configuration("deepspeed: zero3.json"), tmp_path).job["train"]["zero"] == 1


def test_text_and_paths_are_taken_too(tmp_path: Path) -> None:
    path = tmp_path / "axolotl.yml"
    path.write_text(BASE)
    assert convert(path).job == convert(BASE, tmp_path).job
    with pytest.raises(SpecErrors, match="is not YAML"):
        convert("base_model: [")


class TestThroughLoadJob:
    def test_the_account_is_told_and_errors_have_the_lines_of_the_file(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = tmp_path / "axolotl.yml"
        path.write_text(BASE + "micro_batch_size: two\nval_set_size: 1.5\nweight_decay: -1\n")
        with pytest.raises(SpecErrors) as caught:
            load_job(path)
        assert [(p.line, p.key) for p in caught.value.problems] == [
            (6, "micro_batch_size"), (7, "val_set_size"), (8, "weight_decay"),
        ]  # fmt: skip
        told = capsys.readouterr().err
        assert "assumed: resources.accelerators: L40S:8" in told
        assert "mapped: base_model" in told

    def test_an_override_settles_what_axolotl_leaves_open(self, tmp_path: Path) -> None:
        path = tmp_path / "axolotl.yml"
        path.write_text(BASE + "val_set_size: 100\nchat_template: llava\nlr_scheduler: rex\n")
        overrides = ["data.validation_fraction=0.02", "model.chat_template=tokenizer", "train.schedule=linear"]
        job = load_job(path, [*overrides, "resources.accelerators=H100:4"])
        assert (job.data.validation_fraction, job.model.chat_template) == (0.02, "tokenizer")
        assert job.resources.ranks == 4

    def test_a_missing_file_is_said_at_its_own_line(self, tmp_path: Path) -> None:
        path = tmp_path / "axolotl.yml"
        path.write_text(BASE.replace("owner/rows", "./rows.jsonl"))
        with pytest.raises(
            SpecErrors, match=r"axolotl.yml:3: datasets\[0\].path: no such file or folder: .*rows.jsonl"
        ):
            load_job(path)

    def test_init_writes_the_same_job(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        from launcher.commands.init import init_command

        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "rows.jsonl").touch()
        path = tmp_path / "axolotl.yml"
        path.write_text(BASE.replace("owner/rows", "./rows.jsonl") + "unfrozen_parameters: ['^lm_head.weight$']\n")
        for output in (tmp_path / "job.yaml", tmp_path / "elsewhere" / "job.yaml"):
            assert init_command(str(output), str(path)) == 0
            assert load_job(output).model_dump() == load_job(path).model_dump()
            assert "# axolotl.yml is an axolotl configuration" in output.read_text()

    def test_init_takes_what_axolotl_leaves_open_from_the_command_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from launcher.commands.init import init_command
        from launcher.runs.errors import BadUsage

        path, output = tmp_path / "axolotl.yml", tmp_path / "job.yaml"
        path.write_text(BASE + "chat_template: llava\n")
        assert init_command(str(output), str(path), ["train.epochs=2"]) == 2
        assert f"{path}:6: chat_template: " in capsys.readouterr().err
        answers = ["model.chat_template=tokenizer", "resources.accelerators=H100:4"]
        assert init_command(str(output), str(path), [*answers, "train.epoch=2"]) == 2
        assert "--set train.epoch: unknown key; did you mean 'epochs'?" in capsys.readouterr().err
        assert not output.exists()
        assert init_command(str(output), str(path), answers) == 0
        assert load_job(output).model_dump() == load_job(path, answers).model_dump()
        assert "--set resources.accelerators=H100:4" in output.read_text()
        with pytest.raises(BadUsage, match="--from"):
            init_command(str(tmp_path / "new.yaml"), None, answers)

    def test_init_says_what_is_wrong_and_writes_nothing(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        from launcher.commands.init import init_command

        path = tmp_path / "axolotl.yml"
        path.write_text(BASE + "adapter: ia3\n")
        assert init_command(str(tmp_path / "job.yaml"), str(path)) == 2
        assert f"{path}:6: adapter: " in capsys.readouterr().err
        assert not (tmp_path / "job.yaml").exists()


def test_the_reference_configuration_is_the_reference_job(tmp_path: Path) -> None:
    folder = os.environ.get("DOLPHIN_REFERENCE")
    if not folder:
        pytest.skip("DOLPHIN_REFERENCE names no folder with the reference configuration")
    text = (Path(folder) / "dolphin-2.9.4-llama3.1-8b.axolotl.yml").read_text()
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    path = tmp_path / "axolotl.yml"
    path.write_text(text.replace("/workspace/datasets/dolphin-2.9.4/dolphin201-sharegpt2.jsonl", str(rows)))
    converted = load_job(path).model_dump()
    written = load_job(ROOT / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml").model_dump()
    assert converted["data"].pop("sources")[0]["format"] == "sharegpt"
    written["data"].pop("sources")
    assert converted == written


def test_the_reference_configurations_commented_adapter_is_one_of_ours(tmp_path: Path) -> None:
    folder = os.environ.get("DOLPHIN_REFERENCE")
    if not folder:
        pytest.skip("DOLPHIN_REFERENCE names no folder with the reference configuration")
    text = (Path(folder) / "dolphin-2.9.4-llama3.1-8b.axolotl.yml").read_text()
    for key in (
        "load_in_4bit",
        "adapter",
        "lora_r",
        "lora_alpha",
        "lora_modules_to_save",
        "lora_dropout",
        "lora_target_linear",
    ):
        assert f"# {key}:" in text
        text = text.replace(f"# {key}:", f"{key}:")
    (tmp_path / "axolotl.yml").write_text(text)
    conversion = convert(tmp_path / "axolotl.yml")
    assert not [
        finding for finding in conversion.errors if str(finding.where[0]).startswith(("adapter", "lora", "load"))
    ]
    assert conversion.job["train"]["adapter"] == {
        "type": "qlora", "rank": 128, "alpha": 16, "dropout": 0.05, "target": "all-linear",
        "modules_to_save": ["embed_tokens", "lm_head"],
    }  # fmt: skip


def test_of_the_published_examples_as_many_are_taken_as_ever() -> None:
    """A job that would be refused later is not taken: settings are validated and held against each other too."""
    folder = os.environ.get("DOLPHIN_AXOLOTL_EXAMPLES")
    if not folder:
        pytest.skip("DOLPHIN_AXOLOTL_EXAMPLES names no folder with axolotl's examples")
    from launcher.jobfile.load import validate
    from launcher.jobfile.spec import job_findings

    taken, files = 0, sorted(Path(folder).rglob("*.y*ml"))
    for path in files:
        conversion = convert(path)
        if not conversion.errors:
            job, invalid = validate(conversion.job)
            taken += not invalid and job is not None and not job_findings(job)
    assert taken >= 154 * len(files) // 252, f"{taken} of {len(files)}"


def test_the_table_of_keys_is_the_one_that_is_carried_out() -> None:
    from launcher.commands.convert import key_tables
    from launcher.jobfile.axolotl import keys

    assert (ROOT / "docs" / "axolotl.md").read_text() == key_tables(), (
        "run: python -c \"from launcher.commands.convert import key_tables as t; print(t(), end='')\" > docs/axolotl.md"
    )
    tables = (keys.MAPPED, keys.NO_EFFECT, keys.ERRORS)
    assert sum(map(len, tables)) == len({key for table in tables for key in table}), "a key stands in two tables"
    readers = ("adapter", "convert", "datasets", "model", "sharding", "training")
    sources = "".join((ROOT / "launcher" / "jobfile" / "axolotl" / f"{name}.py").read_text() for name in readers)
    unused = [key for key in (*keys.MAPPED, *keys.DATASET_MAPPED) if f'"{key}"' not in sources]
    assert [key for key in unused if not key.startswith("wandb_")] == [], "listed as mapped, but nothing reads it"
