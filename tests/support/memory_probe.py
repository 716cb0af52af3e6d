"""Measures the memory of real DeepSpeed steps that compute nothing: fake tensors, a fake process group of 8 ranks, and
PyTorch's own memory tracker. A process of its own, started by test_memory_formulas.py: a JSON case a line on standard input.

The trainer's model wrapper, loss, freezing, optimizer and DeepSpeed configuration run as they are. Prints a JSON line a case:
bytes allocated at most in the forward pass, the backward pass and the step, after everything that lasts exists, and what an
offloaded optimizer keeps on the host. The CPU plays the GPU here, and the device `meta` the host.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from typing import Any

RANKS = 8
os.environ.update(
    DS_ACCELERATOR="cpu", RANK="0", LOCAL_RANK="0", WORLD_SIZE=str(RANKS), MASTER_ADDR="localhost", MASTER_PORT="1"
)
warnings.simplefilter("ignore")

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())

import deepspeed  # noqa: E402
from deepspeed.runtime.zero import partitioned_param_coordinator as coordinator  # noqa: E402
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3  # noqa: E402
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer  # noqa: E402
from torch.optim import optimizer as torch_optimizer  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig  # noqa: E402

from trainer.engine import engine  # noqa: E402
from trainer.engine import optimizer as optim  # noqa: E402
from trainer.model import activation_offloading, adapter, attention, build, freeze  # noqa: E402
from trainer.model.packed import PackedModel  # noqa: E402
from trainer.run.settings.adapter import AdapterSpec  # noqa: E402
from trainer.run.settings.data import DataSpec, SourceSpec  # noqa: E402
from trainer.run.settings.model import ModelSpec  # noqa: E402
from trainer.run.settings.train import OptimizerSettings, RecomputeEvery  # noqa: E402
from trainer.run.spec import NodeJob, TrainSpec  # noqa: E402

engine._skip_unused_extension()  # or a start that was killed while it was built would block this one for ever
deepspeed.init_distributed(dist_backend="gloo", dist_init_required=False, verbose=False)
coordinator.assert_ints_same_as_other_ranks = lambda *_: None  # compares values, which fake tensors have none of


class Host(str):
    """DeepSpeed names the host `cpu`, to compare and to allocate: this compares as that and allocates elsewhere."""

    def __eq__(self, other: object) -> bool:
        return other == "cpu"

    __hash__ = str.__hash__


HOST, GPU = Host("meta"), "cpu"


def _tell_host_from_gpu() -> None:
    def ignore(*_: Any) -> None: ...

    class AllOnHost(dict[int, str]):
        def __missing__(self, _: int) -> str:
            return HOST

    DeepSpeedZeroOptimizer.device = property(lambda o: HOST if o.cpu_offload else GPU, ignore)
    DeepSpeedZeroOptimizer_Stage3.device = property(lambda o: HOST if o.offload_optimizer else GPU, ignore)
    DeepSpeedZeroOptimizer_Stage3.subgroup_to_device = property(lambda _: AllOnHost(), ignore)
    known = torch_optimizer._get_fused_kernels_supported_devices()
    torch_optimizer._get_fused_kernels_supported_devices = lambda: [*known, "meta"]


_tell_host_from_gpu()


class SaveOnHost(torch.autograd.graph.saved_tensors_hooks):
    """torch's `save_on_cpu`, for a CPU that plays the GPU."""

    def __init__(self, pin_memory: bool) -> None:
        super().__init__(lambda tensor: tensor.to("meta"), lambda kept: torch.empty_like(kept, device=GPU))


activation_offloading.save_on_cpu = SaveOnHost


class Answers(TorchDispatchMode):
    """Values that fake tensors do not have: every scalar is 0, and `labelled` positions have a label."""

    def __init__(self, labelled: int) -> None:
        super().__init__()
        self.labelled = labelled

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0 if args[0].dtype.is_floating_point else 0
        if func is torch.ops.aten.nonzero.default:
            return torch.empty((self.labelled, 1), dtype=torch.int64)
        if func is torch.ops.aten.is_nonzero.default:
            return False
        return func(*args, **(kwargs or {}))


class Tracker(MemTracker):
    """PyTorch's tracker of live storages, without its account by module, which takes one forward pass only."""

    def _track_module_params_and_buffers(self, module: Any, install_grad_hooks: bool = True) -> Any:
        return super()._track_module_params_and_buffers(module, install_grad_hooks=False)

    def _ignore(self, *_: Any) -> None: ...

    _pre_fw_hook = _post_fw_hook = _pre_bw_hook = _post_bw_hook = _ignore

    def now(self, device: str = GPU) -> int:
        return self._curr_mem_snap.get(torch.device(device), {}).get("Total", 0)

    def take_peak(self) -> int:
        peak = self._peak_mem.get(torch.device(GPU), 0)
        self._peak_mem.clear()
        return max(peak, self.now())


