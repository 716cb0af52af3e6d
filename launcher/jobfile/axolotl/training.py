"""axolotl's keys for the optimization, the precision, evaluation, saving and tracking."""

from __future__ import annotations

import math
from typing import Any

from launcher.jobfile.axolotl.account import Conversion
from launcher.jobfile.axolotl.shapes import number

ADAMW = frozenset(
    [
        "adamw",
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_torch_xla",
        "adamw_torch_npu_fused",
        "adamw_hf",
        "adamw_apex_fused",
        "adamw_anyprecision",
        "optimi_adamw",
        "paged_adamw_32bit",
        "paged_adamw",
        "adamw_bnb",
    ]
)
"""Names of AdamW with full-precision moments."""

ADAMW_8BIT = frozenset(
    [
        "adamw_8bit",
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "adamw_torch_8bit",
        "adamw_torch_4bit",
        "ao_adamw_4bit",
        "ao_adamw_8bit",
        "ao_adamw_fp8",
    ]
)
"""Names of AdamW with quantized moments."""

SCHEDULES = {"cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant", "cosine_with_min_lr": "cosine"}  # fmt: skip
SAVE_MINUTES = 30
"""Besides the interval of the configuration: what a preemption may cost."""


def convert_optimization(out: Conversion, stated: dict[str, Any]) -> None:
    for key, setting in (
        ("micro_batch_size", "micro_batch"), ("gradient_accumulation_steps", "accumulation"), ("learning_rate", "learning_rate"),
        ("weight_decay", "weight_decay"), ("adam_epsilon", "epsilon"), ("max_grad_norm", "max_grad_norm"),
        ("seed", "seed"),
    ):  # fmt: skip
        if key in stated:
            out.put(f"train.{setting}", number(stated[key]), key)
    if "batch_size" in stated and "gradient_accumulation_steps" not in stated:
        _batch_size(out, stated)
    if "learning_rate" not in stated:
        out.fail("learning_rate", "is missing; state it", "train.learning_rate")
    for key in ("adam_beta1", "adam_beta2"):
        if key in stated:
            betas = [stated.get("adam_beta1", 0.9), stated.get("adam_beta2", 0.999)]
            out.put("train.betas", [number(beta) for beta in betas], key)
    if stated.get("max_steps"):
        out.put("train.max_steps", stated["max_steps"], "max_steps")
        if "num_epochs" in stated:
            out.skip("num_epochs", "max_steps decides alone")
    elif "num_epochs" in stated:
        out.put("train.epochs", number(stated["num_epochs"]), "num_epochs")
    _optimizer(out, stated)
    _schedule(out, stated)
    _warmup(out, stated)
    if stated.get("logging_steps"):
        steps = stated["logging_steps"]
        is_share = isinstance(steps, float) and steps < 1
        out.put(
            "train.log_every",
            1 if is_share else steps,
            "logging_steps",
            "every step: a share is not counted" if is_share else "",
        )
    _recomputation(out, stated)


def _recomputation(out: Conversion, stated: dict[str, Any]) -> None:
    recomputes, moves = stated.get("gradient_checkpointing"), stated.get("activation_offloading")
    if "gradient_checkpointing" in stated:
        out.put("train.gradient_checkpointing", bool(recomputes), "gradient_checkpointing")
    if isinstance(recomputes, str):
        out.put("train.activation_offloading", True, "gradient_checkpointing", _TO_HOST if "disk" in recomputes else "")
    elif moves:
        if not recomputes:
            out.put(
                "train.gradient_checkpointing",
                True,
                "activation_offloading",
                "what recomputed layers begin from is moved",
            )
        out.put("train.activation_offloading", True, "activation_offloading", _TO_HOST if moves == "disk" else "")


_TO_HOST = "to host memory, not to a disk"


