"""The keys of an axolotl configuration: what each becomes in a job, or why it has no effect here, or why it cannot be.

Data only. A key of no table is unknown, which is an error. `mapped` keys are carried out by the modules beside this
one; a test holds this list against them. docs/axolotl.md is made from these tables.
"""

from __future__ import annotations

from trainer.run.chat_templates.registry import TEMPLATES

MAPPED: dict[str, str] = {
    # model and tokenizer
    "base_model": "model.base",
    "revision_of_model": "model.revision",
    "model_revision": "model.revision",
    "reinit_weights": "model.init: random",
    "tokenizer_config": "model.tokenizer",
    "trust_remote_code": "model.trust_remote_code",
    "special_tokens": "model.special_tokens; `additional_special_tokens` go to model.added_tokens",
    "tokens": "model.added_tokens",
    "chat_template": f"model.chat_template: `tokenizer_default`, `jinja`, {', '.join(f'`{name}`' for name in TEMPLATES)}; another name needs a .jinja file",
    "chat_template_jinja": "model.chat_template",
    "flash_attention": "model.attention: auto (flash-attn where it is installed, else torch's own)",
    "sdp_attention": "model.attention: sdpa",
    "eager_attention": "model.attention: eager",
    "attn_implementation": "model.attention: sdpa and eager as they are, others auto",
    "attention": "model.attention: sdpa and eager as they are, others auto",
    "xformers_attention": "model.attention: auto",
    "flex_attention": "model.attention: auto",
    # data
    "datasets": "data.sources",
    "pretraining_dataset": "data.sources, as plain text",
    "val_set_size": "data.validation_fraction, or data.validation_count for a number of conversations",
    "sequence_len": "data.sequence_length",
    "sample_packing": "data.packing (off where not stated, as in axolotl)",
    "train_on_inputs": "data.train_on_inputs",
    "dataset_exact_deduplication": "data.deduplicate: exact",
    "excess_length_strategy": "data.over_long",
    "dataset_processes": "data.workers",
    "dataset_num_proc": "data.workers",
    # optimization
    "num_epochs": "train.epochs",
    "max_steps": "train.max_steps, which then decides alone",
    "micro_batch_size": "train.micro_batch",
    "gradient_accumulation_steps": "train.accumulation",
    "batch_size": "train.accumulation = batch_size / micro_batch_size",
    "optimizer": "train.optimizer: every AdamW, those with fewer bits as adamw_8bit, and muon",
    "learning_rate": "train.learning_rate",
    "weight_decay": "train.weight_decay",
    "adam_beta1": "train.betas",
    "adam_beta2": "train.betas",
    "adam_epsilon": "train.epsilon",
    "max_grad_norm": "train.max_grad_norm",
    "lr_scheduler": "train.schedule: cosine, linear, constant, constant_with_warmup, cosine_with_min_lr",
    "lr_scheduler_kwargs": "train.min_lr_ratio from `min_lr_rate`; others are an error",
    "cosine_min_lr_ratio": "train.min_lr_ratio",
    "warmup_steps": "train.warmup_steps",
    "warmup_ratio": "train.warmup_ratio (0.03 where neither is stated, as in axolotl)",
    "bf16": "train.precision: bf16 for true and auto, fp32 for false",
    "bfloat16": "train.precision: bf16",
    "float32": "train.precision: fp32",
    "gradient_checkpointing": "train.gradient_checkpointing; offloading of activations is not done",
    "deepspeed": "train.zero and train.offload, of the named configuration or file; its dtype is checked",
    "fsdp": "train.zero: 3 for full_shard, 2 for shard_grad_op, 0 for no_shard; train.offload for offload",
    "fsdp_config": "train.zero, train.offload from `offload_params`, and train.gradient_checkpointing from `activation_checkpointing`",
    "fsdp_version": "train.zero (FSDP 2 does what ZeRO-3 does)",
    "unfrozen_parameters": "train.unfrozen; a range of rows (`name[:32000]`) is an error",
    "plugins": "Spectrum's becomes train.unfrozen.spectrum; Liger and cut cross-entropy have no effect; others are an error",
    "spectrum_top_fraction": "train.unfrozen.spectrum.top",
    "spectrum_model_name": "train.unfrozen.spectrum.snr",
    "seed": "train.seed",
    "logging_steps": "train.log_every",
    # evaluation and saving
    "eval_steps": "train.evaluate_every",
    "evals_per_epoch": "train.evaluate_every: epoch for 1, a share of an epoch for more, never for 0",
    "eval_strategy": "train.evaluate_every",
    "evaluation_strategy": "train.evaluate_every",
    "save_steps": "checkpoint.every.steps",
    "saves_per_epoch": "checkpoint.every.epochs = 1 / saves_per_epoch",
    "save_strategy": "checkpoint.every",
    "save_total_limit": "checkpoint.keep, at least 2",
    "output_dir": "name (its last part); the model is left in the run's folder",
    # tracking
    "use_wandb": "track.wandb",
    "wandb_project": "track.wandb.project, and the secret WANDB_API_KEY",
    "wandb_entity": "track.wandb.entity",
    "wandb_name": "track.wandb.name",
    "wandb_run_id": "track.wandb.name, where wandb_name is not stated (as in axolotl)",
    "wandb_mode": "track.wandb.mode; `disabled` reports nothing",
    "use_mlflow": "track.mlflow",
    "mlflow_tracking_uri": "track.mlflow.tracking_uri",
    "mlflow_experiment_name": "track.mlflow.experiment",
    "use_tensorboard": "track.tensorboard",
    "hf_use_auth_token": "the secret HF_TOKEN",
    # adapters
    "adapter": "train.adapter.type: lora, qlora; empty, all parameters are trained; others are an error",
    "load_in_8bit": "with an adapter, nothing: the base stays in bf16; without, an error",
    "load_in_4bit": "train.adapter.type: qlora; without an adapter, an error",
    "lora_r": "train.adapter.rank",
    "lora_alpha": "train.adapter.alpha",
    "lora_dropout": "train.adapter.dropout",
    "lora_target_linear": "train.adapter.target: all-linear",
    "lora_target_modules": "train.adapter.target",
    "lora_modules_to_save": "train.adapter.modules_to_save",
    "peft_use_dora": "train.adapter.dora",
    "peft_use_rslora": "train.adapter.rslora",
    "peft_layers_to_transform": "train.adapter.layers",
    "peft_init_lora_weights": "train.adapter.init: pissa, olora; others but the default are an error",
    "bnb_config_kwargs": "NF4 with double quantisation, as here; others are an error",
    "peft_trainable_token_indices": "train.adapter.trainable_tokens",
    "fp16": "false, as here; true is an error unless bf16 is on too",
    "float16": "false, as here; true is an error unless bf16 is on too",
}  # fmt: skip
"""Key -> what it becomes."""


