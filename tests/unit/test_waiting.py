"""A command that takes a minute says meanwhile what it waits for; one that is quick says nothing."""

from __future__ import annotations

import threading

import pytest

from launcher.backends.sky.phases import PhaseStream, phase_of
from launcher.follow import patience
from launcher.follow.patience import AGAIN_S, FIRST_S, Teller, patiently
from launcher.runs.waiting import Wait, awaited, waiting_for


def test_a_short_wait_is_not_worth_a_line_and_a_long_one_is_said_once_and_now_and_then() -> None:
    wait, teller = Wait("SkyPilot: asking for the managed jobs", since=100.0), Teller()
    assert teller.line(None, 100.0) is None
    assert teller.line(wait, 100.0 + FIRST_S - 0.1) is None
    assert teller.line(wait, 108.0) == "  waiting for SkyPilot: asking for the managed jobs (8.0 s)"
    assert teller.line(wait, 109.0) is None
    assert teller.line(wait, 108.0 + AGAIN_S) == "  waiting for SkyPilot: asking for the managed jobs (38 s)"


def test_each_phase_of_a_wait_is_said() -> None:
    wait, teller = Wait("SkyPilot: submitting", since=0.0), Teller()
    assert teller.line(wait, 10.0) is not None
    wait.phase = "Launching - Waiting for SSH access"
    assert teller.line(wait, 11.0) == "  waiting for SkyPilot: submitting: Launching - Waiting for SSH access (11 s)"


def test_what_is_awaited_is_what_began_last_and_an_error_ends_it() -> None:
    assert awaited() is None
    with waiting_for("one") as outer:
        with waiting_for("two") as inner:
            assert awaited() is inner
        assert awaited() is outer
    with pytest.raises(ValueError), waiting_for("one"):
        raise ValueError
    assert awaited() is None


def test_a_command_says_what_it_waits_for_before_it_is_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(patience, "FIRST_S", 0.0)
    monkeypatch.setattr(patience, "_LOOK_S", 0.001)
    said, was_said = list[str](), threading.Event()
    monkeypatch.setattr(patience.screen, "say", lambda line: (said.append(line), was_said.set()))

    @patiently
    def command(number: int) -> int:
        with waiting_for("a cloud"):
            assert was_said.wait(30), "nobody said anything"
        return number

    num_threads = threading.active_count()
    assert command(3) == 3
    assert said[0].startswith("  waiting for a cloud (")
    assert threading.active_count() == num_threads


SERVER_LINES = """\
Verifying bucket and uploading from source for storage skypilot-filemounts
<sky-payload>"<rich_init>[bold cyan]Optimizing[/]</rich_init>"</sky-payload>
<sky-payload>"<rich_start>[bold cyan]Optimizing[/]</rich_start>"</sky-payload>
<sky-payload>"<rich_update>[bold cyan]Launching[/]  \\u001b[2mView logs: \\u001b[1msky logs --provision c\\u001b[0m\\u001b[0m</rich_update>"</sky-payload>
<sky-payload>"<rich_update>[bold cyan]Launching[/]</rich_update>"</sky-payload>
<sky-payload>"<rich_update>[bold cyan]Launching - Waiting for SSH access[/]  \\u001b[2mView logs: x</rich_update>"</sky-payload>
<sky-payload>"<rich_update>[bold cyan]Preparing SkyPilot runtime (2/3 - dependencies)[/]</rich_update>"</sky-payload>
<sky-payload>"<rich_exit></rich_exit>"</sky-payload>
<sky-payload>not json</sky-payload>
"""
"""As the API server of SkyPilot 0.14.1 writes them of a launch."""


@pytest.mark.parametrize("piece", [1, 7, 10_000])
def test_the_phases_of_a_request_are_read_from_what_its_server_writes_for_a_terminal(piece: int) -> None:
    phases = list[str]()
    stream = PhaseStream(phases.append)
    for start in range(0, len(SERVER_LINES), piece):
        stream.write(SERVER_LINES[start : start + piece])
    assert phases == [
        "Optimizing", "Launching", "Launching - Waiting for SSH access", "Preparing SkyPilot runtime (2/3 - dependencies)",
    ]  # fmt: skip


def test_a_phase_with_long_paths_stays_a_line() -> None:
    line = f'<sky-payload>"<rich_update>[bold cyan]Syncing /{"a" * 300}[/]</rich_update>"</sky-payload>'
    assert phase_of(line) == f"Syncing /{'a' * 68}..."


def test_a_log_line_is_no_phase() -> None:
    assert phase_of("Launching managed jobs controller on AWS us-east-1") is None