def _batch_size(out: Conversion, stated: dict[str, Any]) -> None:
    total, micro = stated["batch_size"], stated.get("micro_batch_size", 1)
    if isinstance(total, int) and isinstance(micro, int) and micro > 0 and total % micro == 0:
        out.put("train.accumulation", total // micro, "batch_size", "per GPU, as in axolotl")
    else:
        out.fail(
            "batch_size", f"{total} is not a multiple of micro_batch_size {micro}; change one", "train.accumulation"
        )


def _optimizer(out: Conversion, stated: dict[str, Any]) -> None:
    name = stated.get("optimizer")
    if name is None:
        return
    if name in ADAMW:
        out.put("train.optimizer", "adamw", "optimizer")
    elif name in ADAMW_8BIT:
        out.put(
            "train.optimizer",
            "adamw_8bit",
            "optimizer",
            "" if "bnb" in name else f"{name} becomes bitsandbytes' 8 bits",
        )
    elif name == "muon":
        out.put(
            "train.optimizer", "muon", "optimizer", "updates have the size of AdamW's: learning_rate is one for AdamW"
        )
    else:
        out.fail(
            "optimizer", f"{name} is not done; AdamW is (adamw_torch, adamw_bnb_8bit), and muon", "train.optimizer"
        )


def _schedule(out: Conversion, stated: dict[str, Any]) -> None:
    name = stated.get("lr_scheduler")
    if name in SCHEDULES:
        out.put("train.schedule", SCHEDULES[name], "lr_scheduler")
    elif name is not None:
        out.fail("lr_scheduler", f"{name} is not done; cosine, linear and constant are", "train.schedule")
    least = number(stated.get("cosine_min_lr_ratio"))
    if least == 1 and out.job.get("train", {}).get("schedule", "cosine") == "cosine":
        out.put("train.schedule", "constant", "cosine_min_lr_ratio", "a cosine that ends at its peak")
    elif least is not None:
        out.put("train.min_lr_ratio", least, "cosine_min_lr_ratio")
    for key, value in (stated.get("lr_scheduler_kwargs") or {}).items():
        if key == "min_lr_rate":
            out.put("train.min_lr_ratio", number(value), "lr_scheduler_kwargs")
        else:
            out.fail("lr_scheduler_kwargs", f"{key} is not done; remove it")


def _warmup(out: Conversion, stated: dict[str, Any]) -> None:
    if stated.get("lr_scheduler") == "constant":
        for key in ("warmup_steps", "warmup_ratio"):
            if stated.get(key):
                out.skip(key, "lr_scheduler constant has no warm-up (constant_with_warmup has), as in axolotl")
    elif isinstance(stated.get("warmup_steps"), float) and 0 < stated["warmup_steps"] < 1:
        out.put("train.warmup_ratio", stated["warmup_steps"], "warmup_steps", "below 1 it is a share of all steps")
    elif "warmup_steps" in stated:
        out.put("train.warmup_steps", stated["warmup_steps"], "warmup_steps")
        if stated.get("warmup_ratio"):
            out.fail("warmup_ratio", "contradicts warmup_steps: both set the warm-up; remove one")
    elif "warmup_ratio" in stated:
        out.put("train.warmup_ratio", number(stated["warmup_ratio"]), "warmup_ratio")
    else:
        out.assume("train.warmup_ratio", 0.03, "axolotl's default; it takes at most 100 steps")


def convert_precision(out: Conversion, stated: dict[str, Any]) -> None:
    brain = stated.get("bf16", None if "bf16" in stated else "auto")
    is_brain = brain in ("auto", "full") or brain is True or stated.get("bfloat16") is True
    if stated.get("fp8"):
        out.put("train.precision", "fp8", "fp8", "bf16 whose matrices multiply in fp8, a scale for each row")
        for key in ("bf16", "bfloat16"):
            if key in stated:
                out.skip(key, "fp8 says it")
        return
    half = next((key for key in ("fp16", "float16") if stated.get(key)), None)
    if half and not (is_brain and "bf16" in stated) and not stated.get("bfloat16"):
        out.put(
            "train.precision", "bf16", half, "bf16 takes its place: the same size, and no loss that has to be scaled"
        )
        if "bf16" in stated:
            out.skip("bf16", f"{half} is on")
        return
    if "bf16" in stated:
        out.put(
            "train.precision", "bf16" if is_brain else "fp32", "bf16", "" if is_brain else "without bf16 all is fp32"
        )
    if stated.get("bfloat16"):
        out.put("train.precision", "bf16", "bfloat16")
    elif stated.get("float32"):
        out.put("train.precision", "fp32", "float32")


def convert_cadence(out: Conversion, stated: dict[str, Any]) -> None:
    """When the run evaluates and saves."""
    data = out.job.get("data", {})
    if data.get("validation_fraction") or data.get("validation_count"):
        _evaluation(out, stated)
        if out.job.get("train", {}).get("evaluate_every") != "never":
            _best(out, stated)
            _answers(out, stated)
    _saving(out, stated)
    if "save_total_limit" in stated:
        limit = stated["save_total_limit"]
        is_low = isinstance(limit, int) and limit < 2
        out.put(
            "checkpoint.keep",
            2 if is_low else limit,
            "save_total_limit",
            "2 is the least: one may be damaged" if is_low else "",
        )


def _evaluation(out: Conversion, stated: dict[str, Any]) -> None:
    key = "eval_strategy" if "eval_strategy" in stated else "evaluation_strategy"
    strategy, steps, count = stated.get(key), stated.get("eval_steps"), stated.get("evals_per_epoch")
    if strategy in ("no", False) or count == 0:
        out.put("train.evaluate_every", "never", key if key in stated else "evals_per_epoch")
    elif isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
        out.put("train.evaluate_every", steps, "eval_steps")
    elif steps:
        _evaluation_share(out, steps)
    elif count:
        out.put("train.evaluate_every", "epoch" if count == 1 else {"epochs": 1 / count}, "evals_per_epoch")
    elif strategy is not None:
        out.put("train.evaluate_every", "epoch", key)


def _best(out: Conversion, stated: dict[str, Any]) -> None:
    """Early stopping, and which weights are left."""
    if stated.get("early_stopping_patience"):
        out.put("train.stop", {"patience": stated["early_stopping_patience"]}, "early_stopping_patience")
    if stated.get("load_best_model_at_end"):
        out.put("checkpoint.keep_best", "eval_loss", "load_best_model_at_end")
        out.put("export.which", "best", "load_best_model_at_end")


def _answers(out: Conversion, stated: dict[str, Any]) -> None:
    """What the model answers at an evaluation."""
    if not stated.get("eval_table_size"):
        return
    out.put("evaluate.questions", stated["eval_table_size"], "eval_table_size")
    for key in ("eval_max_new_tokens", "eval_table_max_new_tokens"):
        if stated.get(key):
            out.put("evaluate.max_new_tokens", stated[key], key)


def _evaluation_share(out: Conversion, share: float) -> None:
    """`eval_steps` below 1 is a share of all steps."""
    length = out.job.get("train", {})
    total = length.get("max_steps")
    if share >= 1:
        out.fail(
            "eval_steps", f"{share} is neither a whole number nor a share below 1; write one", "train.evaluate_every"
        )
    elif total is None:
        out.put("train.evaluate_every", {"epochs": share * length.get("epochs", 1.0)}, "eval_steps")
    elif isinstance(total, int):  # another value is max_steps' own error
        out.put("train.evaluate_every", max(1, math.ceil(share * total)), "eval_steps")


def _saving(out: Conversion, stated: dict[str, Any]) -> None:
    also = f"every {SAVE_MINUTES} minutes too, which is what a preemption may cost"
    steps, count, strategy = stated.get("save_steps"), stated.get("saves_per_epoch"), stated.get("save_strategy")
    if isinstance(steps, int) and not isinstance(steps, bool) and steps > 0:
        out.put("checkpoint.every", {"steps": steps, "minutes": SAVE_MINUTES}, "save_steps", also)
    elif isinstance(steps, float) and 0 < steps < 1:
        share = steps * float(stated.get("num_epochs", 1))
        out.put("checkpoint.every", {"epochs": share, "minutes": SAVE_MINUTES}, "save_steps", also)
    elif isinstance(count, (int, float)) and count > 0:
        out.put("checkpoint.every", {"epochs": 1 / count, "minutes": SAVE_MINUTES}, "saves_per_epoch", also)
    elif strategy == "epoch":
        out.put("checkpoint.every", {"epochs": 1, "minutes": SAVE_MINUTES}, "save_strategy", also)
    elif strategy is not None or count == 0:
        out.skip(
            "save_strategy" if strategy is not None else "saves_per_epoch",
            "a run always saves, or a preemption would cost it all",
        )


def convert_tracking(out: Conversion, stated: dict[str, Any]) -> None:
    secrets: list[str] = []
    mode = stated.get("wandb_mode")
    if stated.get("wandb_project") and mode != "disabled" and stated.get("use_wandb") is not False:
        out.put("track.wandb.project", stated["wandb_project"], "wandb_project")
        for key in ("entity", "name"):
            if stated.get(f"wandb_{key}"):
                out.put(f"track.wandb.{key}", stated[f"wandb_{key}"], f"wandb_{key}")
        if stated.get("wandb_run_id"):
            if stated.get("wandb_name"):
                out.skip("wandb_run_id", "dolphin names the run by its own id, so that a resumed run goes on in it")
            else:
                out.put("track.wandb.name", stated["wandb_run_id"], "wandb_run_id")
        if mode in ("online", "offline"):
            out.put("track.wandb.mode", mode, "wandb_mode")
        elif mode is not None:
            out.fail("wandb_mode", f"{mode!r} is none of online, offline, disabled", "track.wandb.mode")
        if mode != "offline":
            secrets.append("WANDB_API_KEY")
            out.origins[("track", "wandb")] = ("wandb_project",)
    if stated.get("use_wandb") and not stated.get("wandb_project"):
        out.fail("use_wandb", "needs a project; state wandb_project", "track.wandb.project")
    if stated.get("mlflow_tracking_uri") and stated.get("use_mlflow") is not False:
        out.put("track.mlflow.tracking_uri", stated["mlflow_tracking_uri"], "mlflow_tracking_uri")
        if stated.get("mlflow_experiment_name"):
            out.put("track.mlflow.experiment", stated["mlflow_experiment_name"], "mlflow_experiment_name")
    elif stated.get("use_mlflow"):
        out.fail("use_mlflow", "needs a server; state mlflow_tracking_uri", "track.mlflow.tracking_uri")
    if stated.get("use_tensorboard"):
        out.put("track.tensorboard", True, "use_tensorboard")
    if secrets:
        out.job["secrets"] = secrets
