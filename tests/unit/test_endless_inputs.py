"""What never ends or never fits, in a job, a filter, a template or a checkpoint: bounded time and one line, every time."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.backends.sky.node import bucket
from launcher.config.problems import SpecErrors
from launcher.config.text import read_text
from launcher.config.yaml_lines import read_yaml
from tests.support.checkpoint_folder import save
from tests.support.data_job import chat, data_job, write_rows
from trainer.checkpoint.manifest import MANIFEST, CorruptCheckpoint, Manifest
from trainer.checkpoint.resume import Search
from trainer.data import template
from trainer.data.filters import Filter
from trainer.data.prepare import prepare
from trainer.run import patterns
from trainer.run.bounded import TookTooLong, cpu_seconds
from trainer.run.exits import BadInput
from trainer.run.stores.base import FolderStore, NotInStore

CPU_S = 0.3


def test_a_bound_counts_processor_time_and_lets_what_ends_pass() -> None:
    with cpu_seconds(60):
        with cpu_seconds(0.001):  # within another one, which holds
            sum(range(200_000))
        time.sleep(0.01)
    with pytest.raises(TookTooLong), cpu_seconds(0.05):
        sum(1 for _ in iter(int, 1))


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)+$", "(.*a){25}$", "a{99999999999}", "(" * 3000 + "a" + ")" * 3000]
)
def test_a_pattern_that_never_ends_is_no_expression(pattern: str, monkeypatch) -> None:
    monkeypatch.setattr(patterns, "MATCH_CPU_S", CPU_S)
    with pytest.raises(re.error, match=r"does not come to an end|too large|number of groups|repetition number"):
        patterns.match([pattern], ["model." + "a" * 60 + "!"])


@pytest.mark.parametrize(
    "expression",
    [
        "messages.pop()",
        "messages.append(1)",
        "row.update(a)",
        "len(messages.clear())",
        "(" * 300 + "1" + ")" * 300,
        "1+" * 1500 + "1",
    ],
)
def test_a_filter_that_changes_the_row_or_is_too_long_is_refused(expression: str) -> None:
    with pytest.raises(BadInput) as refusal:
        Filter(expression, "data.sources[0]")({"messages": [1], "row": {}, "a": {}})
    assert "\n" not in str(refusal.value)


def test_a_filter_still_looks_at_what_it_may() -> None:
    keep = Filter("len(messages) > 1 and messages[0].get('role').lower() == 'user'", "data.sources[0]")
    assert keep({"messages": [{"role": "User"}, {}]})


def test_a_template_that_never_ends_stops_the_preparation(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(template, "RENDER_CPU_S", CPU_S)
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{{ messages[0].content }}"
    job = data_job(tmp_path, write_rows(tmp_path / "data.jsonl", [chat("a", "b")] * 3))
    spec = job.spec.model_copy(update={"model": job.spec.model.model_copy(update={"chat_template": endless})})
    with pytest.raises(BadInput, match=r"had not ended|does not|template"):
        prepare(job.model_copy(update={"spec": spec}))


@pytest.mark.parametrize(
    "hungry",
    [
        "{{ messages[0].content * 9999999999 }}",
        "{% set n = namespace(x='xxxxxxxx') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ messages[0].content }}{% generation %}{{ 'a' * 9999999999 }}{% endgeneration %}",
    ],
)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_template_that_takes_all_memory_stops_the_preparation_and_not_the_machine(
    tmp_path: Path, hungry, workers, monkeypatch
) -> None:
    job = data_job(tmp_path, write_rows(tmp_path / "data.jsonl", [chat("a", "b")] * 3))
    data = job.spec.data.model_copy(update={"workers": workers})
    spec = job.spec.model_copy(
        update={"model": job.spec.model.model_copy(update={"chat_template": hungry}), "data": data}
    )
    monkeypatch.setattr(template, "RENDER_BYTES", 128 << 20)
    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(BadInput, match="MiB of memory for one conversation") as refusal:
        prepare(job.model_copy(update={"spec": spec}))
    assert "\n" not in str(refusal.value)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


LAUGHS = "a0: &a0 {k: v}\n" + "".join(f"a{i}: &a{i}\n  <<: [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))


@pytest.mark.parametrize(
    "text",
    [LAUGHS, "a: &a\n  <<: *a\n", "a: &a {b: &b {<<: *a}}\n", "a: " + "9" * 5000, "a: 0x" + "f" * 5000, "a: !!int " + "x" * 5000,
     "[" * 5000, "a: " + "{b: " * 5000, "- " * 5000 + "x"],
)  # fmt: skip
def test_a_job_file_that_unfolds_without_end_is_a_line(text: str) -> None:
    began = time.process_time()
    faults = read_yaml(text).faults
    assert faults
    assert all(len(message) < 300 and "\n" not in message for _, _, message in faults)
    assert time.process_time() - began < 20


def test_merges_that_a_person_writes_are_read() -> None:
    document = read_yaml("x-a: &a {k: 1}\nx-b: &b {<<: *a, l: 2}\nc: {<<: [*a, *b], m: 3}\n")
    assert document.faults == []
    assert document.data["c"] == {"k": 1, "l": 2, "m": 3}


def test_a_pipe_in_the_place_of_a_job_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "job.yaml")
    with pytest.raises(SpecErrors, match="is a pipe"):
        read_text(tmp_path / "job.yaml")


def search(root: Path) -> Search:
    return Search(FolderStore(root), None, True)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("x")


def nested(path: Path) -> None:
    path.write_bytes(b"[" * 200_000)


def number(path: Path) -> None:
    path.write_bytes(b'{"step": ' + b"9" * 5000 + b"}")


@pytest.mark.parametrize("harm", [pipe, folder, nested, number], ids=lambda harm: harm.__name__)
def test_a_manifest_that_is_none_never_keeps_a_run_from_the_checkpoint_before_it(tmp_path: Path, harm) -> None:
    for step in (2, 4):
        save(tmp_path, step)
    harm(tmp_path / "step-00000004" / MANIFEST)
    found = search(tmp_path)
    (candidate,) = found.candidates()
    assert candidate.manifest.step == 2
    found.sweep(candidate)
    assert [one.manifest.step for one in search(tmp_path).candidates()] == [2]


def test_a_manifest_with_a_right_checksum_and_wrong_kinds_is_corrupt() -> None:
    for body in (b"[]", b"null", b"7", b'"x"', b"{}", b'{"manifest_checksum": []}', b"\xff"):
        with pytest.raises(CorruptCheckpoint):
            Manifest.decode(body, "step-00000004")


def test_the_number_of_an_attempt_in_a_bucket_is_no_path(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "bucket")
    for word in (b"../../../evil", b"/tmp/evil", b"1/../2", b"\xff", b"", b"-1", b"9" * 50):
        store.put("run/attempt", word)
        with pytest.raises(ValueError, match="is no number"):
            bucket.restore(tmp_path / "run", store)
    assert not (tmp_path / "evil").exists()
    store.put("run/attempt", b"3")
    bucket.restore(tmp_path / "run", store)
    assert (tmp_path / "run" / "attempts" / "3" / "node-0").exists()
    pipe(tmp_path / "bucket" / "run" / "attempt")
    with pytest.raises(NotInStore):
        store.get("run/attempt")


def test_the_commands_say_so_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(LAUGHS)
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "validate", str(tmp_path / "job.yaml")],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
