"""When two sets of outputs count as equal, and the random inputs to try it with.

An error is the largest difference divided by the output's scale, its largest finite magnitude: a
network whose logits are 1e-10 would pass any absolute check, and one whose logits are 1e+4 would
fail it by rounding alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pwopt.ir.types import NUMPY_DTYPES, TensorType

# Relative to the output's scale, by element type. A reassociated sum of K products is off by about
# sqrt(K) * eps, and L layers in a row by sqrt(L) times that, eps being half a unit in the last
# place. K = 25088 (VGG's first fully connected layer) and L = 100 make 1600 * eps.
TOLERANCES: dict[str, float] = {
    "float64": 1e-12,  # 1600 * 2**-53 = 1.8e-13, and exp and erf are good to a few units only
    "float32": 1e-4,  # 1600 * 2**-24 = 9.5e-5
    # Accumulated in float32, so only what is stored between layers rounds: sqrt(L) * eps.
    "float16": 1e-2,  # 10 * 2**-11 = 4.9e-3, twice that where both sides round
    "bfloat16": 8e-2,  # 10 * 2**-8 = 3.9e-2, twice that where both sides round
}
# Integers and booleans: the share of elements that may differ, because a value at a rounding
# boundary (QuantizeLinear, ArgMax, a comparison) may fall to either side.
DISCRETE_TOLERANCE = 1e-3
FLOAT_DTYPES = frozenset(TOLERANCES)

# Runtimes compute functions onto a bounded range to a few units in the last place of one, not of
# the result: far down its tail, ONNX Runtime's Sigmoid is off by more than its value. Results of
# these count as if their scale were at least this, which allows 1e-6, or 8 such units.
BOUNDED = frozenset({"Sigmoid", "Softmax", "Tanh"})
BOUNDED_SCALE = 1e-2

# How far an ill-conditioned model may go beyond the table: its own movement under a perturbation of
# the inputs by PERTURBATION (8 units in the last place of float32), times this.
CONDITION_FACTOR = 4.0
PERTURBATION = 2.0**-20

# How far an executable of reduced precision may be off: the error that rounding the operands of the
# original brings (rounding.py), times this. Executables also round the maps between layers, and the
# largest of few errors varies: over the reference networks the ratio of the two was 0.3 to 1.1.
ROUNDING_FACTOR = 3.0


@dataclass(frozen=True)
class Difference:
    """How far one output is from its reference.

    Attributes:
        output: its name.
        dtype: element type.
        error: largest difference relative to ``scale``; for integers and booleans the share of
            elements that differ. Infinite where shapes, types or non-finite values disagree.
        tolerance: what ``error`` may be.
        scale: largest finite magnitude of the reference.
        detail: what is wrong where ``error`` is infinite.
    """

    output: str
    dtype: str
    error: float
    tolerance: float
    scale: float
    detail: str = ""

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def at_scale(self, least: float) -> Difference:
        """The same difference relative to a scale that is ``least`` at least."""
        if not math.isfinite(self.error) or self.scale >= least:
            return self
        return replace(self, error=self.error * (self.scale or 1.0) / least, scale=least)

    def __str__(self) -> str:
        what = self.detail or f"error {self.error:.3g} of its scale {self.scale:.3g}"
        return f"output {self.output!r}: {what}, tolerance {self.tolerance:.3g}"


def dtype_name(array: np.ndarray) -> str:
    """ONNX's name of an array's element type, e.g. "float32"."""
    return "string" if array.dtype.kind in "OUS" else array.dtype.name


def tolerance(dtype: str) -> float:
    """The tolerance for outputs of an element type."""
    return TOLERANCES.get(dtype, DISCRETE_TOLERANCE)


def difference(output: str, expected: Any, actual: Any) -> Difference:
    """How far ``actual`` is from ``expected``: arrays, or sequences of maps to numbers."""
    expected, actual = _array(expected), _array(actual)
    dtype = dtype_name(expected)
    allowed = tolerance(dtype)

    def failed(detail: str) -> Difference:
        return Difference(output, dtype, math.inf, allowed, math.nan, detail)

    if dtype_name(actual) != dtype:
        return failed(f"is {dtype_name(actual)}, expected {dtype}")
    if actual.shape != expected.shape:
        return failed(f"has shape {actual.shape}, expected {expected.shape}")
    if dtype not in FLOAT_DTYPES:
        share = float(np.mean(expected != actual)) if expected.size else 0.0
        return Difference(output, dtype, share, allowed, 1.0)
    want, have = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(want)
    if not np.array_equal(want[~finite], have[~finite], equal_nan=True):
        return failed("its NaN or infinite elements differ")
    if not np.isfinite(have[finite]).all():
        return failed("has NaN or infinite elements where the reference has numbers")
    scale = float(np.abs(want[finite]).max(initial=0.0))
    largest = float(np.abs(want[finite] - have[finite]).max(initial=0.0))
    # A reference that is zero all over has no scale of its own: the error is taken as it is.
    return Difference(output, dtype, largest / (scale or 1.0), allowed, scale)


def _array(value: Any) -> np.ndarray:
    """A value as an array; of a sequence of maps (scikit-learn's class probabilities) the values.

    Maps are in the order of their keys, which are the same in all, or nothing is changed.
    """
    maps = isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    if not maps or any(each.keys() != value[0].keys() for each in value):
        return np.asarray(value)
    array = np.asarray([[each[key] for key in sorted(each)] for each in value])
    return array.astype(np.float32) if array.dtype == np.float64 else array


def differences(
    expected: Mapping[str, np.ndarray], actual: Mapping[str, np.ndarray]
) -> list[Difference]:
    """One :class:`Difference` per output of ``expected``, in its order."""
    found = []
    for name, want in expected.items():
        if name in actual:
            found.append(difference(name, want, actual[name]))
        else:
            dtype = dtype_name(np.asarray(want))
            bound = tolerance(dtype)
            found.append(Difference(name, dtype, math.inf, bound, math.nan, "is missing"))
    return found


def worst(found: Sequence[Sequence[Difference]]) -> list[Difference]:
    """Per output the difference of several comparisons that is largest by its tolerance."""
    return [max(each, key=lambda d: d.error / d.tolerance) for each in zip(*found, strict=True)]


def random_inputs(
    types: Mapping[str, TensorType], seed: int, magnitude: float = 1.0
) -> dict[str, np.ndarray]:
    """Seeded inputs of static types; floats are multiplied by ``magnitude``.

    Floats are standard normal at even seeds and uniform in [0, 1) at odd ones, because networks are
    fed both kinds (normalised and plain pixels); integers are small and not negative, so that they
    can be indices; booleans are coin flips.
    """
    return {
        name: _random_array(t, np.random.default_rng([seed, i]), seed, magnitude)
        for i, (name, t) in enumerate(types.items())
    }


def perturbed(inputs: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """The inputs with every float32 and float64 moved by up to :data:`PERTURBATION` of itself."""
    rng = np.random.default_rng(seed)
    moved = {}
    for name, array in inputs.items():
        if array.dtype in (np.float32, np.float64):
            noise = rng.uniform(-PERTURBATION, PERTURBATION, array.shape)
            array = (array * (1.0 + noise)).astype(array.dtype)
        moved[name] = array
    return moved


def _random_array(
    t: TensorType, rng: np.random.Generator, seed: int, magnitude: float
) -> np.ndarray:
    shape, dtype = t.static_shape, t.dtype
    if shape is None or dtype is None:
        raise ValueError(f"no static type: {t}")
    if dtype == "string":
        return np.full(shape, "a", dtype=object)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    kind = NUMPY_DTYPES[dtype]
    if np.issubdtype(kind, np.integer):
        high = 256 if dtype == "uint8" else 128 if dtype == "int8" else 10
        return rng.integers(0, high, shape).astype(kind)
    values = rng.random(shape) if seed % 2 else rng.standard_normal(shape)
    return (values * magnitude).astype(kind)
