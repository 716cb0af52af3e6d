"""The grammar of names that somebody else would refuse later, on a paid node: images, buckets, clouds; and `${NAME}`.

Looks at the text, and for `$` at whether a file is really called so. Refuses to ask registries, stores and clouds.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.config.key_hints import nearest_key
from launcher.config.names import URL, WITH_CREDENTIALS
from launcher.config.problems import Finding
from launcher.config.yaml_lines import Where
from launcher.jobfile.regions import catalog_folder, region_problem, zone_problem

if TYPE_CHECKING:
    from launcher.jobfile.spec import JobSpec

CLOUDS = frozenset({
    "aws", "azure", "cudo", "do", "fluidstack", "gcp", "hyperbolic", "ibm", "k8s", "kubernetes", "lambda", "mithril",
    "nebius", "oci", "paperspace", "primeintellect", "runpod", "scp", "seeweb", "shadeform", "slurm", "ssh", "vast",
    "verda", "vsphere", "yotta",
})  # fmt: skip
"""What `resources.infra` may begin with: the clouds of SkyPilot 0.14.1, and its short name for Kubernetes."""
_ALSO_CALLED = {
    "amazon": "aws", "ec2": "aws", "google": "gcp", "gce": "gcp", "gke": "kubernetes", "eks": "kubernetes",
    "digitalocean": "do", "microsoft": "azure", "lambdalabs": "lambda", "lambda_cloud": "lambda", "oracle": "oci",
    "datacrunch": "verda", "flow": "mithril",
}  # fmt: skip
_OWN_PLACES = ("k8s", "kubernetes", "slurm", "ssh", "vsphere")
"""What follows their name is a context, a cluster or a pool of the user's own."""
_VARIABLE = re.compile(r"\$\{[^}]*\}|\$[A-Za-z_]\w*")
_BRACED = re.compile(r"\$\{[^}]*\}")
_BUCKET = {
    "s3": re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?"),
    "gs": re.compile(r"[a-z0-9]([a-z0-9._-]{0,220}[a-z0-9])?"),
}
"""Amazon and Google ask for three letters and more; stores of one's own that speak their language do not."""
_HUB = re.compile(r"(datasets/)?[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_SCHEME_SLIP = re.compile(r"(s3|gs|gcs|hf|hdfs|https?|ftp)(:/*|//)(?=[^/])", re.IGNORECASE)
_SCHEMES_MEANT = {"s3a": "s3", "s3n": "s3", "gcs": "gs", "gs3": "gs", "huggingface": "hf", "hub": "hf", "s4": "s3"}
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:[0-9]{1,5})?")
_PART = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def name_findings(job: JobSpec, folder: Path) -> list[Finding]:
    """Wrong names in a job whose file lies in `folder`. A place is reported once."""
    found = [*_credentials(job), *_variables(job, folder)]
    seen = {finding.where for finding in found}
    return found + [finding for finding in _names(job) if finding.where not in seen]


def _names(job: JobSpec) -> Iterator[Finding]:
    if job.resources.image is not None and (wrong := image_problem(job.resources.image)):
        yield Finding(("resources", "image"), wrong)
    for index, infra in enumerate(job.resources.infra):
        if wrong := infra_problem(infra):
            one = ("resources", "infra", index) if len(job.resources.infra) > 1 else ("resources", "infra")
            yield Finding(one, wrong)
    yield from _regions(job)
    if job.checkpoint.store is not None and (wrong := url_problem(job.checkpoint.store, ("s3", "gs"))):
        yield Finding(("checkpoint", "store"), wrong)
    for where, source in job.data.inputs:
        if wrong := url_problem(source.path, ("s3", "gs", "hf")):
            yield Finding((*where, "path"), wrong)


def _regions(job: JobSpec) -> Iterator[Finding]:
    """Of `regions`, which narrow every cloud that names none, and of the places in `infra`."""
    regions, places = job.resources.regions, job.resources.infra
    folder = catalog_folder()
    open_to_all = [place.lower() for place in places if "/" not in place]
    for index, region in enumerate(regions):
        where = ("resources", "regions", index) if len(regions) > 1 else ("resources", "regions")
        if region.partition("/")[0].lower() in CLOUDS and "/" in region:
            yield Finding(where, f"{region!r} is a cloud and its region; did you mean resources.infra: {region}?")
        elif wrong := region_problem(region, open_to_all, folder):
            yield Finding(where, wrong)
    for index, place in enumerate(places):
        cloud, *rest = place.split("/")
        if infra_problem(place) is not None or cloud.lower() in _OWN_PLACES:
            continue
        problems = [region_problem(rest[0], [cloud.lower()], folder)] if rest else []
        problems += [zone_problem(zone, cloud.lower(), folder) for zone in rest[1:]]
        wrong = next(filter(None, problems), None)
        if wrong is not None:
            yield Finding(("resources", "infra", index) if len(places) > 1 else ("resources", "infra"), wrong)


def image_problem(image: str) -> str | None:
    """Why no engine takes this as the name of an image; None where one would."""
    if not image.strip():
        return "names no image; write registry/name:tag, or remove the line"
    for prefix in ("docker://", "docker:", "https://", "http://", "oci://"):
        if image.lower().startswith(prefix):
            rest = image[len(prefix) :]
            hint = f"; did you mean {rest!r}?" if image_problem(rest) is None else ""
            return f"{image!r} is no image's name, which has no {prefix} before it{hint}"
    name, at, digest = image.partition("@")
    if at and not _DIGEST.fullmatch(digest):
        return f"{image!r}: behind @ stands sha256: and 64 hexadecimal digits"
    last = name.rpartition("/")[2]
    tag = last.partition(":")[2] if ":" in last else None
    path = name[: -len(tag) - 1] if tag is not None else name
    parts = path.split("/")
    if len(parts) > 1 and ("." in parts[0] or ":" in parts[0] or parts[0] == "localhost"):
        host = parts.pop(0)
        if not _HOST.fullmatch(host):
            return f"{image!r}: {host!r} is no registry; write host or host:port before the first /"
    lower = "/".join(parts).lower()
    if "/".join(parts) != lower and all(_PART.fullmatch(part) for part in lower.split("/")):
        return f"{image!r}: names of images are lower case; did you mean {image.replace('/'.join(parts), lower)!r}?"
    wrong = next((part for part in parts if not _PART.fullmatch(part)), None)
    if wrong is not None:
        return f"{image!r}: {wrong!r} is no part of an image's name (lower-case letters and digits, joined by . _ or -)"
    if tag is not None and not _TAG.fullmatch(tag):
        return f"{image!r}: {tag!r} is no tag (letters, digits, _ . and -, at most 128)"
    return None


def infra_problem(infra: str) -> str | None:
    """Why SkyPilot knows no such place; None where its first word is a cloud."""
    cloud, *rest = infra.split("/")
    name = cloud.lower()
    if name not in CLOUDS:
        near = _ALSO_CALLED.get(name) or nearest_key(name, sorted(CLOUDS))
        hint = f"did you mean {'/'.join([near, *rest])!r}?" if near else f"there are {', '.join(sorted(CLOUDS))}"
        return f"{infra!r} is in no cloud that SkyPilot knows; {hint}"
    if len(rest) > 2 or any(not part.strip() for part in rest):
        return f"{infra!r}: write cloud, cloud/region or cloud/region/zone"
    return None


def url_problem(text: str, schemes: tuple[str, ...]) -> str | None:
    """What is wrong with a bucket's or the hub's address; None for a right one, and for a path of this machine."""
    if not URL.match(text):
        slip = _SCHEME_SLIP.match(text)
        if slip is None:
            return None
        scheme = _SCHEMES_MEANT.get(slip[1].lower(), slip[1].lower())
        return f"{text!r} is no address; did you mean {scheme + '://' + text[slip.end() :]!r}?"
    scheme, _, rest = text.partition("://")
    if "@" in rest.partition("/")[0] and scheme != "hf":
        return "holds a user or a password, which must not stand in a job; the clouds' own variables carry credentials"
    if scheme not in schemes:
        near = _SCHEMES_MEANT.get(scheme)
        allowed = ", ".join(f"{name}://" for name in schemes)
        hint = f"did you mean {near + '://' + rest!r}?" if near in schemes else f"there are {allowed} and paths"
        return f"no address begins with {scheme}:// here; {hint}"
    if scheme == "hf":
        return (
            None if _HUB.fullmatch(rest) and ".." not in rest else f"{text!r}: write hf://owner/name, perhaps @revision"
        )
    bucket = rest.partition("/")[0]
    if not _BUCKET[scheme].fullmatch(bucket):
        lower = bucket.lower()
        near = f"{scheme}://{lower}{rest[len(bucket) :]}" if _BUCKET[scheme].fullmatch(lower) else None
        hint = f"did you mean {near!r}?" if near else f"write {scheme}://bucket/prefix"
        return f"{bucket!r} is no name of a bucket (a-z, 0-9, - and .); {hint}"
    if ".." in rest.split("/"):
        return f"{text!r}: a bucket has no `..`; write the path out"
    return None


def _credentials(job: JobSpec) -> Iterator[Finding]:
    """URLs with a user or a password in them, wherever they stand: a job is copied, shown, logged and published."""
    for where, text in _texts(job):
        if WITH_CREDENTIALS.match(text):
            hint = (
                "name the variable under `secrets`"
                if where[0] == "env"
                else "the clouds' own variables carry credentials"
            )
            yield Finding(where, f"holds a user or a password, which must not stand in a job; {hint}")


def _variables(job: JobSpec, folder: Path) -> Iterator[Finding]:
    """`${NAME}` and `$NAME` where a shell would expand them and a job file does not."""
    for where, text in _texts(job):
        match = (_BRACED if where[0] == "env" else _VARIABLE).search(text)
        if match is None or (match[0][1] != "{" and os.path.lexists(folder / os.path.expanduser(text))):
            continue
        what = "holds a variable, which" if where[0] == "env" else f"{match[0]}"
        yield Finding(
            where,
            f"{what} is not expanded in a job file; write the value out, or pass it with --set, where your shell does",
        )


def _texts(job: JobSpec) -> Iterator[tuple[Where, str]]:
    """Settings that name something. Templates, expressions and patterns have a use for `$` of their own."""
    model, resources = job.model, job.resources
    for key in ("base", "revision", "tokenizer", "chat_template"):
        text = getattr(model, key)
        if text is not None and not (key == "chat_template" and ("{{" in text or "{%" in text)):
            yield ("model", key), text
    for where, source in job.data.inputs:
        for key in ("path", "split", "subset"):
            if getattr(source, key) is not None:
                yield (*where, key), getattr(source, key)
        yield from (((*where, "files"), text) for text in source.files)
    if isinstance(job.evaluate.prompts, str):
        yield ("evaluate", "prompts"), job.evaluate.prompts
    yield from ((("evaluate", "metrics", index), text) for index, text in enumerate(job.evaluate.metrics))
    if job.checkpoint.store is not None:
        yield ("checkpoint", "store"), job.checkpoint.store
    if resources.image is not None:
        yield ("resources", "image"), resources.image
    yield from ((("resources", "infra"), text) for text in resources.infra)
    yield from ((("resources", "regions"), text) for text in resources.regions)
    unfrozen = job.train.unfrozen
    if unfrozen is not None and not isinstance(unfrozen, tuple):
        yield ("train", "unfrozen", "spectrum", "snr"), unfrozen.spectrum.snr
    yield from ((("env", name), text) for name, text in job.env.items())
    for tracker in ("wandb", "mlflow"):
        settings = getattr(job.track, tracker)
        for key, text in (settings.model_dump() if settings is not None else {}).items():
            if isinstance(text, str):
                yield ("track", tracker, key), text
