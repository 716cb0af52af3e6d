"""The quickstart's data: what it holds out is unseen, and its answers are true."""

from __future__ import annotations

import importlib.util
from pathlib import Path

BUILD = Path(__file__).parents[2] / "examples" / "quickstart" / "build.py"


def test_a_held_out_name_is_in_no_other_conversation() -> None:
    spec = importlib.util.spec_from_file_location("quickstart_build", BUILD)
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    entries = build.read_names(["json", "os.path", "shlex"])
    conversations = build.make_conversations(entries)
    asked = [
        {
            word.rstrip("?")
            for turn in one["conversations"]
            if turn["from"] == "human"
            for word in turn["value"].split()
            if "." in word
        }
        for one in conversations
    ]
    assert len(entries) > 30
    assert len(asked) == len(entries)
    assert all(len(names) == 1 for names in asked)
    assert set.union(*asked) == {entry.name for entry in entries}
    join = next(entry for entry in entries if entry.name == "os.path.join")
    assert join.answers == {
        "module": "It is in os.path.", "kind": "It is a function.", "parts": "Three.", "writing": "In small letters.",
    }  # fmt: skip
