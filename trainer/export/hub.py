"""A model folder published to the Hugging Face hub: the repository, file by file, and the proof that it is whole.

Owns which files go up in which order and what is verified. What the hub has already is not sent again, so that a push goes on where it
stopped. Weights go first, each in a commit of its own; what makes a repository a model (config.json, the card) goes last. Run by
hand: `python -m trainer.export.hub MODEL OWNER/NAME`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.run.exits import BadInput, ExitCode, TrainingFailed
from trainer.run.redaction import redact

Say = Callable[[str], None]

ATTEMPTS = 5
"""At every commit."""
PAUSE_S = 5.0
"""After the first attempt that failed; twice as long after each."""
LARGE_BYTES = 10_000_000
"""A file of this size has a commit of its own."""
REFUSED = (400, 401, 402, 403, 404)
"""Answers of the hub that another attempt does not change."""


@dataclass(frozen=True, slots=True)
class File:
    """What tells a file from another one, in git's way and in that of large files."""

    path: str
    """In the repository."""
    source: Path
    size: int
    sha256: str
    git_oid: str

    @classmethod
    def read(cls, source: Path, path: str) -> File:
        size = source.stat().st_size
        sha256, git = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with open(source, "rb") as handle:
            while block := handle.read(1 << 22):
                sha256.update(block)
                git.update(block)
        return cls(path, source, size, sha256.hexdigest(), git.hexdigest())

    def is_there(self, entry: Any) -> bool:
        """Whether the hub's entry of this path is this very file."""
        if entry is None or entry.size != self.size:
            return False
        if entry.lfs is not None:
            return bool(entry.lfs.sha256 == self.sha256)
        return bool(entry.blob_id == self.git_oid)


def open_repo(repo: str, private: bool) -> Any:
    """The hub's client, once the repository is there. Raises BadInput where there is no token, or it may not write."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise BadInput(
            f"push.repo {repo} needs a token that may write: set HF_TOKEN, and name it in the job's `secrets`"
        )
    api = HfApi()
    try:
        api.create_repo(repo, private=private, exist_ok=True)
    except HfHubHTTPError as error:
        if _status(error) in REFUSED:
            raise BadInput(
                f"the hub does not take {repo} with this token: {_told(error)}; correct push.repo or HF_TOKEN"
            ) from None
        raise
    return api


def push(folder: Path, repo: str, private: bool, say: Say) -> str:
    """Publish a model folder; what was done, in a line. Raises BadInput where the hub refuses, TrainingFailed where it does not
    hold the whole folder in the end: a push that is started again goes on."""
    if not (folder / "config.json").is_file() and not (folder / "adapter_config.json").is_file():
        raise BadInput(f"{folder}: holds no config.json: it is no model folder")
    api = open_repo(repo, private)
    base = _local_base(folder)
    if base is not None:
        say(
            f"push: warning: adapter_config.json names the folder {base} as its base, which nobody else has; name a hub model there"
        )
    files = {path: File.read(source, path) for path, source in files_of(folder)}
    lacking = _lacking(api, repo, files)
    if lacking:
        say(
            f"push: {len(lacking)} of {len(files)} files, {sum(file.size for file in lacking) / 1e6:,.1f} MB, to {repo}"
        )
    for batch in in_order(lacking):
        _commit(api, repo, batch, say)
        say(f"push: {', '.join(file.path for file in batch[:3])}{' and more' if len(batch) > 3 else ''}")
    left = _lacking(api, repo, files)
    if left:
        raise TrainingFailed(
            f"{repo} does not hold {left[0].path} as it is here; push again, and what is there is not sent again"
        )
    visible = api.model_info(repo)
    if private and not visible.private:
        say(f"push: {repo} existed and is public")
    return f"{repo}, {len(files)} files verified by size and hash"


def _local_base(folder: Path) -> str | None:
    """The folder on this machine that an adapter stands beside; None of a hub model's adapter, and of a whole model."""
    try:
        named = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        return None
    return named if isinstance(named, str) and named.startswith(("/", "~", ".")) else None


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """(path in the repository, file), without hidden files and those that are not finished."""
    for source in sorted(path for path in folder.rglob("*") if path.is_file()):
        path = source.relative_to(folder)
        if not any(part.startswith(".") for part in path.parts):
            yield path.as_posix(), source


def in_order(files: list[File]) -> list[list[File]]:
    """Commits: each large file, the small weights together, and last what makes the repository a model."""
    last = [file for file in files if file.path.endswith((".json", ".md"))]
    rest = [file for file in files if file not in last]
    large = sorted((file for file in rest if file.size >= LARGE_BYTES), key=lambda file: file.path)
    small = [file for file in rest if file not in large]
    return [batch for batch in ([[file] for file in large] + [small, last]) if batch]


def _lacking(api: Any, repo: str, files: dict[str, File]) -> list[File]:
    entries = {entry.path: entry for entry in api.list_repo_tree(repo, recursive=True) if hasattr(entry, "size")}
    return [file for path, file in files.items() if not file.is_there(entries.get(path))]


def _commit(api: Any, repo: str, batch: list[File], say: Say) -> None:
    from huggingface_hub import CommitOperationAdd

    for attempt in range(1, ATTEMPTS + 1):
        operations = [CommitOperationAdd(file.path, str(file.source)) for file in batch]
        try:
            api.create_commit(
                repo, operations, commit_message=f"Add {batch[0].path}" + (" and others" if len(batch) > 1 else "")
            )
            return
        except Exception as error:  # of the network, of the hub, of the library beneath
            if _status(error) in REFUSED:
                raise BadInput(f"the hub refuses {batch[0].path} of {repo}: {_told(error)}") from None
            if attempt == ATTEMPTS:
                raise TrainingFailed(
                    f"{repo}: {batch[0].path} was not taken in {ATTEMPTS} attempts ({_told(error)}); push again, and what is "
                    "there is not sent again"
                ) from None
            say(f"push: {batch[0].path}: {_told(error)}; again in {PAUSE_S * 2 ** (attempt - 1):.0f} s")
            time.sleep(PAUSE_S * 2 ** (attempt - 1))


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _told(error: Exception) -> str:
    lines = [line.strip() for line in redact(str(error)).splitlines() if line.strip()]
    return " ".join(lines)[:300] or type(error).__name__


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.export.hub", description="Publish a model folder to the hub.")
    parser.add_argument("model", type=Path, help="the model folder")
    parser.add_argument("repo", help="owner/name")
    parser.add_argument("--public", action="store_true", help="make a new repository public")
    options = parser.parse_args()
    try:
        print(
            push(options.model, options.repo, not options.public, lambda line: print(line, file=sys.stderr, flush=True))
        )
    except (BadInput, TrainingFailed) as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT if isinstance(error, BadInput) else ExitCode.FAILED)
    except OSError as error:
        print(f"dolphin: the hub cannot be reached: {_told(error)}", file=sys.stderr)
        sys.exit(ExitCode.FAILED)


if __name__ == "__main__":
    main()
