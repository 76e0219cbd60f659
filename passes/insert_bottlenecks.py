"""The pass ``insert-bottlenecks``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pwopt import calibration
from pwopt.approximation import METRICS, Approximation, Judge, LayerChange
from pwopt.calibration import Calibration
from pwopt.errors import UsageError
from pwopt.ir.graph import Graph
from pwopt.passes import bottleneck, rank_choice
from pwopt.passes.bottleneck import Layer
from pwopt.passes.rank_choice import Choice, Plan
from pwopt.pipeline import Context, KernelTime, Pass, Remark, us_of
from pwopt.running import input_types

_FITTED = 4096  # examples for the fit, or half of them; half of the rest for the search
_PAYS = 0.97  # of the time before, or a layer stays as it is
_WORTH = 0.01  # of the network's time, that a change of a layer must save, ...
_WORTH_OF_MEAN = 0.25  # ... or this share of an average layer's, if that is less
_NETWORK_PAYS = 0.95  # of the network's time before, or all of it stays as it is
_PROBE = 0.05  # of the responses' energy that is taken away to see what the output makes of it
_ATTEMPTS = 5  # at plans that keep the budget on examples which the search has not seen
_MILDER = 0.7  # of the estimated error, from one attempt to the next


@dataclass(frozen=True)
class InsertBottlenecks(Pass):
    """Replaces layers by narrower ones between 1x1 convolutions, within a budget of error.

    Rewrite:
        ``Conv_kxk`` → ``Conv1x1``, ``Conv_kxk`` of fewer channels, ``Conv1x1``, or without the
        first or the last of them; ``Conv1x1`` → two; ``Gemm`` → two.
    Shapes:
        one group, any strides, dilation, padding and spatial rank; matrices of rank 2.
    Numerics:
        lossy. What a layer reads is reduced to the principal directions of its inputs on
        calibration data; the rest of it is fitted, at its rank, to the original's responses in the
        network as it is by then, as far as a ReLU or Clip behind it tells them apart; of large
        layers the last 1x1 alone. Without data the weights' own directions. Ranks of all layers
        are chosen together: the fastest that keep the budget on examples that the fit has not
        seen, by predicted time, and by measured time where that is known. Other examples judge the
        result.
    Misses when:
        nothing is predicted or measured to be faster within the budget, or all together by less
        than 5 %; weights are shared or not constant; there are several groups, or too few channels.
    Source:
        Zhang et al., TPAMI 2016; Kim et al., ICLR 2016; see :mod:`pwopt.passes.low_rank`.

    Attributes:
        budget: the loss that is allowed, by the metric.
        metric: "accuracy" (its decrease), "agreement" (share of examples whose class changes),
            "kl" (divergence of class probabilities, nats), "l2" (relative), or "auto".
        rank: instead of a search, this share of the channels is kept on both sides of every layer;
            0 searches.
    """

    name: ClassVar[str] = "insert-bottlenecks"
    lossy: ClassVar[bool] = True

    budget: float = 0.01
    metric: str = "auto"
    rank: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.budget < math.inf or not 0 <= self.rank < 1:
            raise UsageError(f"{self.spec}: the budget is at least 0, the rank from 0 to 1")
        if self.metric not in METRICS:
            raise UsageError(f"{self.spec}: the metric is one of {', '.join(METRICS)}")

    def run(self, graph: Graph, context: Context) -> None:
        layers = list(self._layers(graph, context))
        if not layers:
            return
        data = context.calibration
        if data is None:
            data = calibration.random(input_types(graph))
        fitted = min(0.5, _FITTED / len(data))
        fit, search, held_out = data.split(fitted, (1 - fitted) / 2, (1 - fitted) / 2)
        judges = [Judge(graph, examples, self.metric) for examples in (search, held_out)]
        bottleneck.observe(graph, layers, fit)
        model = _Bottlenecks(graph.copy(), layers, fit, context)
        plan = model.at_rank(self.rank) if self.rank else model.worth(self._search(model, *judges))
        changed = model.build(plan)
        for layer, choice in zip(layers, plan, strict=True):
            if choice.keeps:
                context.remarks.append(Remark(self.name, layer.label, False, model.why_not(layer)))
            else:
                context.rewritten(self, layer.node, layer.label, layer.text(choice))
        loss = judges[1](changed)
        context.approximations.append(
            Approximation(
                self.spec,
                self.budget,
                judges[1].metric,
                loss,
                data.source,
                data.random,
                len(fit),
                len(search),
                tuple(model.changes(plan)),
                model.why_nothing if all(choice.keeps for choice in plan) else "",
            )
        )
        if not all(choice.keeps for choice in plan):
            graph.restore(changed)

    def _search(self, model: _Bottlenecks, judge: Judge, last: Judge) -> Plan:
        """The fastest plan within the budget."""
        model.weigh(judge)

        def fits(plan: Plan) -> bool:
            return judge(model.build(plan)).by(judge.metric) <= self.budget

        def holds(plan: Plan) -> bool:
            # The search has found what suits its examples best, so others have to tell it surely.
            loss = last(model.build(plan))
            return loss.by(last.metric) + loss.standard_error(last.metric) <= self.budget

        ordered = rank_choice.plans([layer.choices for layer in model.layers])
        found = rank_choice.most_aggressive(ordered, fits)
        choices = [layer.choices for layer in model.layers]
        plan = rank_choice.refined(found, choices, fits)
        for _ in range(_ATTEMPTS):
            plan = model.without_losers(plan)
            if all(choice.keeps for choice in plan) or holds(plan):
                return plan
            plan = rank_choice.milder(plan, choices, _MILDER)
        return model.unchanged

    def _layers(self, graph: Graph, context: Context) -> Iterator[Layer]:
        for node in graph.topological():
            if not node.is_op("Conv", "Gemm", "MatMul") or not context.may_rewrite(self, node):
                continue
            layer = bottleneck.read(graph, node)
            if isinstance(layer, str):
                context.remarks.append(Remark(self.name, node.label, False, layer))
            else:
                yield layer


class _Bottlenecks:
    """The network with each layer as it is or replaced.

    Attributes:
        layers: in topological order.
        unchanged: the plan that keeps them all.
        why_nothing: the reason if that is what comes of it.
    """

    def __init__(
        self, original: Graph, layers: list[Layer], fit: Calibration, context: Context
    ) -> None:
        self.layers, self._original, self._fit, self._context = layers, original, fit, context
        self._model = context.cost_model
        self._why: dict[Layer, str] = {}
        # The last plan's choices, the network with all up to each, and the error of each; plans
        # that begin alike go on from there.
        self._built: list[tuple[Choice, Graph, float | None]] = []
        self._measured: dict[Plan, Sequence[KernelTime]] = {}
        unit = bottleneck.rank_unit(context.hardware)
        total = self._model.graph_us(original)
        worth = total * min(_WORTH, _WORTH_OF_MEAN / len(layers))
        for layer in layers:
            keep = self._choice(layer, None, None)
            every = [self._choice(layer, *ranks) for ranks in layer.ranks(unit)]
            found = [c for c in every if c.us < _PAYS * keep.us]
            layer.choices = rank_choice.apart([*rank_choice.pareto(found), keep], worth)
            if len(layer.choices) == 1:
                least = min((c.us for c in every), default=None)
                self._why[layer] = _not_faster(layer, keep.us, least, total)
        self.unchanged: Plan = tuple(layer.choices[-1] for layer in layers)
        self.why_nothing = "every faster choice would cost more than the budget allows"
        if all(len(layer.choices) == 1 for layer in layers):
            self.why_nothing = (
                f"no layer would save {worth:.2g} of the {total:.3g} us that the network is "
                "predicted to take"
            )

    def build(self, plan: Plan) -> Graph:
        """The network by a plan, each layer fitted in what stands before it by then."""
        same = 0
        while same < min(len(self._built), len(plan)) and self._built[same][0] == plan[same]:
            same += 1
        del self._built[same:]
        graph = self._built[-1][1] if self._built else self._original
        for layer, choice in list(zip(self.layers, plan, strict=True))[same:]:
            error = None
            if not choice.keeps:
                graph = graph.copy()
                error = bottleneck.replace(graph, layer, choice, self._fit)
            self._built.append((choice, graph, error))
        return graph

    def weigh(self, judge: Judge) -> None:
        """Multiplies the errors of a layer's choices by what the network's output makes of them.

        A choice near the error of the probe is fitted, as it would be in a plan: what fits make up
        for differs between layers by a factor of several.
        """
        for layer in self.layers:
            lossy = [c for c in layer.choices if c.error > 0]
            if not lossy:
                continue
            probe = min(lossy, key=lambda c: abs(math.log(c.error / _PROBE)))
            graph = self._original.copy()
            bottleneck.replace(graph, layer, probe, self._fit)
            loss = judge(graph)
            felt = loss.l2**2 if loss.kl is None else loss.kl
            weight = max(felt, 1e-12) / probe.error
            layer.choices = [replace(c, error=c.error * weight) for c in layer.choices]

    def at_rank(self, share: float) -> Plan:
        """Every layer with this share of its channels."""
        unit = bottleneck.rank_unit(self._context.hardware)
        plan = []
        for layer in self.layers:
            sizes = layer.weight.shape[1::-1]
            if not layer.has_window:
                sizes = (0, min(sizes))  # two factors, so one rank
            wanted = [max(unit, round(share * size / unit) * unit) for size in sizes]
            ranks = [w if w < size else None for w, size in zip(wanted, sizes, strict=True)]
            plan.append(self._choice(layer, *ranks))
            self._why[layer] = f"{share:g} of its channels are not fewer in whole vectors of {unit}"
        return tuple(plan)

    def without_losers(self, plan: Plan) -> Plan:
        """The plan without what measures as no faster than the layer that it replaces."""
        kept = list(plan)
        for i, (layer, choice) in enumerate(zip(self.layers, plan, strict=True)):
            if choice.keeps:
                continue
            old, new = self._measured_us(layer, self.unchanged), self._measured_us(layer, plan)
            if old is not None and new is not None and new >= _PAYS * old:
                text = layer.text(choice)
                self._why[layer] = f"{text}: measured {new:.3g} us, {old:.3g} us before"
                kept[i] = layer.choices[-1]
        return tuple(kept)

    def worth(self, plan: Plan) -> Plan:
        """The plan, or the unchanged one where the network does not get much faster by it."""
        plans = (self.unchanged, plan)
        times, how = [self._times(each) for each in plans], "measured"
        before, after = (sum(kernel.us for kernel in each) for each in times)
        if not all(times):
            before, after = (self._model.graph_us(self.build(each)) for each in plans)
            how = "predicted"
        if plan == self.unchanged or after < _NETWORK_PAYS * before:
            return plan
        self.why_nothing = (
            f"the network would take {after:.3g} us instead of {before:.3g}, {how}; "
            f"{1 - _NETWORK_PAYS:.0%} less would be worth a loss"
        )
        for layer, choice in zip(self.layers, plan, strict=True):
            if not choice.keeps:
                self._why[layer] = self.why_nothing
        return self.unchanged

    def why_not(self, layer: Layer) -> str:
        """Why a layer stays as it is."""
        return self._why.get(layer, "every faster choice would cost more than the budget allows")

    def changes(self, plan: Plan) -> Iterator[LayerChange]:
        """What each replaced layer became."""
        self.build(plan)
        for layer, (choice, _, error) in zip(self.layers, self._built, strict=True):
            if choice.keeps:
                continue
            old = bottleneck.figures(self._original, layer, layer.choices[-1], self._model)
            new = bottleneck.figures(self._original, layer, choice, self._model)
            yield LayerChange(
                node=layer.label,
                text=layer.text(choice),
                channels_in=layer.weight.shape[1],
                channels_out=layer.weight.shape[0],
                rank_in=choice.rank_in,
                rank_out=choice.rank_out,
                parameters_before=old.parameters,
                parameters_after=new.parameters,
                macs_before=old.macs,
                macs_after=new.macs,
                predicted_before_us=old.us,
                predicted_after_us=new.us,
                measured_before_us=self._measured_us(layer, self.unchanged),
                measured_after_us=self._measured_us(layer, plan),
                error=error,
                spectrum=layer.spectrum,
                spectrum_in=layer.spectrum_in,
            )

    def _measured_us(self, layer: Layer, plan: Plan) -> float | None:
        """The time of what a plan makes of a layer; None where that is not known."""
        return us_of(layer.node.origin, self._times(plan))

    def _times(self, plan: Plan) -> Sequence[KernelTime]:
        """Measured times of the kernels; none where they cannot be had."""
        if self._context.measure is None:
            return ()
        if plan not in self._measured:
            self._measured[plan] = self._context.measure(self.build(plan))
        return self._measured[plan]

    def _choice(self, layer: Layer, rank_in: int | None, rank_out: int | None) -> Choice:
        choice = Choice(rank_in, rank_out, 0.0, layer.error(rank_in, rank_out))
        figures = bottleneck.figures(self._original, layer, choice, self._model)
        return replace(choice, us=figures.us)


def _not_faster(layer: Layer, now: float, least: float | None, total: float) -> str:
    """Why no narrower layer is predicted to pay."""
    if least is None:
        return f"{layer.weight.shape[1]} and {layer.weight.shape[0]} channels fill few vectors"
    return f"predicted {now:.3g} us, {least:.3g} us at best with bottlenecks; {total:.3g} us in all"