def _recomputation(every: int) -> bool | RecomputeEvery:
    return bool(every) if every < 2 else RecomputeEvery(every=every)


def _inject(model: Any, spec: AdapterSpec, dtype: torch.dtype) -> None:
    """Adapters in the type of the model from the start: peft would move them there, and fake tensors cannot be swapped."""
    move, before = torch.nn.Module.to, torch.get_default_dtype()
    torch.nn.Module.to = lambda module, *_, **__: module
    torch.set_default_dtype(dtype)
    try:
        adapter.inject(model, spec, (), 0)
    finally:
        torch.nn.Module.to = move
        torch.set_default_dtype(before)


def measure(case: dict[str, Any]) -> dict[str, int]:
    settings = OptimizerSettings(
        micro_batch=case["micro_batch"], global_batch=case["micro_batch"] * case["micro_batches"] * RANKS, zero=case["stage"],
        offload=case["offload"], unfrozen=case["patterns"], loss_chunk=case["loss_chunk"], precision=case["precision"],
        gradient_checkpointing=_recomputation(case["gradient_checkpointing"]),
    )  # fmt: skip
    data = DataSpec(sources=(SourceSpec(path="x"),), sequence_length=case["sequence_length"])
    spec = TrainSpec(name="probe", model=ModelSpec(base="x"), data=data, train=settings)
    job = NodeJob(run_id="r", run_dir="/tmp", cache_dir="/tmp", nproc=RANKS, device="cuda", spec=spec)
    tokens = case["micro_batch"] * case["sequence_length"]
    dtype = torch.bfloat16 if case["precision"] == "bf16" else torch.float32
    found: dict[str, int] = {}
    with FakeTensorMode(allow_non_fake_inputs=True), Answers(int(tokens * case["labelled_share"])):
        config = LlamaConfig(**case["config"])
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention.VARLEN)
        build.recompute(model, settings.recompute_every)
        if case["activation_offloading"]:
            activation_offloading.apply(model, GPU)
        model.config.use_cache = False
        if case["adapter"] is None:
            freeze.apply(model, case["patterns"])
        else:
            _inject(model, AdapterSpec(**case["adapter"]), dtype)
        packed = PackedModel(model, case["loss_chunk"])
        packed.to = lambda *_, **__: packed  # it is where it belongs, and fake tensors cannot be swapped
        settings_of_deepspeed = engine.configuration(job, RANKS, case["micro_batches"])
        settings_of_deepspeed["zero_optimization"]["reduce_bucket_size"] = case["reduce_bucket"]
        tracker = Tracker()
        tracker.track_external(packed)
        with tracker:
            with engine.quiet():
                if case["stage"] == 3:
                    deepspeed.zero.Init(module=packed, config_dict_or_path=settings_of_deepspeed)
                optimizer = optim.build(packed, settings)
                running, _, _, _ = deepspeed.initialize(model=packed, optimizer=optimizer, config=settings_of_deepspeed)
            before = tracker.now()
            tracker.take_peak()
            for _ in range(case["micro_batches"]):
                ids = torch.zeros(case["micro_batch"], case["sequence_length"], dtype=torch.int64)
                weights = torch.ones(case["micro_batch"], case["sequence_length"])
                loss = running(ids, ids, weights, ids, torch.tensor([0, tokens], dtype=torch.int32), tokens)
                found["loss"] = tracker.take_peak()
                running.backward(loss * 1.0, scale_wrt_gas=False)
                del loss
                found["backward"] = tracker.take_peak()
                running.step()
            found["step"] = tracker.take_peak()
            lasting = tracker.now() - before  # Adam's moments, which the first step makes
            found |= {"loss": found["loss"] + lasting, "backward": found["backward"] + lasting, "rest": tracker.now()}
            # stages 1 and 2 keep the parameters' shapes as meta tensors, which are nowhere
            shapes = [tensor for group in getattr(running.optimizer, "round_robin_bit16_meta", []) for tensor in group]
            found["host"] = tracker.now(HOST) - sum(tensor.nbytes for tensor in shapes)
    return found


if __name__ == "__main__":
    for line in sys.stdin:
        print("measured", json.dumps(measure(json.loads(line))), flush=True)
