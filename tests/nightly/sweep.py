"""Every causal family of the installed transformers, small and random: trained with packing equal to alone, or refused with a
reason; then written, loaded again, and asked for the same logits. Writes docs/models.md.

Run by `make nightly`, or for some families by hand: python tests/nightly/sweep.py llama mixtral --out build/models.md
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from trainer.data.batch import IGNORE
from trainer.model import self_test, twin
from trainer.model.build import refuse_unloadable
from trainer.model.packed import PackedModel, Way, hf_name
from trainer.run.exits import BadInput
from trainer.run.trainable import refusal

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "models.md"
FAMILY_LIMIT_S = 60
"""A family that takes longer is a finding of its own."""
STEPS = 3
LENGTHS = (9, 14, 4)
STATED: dict[str, dict[str, Any]] = {
    "nemotron": {"num_key_value_heads": 4}, "ministral": {"head_dim": 16}, "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16}, "dots1": {"n_routed_experts": 8}, "deepseek_v2": {"num_experts_per_tok": 2},
    "lfm2": {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4},
                                               "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
}  # fmt: skip
"""What published configurations of a family state and its defaults leave out."""


class TooSlow(BaseException):
    """Not an Exception: the self-test takes those for a way that does not hold, and goes on to the next."""


@dataclass(frozen=True)
class Row:
    family: str
    model: str
    outcome: str
    """`packed`, `alone`, `refused`, `not built` or `fails`."""
    detail: str
    difference: float | None = None
    gradient: float | None = None
    reloaded: str = ""


def sweep(family: str) -> Row:
    """One family, from its default configuration to a model loaded again."""
    try:
        config = CONFIG_MAPPING[family](**STATED.get(family, {}))
    except Exception as error:
        return Row(family, "-", "not built", f"no default configuration: {told(error)}")
    refused = refusal(config.to_dict())
    if refused:
        return Row(family, "-", "refused", refused)
    try:
        refuse_unloadable(config)
    except BadInput as unloadable:
        return Row(family, "-", "refused", str(unloadable))
    small = twin.make(config)
    if small is None:
        return Row(family, "-", "not built", "no small model can be made from the default configuration")
    name = type(small).__name__
    verdict = self_test.of_config(config, "auto", "cpu", "fp32", packing=True)
    outcome = "packed"
    if verdict is not None and verdict.way is None:
        verdict, outcome = self_test.of_config(config, "auto", "cpu", "fp32", packing=False), "alone"
    if verdict is None:
        return Row(family, name, "not built", "the small model does not run; the self-test takes the real one")
    if verdict.way is None:
        return Row(family, name, "refused", verdict.refusal(packing=False))
    difference = verdict.trials[-1].difference
    try:
        gradient = compare_gradients(small, verdict.way)
        packed = train(small, verdict.way)
        reloaded = reload(packed)
    except Exception as error:
        return Row(family, name, "fails", told(error), difference)
    return Row(family, name, outcome, str(verdict.way), difference, gradient, reloaded)


def batch(seed: int, rows: bool) -> tuple[torch.Tensor, ...]:
    """(ids, labels, positions, cu_seqlens) of three conversations, in one row or one a row."""
    generator = torch.Generator().manual_seed(seed)
    parts = [torch.randint(3, twin.VOCABULARY, (1, length), generator=generator) for length in LENGTHS]
    width = max(LENGTHS) if rows else 0
    ids = [F.pad(part, (0, width - part.shape[1])) if rows else part for part in parts]
    labels = [F.pad(part[:, 1:], (0, 1), value=IGNORE) for part in parts]
    labels = [F.pad(part, (0, width - part.shape[1]), value=IGNORE) if rows else part for part in labels]
    lengths = [part.shape[1] for part in ids]
    positions = [torch.arange(length)[None] for length in lengths]
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return torch.cat(ids, dim=int(not rows)), torch.cat(labels, dim=int(not rows)), torch.cat(positions, dim=1), bounds


def compare_gradients(model: Any, way: Way) -> float:
    """Largest difference of a gradient from that of the model's own forward on each conversation, relative to its largest."""
    model.set_attn_implementation("eager")
    model.eval().zero_grad()
    ids, labels, positions, bounds = batch(1, way.rows)
    for index, length in enumerate(LENGTHS):
        start = 0 if way.rows else int(bounds[index])
        part = slice(start, start + length)
        row = index if way.rows else 0
        logits = model(input_ids=ids[row : row + 1, part], use_cache=False).logits[0].float()
        F.cross_entropy(logits, labels[row, part], ignore_index=IGNORE, reduction="sum").backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.set_attn_implementation(way.attention)
    head = model.get_output_embeddings()
    packed = PackedModel(model, 16, way=way, router_loss=0.0).eval()
    packed(ids, labels, (labels != IGNORE).float(), positions, bounds, max(LENGTHS)).backward()
    got = {hf_name(name): p.grad for name, p in packed.named_parameters() if p.grad is not None}
    model.set_output_embeddings(head)
    if expected.keys() - got.keys():
        raise AssertionError(f"no gradient reaches {sorted(expected.keys() - got.keys())[0]}")
    scale = max(value.abs().max().item() for value in expected.values())
    worst = max((got[name] - value).abs().max().item() for name, value in expected.items()) / scale
    if not worst < 1e-3:
        raise AssertionError(f"gradients differ by {worst:.1g} of the largest")
    model.zero_grad()
    return worst


