"""What the pretend cloud has none of: by zone, kind and type of instance, with the error that AWS answers. Pure."""

from __future__ import annotations

from dataclasses import dataclass

SPOT, ON_DEMAND = "spot", "on-demand"
_MESSAGES = {
    "InsufficientInstanceCapacity": "There is no Spot or on-demand capacity available for {type} in {zone} that matches your request.",
    "VcpuLimitExceeded": "You have requested more vCPU capacity than your current vCPU limit of 0 allows for {type}.",
    "MaxSpotInstanceCountExceeded": "Max spot instance count exceeded",
}
"""Error code -> what AWS says with it, in the words that a client may look for. The last two are quotas of a region."""


@dataclass(frozen=True, slots=True)
class Shortage:
    zone: str = ""
    """us-east-1a; us-east-1 is all zones of the region, and nothing every zone."""
    kind: str = ""
    """SPOT or ON_DEMAND; empty is both."""
    type: str = ""
    """Beginning of the types' names: g6e."""
    error: str = "InsufficientInstanceCapacity"

    def __post_init__(self) -> None:
        if self.error not in _MESSAGES or self.kind not in ("", SPOT, ON_DEMAND):
            raise ValueError(f"{self}: error is one of {', '.join(_MESSAGES)}; kind is {SPOT}, {ON_DEMAND} or empty")

    def refusal(self, zone: str, kind: str, instance_type: str) -> tuple[str, str] | None:
        """Error code and message for a request that falls under it."""
        if zone.startswith(self.zone) and self.kind in ("", kind) and instance_type.startswith(self.type):
            return self.error, _MESSAGES[self.error].format(zone=zone, type=instance_type)
        return None
