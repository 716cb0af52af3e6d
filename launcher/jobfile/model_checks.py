"""What can be said of a base model from its files' headers and its config.json, before a node is paid for.

Owns where the findings are put. The judgement is the trainer's own, so that a job that is right here is right there. Refuses to
download: of a base that is not at hand it says nothing.
"""

from __future__ import annotations

import json

from launcher.config.problems import Finding
from launcher.models.architecture import find_architecture
from launcher.models.hub_cache import local_folder
from trainer.run import weight_names
from trainer.run.exits import BadInput
from trainer.run.spec import TrainSpec

BASE = ("model", "base")


def model_findings(spec: TrainSpec) -> list[Finding]:
    """Weights that are missing, of another shape or cut short."""
    folder = local_folder(spec.model.base, spec.model.revision)
    if folder is None or not (folder / "config.json").is_file():
        return []
    try:
        json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        return [Finding(BASE, f"{folder / 'config.json'} is not JSON ({error}); fetch the model again")]
    if spec.model.init == "random":
        return []
    try:
        stored = weight_names.stored_weights(folder)
    except BadInput as damaged:
        return [Finding(BASE, str(damaged))]
    if stored is None:
        return []
    try:
        architecture = find_architecture(spec.model.base, spec.model.revision)
    except BadInput:
        return []
    prefix = spec.model.weights_prefix
    plain = {weight_names.without_prefix(name, prefix): shape for name, shape in stored.items()}
    wrong = weight_names.problem(spec.model.base, weight_names.compare(plain, architecture.shapes), plain)
    return [Finding(BASE, wrong)] if wrong else []
