"""The rows of an evaluation: groups before their tasks, as deep as they are, and no base beside other questions."""

from __future__ import annotations

from trainer.finished.harness import _first_line, rows_of


def said(value: float, limit: int | None = None) -> dict:
    return {
        "asked": {"weights": f"w{value}", "limit": limit},
        "results": {
            "board": {"acc,none": value, "acc_stderr,none": 0.01, "alias": "board"},
            "board_a": {"alias": " - board_a"},
            "board_a_x": {"acc_norm,strict": value, "acc_norm_stderr,strict": "N/A", "alias": "  - board_a_x"},
        },
        "group_subtasks": {"board": ["board_a"], "board_a": ["board_a_x"], "board_a_x": []},
        "versions": {"board_a_x": 1.0}, "n-shot": {"board_a_x": 3}, "higher_is_better": {"board_a_x": {"acc_norm": False}},
    }  # fmt: skip


def test_tasks_of_a_group_stand_below_it() -> None:
    rows = rows_of({"board": {"tuned": said(0.5), "base": said(0.25)}})
    assert [(row["task"], row["depth"], row["alias"], row["is_group"]) for row in rows] == [
        ("board", 0, "board", True),
        ("board_a_x", 2, "board_a_x", False),
    ]
    assert [(row["value"], row["stderr"], row["base_value"]) for row in rows] == [(0.5, 0.01, 0.25), (0.5, None, 0.25)]
    assert (rows[1]["filter"], rows[1]["shots"], rows[1]["version"], rows[1]["higher_is_better"]) == (
        "strict",
        3,
        1.0,
        False,
    )
    assert rows[0]["version"] == "N/A"


def test_a_base_that_was_asked_fewer_questions_is_not_compared() -> None:
    rows = rows_of({"board": {"tuned": said(0.5), "base": said(0.25, limit=10)}})
    assert [row["base_value"] for row in rows] == [None, None]
    assert rows_of({"board": {"base": said(0.25)}}) == []


def test_an_error_that_stands_in_the_card_names_no_home_folder() -> None:
    error = FileNotFoundError("no file '/home/me/ends.jsonl' at https://host/a/b")
    assert _first_line(error) == "no file 'ends.jsonl' at https://host/a/b"
    assert _first_line(ValueError()) == "ValueError"
