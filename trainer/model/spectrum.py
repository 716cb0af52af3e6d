"""Signal-to-noise ratio of every weight matrix of a model (Spectrum, arXiv 2406.06623), streamed from safetensors.

Owns the arithmetic and the scan: one batch of equal matrices at a time, from the file, on CPU or GPU. Refuses to load a
model, and to choose layers: that is the launcher's selection over the file written here.
Run as `python -m trainer.model.spectrum MODEL --out FILE`. A killed scan goes on where it was: what is done is in FILE.partial.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from trainer.run.adapter_files import base_of, is_adapter
from trainer.run.exits import BadInput, ExitCode
from trainer.run.run_folder import write_atomic
from trainer.run.weights_index import StoredTensor, fingerprint, stored_tensors

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
IQR_OF_A_NORMAL = 1.349
"""Interquartile range of a normal distribution in standard deviations: the paper's estimate of sigma divides by it."""
CHUNK_ELEMENTS = 4_000_000
"""Elements converted to float64 at once while the Gram matrix is summed."""

Snr = dict[str, dict[str, float | str]]
"""Module name -> {"snr": ratio, "type": module type}, as in the files that Spectrum publishes."""


def snr_of(singular_values: torch.Tensor, rows: int, columns: int) -> float:
    """Sum of the singular values above the Marchenko-Pastur edge over the sum of those below, over the largest one.

    The edge is sigma (1 + sqrt(min/max of the sides)) with sigma from the interquartile range of the singular values.
    Infinity where none lies below it (always so for a vector); 0 for a matrix of zeros.
    """
    values = singular_values.double()
    largest = values.max().item()
    if largest == 0.0:
        return 0.0
    quartiles = torch.quantile(values, torch.tensor([0.25, 0.75], dtype=values.dtype, device=values.device))
    sigma = (quartiles[1] - quartiles[0]).item() / IQR_OF_A_NORMAL
    edge = sigma * (1.0 + math.sqrt(min(rows, columns) / max(rows, columns)))
    noise = values[values <= edge].sum().item()
    if noise == 0.0:
        return math.inf
    found: float = values[values > edge].sum().item() / noise / largest
    return found


def singular_values(tensors: Sequence[StoredTensor], device: torch.device | str) -> torch.Tensor:
    """Singular values (B, min side) in float64 of B stored matrices of one shape, read from their files chunk by chunk.

    They are square roots of the eigenvalues of the smaller Gram matrix, summed in float64: its rounding moves a
    singular value by about 1e-16 of the square of its ratio to the largest, and it needs min side squared doubles where
    a singular value decomposition needs the matrix three times over. BadInput where a value is not finite.
    """
    grams = torch.stack([_gram(tensor, device) for tensor in tensors])
    for tensor, gram in zip(tensors, grams, strict=True):
        if not torch.isfinite(gram).all():
            raise BadInput(f"{tensor.file}: '{tensor.name}' holds values that are not finite; fetch it again")
    return torch.linalg.eigvalsh(grams).clamp_min_(0.0).sqrt_()


def scan(
    folder: str | Path,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    batch: int | None = None,
    progress: bool = True,
) -> Snr:
    """Measure every `.weight` of the model in `folder` and write `out`. Resumes from `out`.partial where the model is the same.

    `batch` matrices of one shape are decomposed at once; where not given, as many as keep the working memory below the
    largest matrix. BadInput where a weight is not a finite floating-point matrix.
    """
    tensors = stored_tensors(folder)
    weights = [tensor for tensor in tensors.values() if tensor.name.endswith(".weight")]
    matrices = [tensor for tensor in weights if len(tensor.shape) == 2]
    measured = {tensor.name for tensor in matrices}
    left_out = [tensor.name for tensor in tensors.values() if len(tensor.shape) >= 2 and tensor.name not in measured]
    if left_out:
        print(f"not measured, being no plain weight matrix: {', '.join(left_out)}", file=sys.stderr)
    partial = out.with_name(out.name + ".partial")
    model = fingerprint(tensors)
    done = _read_partial(partial, model)
    largest_bytes = max((tensor.size_bytes for tensor in matrices), default=0)
    todo = [tensor for tensor in matrices if _module(tensor) not in done]
    bar = tqdm(
        total=sum(_work(tensor) for tensor in matrices), initial=sum(_work(t) for t in matrices if t not in todo),
        unit="FLOP", unit_scale=True, disable=not progress, file=sys.stderr, smoothing=0.1, dynamic_ncols=True,
    )  # fmt: skip
    with bar:
        for group in _batches(todo, batch, largest_bytes):
            bar.set_postfix_str(f"{len(done)}/{len(matrices)} {_module(group[0])}", refresh=True)
            spectra = singular_values(group, device)
            for tensor, values in zip(group, spectra, strict=True):
                done[_module(tensor)] = snr_of(values, *tensor.shape)
            write_atomic(partial, json.dumps({"model": model, "snr": done}))
            bar.update(sum(_work(tensor) for tensor in group))
    done.update({_module(tensor): math.inf for tensor in weights if len(tensor.shape) == 1})
    result = _ordered(done)
    write_atomic(out, json.dumps(result, indent=4))
    partial.unlink(missing_ok=True)
    return result


