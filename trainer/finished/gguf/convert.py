"""A model folder written as GGUF files, each read back before it has its name. Run by hand: `python -m trainer.finished.gguf MODEL`.

Owns number formats and files. One tensor is in memory at a time. f16, bf16 and q8_0 are written here; the smaller kinds are made of the
f16 file by llama.cpp itself, where llama-cpp-python is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.finished.gguf import families, modelfile, read_back, tokens
from trainer.run.exits import BadInput, ExitCode, TrainingFailed
from trainer.run.settings.export import GGUF_KINDS, QUANTISED_KINDS
from trainer.run.weights_index import stored_tensors

FOLDER = "gguf"
"""In the model folder."""
ROW_BLOCK = 32
"""Numbers of a row that share a scale in q8_0; a row that is no multiple stays f16."""
FP16_MAX = 65504.0


@dataclass(frozen=True, slots=True)
class Source:
    """A model folder, read once."""

    folder: Path
    config: Any
    family: families.Family
    names: dict[str, str]
    """GGUF's name of each of transformers' tensors."""
    tokens: tokens.Tokens

    @classmethod
    def read(cls, folder: Path) -> Source:
        """Raises BadInput where it is no model folder, or none that GGUF can hold."""
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        if not (folder / "config.json").is_file():
            raise BadInput(f"{folder}: holds no config.json: it is no model folder")
        if (folder / "adapter_config.json").is_file():
            raise BadInput(
                f"{folder}: holds an adapter; `dolphin merge` makes one model of it and its base, which can be GGUF"
            )
        config = AutoConfig.from_pretrained(folder)
        family = families.family_of(config)
        stored = stored_tensors(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        rows = (
            stored["model.embed_tokens.weight"].shape[0] if "model.embed_tokens.weight" in stored else config.vocab_size
        )
        try:
            stops = GenerationConfig.from_pretrained(folder).eos_token_id
        except OSError:
            stops = tokenizer.eos_token_id
        stop_ids = [number for number in (stops if isinstance(stops, list) else [stops]) if number is not None]
        names = families.names_of(list(stored), config, family)
        return cls(folder, config, family, names, tokens.read(tokenizer, rows, stop_ids))

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(GGUF's name, shape), in the order of `tensors`."""
        factors = families.rope_factors(self.config)
        if factors is not None:
            yield families.ROPE_FACTORS, tuple(factors.shape)
        for name, entry in stored_tensors(self.folder).items():
            if name in self.names:
                yield self.names[name], entry.shape

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(GGUF's name, values in fp32), one after the other."""
        from safetensors import safe_open

        factors = families.rope_factors(self.config)
        if factors is not None:
            yield families.ROPE_FACTORS, factors
        for name, entry in stored_tensors(self.folder).items():
            if name in self.names:
                with safe_open(entry.file, "pt") as handle:
                    values = handle.get_tensor(name)
                yield self.names[name], families.changed(name, values, self.config, self.family)


def write(folder: Path, kinds: tuple[str, ...], name: str, say: Callable[[str], None]) -> list[Path]:
    """The GGUF files of a model folder, in its folder `gguf/`, and an Ollama Modelfile for the smallest; returns the files.

    A kind that cannot be made here is said and left out. Raises BadInput where the model cannot be GGUF, TrainingFailed where what was
    written does not read as the model.
    """
    if importlib.util.find_spec("gguf") is None:
        raise BadInput("GGUF files need the package gguf: pip install 'dolphin-launcher[gguf]'")
    source = Source.read(folder)
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    wanted = [kind for kind in GGUF_KINDS if kind in kinds]
    written: dict[str, Path] = {}
    for kind in [kind for kind in wanted if kind not in QUANTISED_KINDS]:
        path = target / f"{name}-{kind}.gguf"
        _write_file(source, kind, path)
        written[kind] = path
        say(f"gguf: {path.name}, {path.stat().st_size / 1e6:,.1f} MB: {read_back.told(source, path, kind)}")
    quantised = [kind for kind in wanted if kind in QUANTISED_KINDS]
    if quantised:
        written |= _quantise(source, quantised, written.get("f16"), target / name, say)
    smallest = min(target.glob("[!.]*.gguf"), key=lambda path: path.stat().st_size, default=None)
    if smallest is not None:
        text, has_template = modelfile.of(source.tokens, smallest.name, source.folder)
        (target / "Modelfile").write_text(text, encoding="utf-8")
        if not has_template:
            say(
                "gguf: the chat template has no form in Ollama's language here: its Modelfile leaves it to Ollama to know it"
            )
    return list(written.values())


def _write_file(source: Source, kind: str, path: Path) -> None:
    """Under another name, which it has until it was read back."""
    import gguf

    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, source.family.architecture)
    _add_keys(writer, source, kind, path.stem)
    formats = []
    for name, shape in source.shapes():
        formats.append(_number_format(shape, kind))
        _announce(writer, name, shape, formats[-1])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (name, values) in zip(formats, source.tensors(), strict=True):
        if number == gguf.GGMLQuantizationType.F16 and float(values.abs().max()) > FP16_MAX:
            raise BadInput(f"{name} has numbers beyond what f16 holds; write bf16 instead")
        writer.write_tensor_data(gguf.quants.quantize(values.numpy(), number))
    writer.close()
    read_back.check(source, partial, kind)
    os.replace(partial, path)


