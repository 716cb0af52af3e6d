"""Preparing: nothing is dropped in silence, bad data stops the run before a GPU is paid for, and the cache is never stale."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.data_job import chat, data_job, write_rows, write_tokenizer
from trainer.data import build
from trainer.data.minhash import near_duplicates, signature
from trainer.data.prepare import main, prepare
from trainer.data.prepared import Prepared
from trainer.data.tokenizer import load_tokenizer
from trainer.data.workers import Workers
from trainer.run.exits import BadInput

ROWS = [chat(f"question {i}", f"answer {i} with naïve café 🐬 你好") for i in range(40)]


def report_of(root: Path, name: str = "run") -> dict[str, Any]:
    return json.loads((root / name / "data_report.json").read_text(encoding="utf-8"))


def texts(root: Path, data: Prepared, job: Any, part: str = "train") -> list[str]:
    tokenizer = load_tokenizer(job.spec.model)
    return [tokenizer.decode(data.token_ids(i).tolist()) for i in getattr(data, part).tolist()]


def write_as(path: Path, rows: list[dict[str, Any]]) -> Path:
    """The same rows in the file type that `path` names."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        import zstandard

        path.write_bytes(zstandard.compress(lines))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_bytes(lines)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.parquet", "lines.json"])
def test_every_file_type_gives_the_same_tokens(tmp_path: Path, name: str) -> None:
    expected = prepare(data_job(tmp_path, write_rows(tmp_path / "plain.jsonl", ROWS), name="plain"))
    path = tmp_path / name
    if name == "lines.json":
        path.write_bytes((tmp_path / "plain.jsonl").read_bytes())
    else:
        write_as(path, ROWS)
    data = prepare(data_job(tmp_path, path))
    assert np.array_equal(data.tokens, expected.tokens)
    assert np.array_equal(data.origin[:, 1], np.arange(1, 41)), "rows are numbered from 1"


def test_a_source_without_its_system_messages_says_how_many_it_left_out(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "a.jsonl", [chat("q", "a", system="be terse"), chat("r", "b")])
    kept = data_job(tmp_path, rows, name="kept")
    job = data_job(tmp_path, [{"path": str(rows), "drop_system": True}])
    assert "be terse" in texts(tmp_path, prepare(kept), kept)[0]
    assert texts(tmp_path, prepare(job), job)[0] == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
    )
    [source] = report_of(tmp_path)["sources"]
    assert list(source["changed"].values()) == [1]


def test_csv_with_quotes_newlines_and_unicode(tmp_path: Path) -> None:
    rows = [{"question": 'Say "hi",\nplease', "answer": "« hi » 🐬"}, {"question": "x", "answer": " y "}]
    job = data_job(tmp_path, write_as(tmp_path / "a.csv", rows), model={"chat_template": "chatml"})
    assert texts(tmp_path, prepare(job), job)[0] == (
        '<|im_start|>user\nSay "hi",\nplease<|im_end|>\n<|im_start|>assistant\n« hi » 🐬<|im_end|>\n'
    )


def test_folders_and_globs_are_read_in_a_fixed_order_without_what_is_no_data(tmp_path: Path) -> None:
    folder = tmp_path / "many" / "deep"
    folder.mkdir(parents=True)
    write_rows(folder / "b.jsonl", ROWS[20:])
    write_as(folder.parent / "a.json", ROWS[:20])
    (folder / "README.md").write_text("no data")
    whole = prepare(data_job(tmp_path, folder.parent))
    assert [Path(name).name for name in whole.meta["files"]] == ["a.json", "b.jsonl"]
    assert len(whole.train) == 40
    globbed = prepare(data_job(tmp_path, Path(f"{tmp_path}/many/**/*.json*"), name="globbed"))
    assert np.array_equal(globbed.tokens, whole.tokens)
    with pytest.raises(BadInput, match="no such file, folder or match"):
        prepare(data_job(tmp_path, tmp_path / "absent.jsonl"))


