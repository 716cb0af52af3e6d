"""The files of this machine that a job reads, one by one: what a backend mounts or sends, and nothing besides.

Owns the list (globs and links resolved), what looks like a secret, and the words for how much travels. Looks at names and
sizes alone. Refuses to know how files get where they are read.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.config.names import URL
from launcher.config.problems import key_name
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from launcher.units import size
from trainer.run.local_files import README, data_files, fixed_part, is_glob, is_hidden, kind_of
from trainer.run.measures import function_of
from trainer.run.settings.train import UnfrozenSpec
from trainer.run.spec import TrainSpec

_SECRET_NAME = re.compile(
    r"""\.env(\..*)? | .*\.env
    | [._]?netrc | \.(pgpass|npmrc|pypirc|htpasswd|git-credentials|dockercfg|vault-token)
    | .*\.(pem|key|p12|pfx|jks|kdbx?|keytab|ovpn|ppk|gpg|asc)
    | id_(rsa|dsa|ecdsa|ed25519|xmss)(_sk)?([._-].*)?
    | \.?credentials(\.\w+)? | .*[._-]credentials\.json | .*accesskeys\.csv | service[-_]?account.*\.json
    | \.?secrets?(\.(json|ya?ml|toml|ini|txt))? | ((hf|huggingface|wandb|api|access|auth|github|gh|gitlab)[._-]?|\.)?token(\.(json|txt))?
    | \.?kubeconfig | .*\.tfstate""",
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_FOLDERS = frozenset({".ssh", ".aws", ".gnupg", ".kube", ".docker", ".azure", ".password-store"})
_LARGE_BYTES = 1_000_000_000
_NUM_NAMED = 4


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file to be read."""

    path: str
    """Its name in the job's eyes, absolute: where it is read."""
    source: str
    """Where its bytes are: `path` with every link resolved."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Input:
    """What one setting of the job names on this machine."""

    key: str
    """`data.sources[0].path`, `model.base`."""
    path: str
    """As the job says it, absolute: a file, a folder or a glob."""
    root: str
    """The file, the folder, or the folder above a glob's first pattern; every file is it, or below it."""
    files: tuple[InputFile, ...]
    left_out: tuple[str, ...] = ()
    """Files that look like secrets, which are not sent along."""


def local_inputs(spec: TrainSpec) -> list[Input]:
    """Every input of the job that lies on this machine, each path once, in the job's order.

    Raises BadUsage for a file that must not or cannot travel: a link that leaves what the job names (a hub's own cache
    excepted), a link to nothing, data that looks like a secret.
    """
    found: dict[str, Input] = {}
    for key, path in named_paths(spec):
        if path not in found:
            found[path] = _data(key, path) if key.startswith("data.") else _model(key, path)
    return list(found.values())


def named_paths(spec: TrainSpec) -> Iterator[tuple[str, str]]:
    """Settings whose value is a path of this machine: load_job made such values absolute."""
    model = spec.model
    for key, value in (("base", model.base), ("tokenizer", model.tokenizer), ("chat_template", model.chat_template)):
        if value is not None and value.startswith("/") and "\n" not in value:
            yield f"model.{key}", value
    for where, source in spec.data.inputs:
        if not URL.match(source.path):
            yield key_name((*where, "path")), source.path
    if isinstance(spec.evaluate.prompts, str):
        yield "evaluate.prompts", spec.evaluate.prompts
    for index, metric in enumerate(spec.evaluate.metrics):
        named = function_of(metric)
        if named is not None:
            yield f"evaluate.metrics[{index}]", named[0]
    for index, task in enumerate(spec.evaluate.tasks):
        if task.startswith("/"):
            yield f"evaluate.tasks[{index}]", task
    if isinstance(spec.train.unfrozen, UnfrozenSpec) and spec.train.unfrozen.spectrum.snr.startswith("/"):
        yield "train.unfrozen.spectrum.snr", spec.train.unfrozen.spectrum.snr


def looks_secret(path: str) -> bool:
    """Whether a file's name, or a folder that it is in, says that it holds keys, passwords or tokens."""
    *folders, name = Path(path).parts
    if not _SECRET_FOLDERS.isdisjoint(folders) or _SECRET_NAME.fullmatch(name):
        return True
    return name.startswith("id_") and kind_of(name) is None and not name.endswith(".safetensors")


