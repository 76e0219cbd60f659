"""Taking one guard of a pass away gives wrong answers, and random networks find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, find, settings

from pwopt.errors import PwoptError
from pwopt.hardware import AVX2, AVX512
from pwopt.ir.graph import Graph, Node
from pwopt.ir.program import Program
from pwopt.passes import (
    PASSES,
    convert_pointwise,
    convolution,
    elementwise,
    linear,
    matrix,
    rewriting,
    tails,
)
from pwopt.targets import plan
from tests.fuzz import blocks, families, layers
from tests.fuzz.checking import Machine, check_compiled, check_export, optimized, oracle
from tests.fuzz.generator import EVERYTHING, Example, networks
from tests.fuzz.layers import Layer

MACHINE = Machine(AVX2, 1)


def wrong(check: Callable[[Example], None]) -> Callable[[Example], bool]:
    """Whether a check fails."""

    def fails(example: Example) -> bool:
        try:
            check(example)
        except (AssertionError, PwoptError):
            return True
        return False

    return fails


def compiled(example: Example) -> None:
    answers = oracle(example)
    check_compiled(answers, answers.graph, MACHINE)


def counterexample(check: Callable[[Example], None], *kinds: Any, examples: int) -> Example:
    """The first random network that fails; raises NoSuchExample if there is none."""
    quick = settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    return find(networks(layers=kinds or EVERYTHING), wrong(check), settings=quick)


@dataclass(frozen=True)
class Mutation:
    """A guard that is taken away.

    Attributes:
        drop: takes it away.
        layers: of the networks; all kinds if there are none.
        slow: what the imagined machine is slow at, so that the rewrite pays.
    """

    drop: Callable[[pytest.MonkeyPatch], None]
    layers: tuple[Layer, ...] = ()
    slow: str = ""


def returns(where: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    """Lets a function that gives reasons give none."""
    return lambda patch: patch.setattr(f"pwopt.passes.{where}", lambda *_, **__: value)


def attribute_ignored(module: str, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Lets a pass see the default of a text attribute, whatever it is."""

    def drop(patch: pytest.MonkeyPatch) -> None:
        def text(node: Node, attribute: str, default: str) -> str:
            return default if attribute == name else rewriting.text(node, attribute, default)

        patch.setattr(f"pwopt.passes.{module}.text", text)

    return drop


def steps_ignored(module: str) -> Callable[[pytest.MonkeyPatch], None]:
    """Lets a pass take every Slice for one without steps."""

    def drop(patch: pytest.MonkeyPatch) -> None:
        def int_list(graph: Graph, node: Node, slot: int, name: str) -> tuple[int, ...] | None:
            return (1,) if slot == 4 else rewriting.int_list(graph, node, slot, name)

        patch.setattr(f"pwopt.passes.{module}.int_list", int_list)

    return drop


def contents_ignored(patch: pytest.MonkeyPatch) -> None:
    """Constants of one type and shape are taken for equal."""

    def key(node: Node) -> Any:
        return node.attributes["value"].dtype, node.attributes["value"].shape

    patch.setattr("pwopt.passes.eliminate_common_subexpressions._constant_key", key)


def any_axis(patch: pytest.MonkeyPatch) -> None:
    """Output channels are taken to lie along axis 1, those of a MatMul, too."""

    def linear_at(graph: Graph, node: Node) -> linear.Linear | str:
        found = linear.linear_at(graph, node)
        return found if isinstance(found, str) else replace(found, axis=1)

    patch.setattr("pwopt.passes.fold_batch_norm.linear_at", linear_at)


def pads_ignored(patch: pytest.MonkeyPatch) -> None:
    """Padded 1x1 convolutions are taken for products."""

    def pointwise(graph: Graph, node: Node) -> Any:
        found = original(graph, node)
        return convolution.read(graph, node) if "pads" in str(found) else found

    original = convert_pointwise._pointwise
    patch.setattr("pwopt.passes.convert_pointwise._pointwise", pointwise)


def wider_results(patch: pytest.MonkeyPatch) -> None:
    """What makes the result larger is fused all the same."""

    def fitting(self: Any, node: Node) -> Any:
        return elementwise.read(self._graph, node)

    patch.setattr("pwopt.passes.fuse_epilogue._Region._fitting", fitting)


def any_alpha(patch: pytest.MonkeyPatch) -> None:
    """Every Celu is taken for an Elu."""

    def celu(graph: Graph, node: Node) -> Any:
        x = graph.operand(node, 0)
        assert x is not None
        return elementwise.Elementwise(Program().then("Elu", 1.0), (x,))

    patch.setitem(elementwise._READERS, "Celu", celu)


