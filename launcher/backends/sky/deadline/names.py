"""Names that a launch, SkyPilot's controller and the node agree on. Needs no SkyPilot."""

PLUGIN, VERSION = "dolphin-deadline", "1"
"""What a server says of a plugin that it has. The version is of what `job_recovery.dolphin` may hold."""
STRATEGY = "DOLPHIN_DEADLINE"
KEY = "dolphin"
"""In a task's `job_recovery`, beside SkyPilot's own keys: what the run has to keep (`launcher.backends.sky.terms`)."""
MACHINE = "DOLPHIN_MACHINE"
"""Variable by which a node is told what it is, and when to give the run back: JSON of market, leave_at, asked_at."""
