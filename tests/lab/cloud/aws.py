"""The pretend cloud, a program of its own: `python -m tests.lab.cloud.aws SETTINGS.json`. moto answers as EC2, S3, IAM and STS.

Real: the requests that SkyPilot, boto3 and the trainer's stores make, and what moto keeps of them; the instances (`node`).
Stands in: moto for AWS (no signatures are checked; everything is in memory and gone with this process; no prices).
    /lab/instances                        every instance that there was, oldest first; the other commands answer so too
    /lab/reclaim?id=I&notice=S            a spot reclaim: the notice, S seconds, then the cloud terminates the instance
    /lab/stop?id=I                        as an instance's own autostop does
    /lab/cut?id=I, /lab/mend?id=I         no ssh comes through to the instance; it does again
    /lab/short?zone=Z&kind=K&type=T&error=E, /lab/plenty     a shortage (`capacity`); the end of all shortages
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models import EC2Backend
from moto.ec2.models.instances import Instance, InstanceBackend, StateReason
from moto.iam.policy_validation import BaseIAMPolicyValidator
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import make_server

from tests.lab.cloud import metadata, places
from tests.lab.cloud.capacity import ON_DEMAND, Shortage
from tests.lab.cloud.network import hold_network


class Instances:
    """The nodes behind moto's instances."""

    def __init__(self, settings: dict[str, Any], network: int) -> None:
        self.all: dict[str, Instance] = {}
        self.shortages: list[Shortage] = []
        self._settings, self._network = settings, network
        self._services: dict[str, ThreadingHTTPServer] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._numbers, self._lock = itertools.count(), threading.Lock()

    def refuse(self, zone: str, kind: str, instance_type: str) -> None:
        """EC2ClientError where there is a shortage of it."""
        for shortage in self.shortages:
            refusal = shortage.refusal(zone, kind, instance_type)
            if refusal is not None:
                say("refused", zone, kind, instance_type, refusal[0])
                raise EC2ClientError(*refusal)

    def boot(self, instance: Instance) -> None:
        """At a public address that nothing had before, as on AWS."""
        with self._lock:
            number = next(self._numbers)
        self.all[instance.id] = instance
        instance.lab_address = places.address_of(number)
        instance.nics[0].public_ip = instance.lab_address
        folder = places.NODES / instance.id
        folder.mkdir(parents=True, exist_ok=True)
        spec = {
            **self._settings, "id": instance.id, "folder": str(folder), "address": instance.lab_address, "number": number,
            "private": instance.private_ip, "hostname": "ip-" + instance.private_ip.replace(".", "-"), "network": self._network,
            "user_data": base64.b64decode(str(instance.user_data)).decode() if instance.user_data else "",
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(spec))
        (folder / "ready").unlink(missing_ok=True)  # of the start before
        with open(folder / "log", "ab") as log:
            process = subprocess.Popen([sys.executable, "-m", places.NODE, folder / "spec.json"], stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True)  # fmt: skip
        self._processes[instance.id] = process
        deadline = time.monotonic() + 30
        while not (folder / "ready").exists():
            if process.poll() is not None or time.monotonic() > deadline:  # AWS's side is at fault: another try may do
                say("did not come up", instance, (folder / "log").read_text()[-2000:])
                raise EC2ClientError("InternalError", f"{instance.id} did not come up")
            time.sleep(0.05)
        self._services[instance.id] = metadata.serve(instance, instance.lab_address)

    def halt(self, instance: Instance, *, remove: bool) -> None:
        process = self._processes.pop(instance.id, None)
        if process is not None:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        service = self._services.pop(instance.id, None)
        if service is not None:
            service.shutdown()
            service.server_close()
        if remove:  # thousands of files: whoever asked is not kept waiting, as by AWS
            folder = places.NODES / instance.id
            threading.Thread(target=shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, daemon=True).start()

    def signal(self, instance: Instance, number: int) -> None:
        self._processes[instance.id].send_signal(number)


