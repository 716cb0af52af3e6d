"""What comes home through a job's log: each line once, in order, over replays, reconnects, recoveries and killed readers."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import pytest

from launcher.backends.sky.log.feed import Feed
from launcher.backends.sky.log.mirror import STATE_FILE, Frame, Mirror, frames_in
from launcher.backends.sky.node.branch import parsed
from launcher.backends.sky.node.relay import frame, packed
from launcher.backends.sky.reading import Reading
from launcher.runs.ledger import RunRecord


def printed(kind: str, numbers: range, journal: str = "ab12", at: float = 1000.0) -> list[str]:
    return [frame(journal, kind, n, at + n, f"{kind} line {n}") for n in numbers]


def frames(lines: list[str]) -> list[Frame]:
    return [one for line in lines for one in frames_in(line)]


def test_a_log_read_twice_with_a_replay_of_an_earlier_node_brings_no_line_twice_and_loses_none(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    first_node = printed("N", range(1, 2)) + printed("L", range(1, 8))
    mirror.take(frames(first_node[:5]))  # the reader lost its connection after four lines
    second_node = [packed("ab12", first_node), *printed("N", range(2, 3)), *printed("L", range(8, 12))]
    for reading in (second_node[:3], second_node, first_node + second_node):
        mirror.take(frames(reading))
    assert (tmp_path / "log.txt").read_text() == "".join(f"L line {n}\n" for n in range(1, 12))
    assert (tmp_path / "nodes.jsonl").read_text().count("\n") == 2


def test_a_line_before_its_turn_waits_for_the_one_that_is_missing(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    lines = printed("L", range(1, 5))
    mirror.take(frames([lines[0], lines[2], lines[3]]))
    assert (tmp_path / "log.txt").read_text() == "L line 1\n"
    mirror.take(frames(lines))
    assert (tmp_path / "log.txt").read_text().splitlines() == [f"L line {n}" for n in range(1, 5)]


def test_a_reader_killed_between_a_line_and_its_record_leaves_no_line_twice(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    mirror.take(frames(printed("L", range(1, 3))))
    with open(tmp_path / "log.txt", "a") as log:
        log.write("L line 3\nL li")  # written, and then the reader died before it recorded that
    Mirror(tmp_path).take(frames(printed("L", range(1, 5))))
    assert (tmp_path / "log.txt").read_text().splitlines() == [f"L line {n}" for n in range(1, 5)]
    assert json.loads((tmp_path / STATE_FILE).read_text())["taken"]["ab12 L"] == 4


def test_a_node_that_shares_no_folder_with_the_one_before_is_added_behind_it(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    mirror.take(frames(printed("L", range(1, 3), journal="one")))
    mirror.take(frames(printed("L", range(1, 3), journal="two")))
    assert (tmp_path / "log.txt").read_text().splitlines() == ["L line 1", "L line 2", "L line 1", "L line 2"]


def replay(journal: str, ancestors: str, lines: list[str]) -> str:
    return packed(journal, [frame(journal, "B", 1, 0.0, ancestors), *lines])


def test_lines_of_every_branch_come_home_once_whatever_was_heard_of_the_ones_before(tmp_path: Path) -> None:
    """A bucket lacks a node's last lines: the next node's had their numbers, and were taken for them."""
    one = printed("L", range(1, 11), "one")
    two = [replay("two", '[["one", {"L": 6}]]', printed("L", range(1, 7), "two"))]
    two += [frame("two", "L", n, 0.0, f"second {n}") for n in range(7, 13)]
    kept = [*printed("L", range(1, 7), "three"), *(frame("three", "L", n, 0.0, f"second {n}") for n in (7, 8, 9))]
    three = [replay("three", '[["two", {"L": 9}], ["one", {"L": 6}]]', kept)]
    three += [frame("three", "L", n, 0.0, f"third {n}") for n in (10, 11)]

    def home(name: str, *parts: list[str]) -> list[str]:
        (tmp_path / name).mkdir()
        for part in parts:
            Mirror(tmp_path / name).take(frames(part))
        return (tmp_path / name / "log.txt").read_text().splitlines()

    first = [f"L line {n}" for n in range(1, 11)]
    second, third = [f"second {n}" for n in range(7, 13)], [f"third {n}" for n in (10, 11)]
    assert home("all", one, two, three) == first + second + third
    assert home("again", one, two, one, two, three, two, three) == first + second + third
    assert home("part", one[:4], two, three) == first[:6] + second + third
    assert home("gap", one, three) == first + second[:3] + third
    assert home("last", three, two, one) == first[:6] + second[:3] + third, "what is too late is not told"
    assert home("cut", one[:8], two[1:], two, three[1:], three) == first[:8] + second + third


def test_an_outcome_of_a_branch_that_was_left_does_not_end_the_run(tmp_path: Path) -> None:
    Mirror(tmp_path).take(frames([*printed("N", range(1, 2), "one")]))
    Mirror(tmp_path).take(frames([replay("two", '[["one", {"N": 1}]]', []), *printed("N", range(2, 3), "two")]))
    Mirror(tmp_path).take(frames([frame("one", "O", 1, 5.0, '{"exit_code": 75}')]))
    assert not (tmp_path / "outcome.json").exists()
    Mirror(tmp_path).take(frames([frame("two", "O", 2, 5.0, '{"exit_code": 0}')]))
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"exit_code": 0}


@pytest.mark.parametrize("words", ["", "[[", '["one"]', '[["one", 3]]', '{"one": 1}', "[" * 100_000])
def test_a_journal_that_somebody_else_wrote_has_no_ancestors(words: str) -> None:
    assert parsed(f"ab12\n{words}") == ("ab12", [])
    assert parsed(f"../x y\n{words}")[0] == ""


def test_the_outcome_of_an_earlier_start_does_not_speak_for_a_new_one(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    mirror.take(frames([*printed("N", range(1, 2)), frame("ab12", "O", 1, 5.0, '{"exit_code": 75}')]))
    assert json.loads((tmp_path / "outcome.json").read_text()) == {"exit_code": 75}
    mirror.take(frames([*printed("N", range(1, 3)), frame("ab12", "O", 1, 5.0, '{"exit_code": 75}')]))
    assert not (tmp_path / "outcome.json").exists()


@pytest.mark.parametrize(
    "text",
    ["", "tqdm \r 10%\r 20%", 'quotes " and \\', "\x1b[31mred\x1b[0m", "über \u2028 日本", '~dolphin x L 1 0 "y"'],
)
def test_whatever_a_line_holds_comes_home_as_it_was(text: str, tmp_path: Path) -> None:
    line = frame("ab12", "L", 1, 3.0, text)
    assert "\n" not in line
    assert "\r" not in line
    Mirror(tmp_path).take(frames([f"\x1b[36m(quickstart, pid=12)\x1b[0m {line}\r\n"]))
    assert (tmp_path / "log.txt").read_bytes() == text.encode() + b"\n"


@pytest.mark.parametrize(
    "line", ["", "~dolphin", "step 3 of 5", "~dolphin ab L 1 1.0 {torn", "~dolphin ab Z !!!!", "~dolphin ab Z AAAA"]
)
def test_a_torn_or_foreign_line_is_nobody_s(line: str) -> None:
    assert frames_in(line) == []


def test_what_a_cancelled_job_could_not_print_is_taken_from_the_store(tmp_path: Path) -> None:
    there, home = tmp_path / "there", tmp_path / "home"
    there.mkdir()
    home.mkdir()
    Mirror(home).take(frames(printed("N", range(1, 2)) + printed("L", range(1, 3))))
    (there / "journal").write_text("ab12")
    (there / "nodes.jsonl").write_text("N line 1\n")
    (there / "log.txt").write_text("L line 1\nL line 2\nL line 3 \x0b here\n")
    (there / "outcome.json").write_text('{"exit_code": 0}')
    assert Mirror(home).take_files(lambda n: (there / n).read_bytes() if (there / n).exists() else None) == 2
    assert (home / "log.txt").read_bytes() == b"L line 1\nL line 2\nL line 3 \x0b here\n"
    assert json.loads((home / "outcome.json").read_text()) == {"exit_code": 0}


def test_a_stream_in_pieces_that_breaks_anywhere_is_put_together(tmp_path: Path) -> None:
    text = "\n".join(printed("L", range(1, 40))) + "\n"
    chance = random.Random(3)

    def tail(follow: bool, stream: io.TextIOBase) -> None:
        end, at = chance.randrange(len(text)) if chance.random() < 0.8 else len(text), 0
        while at < end:
            step = chance.randrange(1, 50)
            stream.write(text[at : min(end, at + step)])
            at += step
        if end < len(text):
            raise ConnectionError("the server went away")

    feed, mirror_file = Feed(tail, Mirror(tmp_path)), tmp_path / "log.txt"
    for _ in range(60):
        try:
            feed.read_once()
        except ConnectionError:
            continue
    assert mirror_file.read_text().splitlines() == [f"L line {n}" for n in range(1, 40)]


def test_a_bar_of_carriage_returns_is_one_line_of_the_log_and_not_a_hundred(tmp_path: Path) -> None:
    """`logs --tail 2` would show two steps of a download's bar, and none of the lines around it."""
    record = RunRecord("demo-1", tmp_path, "demo", "sky", 0.0)
    texts = ["first", "\r".join(f"{percent}%" for percent in range(100)), "ls\u2028ps", "last"]
    Mirror(tmp_path).take(frames([frame("ab12", "L", n, 1000.0 + n, text) for n, text in enumerate(texts, 1)]))
    chunks = list(Reading(lambda _: None, lambda *_: None).lines(record, 0))
    assert [chunk.text for chunk in chunks] == [f"{text}\n" for text in texts]
    assert [chunk.time for chunk in chunks] == [1001.0, 1002.0, 1003.0, 1004.0]
