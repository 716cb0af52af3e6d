"""What the steps of a run of training.py are held against: `bench/training_beside.py RUN floor | plain | trl`, prints JSON.

On the batches of that run, with as many threads: `floor` computes its matrix products alone (forward, gradient of the input, gradient
of the weight, where there is one; the head where there is a label), and beside it its attention alone; `plain` is a loop of
transformers with torch's fused AdamW, over peft's layers where the job has an adapter; `trl` is SFTTrainer, padding-free, with the
same peft settings (needs trl and accelerate).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM

from trainer.data.batch import Batch, Share
from trainer.data.plan import DataPlan
from trainer.model import adapter as adapters
from trainer.run.settings.adapter import AdapterSpec
from trainer.run.spec import NodeJob


class Clock:
    """Seconds on the wall and of this process's CPU, of what was run under it."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0

    def run(self, work: Callable[[], object]) -> None:
        began, cpu = time.perf_counter(), time.process_time()
        work()
        self.wall += time.perf_counter() - began
        self.cpu += time.process_time() - cpu

    def figures(self, name: str) -> dict[str, float]:
        return {f"{name}_s": round(self.wall, 2), f"{name}_cpu_s": round(self.cpu, 2)}


class Product(NamedTuple):
    """A linear layer as it is called in a step."""

    shape: tuple[int, int]
    is_head: bool
    is_input_trained: bool
    """Its input gets a gradient, which a frozen beginning of the model does not need."""
    is_trained: bool


def model_of(job: NodeJob) -> Any:
    """The base in fp32, with the job's adapters where it has some (peft makes them, of the same settings everywhere)."""
    model = AutoModelForCausalLM.from_pretrained(job.spec.model.base, dtype=torch.float32).train()
    if job.spec.train.adapter is not None:
        adapters.inject(model, job.spec.train.adapter, (), job.spec.train.seed)
    return model


def products_of(model: Any) -> list[Product]:
    """Asked of the model itself, by a call with four tokens."""
    found: list[Product] = []
    head = model.get_output_embeddings()

    def note(part: nn.Linear, inputs: tuple[torch.Tensor, ...], _output: object) -> None:
        width, height = part.weight.shape
        found.append(Product((width, height), part is head, inputs[0].requires_grad, part.weight.requires_grad))

    hooks = [part.register_forward_hook(note) for part in model.modules() if isinstance(part, nn.Linear)]
    model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def floor(job: NodeJob, batches: list[Batch]) -> dict[str, float]:
    """Every matrix product of the steps and nothing else; then attention, one conversation at a time, and nothing else."""
    model = model_of(job)
    found, config = products_of(model), model.config
    products, attention = Clock(), Clock()
    places = {product.shape: torch.randn(product.shape) for product in found}
    heads, size = config.num_attention_heads, config.hidden_size // config.num_attention_heads

    def multiply(rows: int, product: Product) -> None:
        shape = product.shape
        weight, inputs, gradient = places[shape], given[rows, shape[1]], given[rows, shape[0]]
        products.run(lambda: inputs @ weight.t())
        if product.is_input_trained:
            products.run(lambda: gradient @ weight)
        if product.is_trained:
            products.run(lambda: gradient.t() @ inputs)

    def attend(length: int) -> None:
        q = torch.randn(1, heads, length, size, requires_grad=True)
        k, v = (torch.randn(1, config.num_key_value_heads, length, size, requires_grad=True) for _ in range(2))
        out = torch.randn(1, heads, length, size)
        attention.run(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).backward(out))

    for batch in [batches[0], *batches]:  # the first one warms up
        counts = {batch.ids_BT.numel(), len(batch.labelled_N)}
        widths = {width for shape in places for width in shape}
        given = {(rows, width): torch.randn(rows, width) for rows in counts for width in widths}
        if batch is batches[0]:
            products.wall = products.cpu = attention.wall = attention.cpu = 0.0
        for product in found:
            multiply(len(batch.labelled_N) if product.is_head else batch.ids_BT.numel(), product)
        for first, last in pairwise(batch.cu_seqlens.tolist()):
            for _ in range(config.num_hidden_layers):
                attend(last - first)
    return products.figures("floor") | attention.figures("attention")


def plain(job: NodeJob, batches: list[Batch]) -> dict[str, float]:
    """transformers' own forward and loss, its mask from positions, one optimizer step a batch."""
    model = model_of(job)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=job.spec.train.learning_rate, fused=True, weight_decay=0.0)
    clock = Clock()

    def step(batch: Batch) -> None:
        weight = batch.weights_BT.sum()
        logits = model(
            input_ids=batch.ids_BT.reshape(1, -1), position_ids=batch.positions_BT.reshape(1, -1), use_cache=False
        ).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.labels_BT.flatten(), ignore_index=-100, reduction="sum")
        (loss / weight).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    for batch in batches:
        clock.run(lambda batch=batch: step(batch))
    return clock.figures("plain_transformers")


def trl(job: NodeJob, batches: list[Batch]) -> dict[str, float]:
    """SFTTrainer on the same rows, in its own order."""
    import tempfile

    from datasets import Dataset
    from transformers import AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": batch.ids_BT[row].tolist(),
            "labels": [-100, *batch.labels_BT[row, :-1].tolist()],
            "seq_lengths": _lengths(batch, row),
        }
        for batch in batches
        for row in range(batch.ids_BT.shape[0])
    ]
    clock = {"wall": 0.0, "cpu": 0.0}

    class Timed(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            self.began, self.cpu = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            clock["wall"] += time.perf_counter() - self.began
            clock["cpu"] += time.process_time() - self.cpu

    with tempfile.TemporaryDirectory() as folder:
        settings = SFTConfig(
            output_dir=folder, per_device_train_batch_size=job.spec.train.micro_batch, max_steps=len(batches),
            learning_rate=job.spec.train.learning_rate, padding_free=True, use_cpu=True, bf16=False, report_to=[],
            gradient_checkpointing=False, save_strategy="no", dataset_kwargs={"skip_prepare_dataset": True},
            optim="adamw_torch_fused", max_length=None, remove_unused_columns=False, logging_steps=1000,
        )  # fmt: skip
        SFTTrainer(
            AutoModelForCausalLM.from_pretrained(job.spec.model.base, dtype=torch.float32), settings,
            train_dataset=Dataset.from_list(rows), callbacks=[Timed()],
            processing_class=AutoTokenizer.from_pretrained(job.spec.model.base), peft_config=lora_of(job.spec.train.adapter),
        ).train()  # fmt: skip
    return {"trl_s": round(clock["wall"], 2), "trl_cpu_s": round(clock["cpu"], 2)}


def lora_of(adapter: AdapterSpec | None) -> Any:
    """The job's adapter as peft's own settings."""
    from peft import LoraConfig

    if adapter is None:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM", r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, bias="none",
        target_modules=adapter.target,
    )  # fmt: skip


def _lengths(batch: Batch, row: int) -> list[int]:
    """Of the conversations of a row, padding included."""
    width = batch.ids_BT.shape[1]
    bounds = [b - row * width for b in batch.cu_seqlens.tolist() if row * width <= b <= (row + 1) * width]
    return [last - first for first, last in pairwise(bounds)]


def main() -> None:
    run, what = Path(sys.argv[1]), sys.argv[2]
    job = NodeJob.read(run / "train.json")
    plan, share = DataPlan.open(job), Share(0, 1, job.spec.train.micro_batch)
    batches = [plan.batch(step, share, 0) for step in range(plan.total_steps)]
    print(json.dumps({"floor": floor, "plain": plain, "trl": trl}[what](job, batches)))


if __name__ == "__main__":
    main()
