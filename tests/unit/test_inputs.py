"""What travels to a node: exactly what the job names, whole, and never a key that lay beside it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launcher.backends.inputs import check_upload, local_inputs, looks_secret
from launcher.backends.sky import ship as sky_ship
from launcher.backends.sky.ship import NOTHING_IGNORED, pack, unstage
from launcher.backends.sky.task import STAGED, ship
from launcher.jobfile.settle import Placement, settle
from launcher.jobfile.spec import JobSpec
from launcher.runs.errors import BadUsage
from trainer.run.local_files import data_files
from trainer.run.spec import NodeJob


def job_of(*sources: Path | str, model: Path | str = "owner/base", **resources: Any) -> JobSpec:
    return JobSpec.model_validate({
        "name": "t",
        "model": {"base": str(model)},
        "data": {"sources": [{"path": str(source)} for source in sources or ("hf://owner/data",)]},
        "resources": {"accelerators": "L40S:1", **resources},
    })  # fmt: skip


def write(root: Path, *names: str, size_bytes: int = 2) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x" * size_bytes)
    return root


def sent(job: JobSpec) -> list[str]:
    return [file.path for one in local_inputs(job) for file in one.files]


def staged(job: JobSpec, run: Path) -> dict[str, Path]:
    """Path on the node to the file that becomes it, as SkyPilot would find it."""
    train = train_of(job)
    run.mkdir(exist_ok=True)
    shipment = ship(train)
    pack(run, job, train, shipment, [])
    found = {}
    for there, here in shipment.file_mounts(run / STAGED).items():
        for path in Path(here).rglob("*"):
            if path.is_file() and path.name != NOTHING_IGNORED:
                found[f"{there}/{path.relative_to(here)}"] = path
    return found


def train_of(job: JobSpec) -> NodeJob:
    return settle(job, Placement("/tmp/d/t-1", "/tmp/d/cache", 1, "cuda"), run_id="t-1", zero=0)


def test_a_glob_sends_what_it_matches_and_not_the_folder_around_it(tmp_path: Path) -> None:
    project = write(
        tmp_path / "p",
        "a.jsonl",
        "sub/b.jsonl",
        "README.md",
        ".env",
        ".ssh/id_ed25519",
        "venv/lib.so",
        "model/config.json",
    )
    assert sent(job_of(f"{project}/*.jsonl")) == [f"{project}/a.jsonl"]
    assert sent(job_of(f"{project}/**/*.jsonl")) == [f"{project}/a.jsonl", f"{project}/sub/b.jsonl"]
    assert list(staged(job_of(f"{project}/*.jsonl"), tmp_path / "run")) == ["~/dolphin-data/0/p/a.jsonl"]


def test_the_project_s_folder_as_data_sends_its_data_alone(tmp_path: Path) -> None:
    project = write(
        tmp_path, "a.jsonl", "deep/b.json.gz", ".env", ".ssh/id_ed25519", "venv/lib.so", ".cache/c.jsonl", "key.pem"
    )
    assert sent(job_of(project)) == [f"{project}/a.jsonl", f"{project}/deep/b.json.gz"]


def test_what_the_launcher_sends_is_what_the_trainer_reads(tmp_path: Path) -> None:
    project = write(tmp_path / "p", "z.jsonl", "a/b.parquet", "a/.hidden.jsonl", "README", "c.txt.zst")
    for source in (project, f"{project}/*/*", f"{project}/z.jsonl", f"{project}/**/*.parquet"):
        job = job_of(source)
        there = staged(job, tmp_path / "run")
        path = NodeJob.model_validate_json(ship(train_of(job)).train_json).spec.data.sources[0].path
        on_node = path.replace("@DATA@/0", str(tmp_path / "run" / STAGED / "0"))
        here, root = data_files(str(source))
        found, root_there = data_files(on_node)
        assert [f.relative_to(root_there) for f in found] == [f.relative_to(root) for f in here]
        assert sorted(there.values()) == sorted(found)


def test_files_that_git_ignores_are_sent(tmp_path: Path) -> None:
    """A folder of runs inside a repository that ignores everything, and data that its own folder ignores."""
    project = write(tmp_path / "p", "data/a.jsonl", "model/config.json", "model/model.safetensors")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*\n")
    (project / "data" / ".gitignore").write_text("/a.jsonl\n")
    (project / "model" / ".gitignore").write_text("*.safetensors\n")
    job = job_of(project / "data", model=project / "model")
    there = staged(job, tmp_path / "run")
    assert sorted(there) == [
        "~/dolphin-data/0/model/config.json", "~/dolphin-data/0/model/model.safetensors", "~/dolphin-data/1/data/a.jsonl"
    ]  # fmt: skip
    for folder in (
        tmp_path / "run" / STAGED / "0",
        tmp_path / "run" / STAGED / "1",
        tmp_path / "run" / sky_ship.FOLDER,
    ):
        assert (folder / ".skyignore").exists(), "SkyPilot would ask git what to leave out"
    assert list((tmp_path / "run").rglob(".gitignore")) == []


def test_a_hub_s_snapshot_of_links_arrives_whole(tmp_path: Path) -> None:
    repository = write(tmp_path / "models--o--n", "blobs/abc", "blobs/def", "blobs/other")
    snapshot = repository / "snapshots" / "c0ffee"
    (snapshot / "onnx").mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "onnx" / "m.bin").symlink_to("../../../blobs/def")
    there = staged(job_of(model=snapshot), tmp_path / "run")
    assert sorted(there) == ["~/dolphin-data/0/c0ffee/config.json", "~/dolphin-data/0/c0ffee/onnx/m.bin"]
    assert not any(path.is_symlink() for path in there.values())


def test_a_link_in_downloaded_data_sends_no_file_of_the_home_folder(tmp_path: Path) -> None:
    home = write(tmp_path / "home", ".bashrc", "blobs/abc")
    data = write(tmp_path / "data", "a.jsonl")
    (data / "x.jsonl").symlink_to(home / ".bashrc")
    for source in (data, f"{data}/*.jsonl"):
        with pytest.raises(BadUsage, match=r"x\.jsonl is a link to .*\.bashrc, outside of"):
            local_inputs(job_of(source))
    (data / "x.jsonl").unlink()
    (data / "config.json").symlink_to(home / "blobs" / "abc")  # a folder called blobs is not yet a hub's cache
    with pytest.raises(BadUsage, match="outside of"):
        local_inputs(job_of(model=data))


def test_links_within_what_is_named_and_names_that_are_links_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "disk/real.jsonl", "data/a.jsonl")
    (tmp_path / "data" / "b.jsonl").symlink_to("a.jsonl")
    (tmp_path / "mine.jsonl").symlink_to(tmp_path / "disk" / "real.jsonl")
    (tmp_path / "linked").symlink_to(tmp_path / "data")
    there = staged(job_of(tmp_path / "mine.jsonl", tmp_path / "linked"), tmp_path / "run")
    assert sorted(there) == [
        "~/dolphin-data/0/mine.jsonl", "~/dolphin-data/1/linked/a.jsonl", "~/dolphin-data/1/linked/b.jsonl"
    ]  # fmt: skip
    assert not any(path.is_symlink() for path in there.values())


def test_a_model_folder_s_secrets_stay_here_and_it_is_said(tmp_path: Path) -> None:
    model = write(
        tmp_path / "m", "config.json", ".env", "credentials.json", "server.pem", ".git/config", "tokenizer.json"
    )
    inputs = local_inputs(job_of(model=model))
    assert [Path(file.path).name for file in inputs[0].files] == ["config.json", "tokenizer.json"]
    said = check_upload(inputs, job_of())
    assert said[0] == "sends 2 files of this machine, 4 B"
    assert "m/.env, m/credentials.json, m/server.pem" in said[1]


def test_data_that_looks_like_a_secret_is_refused_unless_it_is_named_by_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "d", "a.jsonl", "credentials.json", "id_rsa")
    for source in (folder, f"{folder}/*.json*"):
        with pytest.raises(BadUsage, match=r"takes in .*credentials\.json, which looks like a secret"):
            local_inputs(job_of(source))
    with pytest.raises(BadUsage, match="looks like a secret"):
        local_inputs(job_of(f"{folder}/*"))
    assert sent(job_of(folder / "credentials.json")) == [str(folder / "credentials.json")]


@pytest.mark.parametrize(
    "name",
    [".env", ".env.local", "prod.env", ".netrc", "_netrc", "id_rsa", "id_ed25519", "id_ecdsa_sk.bak", "id_work", "a.pem",
     "credentials", "credentials.csv", "application_default_credentials.json", ".git-credentials", ".aws/config",
     ".ssh/known_hosts", "ID_RSA", "token", "secrets.yaml", "hf_token.txt", "github-token", "kubeconfig", "service-account-1.json", "me_accessKeys.csv"],
)  # fmt: skip
def test_secrets_are_known_by_name(name: str) -> None:
    assert looks_secret(name)


@pytest.mark.parametrize(
    "name",
    ["a.jsonl", "tokenizer.json", "special_tokens_map.json", "environment.json", "id_train.jsonl", "secretary.parquet",
     "model.safetensors", "added_tokens.json", "state-secrets-chats.jsonl", "monkey.json", "pem/a.jsonl", "valid_id_1.csv"],
)  # fmt: skip
def test_data_is_not_taken_for_secrets(name: str) -> None:
    assert not looks_secret(name)


def test_a_launch_that_would_send_too_much_is_refused_and_says_where_it_belongs(tmp_path: Path) -> None:
    write(tmp_path, "big.jsonl", size_bytes=900)
    write(tmp_path, "small.jsonl", size_bytes=200)
    job = job_of(f"{tmp_path}/*.jsonl", max_upload_gb=1e-6)
    said = r"max_upload_gb: 2 files.*1\.1 kB.*big\.jsonl \(900 B\).*s3://.*hub.*raise the limit"
    with pytest.raises(BadUsage, match=said):
        check_upload(local_inputs(job), job)
    job = job_of(f"{tmp_path}/*.jsonl", max_upload_gb=2e-6)
    assert check_upload(local_inputs(job), job) == [
        f"sends 2 files of this machine, 1.1 kB: {tmp_path.name}/big.jsonl (900 B)"
    ]
    assert check_upload([], job) == []


def test_files_are_copied_where_no_hard_link_can_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    data = write(tmp_path / "d", "a.jsonl")
    monkeypatch.setattr(os, "link", refused)
    (copy,) = staged(job_of(data), tmp_path / "run").values()
    assert copy.read_text() == "xx"
    assert copy.stat().st_nlink == 1
    unstage(tmp_path / "run")
    assert not (tmp_path / "run" / STAGED).exists()
    assert (data / "a.jsonl").read_text() == "xx"


def test_what_cannot_be_read_is_told_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write(tmp_path / "m", "config.json", "deep/model.safetensors")
    real = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(BadUsage, match=r"deep cannot be read \(Permission denied\)"):
        local_inputs(job_of(model=model))
    monkeypatch.undo()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(BadUsage, match=r"cannot be read \(no permission\)"):
        local_inputs(job_of(model=model))


def test_a_linked_folder_in_a_model_is_not_followed_out_of_it(tmp_path: Path) -> None:
    model = write(tmp_path / "m", "config.json", "step-3/model.safetensors")
    (model / "latest").symlink_to("step-3")
    assert sent(job_of(model=model)) == [f"{model}/config.json", f"{model}/step-3/model.safetensors"]
    (model / "home").symlink_to(write(tmp_path / "home", ".bashrc"))
    with pytest.raises(BadUsage, match=r"m/home is a link to a folder outside of"):
        local_inputs(job_of(model=model))


def test_what_an_evaluation_reads_travels_too_and_is_told_where_it_is(tmp_path: Path) -> None:
    write(tmp_path, "rows.jsonl", "test.jsonl", "ask.txt", "scores.py", "id_rsa")
    values = job_of(tmp_path / "rows.jsonl").model_dump(exclude_defaults=True)
    values["data"]["validation"] = [
        {"name": "drawn", "count": 1},
        {"name": "mine", "path": str(tmp_path / "test.jsonl")},
    ]
    values["evaluate"] = {"prompts": str(tmp_path / "ask.txt"), "metrics": ["contains", f"{tmp_path}/scores.py:polite"]}
    job = JobSpec.model_validate(values)
    assert sent(job) == [str(tmp_path / name) for name in ("rows.jsonl", "test.jsonl", "ask.txt", "scores.py")]
    spec = NodeJob.model_validate_json(ship(train_of(job)).train_json).spec
    assert spec.data.validation is not None
    assert spec.data.validation[1].path == "@DATA@/1/test.jsonl"
    assert (spec.evaluate.prompts, spec.evaluate.metrics) == (
        "@DATA@/2/ask.txt",
        ("contains", "@DATA@/3/scores.py:polite"),
    )
