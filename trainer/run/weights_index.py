"""Names, shapes and places of the tensors in a model folder's safetensors files, read from the headers alone.

Owns the file layout (an 8-byte length, a JSON header, the data). Refuses to know torch and what the tensors mean, so
that both sides can list a model's parameters without loading a weight.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path

from trainer.run.exits import BadInput

MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors format itself; a longer header is a damaged file."""

SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor and where its bytes lie. `dtype` is safetensors' name of it, for example BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    """First byte in `file`."""
    size_bytes: int

    @property
    def num_elements(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count


def stored_tensors(folder: str | Path) -> dict[str, StoredTensor]:
    """Every tensor of the `*.safetensors` files of `folder`, by name, in the order of the files. BadInput where none is."""
    root = Path(folder)
    files = sorted(root.glob("*.safetensors"))
    if not files:
        raise BadInput(f"{root}: holds no .safetensors file; give a model folder that has its weights in that format")
    found: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in tensors_in(path):
            if tensor.name in found:
                raise BadInput(f"{path}: has '{tensor.name}' as {found[tensor.name].file.name} has; remove one of them")
            found[tensor.name] = tensor
    return found


def fingerprint(tensors: dict[str, StoredTensor]) -> str:
    """SHA-256 over names, shapes and samples of every tensor's bytes (its beginning, middle and end).

    Tells a fine-tuned model from its base in a second where hashing 16 GB would take a minute; a change that touches
    none of the sampled 4 KiB blocks is not seen.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        with open(tensor.file, "rb") as handle:
            for start in {0, tensor.size_bytes // 2, max(0, tensor.size_bytes - SAMPLE_BYTES)}:
                handle.seek(tensor.offset + start)
                digest.update(handle.read(min(SAMPLE_BYTES, tensor.size_bytes - start)))
    return digest.hexdigest()


def tensors_in(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file. BadInput where it cannot be read, or is cut short."""
    try:
        with open(path, "rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > MAX_HEADER_BYTES:
                raise ValueError("the header's length is not believable")
            header = json.loads(handle.read(length))
    except (OSError, struct.error, ValueError) as error:
        raise BadInput(f"{path}: is not a readable safetensors file ({error}); fetch it again") from error
    size = path.stat().st_size
    tensors = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        offset = 8 + length + begin
        if 8 + length + end > size:
            raise BadInput(f"{path}: ends at byte {size}, inside '{name}'; the file is cut short, fetch it again")
        tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), path, offset, end - begin))
    return tensors