def _same(why: str, keys: str) -> dict[str, str]:
    return dict.fromkeys(keys.split(), why)


NO_EFFECT: dict[str, str] = {
    **_same("the classes follow from the model's config.json", "model_type type_of_model tokenizer_type base_model_config cls_model_config is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model base_model_ignore_patterns"),
    **_same("the tokenizer is always the fast one, as its files say", "tokenizer_use_fast tokenizer_legacy tokenizer_use_mistral_common tokenizer_save_jinja_files"),
    **_same("an unknown key is always an error here", "strict"),
    **_same("prepared data is kept in dolphin's own cache, by content", "dataset_prepared_path skip_prepare_dataset push_dataset_to_hub dataset_keep_in_memory is_preprocess preprocess_iterable num_dataset_shards_to_save"),
    **_same("the order of the data is one global plan, made from the seed", "shuffle_merged_datasets shuffle_before_merging_datasets group_by_length sample_packing_sequentially multipack_real_batches sample_packing_group_size sample_packing_bin_size sample_packing_eff_est sample_packing_mp_start_method total_num_tokens total_supervised_tokens"),
    **_same("a packed sequence is as long as its conversations; the rest is not computed", "pad_to_sequence_len pad_to_multiple_of eval_sample_packing batch_flattening"),
    **_same("conversations never see each other in a packed sequence", "pretrain_multipack_attn pretrain_multipack_buffer_size pretraining_sample_concatenation"),
    **_same("the loader is dolphin's own", "dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor dataloader_drop_last accelerator_config remove_unused_columns streaming streaming_multipack_buffer_size"),
    **_same("processes and devices follow from `resources`", "device device_map world_size local_rank ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters max_memory gpu_memory_limit low_cpu_mem_usage experimental_skip_move_to_device dp_shard_size dp_replicate_size use_ray ray_run_name ray_num_workers resources_per_worker num_workers cloud"),
    **_same("`dolphin plan` finds the micro batch that fits", "auto_find_batch_size"),
    **_same("evaluation packs as training does and counts tokens, so its batch size changes nothing", "eval_batch_size"),
    **_same("fused kernels change speed, not the result; train.kernels takes them by itself, and the loss is dolphin's own", "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp flash_optimum flex_attn_compile_kwargs unsloth_cross_entropy_loss unsloth_rms_norm unsloth_rope liger_rope liger_rms_norm liger_layer_norm liger_swiglu liger_glu_activation liger_cross_entropy liger_fused_linear_cross_entropy liger_rms_norm_gated fused_attn_kernel cut_cross_entropy chunked_cross_entropy chunked_cross_entropy_num_chunks use_kernels tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp"),
    **_same("torch.compile changes speed, not the result; train.compile does it for decoder layers", "torch_compile torch_compile_backend torch_compile_mode deepcompile"),
    **_same("TF32 is not used: the products are bf16", "tf32"),
    **_same("gradient checkpointing is always the non-reentrant one", "gradient_checkpointing_kwargs activation_offloading"),
    **_same("short conversations are kept; only those with nothing to train on are dropped", "min_sample_len"),
    **_same("validation uses the same length as training", "eval_sequence_len"),
    **_same("layers stay on the GPUs: `dolphin plan` says whether they fit", "layer_offloading"),
    **_same("model.attention chooses for all layers", "sage_attention gemma4_hybrid_attn_impl experts_implementation"),
    **_same("what ends an answer is read from the text that the chat template writes, is trained, and stops the exported model; `dolphin data` shows it", "eot_tokens"),
    **_same("it belongs to use_eaft", "eaft_alpha eaft_k"),
    **_same("a loss that is not finite stops the run before it is applied", "loss_watchdog_threshold loss_watchdog_patience"),
    **_same("only the loss is measured on the validation share", "eval_table_size eval_max_new_tokens eval_table_max_new_tokens do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split metric_for_best_model greater_is_better generate_samples num_generation_samples generation_max_new_tokens generation_temperature generation_top_p generation_top_k generation_prompt_ratio generation_do_sample"),
    **_same("the model is always written as safetensors, with its optimizer state apart", "save_safetensors save_only_model fsdp_final_state_dict_type save_first_step dynamic_checkpoint include_tkps include_tokens_per_second"),
    **_same("a run resumes by itself from its last committed checkpoint", "auto_resume_from_checkpoints"),
    **_same("the model is left in the run's folder: `dolphin fetch RUN DIR`, then `hf upload`", "hub_model_id hub_strategy hub_revision hub_private_repo hub_always_push"),
    **_same("metrics alone are reported, not gradients or files", "wandb_watch wandb_log_model mlflow_run_name hf_mlflow_log_artifacts"),
    **_same("dolphin serves no page", "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature"),
    **_same("profiling and debugging have their own commands", "debug profiler_steps profiler_steps_start gc_steps axolotl_config_path use_otel_metrics otel_metrics_enabled otel_metrics_host otel_metrics_port"),
    **_same("the embeddings grow by exactly the added tokens", "resize_token_embeddings_to_32x mean_resizing_embeddings embeddings_skip_upcast"),
    **_same("how an adapter is computed, not what it computes", "lora_on_cpu lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o peft_autocast_adapter_dtype peft_ensure_weight_tying qlora_sharded_model_loading lora_fan_in_fan_out peft_layers_pattern"),
    **_same("`dolphin merge RUN`, or export.merged, makes one model of base and adapter", "merge_lora merge_method"),
    **_same("experts that are no linear layers stay in the training precision: exact, and more memory (`dolphin plan` counts it)", "quantize_moe_experts"),
    **_same("how experts are computed, not what they compute", "use_scattermoe use_sonicmoe"),
    **_same("the run goes to its last step; status and metrics.jsonl show the validation loss by step", "early_stopping_patience"),
    **_same("dolphin reports to Weights & Biases, MLflow or TensorBoard", "use_swanlab swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer swanlab_workspace swanlab_run_id swanlab_api_key"),
    **_same("GPTQ is not used", "gptq_groupsize gptq_model_v1"),
}  # fmt: skip
"""Key -> why it has no effect here."""

