"""The passes: a table of names, and the order in which they run by default."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import TypeVar

if __name__ != "pwopt.passes":
    raise ImportError("this folder is the package pwopt.passes: import that instead")

from pwopt.errors import UsageError
from pwopt.passes.canonicalize import Canonicalize
from pwopt.passes.collapse_linear_chains import CollapseLinearChains
from pwopt.passes.commute_pooling import CommutePooling
from pwopt.passes.commute_upsample import CommuteUpsample
from pwopt.passes.convert_fc_head import ConvertFcHead
from pwopt.passes.convert_pointwise import ConvertPointwise
from pwopt.passes.eliminate_common_subexpressions import EliminateCommonSubexpressions
from pwopt.passes.eliminate_dead_code import EliminateDeadCode
from pwopt.passes.eliminate_identity import EliminateIdentity
from pwopt.passes.fold_affine import FoldAffine
from pwopt.passes.fold_batch_norm import FoldBatchNorm
from pwopt.passes.fold_channel_shuffle import FoldChannelShuffle
from pwopt.passes.fold_constants import FoldConstants
from pwopt.passes.fuse_elementwise import FuseElementwise
from pwopt.passes.fuse_epilogue import FuseEpilogue
from pwopt.passes.hoist_stride import HoistStride
from pwopt.passes.infer_shapes import InferShapes
from pwopt.passes.insert_bottlenecks import InsertBottlenecks
from pwopt.passes.merge_parallel_pointwise import MergeParallelPointwise
from pwopt.passes.replace_fc_head import ReplaceFcHead
from pwopt.passes.sink_transpose import SinkTranspose
from pwopt.passes.sum_of_pointwise import SumOfPointwise
from pwopt.pipeline import Pass
from pwopt.specs import parse_specs

__all__ = [
    "CLEAN_UP",
    "DEFAULT",
    "LOSSY",
    "LOWERING",
    "PASSES",
    "STRUCTURAL",
    "default_pipeline",
    "parse",
    "register_pass",
]

DEFAULT = "default"  # in a spec: all passes of the default pipeline

AnyPass = TypeVar("AnyPass", bound=type[Pass])

# In the order of the default pipeline. What is constant or does nothing goes first, so that the
# folds see bare chains; the folds come before the fusions, which hide operators in internal ones.
# Common subexpressions come after the folds: equal weights, once merged, are shared ones, which
# only fold as copies. STRUCTURAL passes, which move and merge convolutions, need the weights as the
# folds leave them, and standard operators around them.
STRUCTURAL: tuple[type[Pass], ...] = (
    SinkTranspose,
    FoldChannelShuffle,
    HoistStride,
    CommutePooling,
    CommuteUpsample,
    CollapseLinearChains,
    MergeParallelPointwise,
    SumOfPointwise,
)

# These turn standard operators into internal ones, each of which hides operators from the passes
# before, so they come last. Up to here the order only decides how many rounds it takes.
LOWERING: tuple[type[Pass], ...] = (
    ConvertPointwise,
    ConvertFcHead,
    FuseEpilogue,
    FuseElementwise,
)

CLEAN_UP: tuple[type[Pass], ...] = (
    EliminateDeadCode,
    FoldConstants,
    EliminateIdentity,
    Canonicalize,
    FoldBatchNorm,
    FoldAffine,
    EliminateCommonSubexpressions,
    EliminateDeadCode,
    InferShapes,
)

# These change what a model computes, within a budget, and run only where asked for.
LOSSY: tuple[type[Pass], ...] = (ReplaceFcHead, InsertBottlenecks)

_DEFAULT = (*CLEAN_UP, *STRUCTURAL, *LOWERING)

PASSES: dict[str, type[Pass]] = {each.name: each for each in (*_DEFAULT, *LOSSY)}


def default_pipeline() -> list[Pass]:
    """The passes that are exact, in order, each with its default options."""
    return [each() for each in _DEFAULT]


def parse(spec: str) -> list[Pass]:
    """Passes from a spec such as ``"my-pass{limit=3},default"``; see :func:`parse_specs`.

    Raises:
        UsageError: an unknown pass or option, or a value of the wrong kind.
    """
    return parse_specs(spec, PASSES, {DEFAULT: default_pipeline})


def register_pass(cls: AnyPass) -> AnyPass:
    """Makes a pass known by its name to specs and to the command line; a class decorator.

    Raises:
        UsageError: the class is no frozen dataclass derived from Pass, or its name is not in kebab
            case or belongs to another pass.
    """
    if not (isinstance(cls, type) and issubclass(cls, Pass)) or inspect.isabstract(cls):
        raise UsageError(f"{cls!r} cannot be registered: derive it from pwopt.Pass or Rewrite")
    shown = f"pass {cls.__qualname__}"
    if not dataclasses.is_dataclass(cls) or not cls.__dataclass_params__.frozen:
        raise UsageError(
            f"{shown} is no frozen dataclass: decorate it with @dataclass(frozen=True)"
        )
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise UsageError(f"{shown}: its name {name!r} is not of the form my-pass")
    known = PASSES.get(name)
    again = known is not None and known.__qualname__ == cls.__qualname__
    built_in = known is not None and known.__module__.startswith(f"{__name__}.")
    if name == DEFAULT or (known is not None and (built_in or not again)):
        raise UsageError(f"{shown}: the name {name!r} is taken; choose another")
    PASSES[name] = cls
    return cls
