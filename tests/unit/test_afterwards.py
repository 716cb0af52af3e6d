"""What a job asks of its exported model: one thing that fails is told, and costs neither the others nor the model."""

from __future__ import annotations

from pathlib import Path

from launcher.follow.run_view import RunView
from trainer.finished import steps
from trainer.run.run_folder import RunDir


def test_one_step_that_fails_loses_no_other(tmp_path: Path, capsys) -> None:
    run = RunDir(tmp_path)

    def fails() -> str:
        raise OSError("the network\nis gone")

    steps.run_all(iter([("push", fails), ("gguf", lambda: "a.gguf")]), run, 2)
    told = [(event["what"], event["ok"], event["detail"]) for event in run.read_events()]
    assert told == [("push", False, "the network is gone"), ("gguf", True, "a.gguf")]
    assert "warning: push failed: the network is gone" in capsys.readouterr().out
    view = RunView()
    lines = [view.add_event(event) for event in run.read_events()]
    assert lines == ["attempt 2: push failed: the network is gone", "attempt 2: gguf: a.gguf"]