def train(model: Any, way: Way) -> PackedModel:
    """A few steps on one batch: the loss must fall."""
    packed = PackedModel(model, 16, way=way).train()
    optimizer = torch.optim.AdamW(packed.parameters(), lr=2e-3, weight_decay=0.0)
    ids, labels, positions, bounds = batch(1, way.rows)
    losses = []
    for _ in range(STEPS):
        loss = packed(ids, labels, (labels != IGNORE).float(), positions, bounds, max(LENGTHS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if not losses[-1] < losses[0]:
        raise AssertionError(f"the loss does not fall: {losses}")
    return packed.eval()


def reload(packed: PackedModel) -> str:
    """`equal` where the folder that is written gives the trained model's logits when loaded again."""
    ids, _, positions, bounds = batch(2, packed.way.rows)
    with torch.no_grad():
        ours = packed.head.logits(packed.hidden(ids, positions, bounds, max(LENGTHS)))
    state = {hf_name(name): value.detach() for name, value in packed.named_parameters(remove_duplicate=False)}
    for path, part in packed.model.named_modules():
        for name, buffer in part.named_buffers(recurse=False):
            if name not in part._non_persistent_buffers_set:
                state[f"{path}.{name}" if path else name] = buffer
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        packed.model.save_pretrained(folder, state_dict=state)  # type: ignore[operator]
        again, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            raise AssertionError(f"loaded again it lacks {sorted(info['missing_keys'])[:2]}")
        again.eval()
        worst = 0.0
        for index, length in enumerate(LENGTHS):
            start, row = (0, index) if packed.way.rows else (int(bounds[index]), 0)
            theirs = again(input_ids=ids[row : row + 1, start : start + length], use_cache=False).logits[0].float()
            worst = max(worst, (ours[row, start : start + length] - theirs).abs().max().item() / theirs.std().item())
    if not worst < 1e-3:
        raise AssertionError(f"loaded again its logits differ by {worst:.1g} standard deviations")
    return "equal"


def told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:140]}" if text else type(error).__name__


def document(rows: list[Row]) -> str:
    count = {
        kind: sum(row.outcome == kind for row in rows) for kind in ("packed", "alone", "refused", "not built", "fails")
    }
    lines = [
        "# Models",
        "",
        f"Written by `make nightly` with transformers {transformers.__version__} and torch {torch.__version__.split('+')[0]}:",
        "every causal family that this transformers has, as a small random model. Each is run on three conversations packed and alone, its",
        "gradients are held against those of its own forward, it is trained, written, loaded again and asked for the same logits.",
        "",
        f"**{count['packed']}** are trained packed, **{count['alone']}** with `data.packing: false` (one conversation a row), "
        f"**{count['refused']}** are refused with a reason, **{count['fails']}** fail, and of **{count['not built']}** no small model "
        "can be built here: what holds of those, the self-test finds when a real one is loaded.",
        "",
        "`way` is the attention and what it is told; `difference` is that of a logit, together from alone, in standard deviations;",
        "`gradient` that of a gradient, relative to the largest; `reloaded` says whether the written folder gives the same logits.",
        "",
        "bloom, falcon and mpt are never packed: each makes its mask without the positions and multiplies scores by itself, so that",
        "neither the places where conversations begin nor dolphin's own attention reach it.",
        "",
        "| family | model | trained | way, or why not | difference | gradient | reloaded |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: row.family):
        numbers = (f"{value:.0e}" if value is not None else "" for value in (row.difference, row.gradient))
        detail = row.detail.replace("|", "\\|")
        lines.append(f"| {' | '.join((row.family, row.model, row.outcome, detail, *numbers, row.reloaded))} |")
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow(f"takes longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def guarded(family: str) -> Row:
    """As `sweep`; a family that raises or hangs is a row too."""
    try:
        with limited(FAMILY_LIMIT_S), contextlib.redirect_stdout(io.StringIO()):
            return sweep(family)
    except (Exception, TooSlow) as error:
        return Row(family, "-", "fails", told(error))


def swept(families: list[str], jobs: int) -> list[Row]:
    """All of them, shared among processes of their own: torch's threads do not survive a fork."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [Path(folder) / f"{number}.jsonl" for number in range(jobs)]
        command = [sys.executable, "-m", "tests.nightly.sweep"]
        running = [
            subprocess.Popen([*command, *families[number::jobs], "--rows", part], cwd=ROOT)
            for number, part in enumerate(parts)
            if families[number::jobs]
        ]
        for process in running:
            process.wait()
        lines = [line for part in parts if part.exists() for line in part.read_text().splitlines()]
    found = {row.family: row for row in (Row(**json.loads(line)) for line in lines)}
    return [found.get(family, Row(family, "-", "fails", "its process died")) for family in families]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="all where none is named")
    parser.add_argument("--out", type=Path, default=DOCUMENT)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--rows", type=Path, help="append each row to this file, and write no document")
    options = parser.parse_args()
    families = options.families or list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    if options.rows is None:
        rows = swept(families, options.jobs)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(document(rows), encoding="utf-8")
        print(f"{options.out}: {len(rows)} families")
        sys.exit(any(row.outcome == "fails" for row in rows))
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for family in families:
        row = guarded(family)
        with open(options.rows, "a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        print(f"{row.family}: {row.outcome} ({row.detail})", flush=True)


if __name__ == "__main__":
    main()
