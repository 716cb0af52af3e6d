"""What GPUs can do: peak arithmetic, memory and the links between them. Facts from the makers' data sheets; no formulas.

`memory_mib` is what torch sees of a card, which is less than nvidia-smi and the clouds' lists say, and than its name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PCIE_4 = 31.5
PCIE_5 = 63.0
"""GB/s in one direction over 16 lanes (PCI-SIG: 16, 32 GT/s a lane with 128b/130b coding)."""


@dataclass(frozen=True, slots=True)
class Card:
    name: str
    bf16_tflops: float
    """Dense bf16 tensor TFLOP/s with fp32 accumulation."""
    memory_mib: int
    memory_gb_per_s: float
    link_gb_per_s: float
    """To another card of the node, in one direction: NVLink where there is one, else PCIe through the host."""
    has_nvlink: bool
    utilisation: float
    """Assumed share of `bf16_tflops` that training reaches, recomputation counted as work; measured runs replace it."""

    @property
    def host_gb_per_s(self) -> float:
        """To the host's memory, in one direction: PCIe, of the fifth generation from Hopper on."""
        if not self.has_nvlink:
            return self.link_gb_per_s
        return PCIE_4 if self.name.startswith("A100") else PCIE_5


CARDS: tuple[Card, ...] = (
    # name, bf16 TFLOP/s, MiB in torch, GB/s, link GB/s, NVLink, assumed utilisation
    Card("L4", 121.0, 22_558, 300.0, PCIE_4, False, 0.40),
    Card("A10", 125.0, 22_517, 600.0, PCIE_4, False, 0.45),
    Card("A10G", 70.0, 22_502, 600.0, PCIE_4, False, 0.45),
    Card("RTX3090", 71.0, 24_115, 936.0, PCIE_4, False, 0.55),
    Card("RTX4090", 165.2, 24_084, 1008.0, PCIE_4, False, 0.50),
    Card("RTX5090", 209.5, 32_112, 1792.0, PCIE_5, False, 0.50),
    Card("RTXA6000", 154.8, 48_537, 768.0, PCIE_4, False, 0.50),
    Card("RTX6000-Ada", 364.2, 48_507, 960.0, PCIE_4, False, 0.40),
    Card("A40", 149.7, 45_403, 696.0, PCIE_4, False, 0.50),
    Card("L40", 181.0, 45_403, 864.0, PCIE_4, False, 0.45),
    Card("L40S", 362.0, 45_403, 864.0, PCIE_4, False, 0.40),
    Card("A100", 312.0, 40_335, 1555.0, 300.0, True, 0.50),
    Card("A100-80GB", 312.0, 81_037, 2039.0, 300.0, True, 0.50),
    Card("H100-PCIe", 756.0, 81_008, 2000.0, PCIE_5, False, 0.40),
    Card("H100", 989.0, 81_008, 3350.0, 450.0, True, 0.40),
    Card("H200", 989.0, 143_063, 4800.0, 450.0, True, 0.40),
    Card("GH200", 989.0, 96_768, 4000.0, PCIE_5, False, 0.40),
    Card("B200", 2250.0, 182_620, 8000.0, 900.0, True, 0.35),
)
"""Sources: NVIDIA's data sheets of each card (dense figures, that is half of those 'with sparsity'; for GeForce cards the
rate with fp32 accumulation); the memory is the "total capacity" in torch's own out-of-memory messages, the lowest that was
reported of a card."""

ALIASES = {
    "A100-40GB": "A100", "A100-SXM4-40GB": "A100", "A100-80GB-SXM": "A100-80GB", "A100-SXM4-80GB": "A100-80GB",
    "H100-SXM": "H100", "H100-80GB-HBM3": "H100", "H100-MEGA": "H100", "H200-SXM": "H200", "B200-SXM": "B200",
    "A6000": "RTXA6000", "RTX-A6000": "RTXA6000", "RTX6000-ADA-GENERATION": "RTX6000-Ada",
    "RTX-6000-ADA-GENERATION": "RTX6000-Ada", "RTX6000ADA": "RTX6000-Ada",
}  # fmt: skip

NO_BF16 = ("V100", "V100-32GB", "T4", "P100", "P4", "K80", "M60")
"""Cards that SkyPilot offers and that have no bf16 arithmetic (before NVIDIA's Ampere generation)."""
NO_FP8 = (*NO_BF16, "A10", "A10G", "A30", "A40", "A100", "A100-80GB", "RTX3090", "RTXA6000")
"""And those of the Ampere generation, which have no fp8."""


def find_card(name: str) -> Card | None:
    """The card of this name as SkyPilot (`L40S`, `A100-80GB`) or nvidia-smi (`NVIDIA GeForce RTX 4090`) writes it."""
    plain = re.sub(r"^(NVIDIA|Tesla|GeForce)\s+", "", name.strip(), flags=re.IGNORECASE)
    plain = re.sub(r"^(GeForce)\s+", "", plain, flags=re.IGNORECASE)
    wanted = re.sub(r"RTX-(?=\d)", "RTX", re.sub(r"[\s_]+", "-", plain).upper())
    aliases = {alias.upper(): card for alias, card in ALIASES.items()}
    wanted = aliases.get(wanted, wanted).upper()
    return next((card for card in CARDS if card.name.upper() == wanted), None)
