"""The passes: a table of names, and the order in which they run by default."""

from __future__ import annotations

if __name__ != "pwopt.passes":
    raise ImportError("this folder is the package pwopt.passes: import that instead")

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
from pwopt.passes.merge_parallel_pointwise import MergeParallelPointwise
from pwopt.passes.sink_transpose import SinkTranspose
from pwopt.passes.sum_of_pointwise import SumOfPointwise
from pwopt.pipeline import Pass

__all__ = ["PASSES", "default_pipeline"]

# In the order of the default pipeline. What is constant or does nothing goes first, so that the
# folds see bare chains; the folds come before the fusions, which hide operators in internal ones.
# Common subexpressions come after the folds: equal weights, once merged, are shared ones, which
# only fold as copies.
_DEFAULT: tuple[type[Pass], ...] = (
    EliminateDeadCode,
    FoldConstants,
    EliminateIdentity,
    Canonicalize,
    FoldBatchNorm,
    FoldAffine,
    EliminateCommonSubexpressions,
    EliminateDeadCode,
    InferShapes,
    ConvertPointwise,
    ConvertFcHead,
    FuseEpilogue,
    FuseElementwise,
)

# Only run when they are named.
_OPTIONAL: tuple[type[Pass], ...] = (
    CollapseLinearChains,
    CommutePooling,
    CommuteUpsample,
    FoldChannelShuffle,
    HoistStride,
    MergeParallelPointwise,
    SinkTranspose,
    SumOfPointwise,
)

PASSES: dict[str, type[Pass]] = {each.name: each for each in (*_DEFAULT, *_OPTIONAL)}


def default_pipeline() -> list[Pass]:
    """The passes that are exact, in order, each with its default options."""
    return [each() for each in _DEFAULT]
