"""What a node of the pretend cloud finds on its disk when it starts: the machine image that SkyPilot would have named.

Stand-ins, each for something that a node would fetch from the internet or that only a real machine has:
    uv                 this machine's Python, packages from a cache that `fill_cache` made
    the probe          SkyPilot's question whether there is a network is put to the pretend cloud
    a region           SkyPilot's check of AWS on the jobs controller asks STS, which at an address of one's own needs one
    goofys             the mounting of buckets, local files of managed jobs too, from GitHub alone: rclone does it
    catalogs           tables of one cloud that were placed by hand travel to the jobs controller, those of all clouds do not
    pip                the controller builds SkyPilot's wheel with build isolation: setuptools, wheel, packaging from a folder
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

from tests.lab import parts
from tests.lab.cloud import places
from tests.lab.cloud.machine import SSHD_CONFIG

PROGRAMS = {
    **parts.ON_A_NODE,
    "sudo": "sudo",
    "ip": "iproute2",
    "rclone": "rclone",
    "fusermount3": "fuse3",
    "ssh-keygen": "openssh-client",
}
COMMON_TABLES = {
    "common/accelerators.csv": [["AcceleratorName", "Clouds"], ["L40S", "['AWS']"]],
    "common/metadata.csv": parts.GPUS,
}
_OF_RAY = """
import json, re
from importlib.metadata import version
from sky.setup_files.dependencies import extras_require
from sky.skylet.constants import SKY_REMOTE_RAY_VERSION
print(json.dumps([version("skypilot"), SKY_REMOTE_RAY_VERSION, sorted(extras_require["aws"])]))
"""
_LESS_CLICK = "click<8.3.0"
"""As SkyPilot asks for it beside Ray (sky/skylet/constants.py), with the pydantic-core below."""


def fill_cache(python: Path) -> None:
    """`uv`, and every package that SkyPilot installs on a node and on the jobs controller. `python` is the client's."""
    parts.fetch_uv(python, places.WHEELS, places.BIN / "uv")
    if (places.CACHE / "complete").exists():
        return
    build = ["setuptools<80", "wheel", "packaging"]
    subprocess.run([python, "-m", "pip", "download", "-q", "-d", places.WHEELS, *build], check=True)
    asked = subprocess.run([python, "-c", _OF_RAY], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
    skypilot, ray, aws = json.loads(asked)
    scratch = places.LAB / "scratch"
    settings = {**os.environ, "UV_CACHE_DIR": str(places.CACHE), "VIRTUAL_ENV": str(scratch), "UV_PYTHON_DOWNLOADS": "never",
                "UV_LINK_MODE": "copy"}  # fmt: skip
    for arguments in (
        ("venv", "--seed", scratch, "--python", parts.system_python()), ("pip", "install", "setuptools<70"),
        ("pip", "install", _LESS_CLICK), ("pip", "install", "-U", f"ray[default]=={ray}", "pydantic-core==2.41.1", _LESS_CLICK),
        ("pip", "install", f"skypilot[aws,remote]=={skypilot}"), ("pip", "install", *aws, _LESS_CLICK),
    ):  # fmt: skip
        subprocess.run([places.BIN / "uv", "-q", *arguments], env=settings, check=True)
    shutil.rmtree(scratch)
    subprocess.run(["chmod", "-R", "a+rwX", places.CACHE], check=True)
    (places.CACHE / "complete").touch()


def settings_of_nodes() -> dict[str, object]:
    """The part of a node's specification that is the same for all: `aws` adds the rest."""
    shared = [places.BIN, places.WHEELS, places.TRAINER, parts.trainer_site()]
    return {
        "cloud_port": places.PORT, "shared": [str(folder) for folder in shared], "layered": [str(places.CACHE)], "files": _files(),
    }  # fmt: skip


def as_csv(table: list[list[object]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(table)
    return text.getvalue()


def _files() -> dict[str, str]:
    tables = {f"/etc/skel/.sky/catalogs/v8/{name}": as_csv(table) for name, table in COMMON_TABLES.items()}
    return {
        **tables, SSHD_CONFIG: _sshd_config(), "/etc/ssh/lab_host_key": _host_key(),
        "/usr/local/bin/uv-lab": _uv(), "/usr/local/bin/curl": parts.curl_script(Path("/usr/local/bin/uv-lab")),
        "/usr/local/bin/goofys": _goofys(), "/usr/local/bin/systemctl": "#!/bin/sh\nexit 0\n",
        "/etc/pip.conf": f"[global]\nno-index = true\nfind-links = {places.WHEELS}\n",
    }  # fmt: skip


def _sshd_config() -> str:
    variables = {
        "AWS_ENDPOINT_URL": places.URL, "UV_OFFLINE": "1", "UV_CACHE_DIR": places.CACHE, "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "SKYPILOT_API_SERVER_LOCAL_PORT": places.NODE_API_PORT,  # `sky api stop` of this machine ends every one of its own port
    }  # fmt: skip
    options = {
        "HostKey": "/etc/ssh/lab_host_key", "AuthorizedKeysFile": ".ssh/authorized_keys", "PasswordAuthentication": "no", "UsePAM": "no",
        "StrictModes": "no", "MaxStartups": 200, "MaxSessions": 200, "Subsystem": "sftp internal-sftp", "UseDNS": "no",
        "SetEnv": " ".join(f"{name}={value}" for name, value in variables.items()),
    }  # fmt: skip
    return "".join(f"{name} {value}\n" for name, value in options.items())


def _host_key() -> str:
    """One for all nodes: addresses are used again from one day to the next."""
    path = places.LAB / "host_key"
    if not path.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.read_text()


def _uv() -> str:
    region = (
        "import os; os.path.exists(os.path.expanduser('~/.sky/is_jobs_controller')) and "
        f"os.environ.setdefault('AWS_DEFAULT_REGION', '{places.REGION}')"
    )
    return parts.uv_script(places.BIN / "uv", f"""\
        for file in "$VIRTUAL_ENV"/lib/python3*/site-packages/sky/backends/backend_utils.py; do
          sed -i "s#^_TEST_IP_LIST = .*#_TEST_IP_LIST = ['{places.URL}{places.INSTANCES}']#" "$file"
          echo "{region}" > "${{file%/sky/backends/backend_utils.py}}/dolphin_cloud_lab.pth"
        done
        """)  # fmt: skip


def _goofys() -> str:
    return textwrap.dedent("""\
        #!/bin/bash
        where=${@: -1} what=${@: -2:1} options=()
        [[ " $* " == *" -o ro "* ]] && options+=(--read-only)
        exec rclone mount ":s3,provider=Other,env_auth=true,endpoint='$AWS_ENDPOINT_URL',force_path_style=true:${what/://}" "$where" \\
          --daemon --allow-other --dir-cache-time 5s --vfs-cache-mode writes "${options[@]}"
        """)
