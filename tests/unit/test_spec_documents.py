"""What people copy from must work: the examples, the starting file, the schema and the tables."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from launcher.commands.init import init_command, new_job_text
from launcher.commands.reference import EXAMPLES as EXAMPLES_OF_KEYS
from launcher.commands.reference import example_of, keys_text
from launcher.commands.schema import job_schema, schema_text
from launcher.commands.validate import validate_command
from launcher.config.key_hints import all_keys, groups_in
from launcher.config.yaml_lines import read_yaml
from launcher.jobfile.field_docs import explanations
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
REFERENCE = ROOT / "examples" / "dolphin-2.9.4-llama3.1-8b.yaml"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_fits_the_schema_that_it_names(path: Path) -> None:
    load_job(path)
    text = path.read_text()
    schema = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    assert schema is not None
    assert (path.parent / schema[1]).resolve() == ROOT / "docs" / "job.schema.json"
    jsonschema.validate(read_yaml(text).data, job_schema(), cls=jsonschema.Draft7Validator)


def test_there_is_an_example_for_every_data_format_and_its_rows_are_read() -> None:
    from trainer.run.formats.conversation import check
    from trainer.run.formats.registry import FORMATS, choose

    for entry in FORMATS:
        job = load_job(ROOT / "examples" / f"data-{entry.name}.yaml")
        source = job.data.sources[0]
        rows = [json.loads(line) for line in Path(source.path).read_text().splitlines()]
        for row in rows:
            assert choose(source, row.keys(), "here") is entry
            check(entry.parse(row))
        detected = choose(source.model_copy(update={"format": None}), rows[0].keys(), "here")
        assert detected is entry, f"the comment in data-{entry.name}.yaml promises that the columns tell"


def test_the_reference_job_states_what_its_card_states() -> None:
    job = load_job(REFERENCE)
    train = job.train
    assert (train.epochs, train.micro_batch, train.accumulation, job.resources.ranks) == (3, 2, 16, 8)
    assert (train.learning_rate, train.weight_decay, train.warmup_steps, train.schedule) == (5e-6, 0.1, 100, "cosine")
    assert (train.betas, train.epsilon, train.seed, train.zero, train.precision) == ((0.9, 0.999), 1e-8, 42, 3, "bf16")
    assert isinstance(train.unfrozen, tuple)
    assert len(set(train.unfrozen)) == 118
    assert sum("layers." in pattern for pattern in train.unfrozen) == 112
    assert job.data.sequence_length == 8192
    assert len(job.data.sources) == 9


def test_the_schema_on_disk_is_the_one_of_the_models() -> None:
    assert (ROOT / "docs" / "job.schema.json").read_text() == schema_text(), (
        "run: dolphin schema > docs/job.schema.json"
    )


def test_the_page_of_keys_on_disk_is_the_one_of_the_models() -> None:
    assert (ROOT / "docs" / "job.md").read_text() == keys_text(), "run: dolphin schema --keys > docs/job.md"


def groups_of_a_job() -> list[tuple[str, type[BaseModel], dict[str, Any]]]:
    """Dotted prefix, model and schema of each group of keys, the top first."""
    schema = job_schema()
    found: list[tuple[str, type[BaseModel], dict[str, Any]]] = [("", JobSpec, schema["properties"])]
    for prefix, model, _ in found:
        for name, field in model.model_fields.items():
            for group in groups_in(field.annotation):
                found.append((f"{prefix}{name}.", group, schema["$defs"][group.__name__]["properties"]))
    return found


def test_every_key_has_a_line_on_the_page_of_keys() -> None:
    sections = keys_text().split("\n## ")[1:]
    for prefix, model, _ in groups_of_a_job():
        title = f"`{prefix[:-1]}`" if prefix else "At the top"
        (section,) = [text for text in sections if text.partition("\n")[0] == title]
        for key in model.model_fields:
            (line,) = [line for line in section.splitlines() if line.startswith(f"| `{key}` |")]
            assert line.count(" | ") == 4, f"five cells: {line}"


def test_every_example_on_the_page_of_keys_loads_and_shows_another_value_than_the_default() -> None:
    seen = set()
    for prefix, model, settings in groups_of_a_job():
        examples = {key: example_of(f"{prefix}{key}", setting) for key, setting in settings.items()}
        required = [key for key, field in model.model_fields.items() if field.is_required() and examples[key]]
        for key, example in examples.items():
            seen.add(f"{prefix}{key}")
            if example is None:
                continue
            value = read_yaml("\n".join(f"{name}: {examples[name]}" for name in {*required, key})).data
            if model is JobSpec:
                value |= {"model": {"base": "x"}, "data": {"sources": [{"path": "x"}]}}
            loaded = getattr(model.model_validate_json(json.dumps(value), strict=True), key)
            assert "const" in settings[key] or loaded != model.model_fields[key].get_default(), f"{prefix}{key}"
    assert EXAMPLES_OF_KEYS.keys() <= seen, "an example of a key that is no more"


def test_the_schema_finds_a_typo_and_explains_every_setting() -> None:
    validator = jsonschema.Draft7Validator(job_schema())
    jsonschema.Draft7Validator.check_schema(job_schema())
    data = read_yaml(REFERENCE.read_text()).data
    data["train"]["lerning_rate"] = 1
    data["resources"]["accelerators"] = "8xL40S"
    assert len(list(validator.iter_errors(data))) == 2
    groups = [JobSpec]
    for group in groups:
        groups += [inner for field in group.model_fields.values() for inner in groups_in(field.annotation)]
        assert set(explanations(group)) == set(group.model_fields), (
            f"{group.__name__} has a setting with no explanation"
        )


def test_the_starting_file_loads_and_shows_every_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    assert init_command(str(path)) == 0
    load_job(path)
    text = path.read_text()
    hidden = (
        "special_tokens.",
        "wandb.",
        "mlflow.",
        "unfrozen.",
        "every.",
        "adapter.",
        "validation.",
        "stop.",
        "keep_best.",
        "push.",
    )  # groups that are shown on one line
    for key in all_keys(JobSpec):
        if not any(part in f"{key}." and f"{key}.".partition(part)[2] for part in hidden):
            assert re.search(rf"^\s*(# |- )?{key.rpartition('.')[2]}:", text, re.MULTILINE), key
    jsonschema.validate(read_yaml(text).data, job_schema(), cls=jsonschema.Draft7Validator)
    assert "next: dolphin validate" in capsys.readouterr().err


def test_every_line_of_the_starting_file_may_be_taken_into_use() -> None:
    lines = new_job_text().splitlines()
    offered = [i for i, line in enumerate(lines) if re.match(r"\s*# [a-z_]+: \S", line) and not line.endswith(".")]
    assert len(offered) > 50
    for index in offered:
        changed = [*lines[:index], lines[index].replace("# ", "", 1), *lines[index + 1 :]]
        data = read_yaml("\n".join(changed)).data
        filled = {key: {} if value is None else value for key, value in data.items()}
        try:
            JobSpec.model_validate_json(json.dumps(filled), strict=True)
        except ValueError as error:
            raise AssertionError(f"{lines[index].strip()}: {error}") from None


def test_init_never_overwrites_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("mine")
    assert init_command(str(path)) == 2
    assert path.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    assert init_command("-") == 0
    assert capsys.readouterr().out == new_job_text()


def test_validate_answers_people_and_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert validate_command(str(REFERENCE)) == 0
    assert capsys.readouterr().out == f"{REFERENCE}: valid (dolphin-2-9-4-llama3-1-8b)\n"
    bad = tmp_path / "job.yaml"
    bad.write_text(REFERENCE.read_text().replace("epochs: 3", "epoch: 3"))
    assert validate_command(str(bad)) == 2
    line = bad.read_text().splitlines().index("  epoch: 3") + 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (f"{bad}:{line}: train.epoch: unknown key; did you mean 'epochs'?\n1 problem in {bad}\n")
    assert validate_command(str(bad), as_json=True) == 2
    answer = json.loads(capsys.readouterr().out)
    assert answer["valid"] is False
    assert answer["problems"] == [
        {"file": str(bad), "line": line, "key": "train.epoch", "message": "unknown key; did you mean 'epochs'?"}
    ]
