"""Rows of the embeddings that are trained alone: those of tokens that a job adds, beside frozen matrices.

Owns reading and writing such a token. The rows are parameters of the embedding modules, so that whoever gathers a module's
parameters before it is called (ZeRO-3) gathers them too. Where the embeddings are tied the rows are one parameter.
Legend: N rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

NAME = "trained_rows"
"""Parameter (N, H) of an embedding module, in the order of its `row_ids`."""


def attach(model: Any, token_ids: tuple[int, ...]) -> None:
    """Give both embeddings of `model` trained rows for `token_ids`, which begin as what the matrices hold."""
    inputs, outputs = model.get_input_embeddings(), model.get_output_embeddings()
    ids = torch.tensor(token_ids)
    rows = nn.Parameter(inputs.weight.detach()[ids].clone())
    _give(inputs, rows, ids)
    inputs.register_forward_hook(_read)
    if outputs is not None:
        is_tied = outputs.weight is inputs.weight
        _give(outputs, rows if is_tied else nn.Parameter(outputs.weight.detach()[ids].clone()), ids)


def effective(weight_VH: torch.Tensor, module: nn.Module) -> torch.Tensor:
    """The matrix with the trained rows of `module` in their places; itself where it has none."""
    rows = getattr(module, NAME, None)
    if rows is None:
        return weight_VH
    ids: torch.Tensor = module.row_ids
    return weight_VH.index_copy(0, ids.to(weight_VH.device), rows.to(weight_VH.dtype))


def move(source: nn.Module, target: nn.Module) -> None:
    """Give `target`, which takes the place of `source` in a model, its trained rows; nothing where it has none."""
    rows = getattr(source, NAME, None)
    if rows is not None:
        _give(target, rows, source.row_ids)


def _give(module: nn.Module, rows: nn.Parameter, ids: torch.Tensor) -> None:
    module.register_parameter(NAME, rows)
    module.register_buffer("row_ids", ids, persistent=False)


def _read(module: Any, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
    """The embedding's output with the trained rows where their tokens are."""
    ids = arguments[0]
    rows = getattr(module, NAME)
    scale = getattr(module, "embed_scale", None)  # some families scale in the embedding's own forward
    if scale is not None:
        rows = rows * torch.as_tensor(scale, device=rows.device).to(rows.dtype)
    place = (ids[..., None] == module.row_ids.to(ids.device)).to(torch.int8)
    is_row, number = place.amax(-1).bool(), place.argmax(-1)
    return torch.where(is_row[..., None], rows.to(output.dtype)[number], output)
