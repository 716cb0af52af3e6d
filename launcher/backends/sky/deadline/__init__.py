"""What SkyPilot's jobs controller runs for a job with a deadline: a recovery strategy, and the plugin that brings it.

Part of dolphin, and a wheel of its own for a controller that is another machine (`launcher.backends.sky.plugin_wheel`), so it
imports the policy, SkyPilot and the standard library alone, and runs in SkyPilot's Python (3.10 or later).
"""
