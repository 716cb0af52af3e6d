"""`dolphin report` as a person uses it: the command, the file in a real browser, and the live page on loopback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.browser import browser_page
from tests.support.written_run import START, evaluation, long, preempted, write

DONE = {"state": "done", "exit_code": 0, "reason": "", "sample": {"question": "Where?", "answer": "there", "expected": "here"}}  # fmt: skip
KEPT = Path(os.environ.get("DOLPHIN_SCREENSHOTS", "build/screenshots"))
"""Pictures for a person to look at."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path))
    return tmp_path


def dolphin(*arguments: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launcher", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stderr
    return done


def test_a_page_in_a_browser_is_right_on_a_desk_and_on_a_phone(home, tmp_path):
    events, metrics = preempted((60, 110, 160))
    run = write("demo", events, metrics, DONE)
    page_file = Path(dolphin("report", run.run_id[:8], "-o", str(tmp_path / "r.html")).stdout.strip())
    for name, width, scheme in (("desk", 1280, "light"), ("phone", 390, "dark")):
        with browser_page(width, scheme=scheme) as (page, complaints):
            page.goto(page_file.as_uri())
            assert "succeeded" in page.inner_text("h1")
            assert page.get_by_text("What interruptions cost").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
            names = [figure.get_attribute("aria-label") for figure in page.get_by_role("img").all()]
            assert len(names) > 4
            assert all(names)
            ink = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
            assert ink == {"light": "rgb(90, 100, 114)", "dark": "rgb(154, 165, 180)"}[scheme]
            KEPT.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=KEPT / f"report-{name}.png", full_page=True)
            assert complaints == []


def test_a_hundred_thousand_steps_are_a_page_of_under_three_megabytes(home, tmp_path):
    run = write("long", *long(100_000), DONE)
    dolphin("report", run.run_id, "-o", str(tmp_path / "r.html"))
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


def test_the_live_page_follows_the_run_and_answers_nobody_else(home):
    events, metrics = preempted(())
    run = write("demo", events, [line for line in metrics if "loss" in line][:50])
    command = [sys.executable, "-m", "launcher", "report", "--live"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            address = re.search(r"http://127\.0\.0\.1:(\d+)/\S+", server.stderr.readline())
            with browser_page(390) as (page, complaints):
                page.goto(address[0])
                page.get_by_role("link", name=run.run_id).click()
                page.get_by_text("50 of 200").wait_for()
                with run.files.metrics.open("a") as file:
                    file.write(json.dumps(evaluation(50, START, eval_loss=1.2345)) + "\n")
                page.get_by_text("1.2345").first.wait_for(timeout=60_000)
                assert complaints == []
                for path in ("/", "/wrong-token/"):
                    answer = page.request.get(f"http://127.0.0.1:{address[1]}{path}")
                    assert answer.status == 404
                foreign = page.request.get(address[0], headers={"Host": "attacker.example"})
                assert foreign.status == 400
        finally:
            server.terminate()
            server.wait(30)


def test_what_cannot_be_reported_is_said_in_a_line(home, tmp_path):
    assert "there is no run" in dolphin("report", expect=2).stderr
    run = write("demo", [], [], DONE)
    assert "no-such" in dolphin("report", "no-such", expect=2).stderr
    assert (
        "cannot be written"
        in dolphin("report", run.run_id, "-o", str(tmp_path / "missing" / "r.html"), expect=1).stderr
    )
    assert "--live serves every run" in dolphin("report", run.run_id, "--live", expect=2).stderr
