"""The engine: DeepSpeed, configured in one place and wrapped in the five verbs that the loop needs.

Owns DeepSpeed's configuration and everything that differs between its ZeRO stages while training. What differs in saved
state is in zero_state.py. Every rank makes the same calls in the same order.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn

from trainer.data.batch import Batch
from trainer.engine import gpu, numa, process_group, zero_state
from trainer.engine import optimizer as optim
from trainer.model.packed import PackedModel, hf_name
from trainer.model.tally import Tally
from trainer.run.exits import NoContact, TrainingFailed
from trainer.run.spec import NodeJob
from trainer.supervise import rendezvous


def initialize_distributed(device: str, give_up: Callable[[NoContact], None]) -> tuple[int, int, torch.device]:
    """Join the process group that torchrun describes: (rank, world size, this rank's device). Called once.

    Raises NoContact where the ranks do not reach each other; where that shows by waiting in vain, `give_up` has to end the
    process.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    where = torch.device("cuda", local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        gpu.require(local_rank)
        torch.cuda.set_device(where)
        card = torch.cuda.get_device_properties(where)
        numa.bind_beside(f"{card.pci_domain_id:04x}:{card.pci_bus_id:02x}:{card.pci_device_id:02x}.0")
    else:
        _skip_unused_extension()
    process_group.be_patient()
    with quiet():
        deepspeed.init_distributed(
            dist_backend="nccl" if device == "cuda" else "gloo",
            init_method=rendezvous.init_method(os.environ),
            rank=int(os.environ.get("RANK", "0")),
            world_size=int(os.environ.get("WORLD_SIZE", "1")),
            timeout=process_group.PATIENCE,
        )
    seconds = process_group.first_contact(where, give_up)
    if dist.get_rank() == 0 and dist.get_world_size() > 1:
        print(f"{dist.get_world_size()} ranks reach each other: a first all-reduce took {seconds:.1f} s", flush=True)
    return dist.get_rank(), dist.get_world_size(), where


def _skip_unused_extension() -> None:
    """Spare a CPU run DeepSpeed's shared-memory extension, which only inference uses.

    Building it takes a C++ compiler and over a minute, and a rank that is killed meanwhile leaves a lock file behind
    that every later start would wait for.
    """
    deepspeed.ops.__compatible_ops__ = {"deepspeed_shm_comm": False}


@contextlib.contextmanager
def _without_muon() -> Iterator[None]:
    """Spare every start DeepSpeed's Muon: it only asks whether the optimizer is one, but compiles kernels to ask, for a
    second and more."""
    name = "deepspeed.runtime.zero.muon.muon_optimizer"
    is_free = name not in sys.modules
    if is_free:
        stand_in = types.ModuleType(name)
        stand_in.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})  # type: ignore[attr-defined]
        sys.modules[name] = stand_in
    try:
        yield
    finally:
        if is_free:
            del sys.modules[name]


def configuration(job: NodeJob, world_size: int, num_micro_batches: int) -> dict[str, Any]:
    """DeepSpeed's configuration. `num_micro_batches` is the accumulation of one rank at this world size."""
    train = job.spec.train
    config: dict[str, Any] = {
        "train_batch_size": train.micro_batch * num_micro_batches * world_size,
        "train_micro_batch_size_per_gpu": train.micro_batch,
        "gradient_accumulation_steps": num_micro_batches,
        "gradient_clipping": 0.0 if _clips_by_hand(job) else train.max_grad_norm,
        "zero_optimization": {
            "stage": zero_stage(job),
            "overlap_comm": job.device == "cuda",
            "contiguous_gradients": True,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},  # it waits for the GPU twice in every micro batch
    }
    if train.offload == "optimizer":
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": job.device == "cuda"}
        # torch's fused AdamW is as good on a CPU, and needs no compiler on the node
        config["zero_force_ds_cpu_optimizer"] = False
    if train.stored_precision == "bf16":
        config["bf16"] = {"enabled": True}
        if zero_stage(job) >= 2 or num_micro_batches > 1:
            # sixteen micro batches added up in bf16 lose three of its eight bits
            config["data_types"] = {"grad_accum_dtype": "fp32"}
        if zero_stage(job) == 1 and num_micro_batches > 1:
            # or the sum would be rounded to bf16 on its way to the other ranks, even where there are none
            config["communication_data_type"] = "fp32"
            config["bf16"]["immediate_grad_update"] = True
    return config


