"""The real `dolphin` as a subprocess, with a DOLPHIN_HOME of its own and, where asked, the fake trainer beneath it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FAKE_TRAINER = Path(__file__).parent / "fake_trainer"
TIMEOUT_S = 120
"""Generous: a busy machine is no failure."""


def write_job(folder: Path, name: str = "demo", **extra: Any) -> Path:
    """A small valid job.yaml beside a base model's configuration and a data file."""
    folder.mkdir(parents=True, exist_ok=True)
    base = folder / "base"
    base.mkdir(exist_ok=True)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 1,
              "intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64}  # fmt: skip
    (base / "config.json").write_text(json.dumps(config))
    (base / "tokenizer.json").write_text("{}")
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (folder / "data.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    job: dict[str, Any] = {
        "name": name,
        "model": {"base": "./base", "init": "random"},
        "data": {"sources": [{"path": "./data.jsonl"}], "sequence_length": 64},
        "train": {"max_steps": 5, "global_batch": 4},
        "resources": {"ranks_per_node": 2},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job | extra))  # JSON is YAML
    return path


@dataclass
class Dolphin:
    """Runs commands in one DOLPHIN_HOME. `fake` is what the fake trainer is to do; None is the real trainer."""

    home: Path
    fake: dict[str, Any] | None = field(default_factory=dict)
    extra_environment: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        environment = os.environ | {"DOLPHIN_HOME": str(self.home), "CUDA_VISIBLE_DEVICES": ""} | self.extra_environment
        environment.pop("DOLPHIN_RUN_ID", None)
        if self.fake is not None:
            environment |= {"DOLPHIN_SOURCE": str(FAKE_TRAINER), "FAKE": json.dumps(self.fake)}
        return environment

    def start(self, *arguments: str | Path, **popen: Any) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("dolphin")), *map(str, arguments)]
        options: dict[str, Any] = {
            "text": True,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        return subprocess.Popen(command, env=self.environment, **(options | popen))

    def run(
        self, *arguments: str | Path, expect: int | None = 0, timeout_s: float = TIMEOUT_S
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=timeout_s)
        done = subprocess.CompletedProcess(arguments, process.returncode, out, err)
        assert expect is None or done.returncode == expect, f"{arguments}: exit {done.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return done

    def status(self, run: str | None = None) -> dict[str, Any]:
        return json.loads(self.run("status", "--json", *([run] if run else [])).stdout)

    def run_ids(self) -> list[str]:
        return [path.name for path in (self.home / "runs").glob("*")]

    def wait_for_step(self, step: int, run: str | None = None) -> dict[str, Any]:
        """Status of the run once it has reached the step."""
        return wait_until(lambda: (s := self.status(run)) and (s["step"] or 0) >= step and s)


def wait_until(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> Any:
    """The first true value of the condition."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value
