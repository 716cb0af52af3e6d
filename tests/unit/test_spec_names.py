"""Names that validate took and a registry, a bucket or a cloud refused an hour later, on a node that was paid for."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.problems import SpecErrors
from launcher.jobfile.load import load_job
from launcher.jobfile.name_checks import CLOUDS, image_problem, infra_problem, url_problem
from tests.support.dolphin_cli import write_job
from tests.support.require import needs_skypilot


@pytest.mark.parametrize(
    "image",
    ["ubuntu", "ubuntu:24.04", "owner/name", "ghcr.io/me/dolphin:1.0-cu128", "localhost:5000/a/b:Tag_1", "a/b__c/d.e-f",
     "reg.example.com:443/x@sha256:" + "0a" * 32, "x:1@sha256:" + "0a" * 32, "localhost/x", "h/x--y"],
)  # fmt: skip
def test_names_that_engines_take(image: str) -> None:
    assert image_problem(image) is None


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ("", "names no image"),
        ("  ", "names no image"),
        ("docker:foo/bar", "did you mean 'foo/bar'?"),
        ("docker:docker:x", "is no image's name"),
        ("docker://foo/bar:1", "did you mean 'foo/bar:1'?"),
        ("http://x/y", "did you mean 'x/y'?"),
        ("Repo/IMG:Tag", "did you mean 'repo/img:Tag'?"),
        ("a b", "is no part"),
        ("a/b:x/y", "is no part"),
        ("a:b:c", "is no tag"),
        ("a:", "is no tag"),
        ("a/b:tag!", "is no tag"),
        ("a//b", "is no part"),
        ("-a", "is no part"),
        ("reg_x.io/a", "is no registry"),
        ("x@sha256:12", "64 hexadecimal"),
        ("x@latest", "64 hexadecimal"),
        ("größe", "is no part"),
    ],
)
def test_names_that_no_engine_takes(image: str, said: str) -> None:
    assert said in (image_problem(image) or "")


@pytest.mark.parametrize(
    "infra", ["aws", "AWS", "aws/us-east-1", "gcp/us-central1/us-central1-a", "slurm/lab", "k8s/my-ctx"]
)
def test_places_that_there_are(infra: str) -> None:
    assert infra_problem(infra) is None


@pytest.mark.parametrize(
    ("infra", "said"),
    [
        ("awss", "did you mean 'aws'?"),
        ("google/us-central1", "did you mean 'gcp/us-central1'?"),
        ("kuberntes", "did you mean 'kubernetes'?"),
        ("us-east-1", "there are aws, azure"),
        ("", "there are aws"),
        ("aws//a", "write cloud, cloud/region"),
        ("aws/", "write cloud, cloud/region"),
        ("aws/a/b/c", "write cloud, cloud/region"),
    ],
)
def test_places_that_there_are_not(infra: str, said: str) -> None:
    assert said in (infra_problem(infra) or "")


@needs_skypilot
def test_the_clouds_are_skypilot_s() -> None:
    from sky.utils import registry

    import sky  # noqa: F401  (fills the registry)

    assert set(registry.CLOUD_REGISTRY) | {"k8s"} == set(CLOUDS)


@pytest.mark.parametrize(
    "text",
    ["s3://bucket", "s3://b/r", "s3://my.bucket/runs", "gs://my_bucket/a/b", "hf://owner/name", "hf://datasets/owner/name@main", "hf://squad",
     "/shared/runs", "runs", "./a:b", "C:/x", "s3://b-1/part-*.jsonl"],
)  # fmt: skip
def test_addresses_that_are_right(text: str) -> None:
    assert url_problem(text, ("s3", "gs", "hf")) is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("s3:/bucket/x", "did you mean 's3://bucket/x'?"),
        ("s3:bucket/x", "did you mean 's3://bucket/x'?"),
        ("S3://bucket/x", "did you mean 's3://bucket/x'?"),
        ("gcs://bucket/x", "did you mean 'gs://bucket/x'?"),
        ("s3a://bucket/x", "did you mean 's3://bucket/x'?"),
        ("s3://My_Bucket/x", "is no name of a bucket"),
        ("s3://MyBucket/x", "did you mean 's3://mybucket/x'?"),
        ("s3:///x", "is no name of a bucket"),
        ("s3://-b/x", "is no name of a bucket"),
        ("s3://bucket/../other", "has no `..`"),
        ("http://x/y.jsonl", "no address begins with http://"),
        ("file:///etc/passwd", "no address begins with file://"),
        ("hf://../..", "write hf://owner/name"),
        ("hf://a/b/c", "write hf://owner/name"),
        ("s3://key:pw@bucket/x", "user or a password"),
    ],
)
def test_addresses_that_are_wrong(text: str, said: str) -> None:
    problem = url_problem(text, ("s3", "gs", "hf")) or ""
    assert said in problem
    assert "pw" not in problem, "a password in an error is a password in a log"


def complaints(folder: Path, *overrides: str, **extra: object) -> list[str]:
    with pytest.raises(SpecErrors) as caught:
        load_job(write_job(folder, **extra), overrides)
    return str(caught.value).splitlines()


def test_each_is_found_by_validate_at_its_place(tmp_path: Path) -> None:
    found = complaints(
        tmp_path,
        resources={"image": "docker:a", "infra": ["aws", "awss"], "accelerators": "L40S:1"},
        checkpoint={"store": "s3:/b/x"},
        data={"sources": [{"path": "./data.jsonl"}, {"path": "ftp://h/x"}]},
        train={"global_batch": 4},
    )
    keys = [line.split(": ")[1] for line in found]
    assert sorted(keys) == ["checkpoint.store", "data.sources[1].path", "resources.image", "resources.infra[1]"]
    assert complaints(tmp_path, "resources.infra=awss") == [
        "--set resources.infra: 'awss' is in no cloud that SkyPilot knows; did you mean 'aws'?"
    ]


@pytest.mark.parametrize(
    ("extra", "key", "variable"),
    [
        ({"checkpoint": {"store": "s3://${BUCKET}/runs"}}, "checkpoint.store", "${BUCKET}"),
        ({"checkpoint": {"store": "$SCRATCH/runs"}}, "checkpoint.store", "$SCRATCH"),
        ({"model": {"base": "${HOME}/model"}}, "model.base", "${HOME}"),
        ({"data": {"sources": [{"path": "$DATA/x.jsonl"}]}}, "data.sources[0].path", "$DATA"),
        ({"resources": {"image": "me/x:${TAG}"}}, "resources.image", "${TAG}"),
        ({"resources": {"infra": "${CLOUD}"}}, "resources.infra", "${CLOUD}"),
        ({"track": {"mlflow": {"tracking_uri": "http://${HOST}"}}}, "track.mlflow.tracking_uri", "${HOST}"),
        ({"env": {"CACHE": "${HOME}/cache"}}, "env.CACHE", "a variable"),
    ],
)
def test_a_variable_is_refused_where_it_stands_and_not_taken_for_a_name(tmp_path, extra, key, variable) -> None:
    (line,) = complaints(tmp_path, **extra)
    assert f": {key}: " in line
    assert variable in line
    assert "--set" in line


def test_dollars_that_are_no_variables_stay(tmp_path: Path) -> None:
    (tmp_path / "$x.jsonl").write_text('{"messages": []}\n')
    path = write_job(
        tmp_path,
        data={"sources": [{"path": "./$x.jsonl", "filter": 'price == "$5"'}]},
        train={"global_batch": 4, "unfrozen": ["norm.weight$"]},
        model={"base": "./base", "init": "random", "chat_template": "{{ messages }}${x}"},
        env={"PRICE": "5$", "PROMPT": "$x"},
    )
    assert load_job(path).env["PRICE"] == "5$"


def test_keys_of_one_s_own_hold_anchors_and_are_no_settings(tmp_path: Path) -> None:
    write_job(tmp_path)
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "x-size: &size {micro_batch: 2, global_batch: 4}\nx-note:\nname: demo\nmodel: {base: ./base, init: random}\n"
        "data: {sources: [{path: ./data.jsonl}]}\ntrain: {<<: *size, max_steps: 3}\n"
    )
    job = load_job(path)
    assert (job.train.micro_batch, job.train.global_batch, job.train.max_steps) == (2, 4, 3)
    path.write_text(path.read_text() + "y-note: 1\n")
    with pytest.raises(SpecErrors, match="unknown key"):
        load_job(path)


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch) -> Path:
    """SkyPilot's catalog of two clouds; of a third nothing is known."""
    for cloud, rows in {
        "aws": "us-east-1,us-east-1a\nus-west-2,us-west-2b\n",
        "gcp": "us-central1,us-central1-a\n",
    }.items():
        folder = tmp_path / "catalogs" / "v8" / cloud
        folder.mkdir(parents=True)
        (folder / "vms.csv").write_text(f"Region,AvailabilityZone\n{rows}")
    monkeypatch.setenv("DOLPHIN_CATALOGS", str(tmp_path / "catalogs"))
    return tmp_path