def test_every_bad_row_is_counted_and_listed_with_its_line_and_reason(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", ROWS)
    bad = [
        ('{"conversations": [{"from": "human", "value"', "undecodable"),
        ("[1, 2]", "not text"),
        ('{"other": 1}', "missing column"),
        ('{"conversations": []}', "empty"),
        (json.dumps(chat("only a question")), "one-sided"),
        (json.dumps(chat("q", "   ")), "empty"),
        (json.dumps({"conversations": [{"from": "wizard", "value": "x"}]}), "role-broken"),
        (
            json.dumps({"conversations": [{"from": "tool", "value": "x"}, *chat("q", "a")["conversations"]]}),
            "role-broken",
        ),
        (json.dumps({"conversations": [{"from": "human", "value": {}}, {"from": "gpt", "value": "y"}]}), "not text"),
        ('{"conversations": [{"from": "human", "value": "\\ud800"}, {"from": "gpt", "value": "y"}]}', "undecodable"),
    ]
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("".join(f"{line}\n" for line, _ in bad))
    with open(path, "ab") as handle:
        handle.write(b'{"conversations": "\xff"}\n')
    data = prepare(data_job(tmp_path, path, max_bad_fraction=0.5))
    listed = report_of(tmp_path)["bad_rows"]
    assert [(entry["line"], entry["reason"]) for entry in listed] == [
        (41 + i, reason) for i, reason in enumerate([*(reason for _, reason in bad), "undecodable"])
    ]
    assert all(entry["file"] == str(path) and entry["why"] for entry in listed)
    assert report_of(tmp_path)["totals"]["bad"]["role-broken"] == 2
    assert len(data.train) == 40

    with pytest.raises(
        BadInput, match=r"11 of 51 rows cannot be used, more than data\.max_bad_fraction 0\.01.*data\.jsonl:4"
    ):
        prepare(data_job(tmp_path, path, name="strict"))
    assert len(report_of(tmp_path, "strict")["bad_rows"]) == 11
    assert not (tmp_path / "strict" / "prepared.json").exists(), "ranks must not find data that was refused"


def test_data_of_the_wrong_kind_stops_after_its_first_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "data.jsonl", [{"conversations": [{"from": "gpt", "value": "x"}]}] * 5000)
    with pytest.raises(BadInput, match=r"none of the first .* rows can be used: one-sided"):
        prepare(data_job(tmp_path, path))


@pytest.mark.parametrize("policy, kept, over_long", [("drop", 40, 3), ("truncate", 43, 3), ("split", 40 + 3 * 4, 3)])
def test_over_long_conversations_go_as_chosen_and_are_counted(
    tmp_path: Path, policy: str, kept: int, over_long: int
) -> None:
    long = [chat("q", "deep blue sea " * 40 + str(i)) for i in range(3)]
    job = data_job(tmp_path, write_rows(tmp_path / "data.jsonl", ROWS + long), over_long=policy, sequence_length=64)
    data = prepare(job)
    source = report_of(tmp_path)["sources"][0]
    assert source["over_long"] == over_long
    lengths = np.diff(data.offsets)
    assert lengths.max() <= 64
    if policy == "split":
        whole = prepare(data_job(tmp_path, tmp_path / "data.jsonl", name="whole", sequence_length=4096))
        assert np.array_equal(data.tokens, whole.tokens), "split loses no token"
        assert all(data.token_weights(i)[0] == 0 for i in range(len(lengths)))
    else:
        assert len(data.train) == kept