def stand_behind_moto(instances: Instances) -> None:
    """Where moto starts, stops and ends an instance in its books, the node does."""
    run, start, stop, terminate = InstanceBackend.run_instances, Instance.start, Instance.stop, Instance.terminate
    begin = EC2Backend.__init__

    def run_instances(self: Any, *arguments: Any, **settings: Any) -> Any:
        nics = settings.get("nics") or [{}]
        subnet = settings.get("subnet_id") or nics[0].get("SubnetId")
        zone = settings.get("placement") or (self.get_subnet(subnet).availability_zone if subnet else "")
        instances.refuse(zone, settings.get("instance_market_options") or ON_DEMAND, settings["instance_type"])
        reservation = run(self, *arguments, **settings)
        for instance in reservation.instances:
            instances.boot(instance)
            say("run", instance, instance.instance_type, instance.lifecycle or ON_DEMAND, instance.availability_zone)
        return reservation

    def start_instance(self: Instance) -> Any:
        before = start(self)
        if before.name == "stopped":
            instances.boot(self)
            say("start", self)
        return before

    def stop_instance(self: Instance) -> Any:
        before = stop(self)
        instances.halt(self, remove=False)
        say("stop", self)
        return before

    def terminate_instance(self: Instance) -> Any:
        before = terminate(self)
        instances.halt(self, remove=True)
        say("terminate", self)
        return before

    def begin_region(self: Any, *arguments: Any, **settings: Any) -> None:
        """A default network leads to the internet, as AWS makes it and moto does not: SkyPilot looks for that route."""
        begin(self, *arguments, **settings)
        gateway = self.create_internet_gateway()
        self.attach_internet_gateway(gateway.id, self.default_vpc.id)
        filters = {"vpc-id": [self.default_vpc.id], "association.main": ["true"]}
        [table] = self.describe_route_tables(filters=filters)
        self.create_route(table.id, "0.0.0.0/0", gateway_id=gateway.id)

    InstanceBackend.run_instances = run_instances
    Instance.start, Instance.stop, Instance.terminate = start_instance, stop_instance, terminate_instance
    EC2Backend.__init__ = begin_region
    # AWS takes the policy without a version that SkyPilot writes
    BaseIAMPolicyValidator._validate_version = lambda self: None


def reclaim(instance: Instance, notice_s: float) -> None:
    say("reclaim notice", instance, f"{notice_s} s")
    instance.lab_notice = metadata.in_words(datetime.now(UTC) + timedelta(seconds=notice_s))
    time.sleep(notice_s)
    if instance.state == "running":
        instance.terminate()
        reason = "Server.SpotInstanceTermination"
        instance.state_reason, instance._reason = StateReason(f"{reason}: reclaimed", reason), reason


def say(*words: Any) -> None:
    shown = (f"{word.id} {word.lab_address}" if isinstance(word, Instance) else str(word) for word in words)
    print(datetime.now().strftime("%H:%M:%S"), "lab:", *shown, flush=True)


class Commands:
    """What the lab asks for, apart from AWS's own interface."""

    def __init__(self, instances: Instances) -> None:
        self._instances = instances
        self._known: dict[str, Callable[..., object]] = {
            "instances": lambda: None, "reclaim": self._reclaim, "stop": lambda id: self._one(id).stop(),
            "cut": lambda id: instances.signal(self._one(id), signal.SIGUSR1),
            "mend": lambda id: instances.signal(self._one(id), signal.SIGUSR2),
            "short": lambda **query: instances.shortages.append(Shortage(**query)), "plenty": instances.shortages.clear,
        }  # fmt: skip

    def answer(self, path: str, query: dict[str, str]) -> list[dict[str, Any]]:
        self._known[path.removeprefix("/lab/")](**query)
        if path != places.INSTANCES:
            say(path, query)
        return [self._shown(one) for one in self._instances.all.values()]

    def _one(self, name: str) -> Instance:
        return self._instances.all[name]

    def _reclaim(self, id: str, notice: str) -> None:
        threading.Thread(target=reclaim, args=(self._one(id), float(notice)), daemon=True).start()

    def _shown(self, one: Instance) -> dict[str, Any]:
        tags = {tag["key"]: tag["value"] for tag in one.get_tags()}
        return {
            "id": one.id, "address": one.lab_address, "state": one.state, "type": one.instance_type,
            "kind": one.lifecycle or ON_DEMAND, "zone": one.availability_zone, "cluster": tags.get("ray-cluster-name", ""),
        }  # fmt: skip


class App(DomainDispatcherApplication):
    commands: Commands

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Any:
        path = environ["PATH_INFO"]
        if not path.startswith("/lab/"):
            return super().__call__(environ, start_response)
        answer = self.commands.answer(path, dict(urllib.parse.parse_qsl(environ.get("QUERY_STRING", ""))))
        start_response("200 OK", [("Content-Type", "application/json")])
        # SkyPilot's probe is aiohttp's HEAD, which takes a body for an error
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [json.dumps(answer).encode()]


class Handler(MotoRequestHandler):
    def log(self, *_: object) -> None:
        pass


def main(settings: Path) -> None:
    instances = Instances(json.loads(settings.read_text()), hold_network())
    stand_behind_moto(instances)
    App.commands = Commands(instances)
    server = make_server("127.0.0.1", places.PORT, App(create_backend_app), threaded=True, request_handler=Handler)

    def leave(*_: object) -> None:
        for instance in instances.all.values():
            with contextlib.suppress(Exception):
                instances.halt(instance, remove=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    (places.LAB / "cloud.pid").write_text(str(os.getpid()))
    say("listening", places.PORT)
    server.serve_forever()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
