"""`deadline`, `budget`, `notify`: the disasters are a run that ends in another zone's night, and a hook's URL in a log."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from launcher.commands.launch import collect_secrets
from launcher.config.problems import SpecErrors
from launcher.jobfile.limits import as_moment, moment_of
from launcher.jobfile.load import load_job
from launcher.jobfile.settle import with_moment
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from tests.support.dolphin_cli import write_job

NOW = datetime(2026, 11, 25, 12, 0, tzinfo=UTC)
SLACK = "https://hooks.slack.com/services/T000/B000/abcdEFGH1234"
DISCORD = "https://discord.com/api/webhooks/1234/secretive"


def load(tmp_path: Path, **settings: object) -> JobSpec:
    path = write_job(tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | settings))
    return load_job(path)


def refused(tmp_path: Path, **settings: object) -> str:
    with pytest.raises(SpecErrors) as caught:
        load(tmp_path, **settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "hours"),
    [("72h", 72.0), ("90m", 1.5), ("3d", 72.0), ("2026-11-26T13:00+01:00", 24.0), ("2026-11-25T13:00Z", 1.0)],
)
def test_a_deadline_is_a_moment_everywhere(tmp_path: Path, text: str, hours: float) -> None:
    deadline = load(tmp_path, deadline=text).deadline
    assert deadline is not None
    at = moment_of(deadline, NOW)
    assert at == NOW + timedelta(hours=hours)
    assert moment_of(as_moment(at), NOW + timedelta(days=9)) == at, "written down, it moves no more"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("2026-12-01T18:00", "has no zone"),
        ("2026-12-01", "has no zone"),
        ("Friday", "is no time; write a duration"),
        ("0h", "leaves no time"),
        (72, "put it in quotes"),
        ("99999d", "years away"),
    ],
)
def test_a_deadline_that_two_people_would_read_differently_is_none(tmp_path: Path, text: object, why: str) -> None:
    said = refused(tmp_path, deadline=text)
    assert "deadline" in said
    assert why in said


def test_a_moment_needs_no_quotes(tmp_path: Path) -> None:
    path = write_job(tmp_path)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text())) + "deadline: 2026-12-01T18:00:00+01:00\n")
    deadline = load_job(path).deadline
    assert deadline is not None
    assert moment_of(deadline, NOW) == datetime(2026, 12, 1, 17, tzinfo=UTC)


def test_a_resumed_run_keeps_the_deadline_of_its_launch(tmp_path: Path) -> None:
    launched = with_moment(load(tmp_path, deadline="72h"), NOW)
    assert launched.deadline == "2026-11-28T12:00:00Z"
    assert with_moment(launched, NOW + timedelta(hours=50)).deadline == launched.deadline
    with pytest.raises(BadUsage, match="has passed; give another, for example --set deadline=72h"):
        with_moment(launched, NOW + timedelta(hours=72))


@pytest.mark.parametrize("budget", [0, -5])
def test_a_budget_pays_for_something(tmp_path: Path, budget: float) -> None:
    assert "budget must be greater than 0" in refused(tmp_path, budget=budget).replace(":", "")


@pytest.mark.parametrize(
    "url",
    [
        SLACK, DISCORD, "https://me:word@hooks.example.org/x", "https://hooks.example.org/x?token=abcdef",
        "https://chat.example.org/hooks/a1b2c3d4e5f6a7b8c9d0e1f2",
    ],
)  # fmt: skip
def test_a_hook_that_is_a_secret_stands_in_no_job(tmp_path: Path, url: str) -> None:
    said = refused(tmp_path, notify=[url])
    assert "notify[0]" in said
    assert "export" in said
    assert not any(part in said for part in ("abcd", "secretive", "word@", "a1b2")), "the message is a log line too"


@pytest.mark.parametrize("text", ["$SLACK_WEBHOOK", "https://x.org/${KEY}", "${slack}", "ftp://x.org/y", "hooks", ""])
def test_a_hook_that_cannot_be_posted_to_is_refused(tmp_path: Path, text: str) -> None:
    assert "notify[0]" in refused(tmp_path, notify=[text])


def test_a_hooks_name_is_among_the_runs_secrets(tmp_path: Path) -> None:
    job = load(tmp_path, notify=["${SLACK_WEBHOOK}", "https://ntfy.example.org/my-runs"], secrets=["HF_TOKEN"])
    assert job.secret_names == ("HF_TOKEN", "SLACK_WEBHOOK")
    said = refused(tmp_path, notify=["${HOOK}"], env={"HOOK": SLACK})
    assert "stands in `env` too" in said
    assert "abcd" not in said


def test_a_hooks_value_is_looked_at_before_anything_is_paid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = load(tmp_path, notify=["${HOOK}"])
    monkeypatch.setenv("HOOK", "T000/B000/abcd")
    with pytest.raises(BadUsage, match=r"notify: \$\{HOOK\} holds no URL") as caught:
        collect_secrets(job)
    assert "abcd" not in str(caught.value)
    monkeypatch.setenv("HOOK", SLACK)
    assert collect_secrets(job) == {"HOOK": SLACK}


def test_a_price_of_ones_own_is_of_a_machine_here(tmp_path: Path) -> None:
    assert load(tmp_path, resources={"price_per_hour": 1.2}).resources.price_per_hour == 1.2
    assert "price_per_hour" in refused(tmp_path, on="sky", resources={"price_per_hour": 1.2})
