"""Folders that others of the machine may read, and passwords that stand in a job."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.backends.sky.task import template_text
from launcher.jobfile.name_checks import name_findings
from launcher.jobfile.spec import JobSpec
from launcher.runs import ledger
from tests.support.data_job import chat, data_job, write_rows
from trainer.data.prepare import prepare
from trainer.run.exits import BadInput
from trainer.run.stores.opening import open_store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_others_may_not_read_they_cannot(tmp_path: Path, monkeypatch) -> None:
    before = os.umask(0o022)
    try:
        monkeypatch.setenv("DOLPHIN_HOME", str(tmp_path / "new" / "home"))
        record = ledger.create("demo-1", "demo", "local")
        job = data_job(tmp_path, write_rows(tmp_path / "data.jsonl", [chat("a", "b")] * 3))
        prepare(job.model_copy(update={"cache_dir": str(tmp_path / "cache")}))
    finally:
        os.umask(before)
    for folder in (
        tmp_path / "new" / "home",
        ledger.runs_dir(),
        record.folder,
        tmp_path / "cache",
        tmp_path / "cache" / "data",
    ):
        assert mode(folder) == 0o700, folder
    assert mode(tmp_path) == 0o700 or mode(tmp_path) != 0, "what was there stays as it was"


@pytest.mark.parametrize(
    "group, value, where",
    [
        ("checkpoint", {"store": "s3://me:word@bucket/x"}, ("checkpoint", "store")),
        ("data", {"sources": [{"path": "https://me:word@host/x.jsonl"}]}, ("data", "sources", 0, "path")),
        ("track", {"mlflow": {"tracking_uri": "https://me:word@mlflow.example"}}, ("track", "mlflow", "tracking_uri")),
        ("model", {"base": "https://token@host/model"}, ("model", "base")),
    ],
)
def test_a_password_in_a_url_is_refused_wherever_it_stands(
    tmp_path: Path, group: str, value: dict, where: tuple
) -> None:
    given = {"name": "t", "model": {"base": "owner/base"}, "data": {"sources": [{"path": "hf://owner/data@main"}]}}
    assert name_findings(JobSpec.model_validate(given), tmp_path) == []
    (finding,) = name_findings(JobSpec.model_validate(given | {group: value}), tmp_path)
    assert finding.where == where
    assert "holds a user or a password" in finding.message
    assert "word" not in finding.message.replace("password", "")


def test_the_node_refuses_it_too() -> None:
    with pytest.raises(BadInput, match="holds a user or a password"):
        open_store("s3://me:word@bucket/x")


def on_node(home: Path, top: Path, run_dir: Path) -> subprocess.CompletedProcess[str]:
    """What SkyPilot runs on a node, with `top` for /tmp/dolphin and a relay that only says that it was started."""
    inputs = home / "dolphin-inputs"
    inputs.mkdir(parents=True, exist_ok=True)
    (home / ".dolphin-node").write_text("export DOLPHIN_CONTAINER=none\n")
    (inputs / "relay.py").write_text("print('started')\n")
    (inputs / "relay.json").write_text(json.dumps({"run_dir": str(run_dir)}, indent=2))
    script = yaml.safe_load(template_text())["run"].replace("/tmp/dolphin", str(top))
    environment = {**os.environ, "HOME": str(home), "SKYPILOT_NODE_IPS": "127.0.0.1"}
    return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=False)


def test_a_nodes_folder_below_tmp_is_the_users_own_or_nobodys(tmp_path: Path) -> None:
    top = tmp_path / "tmp" / "dolphin"
    top.parent.mkdir()
    assert "started" in on_node(tmp_path / "home", top, top / "run").stdout
    assert mode(top) == 0o700
    top.chmod(0o777)
    assert "started" in on_node(tmp_path / "home", top, top / "run").stdout
    assert mode(top) == 0o700
    top.rmdir()
    top.symlink_to(tmp_path)  # somebody was first
    refused = on_node(tmp_path / "home", top, top / "run")
    assert refused.returncode == 1
    assert "belongs to somebody else" in refused.stderr
    assert "started" in on_node(tmp_path / "home", top, tmp_path / "shared" / "run").stdout, (
        "this run does not lie there"
    )
    top.unlink()
    if os.getuid() == 0:
        top.mkdir()
        os.chown(top, 12345, 12345)
        assert "belongs to somebody else" in on_node(tmp_path / "home", top, top / "run").stderr
