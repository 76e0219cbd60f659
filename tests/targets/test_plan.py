"""Memory planning: nothing that lives overlaps, and what is shared is shared rightly."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwopt.targets.cpu.codegen import SLACK_BYTES
from pwopt.targets.plan import (
    ALIGNMENT,
    Buffer,
    Plan,
    Pointer,
    Step,
    Tensor,
    assign_offsets,
    pack_constants,
    place,
)
from pwopt.targets.views import View


def nothing() -> None:
    """Stands for a kernel's factory."""


def step(*buffers: Buffer, in_place: bool = False) -> Step:
    """A call that reads all buffers but the last, which it writes."""
    pointers = tuple(map(Pointer, buffers))
    pair = (0, len(buffers) - 1) if in_place else None
    return Step(nothing, (), pointers, (len(buffers) - 1,), in_place=pair)


def work(size: int) -> Buffer:
    return Buffer("workspace", size)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Steps that each write a new buffer, or one more slice of the last one."""
    made, steps = [Buffer("input", 64, index=0)], []
    for _ in range(draw(st.integers(1, 20))):
        read = [made[draw(st.integers(0, len(made) - 1))] for _ in range(draw(st.integers(1, 3)))]
        again = draw(st.integers(0, 5)) == 0 and made[-1] not in read and made[-1].kind != "input"
        target = made[-1] if again else work(draw(st.sampled_from((64, 64, 100, 1000, 0))))
        steps.append(step(*read, target, in_place=draw(st.booleans())))
        if not again:
            made.append(target)
    return Plan(steps)


def lives(plan: Plan) -> dict[Buffer, tuple[int, int]]:
    found: dict[Buffer, tuple[int, int]] = {}
    for i, each in enumerate(plan.steps):
        for pointer in each.pointers:
            if pointer.buffer.kind == "workspace":
                found[pointer.buffer] = (found.get(pointer.buffer, (i, i))[0], i)
    return found


def run(plan: Plan) -> list[Any]:
    """Symbolic execution on named memory: what every step reads, as an expression."""
    memory: dict[Any, Any] = {}
    seen = []
    for i, each in enumerate(plan.steps):
        names = [(p.buffer, p.offset) for p in each.pointers]
        operands = tuple(memory.get(n, "input") for n in names[:-1])
        seen.append(operands)
        before = memory.get(names[-1]) if names[-1] not in names[:-1] else None
        memory[names[-1]] = (i, operands) if before is None else (i, operands, before)
    return seen


@settings(max_examples=300, deadline=None)
@given(plans())
def test_live_buffers_never_overlap(plan: Plan) -> None:
    wanted = run(plan)
    assign_offsets(plan)
    life = lives(plan)
    for buffer in life:
        assert buffer.offset >= 0
        assert buffer.offset % ALIGNMENT == 0
        assert buffer.offset + buffer.bytes + SLACK_BYTES <= plan.workspace_bytes
    for a, b in combinations(life, 2):
        if life[a][0] <= life[b][1] and life[b][0] <= life[a][1]:
            apart = a.offset + a.bytes <= b.offset or b.offset + b.bytes <= a.offset
            assert apart, (a, b)
    assert [len(r) for r in run(plan)] == [len(r) for r in wanted]
    for each in plan.steps:
        if each.shares:
            assert each.in_place is not None
            first, last = (each.pointers[p] for p in each.in_place)
            assert first == last


@settings(max_examples=300, deadline=None)
@given(plans())
def test_sharing_in_place_changes_nothing_that_is_read(plan: Plan) -> None:
    wanted = run(plan)
    assign_offsets(plan)
    assert run(plan) == wanted


def test_a_result_takes_over_an_operand_that_dies() -> None:
    a, b = work(128), work(128)
    plan = Plan(
        [step(Buffer("input", 64, index=0), a), step(a, b, in_place=True), step(b, work(64))]
    )
    assign_offsets(plan)
    assert plan.steps[1].shares
    assert plan.steps[2].pointers[0].buffer is a
    assert plan.steps[1].key != step(a, b, in_place=True).key


@pytest.mark.parametrize("reason", ["read later", "read twice", "other size", "an input"])
def test_a_result_does_not_take_over(reason: str) -> None:
    a = Buffer("input", 128, index=0) if reason == "an input" else work(128)
    b = work(64 if reason == "other size" else 128)
    operands = (a, a, b) if reason == "read twice" else (a, b)
    steps = [step(work(64), a), step(*operands, in_place=True), step(b, work(64))]
    if reason == "read later":
        steps.append(step(a, work(64)))
    plan = Plan(steps)
    assign_offsets(plan)
    assert not plan.steps[1].shares


def test_memory_is_reused() -> None:
    buffers = [work(1024) for _ in range(10)]
    plan = Plan([step(a, b) for a, b in pairwise(buffers)])
    assign_offsets(plan)
    assert plan.workspace_bytes == 2 * (1024 + SLACK_BYTES)


def test_constants_are_packed_once() -> None:
    array = np.arange(100, dtype=np.float32)
    same, twin = (Buffer("constant", 0, data=lambda: array) for _ in range(2))
    other = Buffer("constant", 0, data=lambda: array + 1)
    plans = [
        Plan([step(same, work(64)), step(twin, work(64))]),
        Plan([step(other, same, work(64))]),
    ]
    blob = pack_constants(plans)
    assert same.offset == twin.offset != other.offset
    assert blob.ctypes.data % ALIGNMENT == 0
    for buffer, want in ((same, array), (twin, array), (other, array + 1)):
        assert buffer.offset % ALIGNMENT == 0
        assert buffer.offset + buffer.bytes + SLACK_BYTES <= blob.nbytes
        got = blob[buffer.offset : buffer.offset + buffer.bytes].view(np.float32)
        assert np.array_equal(got, want)


@given(st.integers(0, 500), st.sampled_from(("float32", "int8", "float64")))
def test_place_keeps_the_address(offset: int, dtype: str) -> None:
    view = View((4,), (1,), offset, dtype)
    pointer, moved = place(Tensor(work(4096), view))
    assert pointer.offset % ALIGNMENT == 0
    assert pointer.offset + moved.offset * view.itemsize == offset * view.itemsize
    assert 0 <= moved.offset * view.itemsize < ALIGNMENT


def test_cleared_buffers_come_first_and_share_with_nobody() -> None:
    counters = [Buffer("workspace", 4, cleared=True) for _ in range(2)]
    others = [Buffer("workspace", 256) for _ in range(3)]
    steps = [
        Step(str, (), (Pointer(a), Pointer(b), Pointer(c)), (1, 2))
        for a, b, c in zip(others, others[1:], counters, strict=False)
    ]
    plan = Plan(steps)
    assign_offsets(plan)
    assert sorted(b.offset for b in counters) == [0, 128]
    assert plan.cleared_bytes == 256
    assert min(b.offset for b in others) == plan.cleared_bytes
