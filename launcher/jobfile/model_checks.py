"""What can be said of a base model from its files' headers and its config.json, before a node is paid for.

Owns where the findings are put. The judgement is the trainer's own, so that a job that is right here is right there. Refuses to
download: of a base that is not at hand it says nothing.
"""

from __future__ import annotations

from launcher.config.problems import Finding
from launcher.models.architecture import find_architecture, read_config
from launcher.models.hub_cache import local_folder
from launcher.runs.ledger import cache_dir
from trainer.run import trainable, weight_names
from trainer.run.exits import BadInput
from trainer.run.spec import TrainSpec

BASE = ("model", "base")


def model_findings(spec: TrainSpec) -> list[Finding]:
    """A base that cannot be trained, or whose weights are missing, of another shape or cut short."""
    folder = local_folder(spec.model.base, spec.model.revision)
    if folder is None or not (folder / "config.json").is_file():
        return []
    try:
        config = read_config(folder)
    except BadInput as broken:
        return [Finding(BASE, str(broken))]
    refused = trainable.refusal(config)
    if refused:
        return [Finding(BASE, f"{spec.model.base!r} cannot be trained: {refused}")]
    if spec.model.init == "random":
        return []
    try:
        stored = weight_names.stored_weights(folder)
    except BadInput as damaged:
        return [Finding(BASE, str(damaged))]
    if stored is None:
        return []
    try:
        architecture = find_architecture(spec.model.base, spec.model.revision, cache=cache_dir(), may_ask=False)
    except BadInput:
        return []
    prefix = spec.model.weights_prefix
    plain = {weight_names.without_prefix(name, prefix): shape for name, shape in stored.items()}
    wrong = weight_names.problem(
        spec.model.base, weight_names.compare(plain, architecture.stored or architecture.shapes), plain
    )
    return [Finding(BASE, wrong)] if wrong else []