def module_type(module: str) -> str:
    """Name behind the first layer index (`model.layers.3.mlp.up_proj` -> `mlp.up_proj`), or the whole name where there is none."""
    parts = module.split(".")
    index = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return module if index is None else ".".join(parts[index + 1 :])


def _gram(tensor: StoredTensor, device: torch.device | str) -> torch.Tensor:
    """The smaller of W^T W and W W^T, float64, summed over chunks of the longer side."""
    rows, columns = tensor.shape
    side = min(rows, columns)
    gram = torch.zeros(side, side, dtype=torch.float64, device=device)
    if rows >= columns:
        for chunk in _row_chunks(tensor, max(1, CHUNK_ELEMENTS // columns)):
            block = chunk.to(device).double()
            gram.addmm_(block.T, block)
        return gram
    whole = next(_row_chunks(tensor, rows)).to(device)
    step = max(1, CHUNK_ELEMENTS // rows)
    for start in range(0, columns, step):
        block = whole[:, start : start + step].double()
        gram.addmm_(block, block.T)
    return gram


def _row_chunks(tensor: StoredTensor, step: int) -> Iterator[torch.Tensor]:
    """`step` rows at a time of a stored matrix, in its own type. Read, not mapped: mapped pages would count as memory in use."""
    rows, columns = tensor.shape
    dtype = DTYPES.get(tensor.dtype)
    if dtype is None:
        raise BadInput(
            f"{tensor.file}: '{tensor.name}' is {tensor.dtype}, a quantized weight; scan the unquantized model"
        )
    row_bytes = columns * dtype.itemsize
    with open(tensor.file, "rb", buffering=0) as handle:
        handle.seek(tensor.offset)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            data = bytearray(handle.read(count * row_bytes))
            yield torch.frombuffer(data, dtype=dtype).view(count, columns)


def _batches(tensors: Sequence[StoredTensor], batch: int | None, budget_bytes: int) -> Iterator[list[StoredTensor]]:
    """Consecutive runs of one shape. Two copies of each Gram matrix are alive while the eigenvalues are found."""
    by_shape: dict[tuple[int, ...], list[StoredTensor]] = {}
    for tensor in tensors:
        by_shape.setdefault(tensor.shape, []).append(tensor)
    for shape, group in by_shape.items():
        gram_bytes = 2 * 8 * min(shape) ** 2
        size = batch if batch is not None else max(1, min(len(group), budget_bytes // gram_bytes))
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _work(tensor: StoredTensor) -> int:
    """FLOPs: the Gram matrix (2 x elements x shorter side) and the eigenvalues (4/3 side cubed; Golub and Van Loan, 8.3)."""
    side = min(tensor.shape)
    return 2 * tensor.num_elements * side + 4 * side**3 // 3


def _ordered(done: dict[str, float]) -> Snr:
    """By type in alphabetical order, then by layer, as the published files are."""

    def key(module: str) -> tuple[str, list[tuple[int, str]]]:
        return module_type(module), [(int(part), "") if part.isdigit() else (-1, part) for part in module.split(".")]

    return {module: {"snr": done[module], "type": module_type(module)} for module in sorted(done, key=key)}


def _module(tensor: StoredTensor) -> str:
    return tensor.name.removesuffix(".weight")


def _read_partial(path: Path, model: str) -> dict[str, float]:
    """What an earlier scan of the same model finished; nothing where the file is another model's."""
    if not path.exists():
        return {}
    try:
        record = json.loads(path.read_text())
    except ValueError:
        return {}
    return record["snr"] if record.get("model") == model else {}


def _local_folder(model: str, revision: str | None) -> Path:
    """The folder itself, or the downloaded snapshot of a hub model (weights and configuration alone); of an adapter, its base's."""
    if is_adapter(model):
        model, revision = base_of(Path(model))
        print(f"this is an adapter; the weights of its base {model} are measured", file=sys.stderr)
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        patterns = ["*.safetensors", "config.json"]
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"'{model}' is no folder here, and the hub does not give it ({reason})") from error


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.model.spectrum", description=__doc__.split("\n")[0])
    parser.add_argument("model", help="model folder or hub id")
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="SNR file to write")
    target.add_argument("--cache", type=Path, help="folder to keep it in under the fingerprint of the weights")
    parser.add_argument("--revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--batch", type=int, help="matrices of one shape at once")
    given = parser.parse_args(arguments)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if given.device == "auto" else given.device
    try:
        folder = _local_folder(given.model, given.revision)
        out = given.out or given.cache / f"{fingerprint(stored_tensors(folder))}.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        if given.cache is None or not out.is_file():
            scan(folder, out, device=device, batch=given.batch)
        print(out)
    except BadInput as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_INPUT
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
