"""What travels to a node without the rest of dolphin repeats facts of the rest: one that differs is a run that nobody can read."""

from __future__ import annotations

import re
from pathlib import Path

from launcher.backends.sky.node import relay
from trainer.run.exits import ExitCode

TASK = Path(__file__).parents[2] / "sky" / "task.yaml"


def test_a_node_that_is_told_to_stop_is_recovered_and_one_that_cannot_train_is_not() -> None:
    assert relay.PREEMPTED == ExitCode.PREEMPTED
    codes = {int(code) for code in re.findall(r"\bexit (\d+)", TASK.read_text())}
    assert codes == {ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.FAILED}
