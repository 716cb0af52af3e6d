"""A run that nothing stops costs money: `down` ends its processes whatever became of the launcher's own files."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.backends.home import processes
from launcher.commands import runs
from tests.support.dolphin_cli import TIMEOUT_S, Dolphin, write_job

LONG = {"steps": 100_000, "pause_s": 0.05, "workers": 1}


@pytest.fixture
def dolphin(tmp_path: Path):
    dolphin = Dolphin(tmp_path / "home", LONG)
    yield dolphin
    for run_id in dolphin.run_ids():
        processes.stop(run_id, None, 0.0)


def launched(dolphin: Dolphin, folder: Path) -> tuple[str, Path]:
    dolphin.run("launch", write_job(folder / "job"), "-y", "-d")
    (run_id,) = dolphin.run_ids()
    dolphin.wait_for_step(2)
    assert processes.of_run(run_id)
    return run_id, dolphin.home / "runs" / run_id


def torn(folder: Path) -> None:
    (folder / "record.json").write_bytes(b'{"run_id": "demo')


def emptied(folder: Path) -> None:
    (folder / "record.json").write_bytes(b"")


def of_another_kind(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"handle": [1], "created_at": "soon"}))


def with_another_process(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"handle": {"host": record["handle"]["host"]}}))


def gone(folder: Path) -> None:
    (folder / "record.json").unlink()


def a_folder(folder: Path) -> None:
    gone(folder)
    (folder / "record.json").mkdir()


def whole_folder_gone(folder: Path) -> None:
    shutil.rmtree(folder)


def lock_is_a_folder(folder: Path) -> None:
    (folder / ".lock").unlink(missing_ok=True)
    (folder / ".lock").mkdir()


HARMS = [torn, emptied, of_another_kind, with_another_process, gone, a_folder, whole_folder_gone, lock_is_a_folder]


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)
def test_no_harm_to_the_record_keeps_a_run_alive(
    dolphin: Dolphin, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    run_id, folder = launched(dolphin, tmp_path)
    harm(folder)
    done = dolphin.run("down", run_id, expect=None)
    assert processes.of_run(run_id) == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "processes gone" in done.stderr
    assert dolphin.run("down", "no-such-run-260101-000000-abcd", expect=2)


def test_a_full_disk_keeps_no_run_alive(dolphin: Dolphin, tmp_path: Path) -> None:
    """No byte can be written to any file, as where the disk of DOLPHIN_HOME is full."""
    run_id, folder = launched(dolphin, tmp_path)
    before = sorted(path.name for path in folder.iterdir())
    process = dolphin.start("down", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)))
    _, err = process.communicate(timeout=TIMEOUT_S)
    assert processes.of_run(run_id) == [], err
    assert process.returncode == 0, err
    assert "cannot write" in err
    assert "cancelled, stopped by itself" in err
    assert "Traceback" not in err
    left = {path.name for path in folder.iterdir()} - set(before) - {".lock"}
    assert {name for name in left if name.startswith(".")} == set(), "a temporary file was left"


def can_mount() -> bool:
    command = ["unshare", "--mount", "sh", "-c", "mount --bind /tmp /tmp && mount -o remount,bind,ro /tmp"]
    return shutil.which("unshare") is not None and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount (unshare --mount)")
def test_a_read_only_home_keeps_no_run_alive(dolphin: Dolphin, tmp_path: Path) -> None:
    run_id, _ = launched(dolphin, tmp_path)
    home = dolphin.home
    script = f'mount --bind "{home}" "{home}" && mount -o remount,bind,ro "{home}" && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", script, "sh", str(Path(sys.executable).with_name("dolphin")), "down"]
    done = subprocess.run(command, env=dolphin.environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert processes.of_run(run_id) == [], done.stderr
    assert done.returncode == 0, done.stderr
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def test_one_broken_run_never_hides_the_others(dolphin: Dolphin, tmp_path: Path, monkeypatch, capsys) -> None:
    dolphin.fake = {"steps": 2}
    job = write_job(tmp_path / "job")
    dolphin.run("launch", job, "-y")
    (whole,) = dolphin.run_ids()
    dolphin.run("launch", job, "-y")
    (broken,) = set(dolphin.run_ids()) - {whole}
    folder = dolphin.home / "runs" / broken
    names = [
        "record.json",
        "events.jsonl",
        "metrics.jsonl",
        "outcome.json",
        "log.txt",
        "train.json",
        "job.yaml",
        ".lock",
    ]
    contents = [b"", b"\xff\xfe\x00" * 9, b"[1, 2]\n", b"null\n", b'{"event": "plan", "exit_code": {}, "step": [], "loss": "x"}\n',
                b"[" * 200_000 + b"\n", b'{"event": "attempt_started", "attempt": "x"}\n{"event": "checkpoint_saved", "size_bytes": "x"}\n']  # fmt: skip
    monkeypatch.setenv("DOLPHIN_HOME", str(dolphin.home))
    for name in names:
        path = folder / name
        kept = path.read_bytes() if path.exists() else None
        for content in [*contents, None]:
            path.unlink(missing_ok=True)
            path.mkdir() if content is None else path.write_bytes(content)
            code = runs.status_of_all(json_wanted=False)
            out, err = capsys.readouterr()
            said = f"{name} as {'a folder' if content is None else content[:40]!r}: {out}{err}"
            assert whole in out, said
            assert broken in out + err, said
            assert code in (0, 4), said
            path.rmdir() if content is None else path.unlink()
        if kept is not None:
            path.write_bytes(kept)
