"""An axolotl configuration as a job: every key is mapped, listed as having no effect here and why, or an error.

Owns the account of the keys and the settings outside of data and sharding. Refuses to drop anything in silence, and to
invent: where axolotl's own default differs from dolphin's, the job states axolotl's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from launcher.config.key_hints import nearest_key
from launcher.config.problems import LocatedProblem, SpecErrors, key_name
from launcher.config.text import read_text
from launcher.config.yaml_lines import Where, read_yaml
from launcher.jobfile.axolotl.account import Conversion, Mapped
from launcher.jobfile.axolotl.adapter import convert_adapter
from launcher.jobfile.axolotl.datasets import read_datasets
from launcher.jobfile.axolotl.keys import BESIDE, ERRORS, MAPPED, NO_EFFECT
from launcher.jobfile.axolotl.model import (
    convert_model,
    convert_name,
    convert_template,
    convert_unfrozen,
)
from launcher.jobfile.axolotl.shapes import SHAPES, misshapen, number
from launcher.jobfile.axolotl.sharding import Parallel, convert_layout, read_deepspeed, read_fsdp
from launcher.jobfile.axolotl.training import (
    convert_cadence,
    convert_optimization,
    convert_precision,
    convert_tracking,
)

EMPTY: tuple[Any, ...] = (None, False, "", [], {})
DEFAULT_ACCELERATORS = "L40S:8"


def convert(source: str | Path | dict[str, Any], folder: Path | None = None) -> Conversion:
    """Convert a configuration: its text, its path, or its data. `folder` is what relative paths are relative to.

    Raises SpecErrors where the text is not YAML or holds no group.
    """
    if isinstance(source, dict):
        config = source
    else:
        text = read_text(source) if isinstance(source, Path) else source
        folder = folder or (source.resolve().parent if isinstance(source, Path) else None)
        name = str(source) if isinstance(source, Path) else "configuration"
        document = read_yaml(text)
        problems = [LocatedProblem(name, line, key_name(where), message) for line, where, message in document.faults]
        if problems or not isinstance(document.data, dict):
            raise SpecErrors(problems or [LocatedProblem(name, 1, "", "holds no lines of `key: value`")])
        config = document.data
    return _Converter(config, folder or Path.cwd()).run()


class _Converter:
    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.config, self.folder, self.out = config, folder, Conversion()

    def run(self) -> Conversion:
        self._account()
        stated = self._stated()
        convert_name(self.out, stated)
        convert_adapter(self.out, stated)
        convert_model(self.out, stated)
        self._data(stated)
        convert_optimization(self.out, stated)
        convert_precision(self.out, stated)
        self._sharding(stated)
        convert_layout(self.out, stated)
        convert_unfrozen(self.out, stated)
        convert_cadence(self.out, stated)
        self.out.assume(
            "resources.accelerators", DEFAULT_ACCELERATORS, "axolotl does not say on which GPUs; change it with --set"
        )
        convert_tracking(self.out, stated)
        self._secrets(stated)
        self._rest()
        return self.out

    def _stated(self) -> dict[str, Any]:
        """Mapped keys with a value of the right shape."""
        stated = {}
        for key, value in self.config.items():
            if key in MAPPED and value not in (None, "", [], {}):
                reason = misshapen(key, value)
                if reason is None:
                    stated[key] = number(value) if SHAPES.get(key) == "a number" else value
                else:
                    self.out.fail(key, reason)
        return stated

    def _account(self) -> None:
        """Keys that are not mapped: no effect, or an error."""
        for key, value in self.config.items():
            key = str(key)
            if key in MAPPED:
                continue
            if value in (None, "") and (key in NO_EFFECT or key in ERRORS):
                self.out.skip(key, "has no value")
            elif key in NO_EFFECT:
                self.out.skip(key, NO_EFFECT[key])
            elif key in ERRORS and (value in EMPTY or (value == 1 and key.endswith(("_degree", "_size")))):
                self.out.skip(key, "is off, as here")
            elif key in ERRORS:
                self.out.fail(key, ERRORS[key])
            else:
                near = nearest_key(key, (*MAPPED, *NO_EFFECT, *ERRORS))
                hint = f"unknown key; did you mean {near!r}?" if near else "unknown key, in axolotl too; remove it"
                self.out.fail(key, hint)

    def _data(self, stated: dict[str, Any]) -> None:
        keys = [key for key in ("datasets", "pretraining_dataset") if stated.get(key)]
        if not keys:
            self.out.fail("datasets", "is missing; name at least one dataset")
        sources: list[dict[str, Any]] = []
        templates: list[tuple[Where, str]] = []
        for key in keys:
            found = read_datasets(key, stated[key], self.folder)
            for index, origin in found.origins.items():
                place = ("data", "sources", len(sources) + index)
                self.out.origins[place] = origin
                for name in ("path", "split"):
                    self.out.origins[(*place, name)] = (*origin, name)
            sources += found.sources
            templates += found.templates
            self.out.mapped += [Mapped(key_name(where), setting, remark) for where, setting, remark in found.mapped]
            self.out.no_effect += [(key_name(where), why) for where, why in found.no_effect]
            self.out.errors += found.errors
        self.out.set("data.sources", sources)
        self.out.origins[("data", "sources")] = (keys[0] if keys else "datasets",)
        convert_template(
            self.out,
            stated,
            templates,
            plain_text=all(
                source.get("format") in ("text", "input-output") or "text" in source.get("fields", {})
                for source in sources
            ),
        )
        for key, setting in (
            ("sequence_len", "sequence_length"),
            ("sample_packing", "packing"),
            ("train_on_inputs", "train_on_inputs"),
            ("dataset_processes", "workers"),
            ("dataset_num_proc", "workers"),
        ):
            if key in stated:
                self.out.put(f"data.{setting}", stated[key], key)
        if "sequence_len" not in stated:
            self.out.assume("data.sequence_length", 512, "axolotl's default")
        if "sample_packing" not in stated:
            self.out.assume("data.packing", False, "axolotl's default")
        if stated.get("dataset_exact_deduplication"):
            self.out.put("data.deduplicate", "exact", "dataset_exact_deduplication")
        self._over_long(stated)
        self._validation(stated)

    def _over_long(self, stated: dict[str, Any]) -> None:
        strategy = stated.get("excess_length_strategy")
        if strategy in ("drop", "truncate"):
            self.out.put("data.over_long", strategy, "excess_length_strategy")
        elif strategy is not None:
            self.out.fail(
                "excess_length_strategy", f"{strategy!r} is not done; write drop or truncate", "data.over_long"
            )

    def _validation(self, stated: dict[str, Any]) -> None:
        size = stated.get("val_set_size")
        if size is None:
            self.out.assume("data.validation_fraction", 0.0, "axolotl's default: nothing is held out")
        elif isinstance(size, (int, float)) and not isinstance(size, bool) and 0 <= size < 1:
            self.out.put("data.validation_fraction", float(size), "val_set_size")
        elif isinstance(size, (int, float)) and size == int(size):
            self.out.put("data.validation_count", int(size), "val_set_size")
        else:
            self.out.fail("val_set_size", f"{size!r} is neither a share below 1 nor a whole number; write one")

    def _sharding(self, stated: dict[str, Any]) -> None:
        if stated.get("deepspeed"):
            found, key = read_deepspeed(stated["deepspeed"], self.folder), "deepspeed"
        elif stated.get("fsdp") or stated.get("fsdp_config") or stated.get("fsdp_version"):
            key = "fsdp" if stated.get("fsdp") else "fsdp_config" if stated.get("fsdp_config") else "fsdp_version"
            found = read_fsdp(stated.get("fsdp"), stated.get("fsdp_config"), stated.get("fsdp_version"))
        else:
            return
        self._apply(found, key)

    def _apply(self, found: Parallel, key: str) -> None:
        for message in found.errors:
            self.out.fail(key, message)
        train = self.out.job.setdefault("train", {})
        if found.stage == 3 and train.get("precision") == "fp8":
            found.stage = 2
            found.remarks.append("not 3, under which fp8 is not done")
        if found.stage is not None:
            self.out.put("train.zero", found.stage, key, "; ".join(found.remarks))
        if found.offload is not None and train.get("optimizer") in (None, "adamw"):
            self.out.put("train.offload", "optimizer", key, found.offload)
        elif found.offload is not None:
            remark = f"nothing is offloaded: {train['optimizer']} updates on the GPU, where its state is small"
            self.out.mapped.append(Mapped(key, "train.zero", remark))
        if found.precision and train.get("precision") not in (None, found.precision):
            self.out.fail(
                key, f"it computes in {found.precision}, but the configuration says {train['precision']}; change one"
            )
        if found.max_grad_norm is not None and "max_grad_norm" not in train:
            self.out.put("train.max_grad_norm", found.max_grad_norm, key, "gradient_clipping")
        if found.schedule is not None:
            self.out.put(
                "train.schedule", found.schedule, key, "its scheduler takes the place of lr_scheduler, as in axolotl"
            )
        if found.gradient_checkpointing:
            self.out.put("train.gradient_checkpointing", True, key, "activation_checkpointing")

    def _secrets(self, stated: dict[str, Any]) -> None:
        secrets = self.out.job.get("secrets", [])
        base = str(stated.get("base_model", ""))
        if stated.get("hf_use_auth_token"):
            self.out.mapped.append(Mapped("hf_use_auth_token", "secrets", ""))
        if stated.get("hf_use_auth_token") or re.match(r"(meta-llama|google|mistralai)/", base):
            secrets = ["HF_TOKEN", *secrets]
            self.out.assumed.append(("secrets: HF_TOKEN", "the base model may ask for it"))
        self.out.job.pop("secrets", None)
        if secrets:
            self.out.job["secrets"] = secrets

    def _rest(self) -> None:
        """Mapped keys that stated nothing: empty, off, or with nothing to decide. Any other is loud."""
        used = {entry.key.partition("[")[0].partition(".")[0] for entry in self.out.mapped}
        used |= {key for key, _ in self.out.no_effect} | {str(f.where[0]) for f in self.out.errors}
        for key, value in self.config.items():
            if key not in MAPPED or key in used:
                continue
            if value in (None, "", [], {}):
                self.out.skip(str(key), "has no value")
            elif value is False:
                self.out.skip(str(key), "is off, as here")
            elif key in BESIDE:
                self.out.skip(str(key), BESIDE[key])
            else:
                self.out.fail(str(key), f"{value!r} says nothing here; remove it")
