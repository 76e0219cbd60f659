"""Programs as CUDA expressions, in the emulator, against float64 references."""

from __future__ import annotations

import numpy as np
import pytest

from pwopt.ir.program import BINARY, PARAMETERS, UNARY, Instruction, Program
from pwopt.targets.cuda.codegen import Block, Memory, kernel, serial, source
from pwopt.targets.cuda.kernel import Kernel
from pwopt.targets.cuda.kernels.functions import evaluate
from tests.targets.cuda import emulator
from tests.targets.test_emit_kernel import ABSOLUTE, BINARY_REFERENCES, LIMITS, REFERENCES, SPECIAL

POWERS = (-1.0, 0.5, 1.0, 2.0, 3.0, 2.7)
THREADS = 32


def _programs() -> dict[str, Program]:
    parameters = {op: tuple(v for _, v in PARAMETERS.get(op, ())) for op in UNARY}
    parameters["Clip"] = (-1.5, 2.5)
    return {op: Program().then(op, *parameters[op]) for op in sorted(UNARY)}


def _unary(size: int) -> Kernel:
    """Row i of y is the i-th operator of x."""

    def body(block: Block, x: Memory, y: Memory) -> None:
        with serial(size // THREADS) as step:
            place = step * THREADS + block.thread
            for row, program in enumerate(_programs().values()):
                y.store(place + row * size, [evaluate(program, x.load(place))])

    return kernel(["float32", "float32"], body, grid=(1, 1, 1), threads=THREADS)


def _binary(size: int) -> Kernel:
    """Rows of z: the operators of x and y, then the constant powers of x."""

    def body(block: Block, x: Memory, y: Memory, z: Memory) -> None:
        with serial(size // THREADS) as step:
            place = step * THREADS + block.thread
            a, b = x.load(place)[0], y.load(place)[0]
            programs = [(Program(2, (Instruction(op, (0, 1)),)), b) for op in sorted(BINARY)]
            programs += [(Program(2, (Instruction("Pow", (0, 1)),)), p) for p in POWERS]
            for row, (program, second) in enumerate(programs):
                z.store(place + row * size, [evaluate(program, [a, second])])

    return kernel(["float32"] * 3, body, grid=(1, 1, 1), threads=THREADS)


def _grid() -> np.ndarray:
    grids = [np.linspace(-110, 95, 1001), np.linspace(-8, 8, 1501), np.geomspace(1e-38, 3e38, 499)]
    x = np.concatenate([*grids, SPECIAL]).astype(np.float32)
    return np.pad(x, (0, -len(x) % THREADS))


def _close(op: str, x: np.ndarray, y: np.ndarray, exact: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        expected = exact.astype(np.float32)
    for kind in (np.isnan, np.isinf):
        assert np.array_equal(kind(y), kind(expected)), (op, x[kind(y) != kind(expected)])
    finite = np.isfinite(expected)
    error = np.abs(y[finite] - exact[finite])
    allowed = LIMITS.get(op, 3e-7) * np.abs(exact[finite]) + ABSOLUTE.get(op, 2e-43)
    worst = int(np.argmax(error - allowed))
    assert error[worst] <= allowed[worst], (op, x[finite][worst], error[worst])


@pytest.fixture(scope="module")
def library() -> tuple[emulator.Library, dict[str, Kernel]]:
    kernels = {"unary": _unary(len(_grid())), "binary": _binary(2016)}
    return emulator.compiled(kernels), kernels


def test_every_unary_operator(library: tuple[emulator.Library, dict[str, Kernel]]) -> None:
    assert set(REFERENCES) == UNARY
    x = _grid()
    y = np.zeros((len(UNARY), len(x)), np.float32)
    library[0].run("unary", library[1]["unary"], [x, y])
    for op, row in zip(_programs(), y, strict=True):
        with np.errstate(all="ignore"):
            _close(op, x, row, REFERENCES[op](x.astype(np.float64)))


def test_every_binary_operator_and_constant_powers(
    library: tuple[emulator.Library, dict[str, Kernel]],
) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(-4, 4, 2016).astype(np.float32) for _ in range(2))
    b[::2] = np.round(b[::2])
    a[:7] = [np.nan, 2, 0, np.inf, -np.inf, 1, -1]
    b[:7] = [1, np.nan, 3, 2, 3, np.inf, 2]
    z = np.zeros((len(BINARY) + len(POWERS), len(a)), np.float32)
    library[0].run("binary", library[1]["binary"], [a, b, z])
    wide = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(all="ignore"):
        expected = [BINARY_REFERENCES[op](*wide) for op in sorted(BINARY)]
        expected += [wide[0] ** np.float64(np.float32(p)) for p in POWERS]
    for op, row, exact in zip([*sorted(BINARY), *map(str, POWERS)], z, expected, strict=True):
        _close(op, a, row, exact)


def test_a_program_of_several_steps_and_arguments() -> None:
    steps = (
        Instruction("Mul", (0, 1)),
        Instruction("Add", (3, 2)),
        Instruction("Sigmoid", (4,)),
        Instruction("Mul", (4, 5)),
    )

    def body(block: Block, x: Memory, y: Memory) -> None:
        value = x.load(block.thread)[0]
        y.store(block.thread, [evaluate(Program(3, steps), [value, value + 1.0, 0.25])])

    made = kernel(["float32", "float32"], body, grid=(1, 1, 1), threads=32)
    x = np.linspace(-3, 3, 32, dtype=np.float32)
    y = np.zeros_like(x)
    emulator.build(source({"k": made}, "sm_80")).run("k", made, [x, y])
    inner = x * (x + 1) + 0.25
    np.testing.assert_allclose(y, inner / (1 + np.exp(-inner)), rtol=1e-5)


def test_a_wrong_number_of_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="2 arguments expected, 1 given"):
        evaluate(Program(2, (Instruction("Add", (0, 1)),)), [1.0])
