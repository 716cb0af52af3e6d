"""Files as people have them: one damaged row costs that row, one damaged file is named, and no traceback ends a preparation
that could have gone on."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import zstandard

from tests.support.data_job import chat, data_job, write_rows
from trainer.data.inputs import files_of
from trainer.data.prepare import prepare
from trainer.data.readers import blocks
from trainer.run.exits import BadInput
from trainer.run.formats.conversation import BadRow, Reason
from trainer.run.settings.data import SourceSpec

ROWS = [chat(f"question {i}, über\u2028two 🐬", f"answer {i}") for i in range(7)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = json.dumps(ROWS, ensure_ascii=False, indent=1)


def read(path: Path, **source: Any) -> list[Any]:
    """Every row of a source but blank lines."""
    spec = SourceSpec.model_validate({"path": str(path)} | source)
    rows = [row for file in files_of(spec, "it") for block in blocks(file) for row in block.read()]
    return [row for row in rows if row is not None]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl", LINES.encode("utf-8-sig")),
        ("data.jsonl", LINES.encode("utf-16")),
        ("data.jsonl", b"\xfe\xff" + LINES.encode("utf-16-be")),
        ("data.jsonl", LINES.encode("utf-16-le")),
        ("data.jsonl", LINES.encode("utf-32")),
        ("data.jsonl", LINES.replace("\n", "\r\n").encode()),
        ("data.jsonl", LINES.replace("\n", "\n\n").encode() + b"\n \n"),
        ("data.jsonl", LINES.rstrip("\n").encode()),
        ("DATA.JSONL", LINES.encode()),
        ("data.JSONL.GZ", gzip.compress(LINES.encode("utf-16"))),
        ("data.jsonl.zst", zstandard.compress(LINES[:100].encode()) + zstandard.compress(LINES[100:].encode())),
        ("data.jsonl", PRETTY.encode()),
        ("data.jsonl", json.dumps(ROWS).encode()),
        ("data.jsonl", "\n".join(json.dumps(row, indent=2) for row in ROWS).encode()),
        ("data.json", LINES.encode()),
        ("data.json", PRETTY.encode("utf-8-sig")),
        ("data.json", (json.dumps(ROWS[:3]) + "\n" + json.dumps(ROWS[3:])).encode()),
        ("data.json", json.dumps({"data": ROWS}).encode()),
        ("data.json", json.dumps({"version": 1, "rows": ROWS, "notes": ["x"]}, indent=2).encode()),
        ("data.json", ('{"data": [\n' + ",\n".join(json.dumps(row) for row in ROWS) + "\n]}").encode()),
        ("data.json", json.dumps({"train": ROWS, "test": [chat("secret", "no")]}).encode()),
        ("data.json.gz", gzip.compress(json.dumps({"data": ROWS}).encode("utf-8-sig"))),
    ],
)
def test_every_way_to_save_the_same_rows_is_read_to_the_last_character(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert read(path) == ROWS


def test_rows_that_are_larger_than_what_is_read_at_once_come_out_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brackets and quotes inside texts, cut at every place by the size of a read."""
    monkeypatch.setattr("trainer.data.json_rows.READ_BYTES", 7)
    rows: list[Any] = [{"text": 'a "quoted" ] } \\ [ {'}, {"text": "\\"}, {"deep": [[{"a": {"b": "}"}}]]}, *ROWS]
    path = tmp_path / "data.json"
    path.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    assert read(path) == rows


@pytest.mark.parametrize("layout", ["lines", "array"])
def test_bare_lists_of_turns_are_conversations(tmp_path: Path, layout: str) -> None:
    bare = [row["conversations"] for row in ROWS]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, bare)) if layout == "lines" else json.dumps(bare))
    assert read(path) == [{"messages": turns} for turns in bare]