ERRORS: dict[str, str] = {
    **_same("an adapter begins anew; to go on from one, merge it and name the merged folder as base_model", "lora_model_dir"),
    **_same("adapters stand beside linear layers; remove it", "lora_target_parameters peft_layer_replication"),
    **_same("one learning rate is used for both matrices of an adapter; remove it", "loraplus_lr_ratio loraplus_lr_embedding"),
    **_same("adapters are not restarted while they train; remove it", "relora relora_steps relora_warmup_steps relora_cpu_offload relora_prune_ratio relora_prune_method jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps"),
    **_same("peft is set up by train.adapter; remove it", "peft"),
    **_same("dolphin fine-tunes on conversations; preference and reward training is not done here", "rl trl reward_model process_reward_model num_labels dpo_beta dpo_use_weighting dpo_use_logits_to_keep dpo_generate_during_eval dpo_norm_loss dpo_label_smoothing rl_beta orpo_alpha rpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight vllm max_prompt_len ebft center_rewards_coefficient precompute_ref_log_probs dpo_use_liger_kernel dpo_padding_free dpo_loss_type dpo_loss_weights"),
    **_same("quantized training is not done; remove it", "gptq qat quantization fp8 fp8_enable_fsdp_float8_all_gather model_quantization_config model_quantization_config_kwargs"),
    **_same("it changes what the loss or the attention computes; remove it", "scaling_softmax scaling_softmax_factor scaling_softmax_bias liger_use_token_scaling use_eaft trainer_cls"),
    **_same("take a share of each dataset instead (datasets[].shards)", "dataset_shard_num dataset_shard_idx"),
    **_same("write what it does into a chat template of your own", "chat_template_kwargs"),
    **_same("it changes the model's configuration; put the change into config.json of a copy and name that as base_model", "model_config overrides_of_model_config overrides_of_model_kwargs model_kwargs rope_scaling"),
    **_same("noise on the embeddings is not done; remove it", "neftune_noise_alpha noisy_embedding_alpha"),
    **_same("one learning rate is used for all; remove it", "embedding_lr embedding_lr_scale lr_groups lr_quadratic_warmup lr_div_factor cosine_constant_lr_ratio"),
    **_same("the optimizer is AdamW with the settings of `train`; remove it", "optim_args optim_target_modules torchdistx_path adam_epsilon2 adam_beta3 lisa_n_layers lisa_step_interval lisa_layers_attribute"),
    **_same("a sequence is not split over GPUs; remove it", "sequence_parallel_degree context_parallel_size tensor_parallel_size expert_parallel_size pipeline_parallel_size heads_k_stride ring_attn_func s2_attention"),
    **_same("a separate validation set is not read; remove it and set val_set_size", "test_datasets"),
    **_same("the run ends at its last step with the last weights; remove it", "load_best_model_at_end"),
    **_same("a run of another trainer cannot be continued; to start from its model, name the folder as base_model", "resume_from_checkpoint"),
    **_same("the order is made from the seed; remove it", "curriculum_sampling"),
    **_same("dolphin reports to Weights & Biases, MLflow or TensorBoard; use one of them", "use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online comet_experiment_config use_trackio trackio_project_name trackio_run_name trackio_space_id"),
    **_same("put it into a chat template of your own (model.chat_template: a .jinja file), or into the data as system turns", "default_system_message"),
    **_same("end-of-turn markers are those of the chat template; remove it", "train_on_eot train_on_eos"),
    **_same("only the embeddings of added tokens are new; remove it", "added_tokens_overrides shrink_embeddings fix_untrained_tokens"),
    **_same("text alone is trained on", "processor_type image_size image_resize_algorithm freeze_mm_modules"),
    **_same("it is not done here; remove it", "use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks llama4_linearized_experts max_packed_sequence_len unfrozen_vision"),
}  # fmt: skip
"""Key -> why a value (other than none, false, 0 or 1 for a degree) is an error."""