def test_exact_and_near_duplicates_across_sources(tmp_path: Path) -> None:
    story = " ".join(f"word{i}" for i in range(200))
    write_rows(tmp_path / "a.jsonl", [*ROWS, ROWS[3], chat("tell", story)])
    write_rows(tmp_path / "b.jsonl", [ROWS[5], chat("tell", story + " end"), chat("new", "one")])
    sources = [{"path": str(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    counts = {}
    for how in ("none", "exact", "near"):
        data = prepare(data_job(tmp_path, sources, name=how, deduplicate=how, sequence_length=4096))
        a, b = report_of(tmp_path, how)["sources"]
        counts[how] = (len(data.train), a["duplicates"], b["duplicates"], b["near_duplicates"])
    assert counts == {"none": (45, 0, 0, 0), "exact": (43, 1, 1, 0), "near": (42, 1, 1, 1)}


def test_minhash_finds_what_overlaps_and_spares_what_does_not() -> None:
    words = [f"w{i}" for i in range(400)]
    base, edited, other = " ".join(words), " ".join([*words[:200], "changed", *words[200:]]), " ".join(reversed(words))
    half = " ".join(words[:200] + [f"x{i}" for i in range(200)])
    assert near_duplicates(signature([base, edited, other, half])).tolist() == [False, True, False, False]


def test_sources_are_sized_by_samples_weight_and_seed(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.jsonl", ROWS)
    write_rows(tmp_path / "b.jsonl", [chat(f"other {i}", "yes") for i in range(10)])

    def counts(name: str, a: dict[str, Any], b: dict[str, Any]) -> tuple[int, ...]:
        sources = [{"path": str(tmp_path / "a.jsonl")} | a, {"path": str(tmp_path / "b.jsonl")} | b]
        prepare(data_job(tmp_path, sources, name=name))
        return tuple(
            n for own in report_of(tmp_path, name)["sources"] for n in (own["train_conversations"], own["unsampled"])
        )

    assert counts("half", {"weight": 0.5}, {"weight": 2}) == (20, 20, 20, 0)
    assert counts("some", {"samples": 7}, {"samples": 100}) == (7, 33, 10, 0)
    assert counts("more", {"weight": 1.25}, {}) == (50, 0, 10, 0)
    chosen = {}
    for name, seed in (("one", 1), ("again", 1), ("two", 2)):
        job = data_job(tmp_path, [{"path": str(tmp_path / "a.jsonl"), "samples": 7, "shuffle_seed": seed}], name=name)
        chosen[name] = texts(tmp_path, prepare(job), job)
    assert chosen["one"] == chosen["again"] != chosen["two"]


def test_a_filter_keeps_what_it_says_and_can_do_nothing_else(tmp_path: Path) -> None:
    rows = [row | {"score": i % 5, "source": "book" if i % 2 else "web"} for i, row in enumerate(ROWS)]
    path = write_rows(tmp_path / "a.jsonl", rows)

    def kept(expression: str, name: str) -> int:
        return len(prepare(data_job(tmp_path, [{"path": str(path), "filter": expression}], name=name)).train)

    assert kept('score > 3 and source == "book"', "and") == 4
    assert kept("len(conversations) == 2", "len") == 40
    assert report_of(tmp_path, "and")["sources"][0]["filtered"] == 36
    for expression, says in (
        ("scor > 3", "names 'scor', but the columns are"),
        ("score >", "is not an expression"),
        ("__import__('os').system('true')", "calls __import__"),
        ("().__class__", "filter fails|not an expression|none of"),
    ):
        with pytest.raises(BadInput, match=says):
            kept(expression, "refused")


def test_the_held_out_part_shares_nothing_with_training(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS + ROWS)
    job = data_job(tmp_path, path, validation_fraction=0.2)
    data = prepare(job)
    held_out, trained = texts(tmp_path, data, job, "validation"), texts(tmp_path, data, job)
    assert len(held_out) == len(set(held_out)) == 8
    assert not set(held_out) & set(trained)
    assert len(trained) == 2 * 32
    assert report_of(tmp_path)["sources"][0]["copies_of_held_out"] == 8
    small = prepare(data_job(tmp_path, path, name="small", validation_fraction=0.001))
    assert len(small.validation) == 1, "a fraction above 0 holds out at least one"
    counted = prepare(data_job(tmp_path, path, name="counted", validation_count=8))
    assert len(counted.validation) == 8
    with pytest.raises(BadInput, match="validation_count 40 leaves none of the 40 different conversations"):
        prepare(data_job(tmp_path, path, name="too-many", validation_count=40))


def test_the_number_of_workers_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.data.readers.BLOCK_BYTES", 700)
    monkeypatch.setattr(build, "BYTES_WORTH_A_WORKER", 1)
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    with open(path, "a", encoding="utf-8") as handle:
        handle.write("broken\n")
    made = []
    for workers in (1, 3):
        job = data_job(tmp_path, path, name=f"w{workers}", workers=workers, max_bad_fraction=0.1)
        data = prepare(job.model_copy(update={"cache_dir": str(tmp_path / f"cache{workers}")}))
        made.append((data.key, {p.name: p.read_bytes() for p in data.path.iterdir()}))
    assert made[0] == made[1]
    assert report_of(tmp_path, "w3")["bad_rows"][0]["line"] == 41


def test_an_error_in_a_worker_comes_out_in_its_turn() -> None:
    def invert(number: int) -> float:
        return 1 / number

    with Workers(invert, 2) as workers:
        results = workers.map([4, 2, 0, 1])
        assert [next(results), next(results)] == [0.25, 0.5]
        with pytest.raises(ZeroDivisionError):
            next(results)


def test_a_second_launch_reads_nothing_and_a_change_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROWS)
    first = prepare(data_job(tmp_path, path))
    with monkeypatch.context() as patch:
        patch.setattr("trainer.data.inputs._content_hash", lambda _: pytest.fail("the file was read again"))
        patch.setattr("trainer.data.prepare.build", lambda *_: pytest.fail("the data was prepared again"))
        assert prepare(data_job(tmp_path, path, name="again")).key == first.key
    for name, change in {
        "seed": {"train": {"seed": 9}}, "length": {"sequence_length": 128}, "mask": {"last_turn_only": True},
        "template": {"model": {"chat_template": "{% for m in messages %}{{ m.content }}</s>{% endfor %}"}},
    }.items():  # fmt: skip
        assert prepare(data_job(tmp_path, path, name=name, **change)).key != first.key, name
    status = path.stat()
    write_rows(path, [*ROWS[:-1], chat("question 39", "ANSWER 39 with naïve café 🐬 你好")])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    assert prepare(data_job(tmp_path, path, name="edited")).key != first.key


def test_moving_the_data_does_not_change_its_key(tmp_path: Path) -> None:
    first = prepare(data_job(tmp_path, write_rows(tmp_path / "a.jsonl", ROWS)))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert prepare(data_job(tmp_path, write_rows(elsewhere / "a.jsonl", ROWS), name="moved")).key == first.key


def test_weights_other_than_one_survive_the_files(tmp_path: Path) -> None:
    def row(weight: float) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "loss_weight": weight}]
        }

    weights = [0.25, 2.0, 1.0, 0.1]
    data = prepare(data_job(tmp_path, write_rows(tmp_path / "a.jsonl", [row(weight) for weight in weights])))
    assert [float(data.token_weights(i).max()) for i in range(4)] == np.array(weights, np.float32).tolist()
    negative = write_rows(tmp_path / "b.jsonl", [row(-1.0)])
    with pytest.raises(BadInput, match="bad weight"):
        prepare(data_job(tmp_path, negative, name="negative"))


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = data_job(tmp_path, tmp_path / "absent.jsonl", tokenizer=write_tokenizer(tmp_path / "t"))
    (tmp_path / "train.json").write_text(job.model_dump_json())
    assert main([str(tmp_path / "train.json")]) == 64
    error = capsys.readouterr().err
    assert error.startswith("error: data.sources[0] ")
    assert error.count("\n") == 1


def test_show_prints_what_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = data_job(tmp_path, write_rows(tmp_path / "a.jsonl", [chat("Hi", "Hello 🐬", "Bye", "So long")]))
    (tmp_path / "train.json").write_text(job.model_dump_json())
    assert main([str(tmp_path / "train.json"), "--show", "3"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [text for text, weight in shown["passages"] if weight] == ["Hello 🐬<|im_end|>", "So long<|im_end|>"]
    assert "".join(text for text, _ in shown["passages"]).startswith("<|im_start|>user\nHi<|im_end|>")
