"""Which files of a machine a data source is: a file, a folder's data files, or a glob's matches. Needs no torch.

Both sides read it: what the trainer prepares on a node is what the launcher sent there. Refuses to know rows.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

JSON, PARQUET, ARROW, CSV, TEXT = "json", "parquet", "arrow", "csv", "text"
KINDS = {
    ".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".parquet": PARQUET, ".arrow": ARROW, ".csv": CSV, ".tsv": CSV,
    ".txt": TEXT,
}  # fmt: skip
README = "README.md"
"""In a folder cloned from the hub: its head says which files belong to which split. It travels with the data."""
DESCRIPTIONS = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
"""What the datasets library writes beside the rows of a folder."""
COMPRESSIONS = (".gz", ".zst")


def kind_of(name: str) -> tuple[str, str] | None:
    """(kind, compression) by a file's name, in capitals or not; None for what is not data."""
    name = name.lower()
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    kind = KINDS.get(Path(name.removesuffix(compression)).suffix)
    return (kind, compression) if kind else None


def is_data(name: str) -> bool:
    """Whether a file of a folder holds rows, by its name."""
    return kind_of(name) is not None and name not in DESCRIPTIONS


def is_glob(path: str) -> bool:
    """Whether a path is a pattern. A file that is really called so is a file."""
    return glob.has_magic(path) and not os.path.lexists(path)


def fixed_part(path: str) -> Path:
    """`/data` of `/data/*/part-*.jsonl`: the folder above a glob's first pattern."""
    parts = Path(path).parts
    return Path(*parts[: next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts))])


def data_files(path: str) -> tuple[list[Path], Path]:
    """The files of a source in a fixed order, and the folder that their keys are relative to; none where there are none.

    Of a folder: the files of known kinds in it and below it, hidden ones excepted. Of a glob: whatever it matches.
    """
    given = Path(path)
    if given.is_dir():
        children = (child for child in given.rglob("*") if is_data(child.name) and child.is_file())
        return sorted(child for child in children if not is_hidden(child, given)), given
    if given.is_file():
        return [given], given.parent
    found = sorted(Path(match) for match in glob.glob(path, recursive=True) if Path(match).is_file())
    return found, Path(os.path.commonpath([child.parent for child in found])) if found else given


def is_hidden(path: Path, root: Path) -> bool:
    """Whether the file, or a folder between it and `root`, has a name that begins with a dot."""
    return any(part.startswith(".") for part in path.relative_to(root).parts)
