"""How exactly an executable computes: number formats of maps and weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pwopt.errors import UsageError, nearest
from pwopt.hardware import Hardware

COMPUTE = ("fp32", "bf16")
FC_WEIGHTS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Precision:
    """Number formats.

    Attributes:
        compute: of convolutions and matrix products. "bf16" rounds their operands, and the maps
            between them, to bfloat16 and adds the products up in float32.
        fc_weights: how fully connected layers of one row, whose time is that of reading their
            weights, store these. "bf16" and "int8" (with a scale per output channel) are widened
            to float32 as they are read.
    """

    compute: str = "fp32"
    fc_weights: str = "fp32"

    def __post_init__(self) -> None:
        """Raises UsageError for a format that there is not."""
        for option, value, known in (
            ("precision", self.compute, COMPUTE),
            ("fc-weights", self.fc_weights, FC_WEIGHTS),
        ):
            if value not in known:
                hint = nearest(value, known)
                raise UsageError(f"--{option} {value}{hint}: one of {', '.join(known)} is wanted")

    def on(self, hardware: Hardware) -> Hardware:
        """The machine without instructions that this has no use for."""
        return replace(hardware, bf16=hardware.bf16 and self.compute == "bf16")

    def used(self, hardware: Hardware) -> Precision:
        """What of this a machine can do."""
        return self if hardware.bf16 else replace(self, compute="fp32")

    def remark(self, hardware: Hardware) -> str:
        """What of this a machine cannot do, or nothing."""
        if self.compute == "bf16" and not hardware.bf16:
            return f"float32 instead of bf16: {hardware.mcpu} has no AVX512-BF16 dot products"
        return ""

    @property
    def exact(self) -> bool:
        """Whether everything is float32."""
        return self == Precision()

    def __str__(self) -> str:
        fc = f", {self.fc_weights} weights of fully connected layers"
        return self.compute + (fc if self.fc_weights != "fp32" else "")
