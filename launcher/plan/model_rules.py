"""What holds of a job's model, a line a rule, for a person before anything is paid; and the refusal where it cannot be trained so.

Owns which facts are asked for: config.json for all families, transformers itself for those that the table does not know. Refuses
to judge: that is `trainer.run.trainable` and the self-test.
"""

from __future__ import annotations

from typing import Literal

from launcher.jobfile.model_checks import model_findings
from launcher.models.architecture import FAMILIES, from_facts, read_config
from launcher.models.hub_cache import local_folder
from launcher.models.inspected import inspected, is_possible
from launcher.models.known import KNOWN_CONFIGS
from launcher.runs.errors import BadUsage
from launcher.runs.ledger import cache_dir
from trainer.run import trainable
from trainer.run.exits import BadInput
from trainer.run.spec import TrainSpec

PACKS = "packing: a conversation sees itself alone, checked again when the model is loaded"
UNKNOWN = "packing: whether a conversation sees itself alone is checked when the model is loaded"


def rules_of(spec: TrainSpec, device: Literal["cuda", "cpu"]) -> list[str]:
    """Lines to show. BadUsage for a base that cannot be trained with this job's packing, or lacks weights."""
    model, packing = spec.model, spec.data.packing
    folder = local_folder(model.base, model.revision)
    if folder is None or not (folder / "config.json").is_file():
        known = KNOWN_CONFIGS.get(model.base.lower().split("/")[-1])
        return [*trainable.rules(known, model.attention_dropout), PACKS] if known else []
    try:
        config = read_config(folder)
        lines = trainable.rules(config, model.attention_dropout)
        if config.get("model_type") in FAMILIES:
            return [*lines, PACKS]
        facts = inspected(folder, cache_dir(), may_ask=True)
    except BadInput as error:
        return [f"warning: {error}"]
    if facts is None:
        told = "" if is_possible() else " (the trainer's packages are not installed here)"
        return [*lines, UNKNOWN + told]
    findings = model_findings(spec)
    if findings:
        raise BadUsage(f"model.base: {findings[0].message}")
    architecture = from_facts(facts, model.base)
    if architecture.expert_share < 1:
        met, whole = architecture.num_active, architecture.num_parameters
        lines.append(f"experts: a token meets {met:,} of {whole:,} parameters; all of them are held and trained")
    packed = facts["packing"]["true" if packing else "false"]
    if packed is None:
        return [*lines, UNKNOWN]
    if packed["holds"]:
        return [*lines, packed["line"]]
    if device == "cuda" and packed["wants_package"]:
        return [
            *lines,
            f"warning: packing: {packed['refusal']}; the node's image may have it, else the run ends at its start",
        ]
    raise BadUsage(f"data.packing: {packed['refusal']}" if packing else f"model.base: {packed['refusal']}")