def test_the_number_of_a_row_counts_blank_lines_as_an_editor_does(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n" + LINES + "\n\nnot JSON\n", encoding="utf-8")
    data = prepare(data_job(tmp_path, path, max_bad_fraction=0.5))
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["totals"]["rows"] == 8, "a blank line is no row"
    assert [entry["line"] for entry in report["bad_rows"]] == [11]
    assert data.name_of(0).endswith("data.jsonl:2")


DEEP = "[" * 3000 + "]" * 3000


@pytest.mark.parametrize("layout", ["lines", "array"])
@pytest.mark.parametrize(
    ("row", "says"),
    [
        ('{"conversations": ' + DEEP + "}", "nested too deeply"),
        ('{"conversations": [nonsense]}', "not JSON"),
        ('"a text"', "the row is str"),
        ("null", "the row is NoneType"),
        ("17", "the row is int"),
    ],
)
def test_a_row_that_cannot_be_decoded_costs_that_row(tmp_path: Path, layout: str, row: str, says: str) -> None:
    texts = [json.dumps(ROWS[0]), row, json.dumps(ROWS[1])]
    path = tmp_path / "data.json"
    path.write_text("\n".join(texts) if layout == "lines" else f"[{', '.join(texts)}]")
    first, bad, last = read(path)
    assert (first, last) == (ROWS[0], ROWS[1])
    assert isinstance(bad, BadRow)
    assert says in bad.detail


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.json", json.dumps([*ROWS, chat("half an emoji: \ud83d", "yes")]).encode()),
        ("data.jsonl", LINES.encode() + json.dumps(chat("half: \ud83d", "yes")).encode()),
        ("data.jsonl", LINES.encode() + json.dumps({"conversations": json.dumps(chat("\udc00", "yes")["conversations"])}).encode()),
        ("data.jsonl", LINES.encode() + json.dumps(chat("caf\xe9", "oui"), ensure_ascii=False).encode("latin-1")),
        ("data.json", LINES.encode() + json.dumps(chat("caf\xe9", "oui"), ensure_ascii=False).encode("latin-1")),
        ("data.csv", b"question,answer\n" + b"q,a\n" * 7 + b"caf\xe9,oui\n"),
    ],
)  # fmt: skip
def test_half_a_character_costs_its_row_and_not_the_preparation(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    prepare(data_job(tmp_path, tmp_path / name, max_bad_fraction=0.2))
    report = json.loads((tmp_path / "run" / "data_report.json").read_text())
    assert report["totals"]["bad"] == {"undecodable": 1}
    assert report["totals"]["rows"] == 8


def test_a_name_that_is_half_a_character_can_still_be_reported(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", ROWS)
    with open(path, "a") as handle:
        handle.write(json.dumps({"conversations": [{"from": "\ud83d", "value": "x"}]}) + "\n")
    prepare(data_job(tmp_path, path, max_bad_fraction=0.2))
    assert "ud83d" in (tmp_path / "run" / "data_report.json").read_text()


def damaged(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 40]) + content[middle + 40 :]


MANY = LINES.encode() * 200


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("data.jsonl.gz", damaged(gzip.compress(MANY))),
        ("data.jsonl.gz", gzip.compress(MANY)[:-300]),
        ("data.jsonl.gz", LINES.encode()),
        ("data.jsonl.zst", damaged(zstandard.compress(MANY))),
        ("data.jsonl.zst", zstandard.compress(MANY)[:-30]),
        ("data.jsonl.zst", LINES.encode()),
        ("data.parquet", b"PAR1 and no more"),
        ("data.parquet", b""),
        ("data.arrow", b"no Arrow at all"),
        ("data.json", PRETTY.encode()[:-40]),
        ("data.json", b"[1, 2"),
        ("data.json", b'[{"a": 1}] and more'),
        ("data.txt", b"caf\xe9"),
        ("data.csv", b'question,answer\nq,"never closed\nq,a\n'),
        ("data.csv", b"question,question\nq,a\n"),
    ],
)
def test_a_damaged_file_is_named_and_no_shorter_file(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=name):
        read(tmp_path / name)


def test_a_damaged_file_ends_the_command_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from trainer.data.prepare import main

    (tmp_path / "data.jsonl.gz").write_bytes(damaged(gzip.compress(MANY)))
    job = data_job(tmp_path, tmp_path / "data.jsonl.gz")
    (tmp_path / "train.json").write_text(job.model_dump_json())
    assert main([str(tmp_path / "train.json")]) == 64
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert "data.jsonl.gz cannot be read: " in line


