"""What machine this node is and what it costs: spot or not, zone and type by the cloud's metadata, the price by the plan's offers.

Shipped to the node beside the relay, which writes it down at the node's start: later nobody knows. The standard library
alone, Python 3.8 or later. Refuses to know runs.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    Offers = Iterable[Sequence[Any]]
    """(infra as SkyPilot writes it, spot, US dollars per hour of all nodes), cheapest first."""
    Ask = Callable[[str, Mapping[str, str], str], str | None]
    """(URL, headers, method) to the answer; None where there is none."""

ADDRESS = "http://169.254.169.254"
"""Of the metadata service, the same in all three clouds."""
TIMEOUT_S = 2.0
OUTCOME = "outcome.json"


def begin(config: dict[str, Any], began: float, ask: Ask | None = None) -> tuple[dict[str, Any], list[str], bool]:
    """The record of this node, what must be said of it at once, and whether the job may not use it: then outcome.json says so.
    `config` is relay.json, `began` when the relay did."""
    cluster = json.loads(os.environ.get("SKYPILOT_CLUSTER_INFO") or "{}")
    node: dict[str, Any] = {
        "time": began,
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "infra": "/".join(str(cluster[k]) for k in ("cloud", "region", "zone") if cluster.get(k)),
        "setup_at": float(os.environ.get("DOLPHIN_SETUP_AT") or began),
        "managed_job": os.environ.get("SKYPILOT_MANAGED_JOB_ID"),
        "submission": config.get("submission"),
    }
    offers = config.get("offers") or []
    if offers:
        node.update(look(cluster, os.environ, ask))
        kinds = {
            bool(spot)
            for place, spot, _ in offers
            if str(place).split("/")[0].lower() == str(cluster.get("cloud")).lower()
        }
        if len(kinds) == 1:  # nothing else was asked for there
            node.setdefault("spot", kinds.pop())
        if isinstance(node.get("spot"), bool):
            region = "/".join(node["infra"].split("/")[:2])
            places = [region + "/" + node[key] for key in ("zone_id", "zone") if node.get(key)] + [node["infra"]]
            prices = [price_at(offers, place, node["spot"]) for place in places]
            price, is_exact = next((found for found in prices if found[1]), prices[0])
            if price is not None:
                node.update({"price_usd_per_hour": price, "is_exact_price": is_exact})
    said, is_refused = judged(node, offers, config.get("max_hourly_cost"), config.get("num_nodes") or 1)
    if is_refused:
        outcome = {"state": "failed", "exit_code": 1, "reason": said[0]}
        path = os.path.join(os.path.expanduser(config["run_dir"]), OUTCOME)
        with open(path + ".new", "w") as handle:
            json.dump(outcome, handle)
        os.replace(path + ".new", path)
    return node, said, is_refused


def look(cluster: Mapping[str, Any], environment: Mapping[str, str], ask: Ask | None = None) -> dict[str, Any]:
    """`spot`, `zone`, `zone_id` and `instance_type` of this machine as far as its cloud tells. `cluster` is SkyPilot's
    SKYPILOT_CLUSTER_INFO."""
    cloud, asked = str(cluster.get("cloud", "")).lower(), ask or _asked
    if cloud == "aws":
        return _aws(environment.get("DOLPHIN_AWS_METADATA") or ADDRESS, asked)
    if cloud == "gcp":
        return _gcp(environment.get("DOLPHIN_GCP_METADATA") or ADDRESS, asked)
    if cloud == "azure":
        return _azure(environment.get("DOLPHIN_AZURE_METADATA") or ADDRESS, asked)
    return {}


def price_at(offers: Offers, infra: str | None, spot: bool) -> tuple[float | None, bool]:
    """US dollars per hour of a node of this infra: the most specific offer, else the cheapest of its region. And whether that is
    the price of its very place: a spot price is of a zone, one on demand of a region.

    SkyPilot writes the place in other ways than it reads it: `AWS/us-east-1/us-east-1a` for aws/us-east-1."""
    here, known = (
        (infra or "").lower(),
        [(str(place).lower(), float(price)) for place, is_spot, price in offers if is_spot == spot],
    )
    fitting = [(place, price) for place, price in known if here and (here + "/").startswith(place + "/")]
    if fitting:
        place, price = max(fitting, key=lambda one: (len(one[0]), -one[1]))
        return price, place.count("/") >= (2 if spot else 1)
    region = "/".join(here.split("/")[:2])
    near = [price for place, price in known if here and (place + "/").startswith(region + "/")]
    return (min(near) if near else None), bool(near) and not spot


def judged(node: Mapping[str, Any], offers: Offers, cap: float | None, num_nodes: int) -> tuple[list[str], bool]:
    """What a person must hear of this node at once, and whether it costs more than the job allows. `cap` is of one node."""
    offers, price, spot = list(offers), node.get("price_usd_per_hour"), node.get("spot")
    if spot is None or not offers:
        return [], False
    kind = "spot" if spot else "on demand"
    costs = "of unknown price" if price is None else f"${price:.2f}/h"
    if cap is not None and price is not None and node.get("is_exact_price") and price / num_nodes > cap:
        said = (
            f"this node ({node['infra']}, {kind}) costs {costs}, above resources.max_hourly_cost ${cap:.2f}: not taken"
        )
        return [said + "; `dolphin resume` looks for another"], True
    planned_at, planned_spot, planned = offers[0]
    if bool(planned_spot) != bool(spot) or (price is not None and price > planned * 1.005):
        had = f"{planned_at}, {'spot' if planned_spot else 'on demand'}, ${planned:.2f}/h"
        return [f"this node is {node['infra']}, {kind}, {costs}; the plan's cheapest was {had}"], False
    return [], False


def _aws(address: str, ask: Ask) -> dict[str, Any]:
    token = ask(address + "/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    if token is None:
        return {}
    names = {
        "life": "instance-life-cycle", "instance_type": "instance-type", "zone": "placement/availability-zone",
        "zone_id": "placement/availability-zone-id",
    }  # fmt: skip
    found = {
        key: ask(address + "/latest/meta-data/" + name, {"X-aws-ec2-metadata-token": token}, "GET")
        for key, name in names.items()
    }
    life = found.pop("life")
    return _told({**found, "spot": None if life is None else life == "spot"})


def _gcp(address: str, ask: Ask) -> dict[str, Any]:
    instance, own = address + "/computeMetadata/v1/instance/", {"Metadata-Flavor": "Google"}
    preemptible = ask(instance + "scheduling/preemptible", own, "GET")
    if preemptible is None:
        return {}
    return _told({
        "spot": preemptible.upper() == "TRUE",
        "zone": (ask(instance + "zone", own, "GET") or "").rpartition("/")[2],
        "instance_type": (ask(instance + "machine-type", own, "GET") or "").rpartition("/")[2],
    })  # fmt: skip


def _azure(address: str, ask: Ask) -> dict[str, Any]:
    compute, own = address + "/metadata/instance/compute/", {"Metadata": "true"}
    query = "?api-version=2021-02-01&format=text"
    size = ask(compute + "vmSize" + query, own, "GET")
    if size is None:
        return {}
    priority = ask(compute + "priority" + query, own, "GET")  # empty for a usual machine
    return _told({"spot": (priority or "").lower() == "spot", "instance_type": size})


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if value not in (None, "")}


def _asked(url: str, headers: Mapping[str, str], method: str) -> str | None:
    try:
        request = urllib.request.Request(url, headers=dict(headers), method=method)
        # Never through a proxy: the address is this machine's alone.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=TIMEOUT_S) as answer:
            return str(answer.read(4096).decode("utf-8", "replace")).strip()
    except (OSError, ValueError):
        return None