REGIONS = [
    ({"regions": ["us-east-1"], "infra": "aws"}, None),
    ({"regions": ["us-central1"], "infra": ["aws", "gcp"]}, None),
    ({"regions": ["eu-anything"]}, None),
    ({"regions": ["eu-anything"], "infra": ["aws", "lambda"]}, None),
    ({"regions": ["Ohio, US"], "infra": "vast"}, None),
    ({"infra": "aws/us-west-2/us-west-2b"}, None),
    ({"infra": "k8s/arn:aws:eks:my.context"}, None),
    ({"infra": "lambda/us-south-1"}, None),
    ({"regions": ["us-esat-1"], "infra": "aws"}, "did you mean 'us-east-1'?"),
    ({"regions": ["US-EAST-1"], "infra": "aws"}, "did you mean 'us-east-1'?"),
    ({"regions": ["us-east1"], "infra": ["aws", "gcp"]}, "did you mean 'us-east-1'?"),
    ({"regions": ["us-west-2", "us-east-1a"], "infra": "aws"}, "did you mean 'us-east-1'?"),
    ({"regions": ["mars"], "infra": "gcp"}, "there are us-central1"),
    ({"regions": ["aws/us-east-1"]}, "did you mean resources.infra: aws/us-east-1?"),
    ({"regions": ["us-*"]}, "is no region's name"),
    ({"regions": [" us-east-1"]}, "is no region's name"),
    ({"infra": "aws/us-esat-1"}, "did you mean 'us-east-1'?"),
    ({"infra": "aws/us-east-1/us-east-1z"}, "did you mean 'us-east-1a'?"),
    ({"infra": "gcp/us-central1/b;"}, "is no zone's name"),
]


@pytest.mark.parametrize(("resources", "said"), REGIONS)
def test_a_region_that_its_cloud_has_not_is_told_at_validate(catalog: Path, resources: dict, said: str | None) -> None:
    job = write_job(catalog / "job", resources={"accelerators": "L40S:4", **resources})
    if said is None:
        load_job(job)
        return
    with pytest.raises(SpecErrors) as refusal:
        load_job(job)
    assert said in str(refusal.value)