def test_a_ragged_row_of_csv_is_a_bad_row_and_its_answer_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text('\ufeffquestion, answer\nq1,a1\nq2,it is red, or blue.\nq3\n\nq4,"a, 4"\nq5,"a"5\nq6,a6\n')
    rows = read(path)
    assert [row for row in rows if isinstance(row, dict)] == [
        {"question": "q1", "answer": "a1"}, {"question": "q4", "answer": "a, 4"}, {"question": "q6", "answer": "a6"},
    ]  # fmt: skip
    assert [row.detail.partition(":")[0] for row in rows if isinstance(row, BadRow)] == [
        "the row has 3 cells and the first line 2 names", "the row has 1 cells and the first line 2 names", "not CSV",
    ]  # fmt: skip


def test_rows_under_one_of_several_keys_are_asked_for_and_then_read(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"good": ROWS, "poor": ROWS[:1]}))
    with pytest.raises(BadInput, match=r"under 'good' and 'poor'.*`field: good`"):
        read(path)
    assert read(path, field="poor") == ROWS[:1]
    with pytest.raises(BadInput, match="no rows under 'best'; its keys are good, poor"):
        read(path, field="best")


def test_a_file_that_holds_another_split_alone_is_not_trained_on(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"test": ROWS}))
    with pytest.raises(BadInput, match="split 'train'"):
        read(path)
    assert read(path, split="test") == ROWS


def test_one_conversation_alone_is_a_row_and_not_a_file_of_turns(tmp_path: Path) -> None:
    path = tmp_path / "data.json"
    path.write_text(json.dumps(ROWS[0], indent=2))
    assert read(path) == ROWS[:1]


def test_a_folder_that_the_datasets_library_saved_is_read(tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "saved" / "test").mkdir(parents=True)
    (tmp_path / "saved" / "train").mkdir()
    table = pa.Table.from_pylist(ROWS)
    for split, rows in {"train": table, "test": table.slice(0, 1)}.items():
        with pa.OSFile(str(tmp_path / "saved" / split / "data-00000-of-00001.arrow"), "wb") as sink:
            with pa.ipc.new_stream(sink, rows.schema) as writer:
                writer.write_table(rows)
        (tmp_path / "saved" / split / "state.json").write_text("{}")
    assert read(tmp_path / "saved") == ROWS
    assert read(tmp_path / "saved", split="test") == ROWS[:1]
    with pa.OSFile(str(tmp_path / "file.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / "file.arrow") == ROWS


def test_nulls_that_arrow_pads_with_never_reach_a_template(tmp_path: Path) -> None:
    """All objects of a column have the same keys there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"tools": [{"name": "f", "parameters": {"city": {"type": "string"}}}], "system": None},
        {"tools": [{"name": "g", "parameters": {"left": {"type": "number"}}}], "system": "s"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    assert read(tmp_path / "data.parquet") == rows


def test_a_cell_that_python_cannot_hold_costs_its_row(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.array(["good", None, "fine"]).cast(pa.binary())
    broken = pa.array([b"good", b"caf\xe9", b"fine"], pa.binary())
    assert text.type == broken.type
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, broken.buffers())})
    pq.write_table(table, tmp_path / "data.parquet")
    rows = read(tmp_path / "data.parquet")
    assert [row["text"] for row in rows if isinstance(row, dict)] == ["good", "fine"]
    assert [row.reason for row in rows if isinstance(row, BadRow)] == [Reason.UNDECODABLE]


def test_a_bad_row_survives_the_way_to_a_worker() -> None:
    there = pickle.loads(pickle.dumps(BadRow(Reason.UNDECODABLE, "why")))
    assert (there.reason, there.detail) == (Reason.UNDECODABLE, "why")


def test_line_separators_inside_texts_end_no_line_of_what_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.data.prepare import main

    job = data_job(tmp_path, write_rows(tmp_path / "data.jsonl", ROWS))
    (tmp_path / "train.json").write_text(job.model_dump_json())
    assert main([str(tmp_path / "train.json"), "--show", "3"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]
    assert len(shown) == 3
    assert "\u2028" in shown[0]["passages"][0][0]
