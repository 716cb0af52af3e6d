"""The account of a conversion: what each key became, has no effect for, or is wrong with; and the job so far.

Owns how it is kept and told. Refuses to know what any key means.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from launcher.config.problems import Finding
from launcher.config.yaml_lines import Where


class Mapped(NamedTuple):
    key: str
    setting: str
    remark: str


@dataclass
class Conversion:
    """The account. `job` is as in a job.yaml; `errors` are places in the configuration."""

    job: dict[str, Any] = field(default_factory=dict)
    mapped: list[Mapped] = field(default_factory=list)
    no_effect: list[tuple[str, str]] = field(default_factory=list)
    assumed: list[tuple[str, str]] = field(default_factory=list)
    """(setting, why) of what the configuration leaves open and the job states."""
    errors: list[Finding] = field(default_factory=list)
    origins: dict[Where, Where] = field(default_factory=dict)
    """Place in the job -> key in the configuration."""
    choices: dict[Where, str] = field(default_factory=dict)
    """Place of an error -> the setting that, stated with --set, settles it."""

    def put(self, setting: str, value: Any, key: str, remark: str = "") -> None:
        """State a setting, as the consequence of `key`."""
        self.set(setting, value)
        where = tuple(setting.split("."))
        self.origins[where] = (key,)
        self.mapped.append(Mapped(key, setting, remark))

    def set(self, setting: str, value: Any) -> None:
        *groups, name = setting.split(".")
        target = self.job
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value

    def assume(self, setting: str, value: Any, why: str) -> None:
        """State what the configuration leaves open."""
        self.set(setting, value)
        self.assumed.append((f"{setting}: {value}", why))

    def skip(self, key: str, why: str) -> None:
        self.no_effect.append((key, why))

    def fail(self, key: str, message: str, settled_by: str | None = None) -> None:
        """An error; where `settled_by` names a setting, stating it with --set is enough."""
        self.fail_at((key,), message, settled_by)

    def fail_at(self, where: Where, message: str, settled_by: str | None = None) -> None:
        if settled_by is not None:
            self.choices[where] = settled_by
            message = f"{message}; or state it: --set {settled_by}=..."
        self.errors.append(Finding(where, message))

    def unanswered(self, overrides: Sequence[str]) -> list[Finding]:
        """The errors that no `key=value` of the command line settles."""
        answered = {text.partition("=")[0].strip() for text in overrides}
        return [finding for finding in self.errors if self.choices.get(finding.where) not in answered]

    def summary(self, file: str) -> str:
        """For a person: one line for each key with a remark, and the others counted by what became of them."""
        lines = [f"{file} is an axolotl configuration, taken as a job:"]
        plain = [entry for entry in self.mapped if not entry.remark]
        lines.append(f"  mapped: {', '.join(dict.fromkeys(entry.key for entry in plain))}")
        lines += [f"  mapped: {entry.key} -> {entry.setting}: {entry.remark}" for entry in self.mapped if entry.remark]
        lines += [f"  assumed: {setting} ({why})" for setting, why in self.assumed]
        reasons: dict[str, list[str]] = {}
        for key, why in self.no_effect:
            reasons.setdefault(why, []).append(key)
        lines += [f"  no effect: {', '.join(keys)} ({why})" for why, keys in reasons.items()]
        return "\n".join(lines)