def check_upload(inputs: Sequence[Input], job: JobSpec) -> list[str]:
    """Lines for a person before anything starts: how many files travel, how much, what is large, what is left out.

    Raises BadUsage where it is more than `resources.max_upload_gb`.
    """
    files = {file.path: file.size_bytes for one in inputs for file in one.files}
    total = sum(files.values())
    by_size = sorted(files, key=lambda path: -files[path])
    large = [path for path in by_size if files[path] >= _LARGE_BYTES or files[path] > job.resources.max_upload_gb * 1e8]
    shown = ", ".join(f"{_short(path)} ({size(files[path])})" for path in (large or by_size)[:_NUM_NAMED])
    more = f" and {len(large) - _NUM_NAMED} more" if len(large) > _NUM_NAMED else ""
    if total > job.resources.max_upload_gb * 1e9:
        raise BadUsage(
            f"resources.max_upload_gb: {len(files)} files of this machine, {size(total)}, would be sent to the node, and the "
            f"limit is {job.resources.max_upload_gb:g} GB: {shown}{more}; put data into a bucket (s3://...) and models on "
            "the hub (owner/name), or raise the limit"
        )
    lines = []
    if files:
        count = "1 file" if len(files) == 1 else f"{len(files)} files"
        lines.append(f"sends {count} of this machine, {size(total)}{f': {shown}{more}' if large else ''}")
    left = [path for one in inputs for path in one.left_out]
    if left:
        names = ", ".join(_short(path) for path in left[:_NUM_NAMED])
        lines.append(f"does not send what looks like a secret: {names}{', ...' if len(left) > _NUM_NAMED else ''}")
    return lines


def _data(key: str, path: str) -> Input:
    """What the trainer would read of it, by the trainer's own rule."""
    root = str(fixed_part(path)) if is_glob(path) else path
    found, _ = data_files(path)
    if not found:
        raise BadUsage(f"{key}: there is no file of data at {path}; correct it")
    secret = [str(file) for file in found if str(file) != path and looks_secret(_below(str(file), root))]
    if secret:
        raise BadUsage(
            f"{key}: {path} takes in {secret[0]}, which looks like a secret; move it away, or name the files of data themselves"
        )
    says_splits = Path(path) / README
    files = [*found, says_splits] if says_splits.is_file() else found
    return Input(key, path, root, tuple(_file(key, str(file), root) for file in files))


def _model(key: str, path: str) -> Input:
    """A folder's files but for hidden ones, as a model's library finds them; or the file itself."""
    if not os.path.isdir(path):
        return Input(key, path, path, (_file(key, path, path),))
    files, left_out = [], []

    def unreadable(error: OSError) -> None:
        raise BadUsage(f"{key}: {error.filename} cannot be read ({error.strerror}); correct it or remove it")

    for folder, children, names in os.walk(path, onerror=unreadable):
        for child in children:
            linked = os.path.join(folder, child)
            if os.path.islink(linked) and not _is_within(os.path.realpath(linked), os.path.realpath(path)):
                raise BadUsage(
                    f"{key}: {linked} is a link to a folder outside of {path}; remove it, or put the folder itself there"
                )
        children[:] = sorted(child for child in children if not child.startswith("."))
        for name in sorted(names):
            file = os.path.join(folder, name)
            if looks_secret(_below(file, path)):
                left_out.append(file)
            elif not is_hidden(Path(file), Path(path)) and (os.path.islink(file) or os.path.isfile(file)):
                files.append(_file(key, file, path))
    return Input(key, path, path, tuple(files), tuple(left_out))


def _file(key: str, path: str, root: str) -> InputFile:
    source = os.path.realpath(path)
    try:
        status = os.stat(source)
    except OSError as error:
        raise BadUsage(f"{key}: {path} cannot be read ({error.strerror}); correct it or remove it") from None
    if not stat.S_ISREG(status.st_mode):
        raise BadUsage(f"{key}: {path} is no regular file; name files and folders")
    if not os.access(source, os.R_OK):
        raise BadUsage(f"{key}: {path} cannot be read (no permission); correct it or remove it")
    if path != root and not _is_within(source, os.path.realpath(root)) and not _is_hub_blob(source, root):
        raise BadUsage(
            f"{key}: {path} is a link to {source}, outside of {root}; name that file by itself, or put a copy in its place"
        )
    return InputFile(path, source, status.st_size)


def _is_hub_blob(source: str, root: str) -> bool:
    """Whether a file is where the hub's cache keeps it for this folder: `NAME/blobs/HASH` of `NAME/snapshots/COMMIT`."""
    real = Path(os.path.realpath(root))
    for folder in (real, *real.parents):
        if folder.parent.name == "snapshots":
            return Path(source).parent == folder.parent.parent / "blobs"
    return False


def _is_within(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")


def _below(path: str, root: str) -> str:
    return os.path.relpath(path, root) if path != root else os.path.basename(path)


def _short(path: str) -> str:
    """The name with its folder."""
    return "/".join(Path(path).parts[-2:])
