"""No job file, however wrong, ends in a traceback: every complaint is a located problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launcher.config.key_hints import all_keys
from launcher.config.problems import LocatedProblem, SpecErrors
from launcher.config.yaml_lines import write_yaml
from launcher.jobfile.axolotl.keys import (
    DATASET_ERRORS,
    DATASET_MAPPED,
    DATASET_NO_EFFECT,
    ERRORS,
    FSDP_CONFIG,
    MAPPED,
    NO_EFFECT,
)
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec

WORDS = st.sampled_from(
    ["auto", "epoch", "x", "", "a/b", "./r.jsonl", "5e-6", "train[:5]", "zero3", "sharegpt", "cosine", "[", "~"]
)
LEAVES = st.none() | st.booleans() | st.integers(-2, 10**6) | st.floats(allow_nan=True) | WORDS | st.text(max_size=5)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=6
)
JOB_KEYS = sorted({key.rpartition(".")[2] for key in all_keys(JobSpec)})
DATASET = st.dictionaries(st.sampled_from([*DATASET_MAPPED, *DATASET_NO_EFFECT, *DATASET_ERRORS]), VALUES, max_size=6)
FSDP = st.dictionaries(st.sampled_from(sorted(FSDP_CONFIG)), VALUES, max_size=3)
DEEPSPEED = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(
        ("zero_optimization", "fp16", "bf16", "optimizer", "scheduler", "gradient_clipping"), VALUES
    ),
)
RELAXED = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


def only_located_problems(path: Path, data: Any) -> None:
    path.write_text(write_yaml(data))
    for problem in complaints(path):
        assert problem.file == str(path)
        assert problem.line is not None
        assert problem.line >= 1
        assert problem.message


def complaints(path: Path) -> list[LocatedProblem]:
    try:
        load_job(path)
    except SpecErrors as errors:
        return errors.problems
    return []


@given(
    st.dictionaries(
        st.sampled_from(list(JobSpec.model_fields)),
        VALUES | st.dictionaries(st.sampled_from(JOB_KEYS), VALUES | st.lists(st.dictionaries(st.sampled_from(JOB_KEYS), VALUES, max_size=3), max_size=2), max_size=6),
        max_size=6,
    )
)  # fmt: skip
@RELAXED
def test_a_job_of_nonsense(tmp_path_factory: Any, data: Any) -> None:
    only_located_problems(tmp_path_factory.getbasetemp() / "nonsense.yaml", data)


@given(
    st.dictionaries(st.sampled_from([*MAPPED, *NO_EFFECT, *ERRORS]), VALUES, max_size=12),
    st.lists(DATASET | VALUES, max_size=3) | VALUES,
    FSDP | VALUES,
    DEEPSPEED | VALUES,
)
@example(
    {"learning_rate": 1}, [{"path": "a/b", "shards": "many", "roles_to_train": 3, "roles": {"user": 4}}], 3, {"fp16": 1}
)
@RELAXED
def test_an_axolotl_configuration_of_nonsense(
    tmp_path_factory: Any, data: Any, datasets: Any, fsdp: Any, deepspeed: Any
) -> None:
    data = {
        **data,
        "base_model": data.get("base_model", "a/b"),
        "datasets": datasets,
        "fsdp_config": fsdp,
        "deepspeed": deepspeed,
    }
    only_located_problems(tmp_path_factory.getbasetemp() / "nonsense.yml", data)


def test_json_is_yaml(tmp_path: Path) -> None:
    data = {"name": "a", "model": {"base": "a/b"}, "data": {"sources": [{"path": "hf://a/b"}]}}
    (tmp_path / "job.json").write_text(json.dumps(data))
    assert load_job(tmp_path / "job.json").name == "a"
