"""Reads datasets of the Hugging Face hub (hf://owner/name) through the datasets library.

Owns names, splits and revisions of hub datasets. Refuses to know what a row means. Small ones are read from the library's
cache; `datasets` streams them otherwise. A dataset is identified by the hub's own commit, so that a second launch asks
only for that.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

from trainer.data.readers import BLOCK_ROWS, HUB, Block, InputFile
from trainer.run.exits import BadInput
from trainer.run.settings.data import SourceSpec

PREFIX = "hf://"


def is_hub(source: SourceSpec) -> bool:
    return source.path.startswith(PREFIX)


def files_of(source: SourceSpec, place: str) -> list[InputFile]:
    """The dataset as one file whose content is known by its commit. Raises BadInput where the hub has none of that name."""
    repository, _, revision = source.path.removeprefix(PREFIX).removeprefix("datasets/").partition("@")
    commit = _commit(repository, revision or None, place)
    url = "\n".join((repository, commit, source.subset or "", source.split, *source.files))
    return [
        InputFile(
            name=f"{PREFIX}{repository}",
            key=" ".join((repository, source.subset or "", source.split, *source.files)),
            url=url,
            kind=HUB,
            compression="",
            size_bytes=0,
            is_local=False,
            tag=commit,
        )
    ]


def blocks(file: InputFile) -> Iterator[Block]:
    """Rows of the split, streamed unless the hub is offline (then from the cache). Raises BadInput."""
    repository, commit, subset, split, *files = file.url.split("\n")
    os.environ.setdefault(
        "HF_UPDATE_DOWNLOAD_COUNTS", "0"
    )  # the library would name the data set to a server of its own
    import datasets

    datasets.disable_progress_bars()
    try:
        # The library slices a split (train[:1000]) only where it is not streamed.
        streamed = "[" not in split and not datasets.config.HF_HUB_OFFLINE
        named = {split.partition("[")[0]: files} if files else None
        rows = datasets.load_dataset(
            repository, subset or None, data_files=named, split=split, revision=commit, streaming=streamed
        )
        for batch in rows.with_format("arrow").iter(batch_size=BLOCK_ROWS):
            yield Block(arrow=_serialized(batch))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise BadInput(f"{file.name} ({split}) cannot be read: {_first_line(error)}") from error


def _commit(repository: str, revision: str | None, place: str) -> str:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return str(HfApi().dataset_info(repository, revision=revision).sha)
    except HFValidationError as error:
        raise BadInput(f"{place}: write hf://owner/name, perhaps with @revision ({_first_line(error)})") from error
    except HfHubHTTPError as error:
        secret = "" if os.environ.get("HF_TOKEN") else "; a private one needs the secret HF_TOKEN"
        raise BadInput(f"{place}: the hub says: {_first_line(error)}{secret}") from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise BadInput(
            f"{place}: the hub cannot be reached ({_first_line(error)}); "
            "download the dataset (`hf download --repo-type dataset`) and name its folder"
        ) from error


def _serialized(batch: Any) -> bytes:
    import pyarrow as pa

    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_table(batch)
    return sink.getvalue()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