def any_link(patch: pytest.MonkeyPatch) -> None:
    """Different activations are taken for equal."""

    def tail(graph: Graph, part: matrix.Matrix) -> list[tails.Link]:
        return [replace(link, key="") for link in tails.tail(graph, part)]

    patch.setattr("pwopt.passes.merge_parallel_pointwise.tail", tail)


def any_transpose(patch: pytest.MonkeyPatch) -> None:
    """Operands are taken to be transposed like the first."""
    patch.setattr(
        "pwopt.passes.sink_transpose._Region._of",
        lambda self, value: self.perms.setdefault(value, self.perm),
    )


def outputs_unread(patch: pytest.MonkeyPatch) -> None:
    """An output that nothing reads is taken for dead."""
    patch.setattr(
        Graph,
        "_is_read",
        lambda self, node: any(map(self.uses, map(node.__getitem__, range(len(node.types))))),
    )


GUARDS: dict[str, Mutation] = {
    "eliminate-dead-code": Mutation(outputs_unread),
    "fold-constants": Mutation(steps_ignored("shape_values"), (families.by_shape,)),
    "eliminate-identity": Mutation(steps_ignored("eliminate_identity"), (blocks.crop,)),
    "canonicalize": Mutation(attribute_ignored("canonical_windows", "mode"), (blocks.pad_conv,)),
    "fold-batch-norm": Mutation(any_axis, (families.token_mixing,)),
    "fold-affine": Mutation(returns("linear._shift_trouble", None), (layers.affine, layers.conv)),
    "eliminate-common-subexpressions": Mutation(contents_ignored),
    "convert-pointwise": Mutation(pads_ignored, (layers.pointwise,)),
    "convert-fc-head": Mutation(returns("convert_fc_head._key", ()), (families.classifier,)),
    "fuse-epilogue": Mutation(wider_results, (families.sum_of_products, layers.squeeze_excite)),
    "fuse-elementwise": Mutation(any_alpha, (layers.activation,)),
    "collapse-linear-chains": Mutation(
        returns("collapse_linear_chains._geometry_trouble", None), (families.linear_chain,)
    ),
    "commute-pooling": Mutation(
        returns("commute_pooling._counts_padding", None), (families.transition,), slow="arithmetic"
    ),
    "commute-upsample": Mutation(
        attribute_ignored("commute_upsample", "mode"), (families.resized,), slow="arithmetic"
    ),
    "fold-channel-shuffle": Mutation(
        returns("fold_channel_shuffle._groups", None), (families.shuffle_unit,)
    ),
    "hoist-stride": Mutation(
        attribute_ignored("hoist_stride", "auto_pad"),
        (families.bottleneck,),
        slow="arithmetic",
    ),
    "merge-parallel-pointwise": Mutation(any_link, (families.parallel,), slow="launches"),
    "sink-transpose": Mutation(any_transpose, (families.channels_last_sum, blocks.channels_last)),
    "sum-of-pointwise": Mutation(
        returns("sum_of_pointwise._sum_trouble", None), (families.sum_of_products,), slow="memory"
    ),
}
RARE = {"commute-pooling", "fold-affine", "hoist-stride", "sum-of-pointwise"}  # found after seconds
WITHOUT_GUARD = {"infer-shapes"}  # in these networks all types are known from the start


def test_every_exact_pass_has_a_guard() -> None:
    exact = {name for name, each in PASSES.items() if not each.lossy}
    assert GUARDS.keys() | WITHOUT_GUARD == exact


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.fuzz if n in RARE else ()) for n in GUARDS]
)
def test_dropped_guard_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutation = GUARDS[name]
    machine = Machine(AVX512, 1, mutation.slow)

    def check(example: Example) -> None:
        answers = oracle(example)
        check_export(answers, optimized(answers, machine, name))

    with monkeypatch.context() as patch:
        mutation.drop(patch)
        found = counterexample(check, *mutation.layers, examples=500)
    check(found)  # by the guard alone


@pytest.mark.slow
def test_result_in_the_memory_of_an_operand_still_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def share(steps: list[plan.Step]) -> None:
        """In place without asking whether the operand dies, as the guard does."""
        for i, step in enumerate(steps):
            if step.in_place is None:
                continue
            old, new = (step.pointers[p].buffer for p in step.in_place)
            if old is new or {old.kind, new.kind} != {"workspace"} or old.bytes != new.bytes:
                continue
            for later in steps[i:]:
                later.pointers = tuple(
                    plan.Pointer(old, p.offset) if p.buffer is new else p for p in later.pointers
                )
            step.shares = True

    monkeypatch.setattr(plan, "_share_in_place", share)
    kinds = (layers.residual, layers.activation, layers.squeeze_excite)
    counterexample(compiled, *kinds, examples=100)
