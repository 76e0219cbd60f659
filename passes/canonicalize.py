"""The pass ``canonicalize``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from pwopt.growth import Growth
from pwopt.ir.graph import ONNX_DOMAIN, Graph, Node
from pwopt.passes import canonical_activations as activations
from pwopt.passes import canonical_arithmetic as arithmetic
from pwopt.passes import canonical_products as products
from pwopt.passes import canonical_windows as windows
from pwopt.pipeline import Applied, Context, Missed, Rewrite

Rule = Callable[[Graph, Node, Growth], Applied | Missed | None]

_RULES: dict[str, tuple[Rule, ...]] = {
    "Add": (activations.prelu,),
    "AveragePool": (windows.explicit, windows.absorb_pad, windows.whole_map),
    "Clip": (arithmetic.clip,),
    "Conv": (windows.explicit, windows.absorb_pad),
    "ConvTranspose": (windows.explicit,),
    "Div": (arithmetic.divide, activations.sigmoid),
    "Gemm": (products.gemm,),
    "Log": (activations.softplus,),
    "LpPool": (windows.explicit,),
    "MatMul": (products.matmul,),
    "MaxPool": (windows.explicit,),
    "Max": (arithmetic.bound,),
    "Min": (arithmetic.bound,),
    "Reciprocal": (activations.sigmoid,),
    "ReduceMean": (windows.mean_of_map,),
    "Relu": (arithmetic.relu,),
    "Reshape": (products.flatten,),
    "Squeeze": (products.flatten,),
    "Sub": (arithmetic.subtract, activations.prelu),
    "Sum": (arithmetic.sum_,),
    "Where": (activations.where,),
}


@dataclass(frozen=True)
class Canonicalize(Rewrite):
    """Brings what can be written in several ways into one form, so that later passes know one.

    Rewrite:
        ``auto_pad`` → ``pads``; absent ``kernel_shape``, ``strides``, ``dilations``, ``group`` →
        written out; ``ceil_mode`` without effect → 0; ``Conv(Pad(x, 0))`` → ``Conv`` with pads,
        and so for AveragePool; an AveragePool over the whole map, and a ReduceMean over all
        spatial axes → GlobalAveragePool; ``Gemm`` with a constant B → ``transB=1, alpha=1,
        beta=1``; MatMul of two matrices, the second constant → Gemm; Reshape or Squeeze from (N,
        C, ...) to (N, -1) → Flatten; ``Sum(a, b, c)`` → ``Add(Add(a, b), c)``; ``x / c`` → ``x *
        (1 / c)``; ``x - c`` → ``x + (-c)``; ``Max(x, 0)`` → Relu; Min and Max with constant
        bounds → Clip; Clip at 0 from below → Relu; Clip of a Relu and Relu of a Clip → one Clip.
        ``Log(1 + Exp(x))`` → Softplus; ``a / (1 + Exp(-x))`` → ``a * Sigmoid(x)``; ``Relu(x) - c *
        Relu(-x)`` and other spellings, ``Where(x > 0, x, c * x)`` → LeakyRelu or PRelu;
        ``Where(x > 0, x, 0)`` → Relu. An absent bias stays absent.

    Shapes:
        ``auto_pad=SAME_*`` needs the spatial sizes, unless the stride is 1.

    Numerics:
        Exact but for ``x * (1 / c)``, which differs from ``x / c`` by one rounding (not at all
        where c is a power of two), and for the factors alpha and beta, which are multiplied into
        the constants in float64. Softplus and Sigmoid are finite where Exp overflows.

    Misses when:
        The spatial size that ``auto_pad`` needs is unknown; a Pad in front is not constant, not
        zero, negative, or pads batch or channels; a weight is shared beyond ``max_growth_bytes``.

    Source:
        ONNX operator definitions.

    Attributes:
        max_growth_bytes: how much a shared weight may grow the model by when its readers each get
            their own copy.
    """

    name: ClassVar[str] = "canonicalize"
    ops: ClassVar[frozenset[tuple[str, str]]] = frozenset((ONNX_DOMAIN, op) for op in _RULES)

    max_growth_bytes: int = 1 << 20

    def rewrite(self, graph: Graph, node: Node, context: Context) -> Applied | Missed | None:
        missed: Missed | None = None
        for rule in _RULES[node.op]:
            outcome = rule(graph, node, context.growth(self.max_growth_bytes))
            if isinstance(outcome, Applied):
                return outcome  # the next sweep sees the new node
            missed = missed or outcome
        return missed