def zero_stage(job: NodeJob) -> int:
    """The stage that DeepSpeed runs. Stage 0 in bf16 is run as stage 1, which sends the same bytes and holds less:
    DeepSpeed's own stage 0 in bf16 makes an optimizer step with zero gradients first, so Adam's bias correction is off."""
    train = job.spec.train
    if train.zero == "auto":
        raise ValueError("train.json must state train.zero: the launcher settles it")
    return 1 if train.zero == 0 and train.stored_precision == "bf16" else train.zero


def _clips_by_hand(job: NodeJob) -> bool:
    """Stage 0 in fp32 is plain DDP to DeepSpeed: it clips without telling the norm."""
    return job.spec.train.zero == 0 and job.spec.train.stored_precision == "fp32"


class Engine:
    """A model under training. The loss of a step is normalised by the whole step's label weights, so that neither the
    number of ranks nor the number of micro batches changes the gradient."""

    def __init__(self, job: NodeJob, model: nn.Module, num_micro_batches: int, device: torch.device) -> None:
        """All ranks. `model` is built, frozen and on the CPU; DeepSpeed moves and partitions it."""
        self.job = job
        self.world_size = dist.get_world_size()
        self.device = device
        packed = PackedModel(model, job.spec.train.loss_chunk, router_loss=job.spec.model.router_loss)
        config = configuration(job, self.world_size, num_micro_batches)
        exact = _exact_buffers(packed)
        with quiet(), _without_muon():
            if job.spec.train.zero == 3:
                _gather_experts_together(packed)
                # partitions one parameter after the other, so that no GPU ever holds the whole model
                deepspeed.zero.Init(module=packed, config_dict_or_path=config)
            optimizer = optim.build(packed, job.spec.train)
            self.deepspeed, self.optimizer, _, _ = deepspeed.initialize(
                model=packed, optimizer=optimizer, config=config
            )
        zero_state.attach_optimizer(self.deepspeed)
        for part, name, values in exact:
            getattr(part, name).data = values.to(device)

    @property
    def model(self) -> nn.Module:
        """The transformers model inside."""
        return self.deepspeed.module.model

    @property
    def tally(self) -> Tally:
        """What the loss counted on this rank."""
        found: Tally = self.deepspeed.module.head.tally
        return found

    def forward_backward(self, batch: Batch, step_weight: float) -> torch.Tensor:
        """One micro batch; gradients accumulate. Returns this rank's summed loss (fp32 scalar on the device)."""
        self.deepspeed.train()
        loss_sum = self._loss_sum(batch)
        # DeepSpeed averages gradients over ranks: multiply by their number to get the sum over the whole step
        self.deepspeed.backward(loss_sum * (self.world_size / step_weight), scale_wrt_gas=False)
        boundary = self.deepspeed.is_gradient_accumulation_boundary()
        if not boundary:
            self.deepspeed.step()
        return loss_sum.detach()

    def apply(self, learning_rate: float) -> float:
        """Clip and update, after the last micro batch of a step; returns the gradient's global norm before clipping.

        Raises TrainingFailed where the gradient is not finite.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        norm: Any = None
        if _clips_by_hand(self.job):
            limit = self.job.spec.train.max_grad_norm or math.inf
            norm = torch.nn.utils.clip_grad_norm_(self.trainable_parameters(), limit)
        self.deepspeed.step()
        if norm is None:
            norm = self.deepspeed.get_global_grad_norm()
        value = float(norm) if norm is not None else math.nan
        if not math.isfinite(value) or value < 0 or getattr(self.deepspeed.optimizer, "overflow", False):
            raise TrainingFailed("the gradient is not finite: lower train.learning_rate or train.max_grad_norm")
        return value

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> torch.Tensor:
        """This rank's summed loss of one micro batch, without gradients."""
        self.deepspeed.eval()
        return self._loss_sum(batch)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Logits (T, V) of each row of T token ids alone, in fp32 on the CPU, by the model as it is trained. All ranks call it."""
        found = []
        for row in rows:
            ids_BT = torch.tensor([list(row)])
            ones_BT, ends = torch.ones(ids_BT.shape), torch.tensor([0, len(row)], dtype=torch.int32)
            positions_BT = torch.arange(len(row))[None]
            found.append(self.labelled_logits(Batch.of(ids_BT, ids_BT, ones_BT, positions_BT, ends)).cpu())
        return found

    @torch.no_grad()
    def labelled_logits(self, batch: Batch) -> torch.Tensor:
        """Logits (N, V) of a batch's N labelled positions, in order, in fp32. All ranks call it."""
        self.deepspeed.eval()
        head = self.deepspeed.module.head
        head.gives_logits = True
        try:
            return self._loss_sum(batch)
        finally:
            head.gives_logits = False

    def _loss_sum(self, batch: Batch) -> torch.Tensor:
        b = batch.to(self.device)
        return self.deepspeed(
            b.ids_BT, b.labels_BT, b.weights_BT, b.positions_BT, b.cu_seqlens, b.max_seqlen, b.labelled_N, b.row_ends
        )

    def trainable_parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.deepspeed.module.parameters() if parameter.requires_grad]

    def gathered(
        self, dtype_of: Callable[[str, torch.Tensor], torch.dtype], alive: Callable[[], None]
    ) -> Iterator[tuple[tuple[str, ...], torch.Tensor]]:
        """Every parameter and persistent buffer, whole, on the CPU, one after the other, with its transformers names: several
        where modules share it. All ranks go through it to its end; rank 0 gets the tensors, the others none.

        Parameters come in the type that `dtype_of` says, buffers (a router's bias) in their own. `alive` is called after
        every parameter. Holds one tensor at a time.
        """
        is_first = dist.get_rank() == 0
        names: dict[int, list[str]] = {}
        for name, parameter in self.deepspeed.module.named_parameters(remove_duplicate=False):
            names.setdefault(id(parameter), []).append(hf_name(name))
        for parameter in self.deepspeed.module.parameters():
            known, whole = names[id(parameter)], None
            with self._gathered(parameter):
                if is_first:
                    whole = parameter.detach().to("cpu", dtype_of(known[0], parameter), copy=True)
            alive()
            if whole is not None:
                yield tuple(known), whole
        if is_first:
            for name, buffer in _persistent_buffers(self.deepspeed.module):
                yield (hf_name(name),), buffer.detach().to("cpu", copy=True)

    def gathered_trainable(self) -> dict[str, torch.Tensor]:
        """Every trained parameter under its transformers name, whole, on the CPU, in the training precision. All ranks call
        it; rank 0 gets the tensors, the others an empty dict."""
        state: dict[str, torch.Tensor] = {}
        for name, parameter in self.deepspeed.module.named_parameters():
            if parameter.requires_grad:
                with self._gathered(parameter):
                    if dist.get_rank() == 0:
                        state[hf_name(name)] = parameter.detach().to("cpu", copy=True)
        return state

    def _gathered(self, parameter: nn.Parameter) -> contextlib.AbstractContextManager[Any]:
        if self.job.spec.train.zero == 3:
            found: contextlib.AbstractContextManager[Any] = deepspeed.zero.GatheredParameters([parameter])
            return found
        return contextlib.nullcontext()


