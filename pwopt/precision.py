"""How exactly an executable computes: number formats of maps and weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

from pwopt.errors import UsageError, nearest
from pwopt.hardware import Hardware

# Of convolutions and matrix products, by target; the first is the default.
COMPUTE = {"cpu": ("fp32", "bf16"), "cuda": ("tf32", "fp16", "bf16", "fp32")}
FC_WEIGHTS = ("fp32", "bf16", "int8")


@dataclass(frozen=True)
class Precision:
    """Number formats.

    Attributes:
        compute: of convolutions and matrix products. "bf16" and "fp16" round their operands, and
            the maps between them, to bfloat16 or float16 and add the products up in float32;
            "tf32" rounds the operands to 11 bits where they are multiplied.
        fc_weights: how fully connected layers of one row, whose time is that of reading their
            weights, store these. "bf16" and "int8" (with a scale per output channel) are widened
            to float32 as they are read.
    """

    compute: str = "fp32"
    fc_weights: str = "fp32"

    def __post_init__(self) -> None:
        """Raises UsageError for a format that there is not."""
        for option, value, known in (
            ("precision", self.compute, tuple(dict.fromkeys(itertools.chain(*COMPUTE.values())))),
            ("fc-weights", self.fc_weights, FC_WEIGHTS),
        ):
            if value not in known:
                hint = nearest(value, known)
                raise UsageError(f"--{option} {value}{hint}: one of {', '.join(known)} is wanted")

    @staticmethod
    def of(target: str, compute: str | None = None, fc_weights: str = "fp32") -> Precision:
        """The formats of a target, its default where ``compute`` is left out.

        Raises:
            UsageError: the target has not the format.
        """
        formats = Precision(compute or COMPUTE[target][0], fc_weights)
        if formats.compute not in COMPUTE[target]:
            known = ", ".join(COMPUTE[target])
            raise UsageError(
                f"--precision {compute}: one of {known} is wanted for --target {target}"
            )
        if target != "cpu" and fc_weights != "fp32":
            raise UsageError(f"--fc-weights {fc_weights}: only --target cpu has it")
        return formats

    def on(self, hardware: Hardware) -> Hardware:
        """The machine without instructions that this has no use for."""
        return replace(hardware, bf16=hardware.bf16 and self.compute == "bf16")

    def used(self, hardware: Hardware) -> Precision:
        """What of this a machine can do."""
        return self if hardware.bf16 or self.compute != "bf16" else replace(self, compute="fp32")

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
