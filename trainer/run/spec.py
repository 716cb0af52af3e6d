"""TrainSpec: the part of job.yaml that reaches the node, and NodeJob, the `train.json` that carries it there.

Owns the meaning, the default and the explanation of every training setting, each in one place. Refuses to know
clouds, prices, YAML and torch: a laptop without the training stack loads it.
Contradictions between settings are found by `problems()`, as pure functions of a valid specification, so that a
reader of job.yaml can report all of them at once with their lines.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from trainer.run.run_folder import CHECKPOINTS_FOLDER

PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, lt=1.0)]


class SpecModel(BaseModel):
    """Frozen, and an unknown key is an error: nothing in a job is ignored in silence."""

    # No use_attribute_docstrings, and built at first use: together 90 ms less at every start. launcher.jobfile.field_docs reads them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


class SpecialTokens(SpecModel):
    bos_token: str | None = None
    """Beginning-of-text token; the tokenizer's own where not given."""
    eos_token: str | None = None
    """End-of-turn token that generation stops at; the tokenizer's own where not given."""
    pad_token: str | None = None
    """Padding token; the tokenizer's own where not given."""
    unk_token: str | None = None
    """Unknown token; the tokenizer's own where not given."""


class ModelSpec(SpecModel):
    base: Annotated[str, Field(min_length=1)]
    """The base model: a folder, or a Hugging Face hub id such as meta-llama/Meta-Llama-3.1-8B."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    init: Literal["pretrained", "random"] = "pretrained"
    """`random` takes only the configuration of the base model and starts from fresh weights."""
    weights_prefix: str | None = None
    """Prefix that a wrapper left before the names of the base's weights (`_orig_mod.`, `module.`); it is taken off."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer; the base model's own where not given."""
    chat_template: str = "tokenizer"
    """`tokenizer` (the tokenizer's own), a family's format (`chatml`, `llama3`, `gemma3`, `qwen3` and others), a path to a .jinja file, or the template itself."""
    special_tokens: SpecialTokens = SpecialTokens()
    """Special tokens to set; one that the vocabulary lacks is added to it."""
    added_tokens: tuple[str, ...] = ()
    """Tokens to add to the vocabulary; the embeddings grow to hold them."""
    attention: Literal["auto", "flash_attention_2", "varlen", "sdpa", "eager"] = "auto"
    """`auto`: flash-attn where it is installed, else torch's variable-length attention, else SDPA."""
    attention_dropout: Fraction | None = None
    """Dropout of the attention weights in training; the base's own where not given."""
    router_loss: Annotated[float, Field(ge=0)] | None = None
    """Weight of a mixture of experts' load-balancing loss; the base's own (router_aux_loss_coef) where not given, 0 leaves it out."""
    trust_remote_code: bool = False
    """Allow a hub model to bring its own Python code."""


class SourceSpec(SpecModel):
    path: Annotated[str, Field(min_length=1)]
    """A file (.jsonl, .json, .parquet, .arrow, .csv, .txt, also .gz and .zst), a folder, a glob, hf://owner/name, s3:// or gs://."""
    format: str | None = None
    """Format name (`dolphin data --formats` lists them); detected from the columns where not given."""
    fields: dict[str, str] | None = None
    """Column names of one's own, as role: column, for example {prompt: question, response: answer, system: preamble}."""
    split: str = "train"
    """Split of a hub dataset, or of a folder whose files say theirs (train-00000-of-00002.parquet, test.jsonl)."""
    subset: str | None = None
    """Configuration name of a hub dataset, or of a folder cloned from it."""
    field: str | None = None
    """Key under which a JSON file holds its rows, where it has several: {"data": [...], "notes": [...]}."""
    weight: Annotated[float, Field(gt=0)] | None = None
    """Take this multiple of the source: 0.5 a seeded half, 2 every conversation twice."""
    samples: PositiveInt | None = None
    """Take this many conversations, chosen by the shuffle seed."""
    filter: str | None = None
    """Keep a row where this expression is true, for example `score > 4 and source == "textbook"`."""
    shuffle_seed: int | None = None
    """Seed for choosing `samples` or `weight`; train.seed where not given."""


class DataSpec(SpecModel):
    sources: Annotated[tuple[SourceSpec, ...], Field(min_length=1)]
    """Where the conversations come from, in order."""
    validation_fraction: Fraction = 0.01
    """Share of the conversations held out of training, chosen by train.seed; 0 holds out none."""
    validation_count: PositiveInt | None = None
    """Hold out this many conversations instead of a share."""
    sequence_length: PositiveInt = 2048
    """Tokens in a packed sequence."""
    packing: bool = True
    """Put several whole conversations into a sequence; none of them sees another."""
    train_on_inputs: bool = False
    """Train on every token, not on the assistant's turns alone."""
    last_turn_only: bool = False
    """Train on the last assistant turn of each conversation only."""
    train_on_reasoning: bool | Literal["last"] = True
    """Train on thoughts (reasoning_content, <think>) that the chat template writes: `true` all, `last` those of the last answer only, `false` none."""
    unroll: bool = False
    """Where the chat template drops an answer's thoughts once others follow, train that answer with them in a sequence of its own."""
    over_long: Literal["drop", "truncate", "split"] = "drop"
    """What to do with a conversation longer than sequence_length; it is counted in the data report either way."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Drop repeated conversations across all sources: `exact` by content, `near` by MinHash similarity too."""
    max_bad_fraction: Fraction = 0.01
    """Stop, before a GPU is paid for, where more than this share of the rows cannot be used."""
    workers: PositiveInt | None = None
    """Processes that prepare the data; the number of cores where not given."""

    @property
    def holds_out(self) -> bool:
        """Whether anything is held out; `validation_count` takes the place of the fraction."""
        return self.validation_count is not None or self.validation_fraction > 0


class SpectrumSpec(SpecModel):
    snr: Annotated[str, Field(min_length=1)]
    """An SNR file written by `dolphin spectrum scan`, or a model folder to scan."""
    top: Annotated[str, Field(pattern=r"^(100|[1-9]?[0-9])(\.[0-9]+)?%$")] = "50%"
    """Share of each module type to train, highest signal-to-noise ratio first."""


class UnfrozenSpec(SpecModel):
    spectrum: SpectrumSpec
    """Choose the layers by signal-to-noise ratio (Spectrum, arXiv 2406.06623)."""
    patterns: tuple[str, ...] = ()
    """Patterns to train besides, for example the norms and the embeddings, which have no ranking."""


class EvaluateEvery(SpecModel):
    epochs: Annotated[float, Field(gt=0)]
    """Measure after this share or number of epochs, rounded to whole steps."""


class OptimizerSettings(SpecModel):
    """(group `train`)"""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""
    micro_batch: PositiveInt = 1
    """Packed sequences per GPU in one forward pass."""
    global_batch: PositiveInt | None = None
    """Packed sequences per optimizer step over all GPUs. State this or `accumulation`."""
    accumulation: PositiveInt | None = None
    """Micro batches per optimizer step and GPU; with it global_batch = micro_batch x accumulation x GPUs of `resources`."""
    optimizer: Literal["adamw"] = "adamw"
    """AdamW with decoupled weight decay."""
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1e-5
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """Adam's epsilon."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay; not applied to vectors (norms and biases)."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Clip the gradient's global norm to this; 0 does not clip."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    """Steps of linear warm-up from 0. State this or `warmup_ratio`; neither is no warm-up."""
    warmup_ratio: Fraction | None = None
    """Warm-up as a share of all steps."""
    min_lr_ratio: Fraction = 0.0
    """The schedule ends at this share of the peak learning rate."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """Precision of forward and backward; master weights and moments are fp32 either way."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass (non-reentrant) to save memory."""
    zero: Literal[0, 1, 2, 3, "auto"] = "auto"
    """DeepSpeed's ZeRO stage; `auto` takes the least communication that fits the GPU."""
    offload: Literal["none", "optimizer"] = "none"
    """`optimizer` keeps master weights and Adam's moments in host memory and updates them there: slower, for a state that GPUs cannot hold."""
    unfrozen: tuple[str, ...] | UnfrozenSpec | None = None
    """Regular expressions (re.search) over parameter names: what they hit is trained, the rest is frozen. None trains all."""
    loss_chunk: PositiveInt = 2048
    """Labelled tokens whose logits are held at once in the loss."""
    evaluate_every: Annotated[int, Field(ge=1)] | Literal["epoch", "never"] | EvaluateEvery = "epoch"
    """Measure the validation loss every this many steps, at the end of each `epoch`, after a share of one ({epochs: 0.25}), or `never`."""
    evaluate_at_start: bool = True
    """Measure the validation loss before the first step too."""
    log_every: PositiveInt = 1
    """Print a line every this many steps; metrics.jsonl has every step."""
    seed: int = 42
    """Seed of everything random: the held-out split, the order of the data, fresh weights, dropout."""


class SaveEvery(SpecModel):
    steps: PositiveInt | None = None
    """Save after this many steps."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Save after this many minutes."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Save after this share or number of epochs."""


class CheckpointSpec(SpecModel):
    store: str | None = None
    """Where checkpoints outlive the node: a folder, s3://bucket/prefix or gs://bucket/prefix; the run folder where not given."""
    every: SaveEvery | Literal["auto"] = "auto"
    """When to save; `auto` weighs the measured cost of a save against the preemption rate (Young and Daly)."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Committed checkpoints to keep."""
    preemptions_per_day: Annotated[float, Field(gt=0)] = 4.0
    """Expected preemptions a day, for `every: auto`; what the run observes takes its place."""
    max_restarts: Annotated[int, Field(ge=0)] = 3
    """Restarts from the last checkpoint after a crash of a rank, before the run fails."""


class WandbSpec(SpecModel):
    project: str
    """Project name."""
    entity: str | None = None
    """Team or user."""
    name: str | None = None
    """Run name; the job's name where not given."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes the run's folder only, to be synced later."""


class MlflowSpec(SpecModel):
    tracking_uri: str
    """Tracking server, or a file:// folder."""
    experiment: str | None = None
    """Experiment; the job's name where not given."""


class TrackSpec(SpecModel):
    tensorboard: bool = False
    """Write TensorBoard event files into the run folder."""
    wandb: WandbSpec | None = None
    """Report to Weights & Biases; needs the secret WANDB_API_KEY unless offline."""
    mlflow: MlflowSpec | None = None
    """Report to MLflow."""


class TrainSpec(SpecModel):
    name: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$")]
    """Name of the job: lower-case letters, digits and hyphens, at most 48."""
    model: ModelSpec
    """The base model, its tokenizer and its attention."""
    data: DataSpec
    """The conversations and what is trained on."""
    train: OptimizerSettings = OptimizerSettings()
    """The optimization."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    """When and where the state is saved."""
    track: TrackSpec = TrackSpec()
    """Where metrics go besides metrics.jsonl."""


class NodeJob(SpecModel):
    """`train.json`: absolute facts for one run on one backend, and no cloud. Paths in `spec` are absolute here."""

    run_id: str
    """The launcher's run id; it names the checkpoint prefix."""
    run_dir: str
    """The run folder as the node sees it (trainer.run.run_folder)."""
    cache_dir: str
    """Prepared data is kept here, keyed by content."""
    nproc: PositiveInt
    """Ranks on each node."""
    num_nodes: PositiveInt = 1
    """Nodes that train; the backend tells each of them which one it is."""
    device: Literal["cuda", "cpu"]
    """Where the ranks compute."""
    spec: TrainSpec
    """The specification, with `train.global_batch` and `train.zero` settled."""

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nproc * self.num_nodes

    @property
    def global_batch(self) -> int:
        """Packed sequences per optimizer step; settled by the launcher, never changed by the number of ranks."""
        if self.spec.train.global_batch is None:
            raise ValueError("train.json must state train.global_batch: the launcher settles it")
        return self.spec.train.global_batch

    @property
    def checkpoint_store(self) -> str:
        """URL or folder that holds this run's checkpoints."""
        return f"{self.store}/{CHECKPOINTS_FOLDER}"

    @property
    def store(self) -> str:
        """URL or folder of this run in `checkpoint.store`; the run folder where there is none."""
        if self.spec.checkpoint.store is None:
            return str(Path(self.run_dir))
        return f"{self.spec.checkpoint.store.rstrip('/')}/{self.run_id}"

    @classmethod
    def read(cls, path: str | Path) -> NodeJob:
        """From the file, which states every setting, lest another version's defaults decide: one at its default counts as
        not stated, so that `problems` judges what was read as it judged the job."""
        job = cls.model_validate_json(Path(path).read_bytes())
        return job.model_copy(update={"spec": TrainSpec.model_validate(job.spec.model_dump(exclude_defaults=True))})


class Problem(NamedTuple):
    """One thing wrong with a specification: where (`("train", "warmup_steps")`), what and what to do."""

    where: tuple[str | int, ...]
    message: str


def problems(spec: TrainSpec) -> list[Problem]:
    """Contradictions between settings, both named. Empty where there are none."""
    t, d, found = spec.train, spec.data, []

    def report(where: str, message: str) -> None:
        found.append(Problem(tuple(where.split(".")), message))

    if t.global_batch is not None and t.accumulation is not None:
        report("train.accumulation", "contradicts train.global_batch: each decides the other; remove one")
    if t.global_batch is not None and t.global_batch % t.micro_batch:
        report(
            "train.global_batch", f"{t.global_batch} is not a multiple of train.micro_batch {t.micro_batch}; change one"
        )
    if t.offload != "none" and t.zero == 0:
        report("train.offload", "contradicts train.zero 0, which partitions no optimizer; set zero to auto, 1, 2 or 3")
    if t.warmup_steps is not None and t.warmup_ratio is not None:
        report("train.warmup_ratio", "contradicts train.warmup_steps: both set the warm-up; remove one")
    if t.max_steps is not None and t.warmup_steps is not None and t.warmup_steps >= t.max_steps:
        report(
            "train.warmup_steps",
            f"{t.warmup_steps} steps of warm-up leave none of train.max_steps {t.max_steps}; lower it",
        )
    if t.max_steps is not None and "epochs" in t.model_fields_set:
        report("train.max_steps", "contradicts train.epochs: both set the length; remove one")
    if d.train_on_inputs and d.last_turn_only:
        report("data.last_turn_only", "contradicts data.train_on_inputs: it trains on every token; remove one")
    if d.train_on_inputs and d.train_on_reasoning is not True:
        report("data.train_on_reasoning", "contradicts data.train_on_inputs: it trains on every token; remove one")
    if d.unroll and (d.last_turn_only or d.train_on_inputs or d.train_on_reasoning is not True):
        report("data.unroll", "contradicts what trains only a part, or all, of a conversation; set it to false")
    if d.validation_count is not None and "validation_fraction" in d.model_fields_set:
        report("data.validation_count", "contradicts data.validation_fraction: both size what is held out; remove one")
    if not d.holds_out and t.evaluate_every not in ("epoch", "never") and "evaluate_every" in t.model_fields_set:
        report(
            "train.evaluate_every",
            "contradicts data.validation_fraction 0: there is nothing to evaluate on; set a fraction or `never`",
        )
    every = spec.checkpoint.every
    if isinstance(every, SaveEvery) and every == SaveEvery():
        report("checkpoint.every", "names no interval: set steps, minutes or epochs, or write `every: auto`")
    for i, source in enumerate(d.sources):
        if source.weight is not None and source.samples is not None:
            found.append(
                Problem(
                    ("data", "sources", i, "weight"),
                    "contradicts `samples` of the same source: both set its size; remove one",
                )
            )
    return found


RESULT_NEUTRAL = {
    "name", "track", "checkpoint",
    "data.workers", "train.log_every", "train.evaluate_every", "train.evaluate_at_start", "train.zero", "train.offload",
    "train.loss_chunk", "train.micro_batch", "train.accumulation", "train.gradient_checkpointing", "model.attention",
}  # fmt: skip
"""Settings that a resumed run may change: they alter cost or bookkeeping, not which update is computed from which data."""


LENGTH_SETTINGS = ("train.epochs", "train.max_steps")
"""Settings of which a finished run may be given more: it goes on from its end."""


def result_settings(spec: TrainSpec) -> dict[str, Any]:
    """Flat `group.key -> value` of everything that decides the result; what a checkpoint is compared by."""
    flat: dict[str, Any] = {}
    for group, value in spec.model_dump(mode="json").items():
        if group in RESULT_NEUTRAL:
            continue
        for key, inner in value.items():
            if f"{group}.{key}" not in RESULT_NEUTRAL:
                flat[f"{group}.{key}"] = inner
    return flat


def result_hash(spec: TrainSpec) -> str:
    """SHA-256 of `result_settings`."""
    text = json.dumps(result_settings(spec), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
