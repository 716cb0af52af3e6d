"""`export:` of a job: what a finished run leaves besides the trained weights."""

from __future__ import annotations

from typing import Literal

from trainer.run.settings.base import SpecModel

GgufKind = Literal["f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
GGUF_KINDS: tuple[GgufKind, ...] = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m")
"""From the largest to the smallest."""
QUANTISED_KINDS = {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}
"""Those that llama.cpp itself makes, with its own number for each (enum llama_ftype)."""


class ExportSpec(SpecModel):
    which: Literal["last", "best"] = "last"
    """The weights of the last step, or of the best checkpoint (checkpoint.keep_best)."""
    merged: bool = False
    """Of an adapter: leave base and adapter as one model in bf16, with the adapter's own folder in it as adapter/."""
    gguf: tuple[GgufKind, ...] = ()
    """Write the model as GGUF too, for llama.cpp and Ollama, in these number formats; q6_k, q5_k_m and q4_k_m need llama-cpp-python on the node."""