BESIDE: dict[str, str] = {
    **_same("nothing is held out, so nothing is evaluated", "eval_steps evals_per_epoch eval_strategy evaluation_strategy"),
    **_same("another key of the configuration decides it", "eval_strategy evaluation_strategy save_strategy saves_per_epoch chat_template batch_size fsdp fsdp_config fsdp_version"),
    **_same("nothing is reported to Weights & Biases: there is no project, or it is off", "wandb_project wandb_entity wandb_name wandb_run_id wandb_mode use_wandb"),
    **_same("nothing is reported to MLflow: there is no server, or it is off", "mlflow_tracking_uri mlflow_experiment_name use_mlflow"),
    **_same("it belongs to an adapter, and there is none", "lora_r lora_alpha lora_dropout lora_target_linear lora_target_modules lora_modules_to_save peft_use_dora peft_use_rslora peft_layers_to_transform peft_init_lora_weights peft_trainable_token_indices bnb_config_kwargs"),
    **_same("Spectrum's plugin is not listed", "spectrum_top_fraction spectrum_model_name"),
    **_same("bf16 is on and decides", "fp16 float16 float32"),
}  # fmt: skip
"""Mapped key -> why it may state something and still decide nothing."""

DATASET_MAPPED: dict[str, str] = {
    "path": "data.sources[].path; owner/name becomes hf://owner/name",
    "type": "data.sources[].format",
    "conversation": "model.chat_template",
    "chat_template": "model.chat_template",
    "chat_template_jinja": "model.chat_template",
    "split": "data.sources[].split; of local files, `train[:N]` becomes samples and `train[:N%]` weight",
    "revision": "data.sources[].path, as hf://owner/name@revision",
    "name": "data.sources[].subset",
    "data_files": "data.sources[].path, one source for each",
    "shards": "data.sources[].weight = 1 / shards",
    "shards_idx": "data.sources[].shuffle_seed, with shards",
    "repeats": "data.sources[].weight",
    "field": "data.sources[].fields.text",
    "text_column": "data.sources[].fields.text",
    "field_messages": "data.sources[].fields.messages, where it is not the format's own",
    "message_property_mappings": "role/content and from/value are understood; other names are an error",
    "message_field_role": "role and from are understood; other names are an error",
    "message_field_content": "content and value are understood; other names are an error",
    "roles": "the usual names are understood; others are an error",
    "roles_to_train": "assistant, as here; other roles are an error",
    "train_on_eos": "turn, as here; others are an error",
    "field_human": "data.sources[].fields.prompt",
    "field_model": "data.sources[].fields.response",
    "field_instruction": "data.sources[].fields.prompt",
    "field_output": "data.sources[].fields.response",
    "field_system": "data.sources[].fields.system",
}
"""Key of a `datasets` entry -> what it becomes."""

