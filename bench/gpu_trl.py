"""The batches of a prepared run through TRL's SFTTrainer, in its order: `python -m bench.gpu_trl TRAIN.json STEPS`.

Writes metrics.jsonl in the run folder as dolphin's own ranks do, so that both are read alike. On GPUs with dolphin's DeepSpeed
configuration, flash-attn and liger-kernel where they are installed; on a CPU with neither.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

from trainer.data.batch import IGNORE, Share
from trainer.data.plan import DataPlan
from trainer.engine import engine
from trainer.model import freeze
from trainer.run.run_folder import RunDir, append_line
from trainer.run.spec import NodeJob


def main() -> None:
    job, steps = NodeJob.read(sys.argv[1]), int(sys.argv[2])
    on_gpu = job.device == "cuda"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    engine.initialize_distributed(job.device, print)
    plan = DataPlan.open(job)
    train = job.spec.train
    micro_batches = plan.num_micro_batches(Share(rank, world_size, train.micro_batch))
    has_flash = on_gpu and find_spec("flash_attn") is not None
    has_liger = on_gpu and find_spec("liger_kernel") is not None
    attention = "flash_attention_2" if has_flash else "sdpa"
    settings = SFTConfig(
        output_dir=str(RunDir(job.run_dir).path / "trl"), max_steps=steps, per_device_train_batch_size=train.micro_batch,
        gradient_accumulation_steps=micro_batches, learning_rate=train.learning_rate, weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm, lr_scheduler_type="constant", optim="adamw_torch_fused", seed=train.seed,
        bf16=train.precision == "bf16", use_cpu=not on_gpu, gradient_checkpointing=bool(train.gradient_checkpointing),
        gradient_checkpointing_kwargs={"use_reentrant": False}, use_liger_kernel=has_liger, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True, max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False,
        deepspeed=engine.configuration(job, world_size, micro_batches) if on_gpu else None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(
        job.spec.model.base,
        dtype=torch.bfloat16 if train.precision == "bf16" else torch.float32,
        attn_implementation=attention,
    )
    patterns = train.unfrozen
    assert patterns is None or isinstance(patterns, tuple)
    freeze.apply(model, patterns)
    metrics = RunDir(job.run_dir)
    if rank == 0:
        (metrics.path / "note.txt").write_text(attention + (", liger-kernel" if has_liger else ""))
    InOrder(
        model, settings, train_dataset=rows(plan, steps), data_collator=Flat(has_flash),
        processing_class=AutoTokenizer.from_pretrained(job.spec.model.base), callbacks=[Tell(metrics, plan, on_gpu, rank == 0)],
    ).train()  # fmt: skip


class InOrder(SFTTrainer):  # type: ignore[misc]
    """The rows come as dolphin's plan has them."""

    def _get_train_sampler(self, *_: Any) -> Any:
        return SequentialSampler(self.train_dataset)


def rows(plan: DataPlan, steps: int) -> Dataset:
    """A row for each packed sequence; labels at their own tokens, as transformers shifts them itself."""
    found: dict[str, list[Any]] = {"input_ids": [], "labels": [], "position_ids": []}
    for step in range(steps):
        batch = plan.batch(step, Share(0, 1, plan.global_batch), 0)
        labels = torch.full_like(batch.labels_BT, IGNORE)
        labels[:, 1:] = batch.labels_BT[:, :-1]
        for name, values in zip(found, (batch.ids_BT, labels, batch.positions_BT), strict=True):
            found[name] += values.tolist()
    return Dataset.from_dict(found)


class Flat:
    """Rows of equal length as tensors; with flash attention as one row, by whose positions it finds the conversations."""

    def __init__(self, is_flat: bool) -> None:
        self._is_flat = is_flat

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        keys = ("input_ids", "labels", "position_ids")
        found = {key: torch.tensor([example[key] for example in examples]) for key in keys}
        return {key: value.reshape(1, -1) for key, value in found.items()} if self._is_flat else found


class Tell(TrainerCallback):  # type: ignore[misc]
    """A line of metrics a step, on rank 0."""

    def __init__(self, run: RunDir, plan: DataPlan, on_gpu: bool, is_first: bool) -> None:
        self._run, self._plan, self._on_gpu, self._is_first = run, plan, on_gpu, is_first
        self._began = self._seconds = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._seconds = time.perf_counter() - self._began

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if self._is_first and logs and "loss" in logs:
            line = {"step": state.global_step, "loss": logs["loss"], "seconds": self._seconds}
            line["tokens"] = self._plan.step_tokens(state.global_step - 1)
            if self._on_gpu:
                line["peak_memory_bytes"] = torch.cuda.max_memory_allocated()
            append_line(self._run.metrics, line)


if __name__ == "__main__":
    main()