def _announce(writer: Any, name: str, shape: tuple[int, ...], number: Any) -> None:
    """Name, shape and bytes of a tensor: the file's beginning lists all of them."""
    import gguf
    import numpy as np

    plain: dict[Any, Any] = {
        gguf.GGMLQuantizationType.F32: np.dtype(np.float32),
        gguf.GGMLQuantizationType.F16: np.dtype(np.float16),
    }
    dtype = plain.get(number, np.dtype(np.uint8))
    stored = shape if number in plain else gguf.quants.quant_shape_to_byte_shape(shape, number)
    writer.add_tensor_info(name, stored, dtype, math.prod(stored) * dtype.itemsize, number)


def _number_format(shape: tuple[int, ...], kind: str) -> Any:
    """Vectors stay fp32, as every reader expects."""
    import gguf

    types = gguf.GGMLQuantizationType
    if len(shape) < 2:
        return types.F32
    if kind == "q8_0" and shape[-1] % ROW_BLOCK:
        return types.F16
    return {"f16": types.F16, "bf16": types.BF16, "q8_0": types.Q8_0}[kind]


def _add_keys(writer: Any, source: Source, kind: str, name: str) -> None:
    import gguf

    file_types = gguf.LlamaFileType
    kinds = {"f16": file_types.MOSTLY_F16, "bf16": file_types.MOSTLY_BF16, "q8_0": file_types.MOSTLY_Q8_0}
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(kinds[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    for key, value in families.keys_of(source.config, source.family).items():
        full = f"{source.family.architecture}.{key}"
        if isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    held = source.tokens
    writer.add_tokenizer_model(held.model)
    writer.add_tokenizer_pre(held.pre)
    writer.add_token_list(held.entries)
    writer.add_token_types(held.kinds)
    if held.scores:
        writer.add_token_scores(held.scores)
    if held.merges:
        writer.add_token_merges(held.merges)
    for role, number in held.ids.items():
        getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(held.adds_bos)
    writer.add_add_eos_token(held.adds_eos)
    if held.adds_space is not None:
        writer.add_add_space_prefix(held.adds_space)
    if held.chat_template is not None:
        writer.add_chat_template(held.chat_template)


def _quantise(
    source: Source, kinds: Sequence[str], whole: Path | None, stem: Path, say: Callable[[str], None]
) -> dict[str, Path]:
    """By llama.cpp's own code, from the f16 file, which is made for it where it was not asked for."""
    if importlib.util.find_spec("llama_cpp") is None:
        say(
            f"gguf: {', '.join(kinds)} not written: llama.cpp itself makes them; pip install llama-cpp-python, then "
            f"`dolphin export RUN --to gguf --kind {kinds[0]}`"
        )
        return {}
    import llama_cpp

    scratch = whole or stem.with_name(f".{stem.name}-f16.gguf")
    if whole is None:
        _write_file(source, "f16", scratch)
    written = {}
    for kind in kinds:
        path = stem.with_name(f"{stem.name}-{kind}.gguf")
        partial = path.with_name(f".{path.name}.partial")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = QUANTISED_KINDS[kind]
        if llama_cpp.llama_model_quantize(str(scratch).encode(), str(partial).encode(), settings):
            raise TrainingFailed(f"llama.cpp did not make {kind} of {scratch.name}; the f16 file is whole")
        read_back.check(source, partial, kind)
        os.replace(partial, path)
        written[kind] = path
        say(f"gguf: {path.name}, {path.stat().st_size / 1e6:,.1f} MB: {read_back.told(source, path, kind)}")
    if whole is None:
        scratch.unlink()
    return written


def main() -> None:
    parser = argparse.ArgumentParser(prog="trainer.finished.gguf", description="Write a model folder as GGUF.")
    parser.add_argument("model", type=Path, help="the model folder; the files go into its folder gguf/")
    parser.add_argument(
        "--kind", action="append", choices=[*GGUF_KINDS], help="number format; may be repeated (f16, q8_0)"
    )
    parser.add_argument("--name", help="beginning of the files' names; the folder's name where not given")
    options = parser.parse_args()
    name = options.name or options.model.resolve().name
    try:
        kinds = tuple(options.kind or ("f16", "q8_0"))
        for path in write(options.model, kinds, name, lambda line: print(line, file=sys.stderr, flush=True)):
            print(path)
    except (BadInput, TrainingFailed) as error:
        print(f"dolphin: {error}", file=sys.stderr)
        sys.exit(ExitCode.BAD_INPUT if isinstance(error, BadInput) else ExitCode.FAILED)