DATASET_NO_EFFECT: dict[str, str] = {
    **_same("the kind of file follows from its name", "ds_type"),
    **_same("rows are read in parts anyway", "preprocess_shards"),
    **_same("the `tools` column is read where there is one", "field_tools"),
    **_same("`train` and `loss_weight` of a turn are read where they are", "message_field_training"),
    **_same("reasoning_content is passed to the template where it is", "field_thinking template_thinking_key"),
    **_same("datasets run no code of their own any more", "trust_remote_code"),
    **_same("turns with unusual roles are counted in the data report", "strict"),
}
"""Key of a `datasets` entry -> why it has no effect."""

DATASET_ERRORS: dict[str, str] = {
    **_same("tokens within a turn are trained together; remove it", "message_field_training_detail split_thinking"),
    **_same(
        "prepare the rows so, and remove it",
        "drop_system_message input_transform input_format field_input skip roles_to_drop prompt_format",
    ),
    **_same("distillation is not done here", "logprobs_field temperature"),
    **_same("train_on_eos: turn is what is done here; remove it", "train_on_eot"),
}
"""Key of a `datasets` entry -> why a value is an error."""

FSDP_CONFIG = frozenset(
    [
        "limit_all_gathers",
        "sync_module_states",
        "offload_params",
        "use_orig_params",
        "cpu_ram_efficient_loading",
        "auto_wrap_policy",
        "transformer_layer_cls_to_wrap",
        "state_dict_type",
        "final_state_dict_type",
        "sharding_strategy",
        "backward_prefetch",
        "forward_prefetch",
        "forward_prefetch",
        "version",
        "reshard_after_forward",
        "activation_checkpointing",
        "min_num_params",
        "mixed_precision_policy",
        "cpu_offload_pin_memory",
    ]
)
"""Keys of fsdp_config, without the prefix `fsdp_`."""