def _persistent_buffers(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that belong to a model's files, by name; tables that a model computes (rotary frequencies) are not."""
    for path, part in module.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                yield f"{path}.{name}" if path else name, buffer


def _exact_buffers(module: nn.Module) -> list[tuple[nn.Module, str, torch.Tensor]]:
    """Buffers in fp32 with their values: DeepSpeed casts them with the parameters, and a router's bias of eight bits sends
    tokens to other experts than the base does."""
    return [
        (part, name, buffer.detach().clone())
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
        if buffer.dtype == torch.float32
    ]


def _gather_experts_together(module: nn.Module) -> None:
    """Stage 3 gathers a module's parameters when it is called. Experts that are modules of their own are called on the
    ranks that have a token for them, and the others would wait: gather all of a layer's at once."""
    blocks = {type(part) for part in module.modules() if isinstance(getattr(part, "experts", None), nn.ModuleList)}
    if blocks:
        deepspeed.utils.set_z3_leaf_modules(module, list(blocks))


def sum_over_ranks(*values: float | torch.Tensor, device: torch.device) -> list[float]:
    """One all-reduce of a few scalars in fp64: every rank gets the same sums. All ranks call it."""
    tensor = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
    dist.all_reduce(tensor)
    found: list[float] = tensor.tolist()
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """DeepSpeed's information lines are not the user's; its warnings and errors, on stderr, are."""
    logger = logging.getLogger("DeepSpeed")
    before = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
