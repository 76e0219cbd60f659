"""View algebra against NumPy's strides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwopt.targets.views import View, channels_last, image

EXTENTS = st.sampled_from((1, 1, 2, 3, 4))


@st.composite
def views(draw: st.DrawFn, rank: int | None = None, repeats: bool = True) -> View:
    """Views that permutations, slices and broadcasts make of a dense one."""
    count = rank if rank is not None else draw(st.integers(0, 5))
    shape = draw(st.lists(EXTENTS, min_size=count, max_size=count))
    view = View.dense(shape, order=draw(st.permutations(range(count))))
    for axis in range(count):
        step = draw(st.sampled_from((1, 1, 1, 2, -1)))
        chosen = range(view.shape[axis])[::step]
        view = view.slice(axis, chosen.start, len(chosen), step)
        if repeats and view.shape[axis] == 1 and draw(st.integers(0, 4)) == 0:
            wide = list(view.shape)
            wide[axis] = 3
            view = view.broadcast(wide)
    return view


def memory(view: View) -> np.ndarray:
    """Numbered elements with room on both sides, and what the view sees of them."""
    reach = sum(abs(s) * max(e - 1, 0) for s, e in zip(view.strides, view.shape, strict=True))
    return np.arange(2 * (abs(view.offset) + reach) + 2, dtype=np.float32)


def seen(view: View, flat: np.ndarray) -> np.ndarray:
    start = view.offset
    strides = tuple(s * flat.itemsize for s in view.strides)
    return np.lib.stride_tricks.as_strided(flat[start:], view.shape, strides)


@given(views(), st.data())
def test_permute(view: View, data: st.DataObject) -> None:
    axes = data.draw(st.permutations(range(len(view.shape))))
    flat = memory(view)
    assert np.array_equal(seen(view.permute(axes), flat), seen(view, flat).transpose(axes))


@given(views(), st.data())
def test_slice(view: View, data: st.DataObject) -> None:
    flat, array = memory(view), seen(view, memory(view))
    for axis, extent in enumerate(view.shape):
        bounds = st.none() | st.integers(-extent - 1, extent + 1)
        step = data.draw(st.sampled_from((1, 2, -1, -2)))
        wanted = slice(data.draw(bounds), data.draw(bounds), step)
        chosen = range(extent)[wanted]
        view = view.slice(axis, chosen.start if len(chosen) else 0, len(chosen), step)
        array = array[(slice(None),) * axis + (wanted,)]
    assert np.array_equal(seen(view, flat), array)


@given(views(), st.lists(EXTENTS, max_size=2))
def test_broadcast(view: View, outer: list[int]) -> None:
    shape = (*outer, *(5 if e == 1 and i % 2 else e for i, e in enumerate(view.shape)))
    flat = memory(view)
    assert np.array_equal(
        seen(view.broadcast(shape), flat), np.broadcast_to(seen(view, flat), shape)
    )


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[View, tuple[int, ...]]:
    view = draw(views())
    factors = [f for n in view.shape for f in ((2, 2) if n == 4 else (n,))]
    joined = draw(st.lists(st.booleans(), min_size=len(factors), max_size=len(factors)))
    shape: list[int] = []
    for factor, join in zip(factors, joined, strict=True):
        if shape and join:
            shape[-1] *= factor
        else:
            shape.append(factor)
    return view, tuple(shape)


@given(reshapes())
def test_reshape_is_numpys_or_a_copy(pair: tuple[View, tuple[int, ...]]) -> None:
    view, shape = pair
    flat = memory(view)
    array = seen(view, flat)
    made = view.reshape(shape)
    if made is not None:
        assert made.shape == shape
        assert np.array_equal(seen(made, flat), array.reshape(shape))
    else:  # then NumPy cannot do without a copy either
        assert not np.may_share_memory(array.reshape(shape), flat)


def test_reshape_of_nothing_and_to_another_size() -> None:
    assert View.dense((2, 0, 3)).reshape((0, 7)) is not None
    assert View.dense(()).reshape((1, 1)) is not None
    with pytest.raises(ValueError, match="cannot view"):
        View.dense((2, 3)).reshape((5,))


@given(views())
def test_predicates(view: View) -> None:
    array = seen(view, memory(view))
    assert view.is_row_major == array.flags.c_contiguous
    offsets = np.sort(array.astype(np.int64).reshape(-1))
    packed = bool(np.array_equal(offsets, offsets[0] + np.arange(len(offsets))))
    if view.is_dense:
        assert packed
    assert view.elements == array.size


@given(views(repeats=False))
def test_order_lists_axes_from_outermost(view: View) -> None:
    moving = [a for a in view.order if view.shape[a] != 1]
    steps = [abs(view.strides[a]) for a in moving]
    assert steps == sorted(steps, reverse=True)
    assert sorted(view.order) == list(range(len(view.shape)))
    assert view.innermost_stride == (view.strides[moving[-1]] if moving else 1)


@given(st.lists(EXTENTS, max_size=5), st.data())
def test_dense_order(shape: list[int], data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    view = View.dense(shape, order=order)
    assert view.is_dense
    expected = np.arange(math.prod(shape)).reshape([shape[a] for a in order])
    assert np.array_equal(seen(view, memory(view)).transpose(order), expected)


@pytest.mark.parametrize("rank", [2, 3, 4])
@given(data=st.data())
def test_image_has_the_pixels_in_order(rank: int, data: st.DataObject) -> None:
    view = data.draw(views(rank=rank))
    flat = memory(view)
    array = seen(view, flat).transpose(channels_last(rank))
    n, c = view.shape[:2]
    made = image(view)
    assert np.array_equal(seen(made, flat).reshape(n, -1, c), array.reshape(n, -1, c))
    assert c != 1 or made.strides[3] == 1


def test_image_of_a_volume() -> None:
    view = View.dense((2, 8, 3, 4, 5), order=(0, 2, 3, 4, 1))
    assert image(view) == View.dense((2, 12, 5, 8))
    with pytest.raises(ValueError, match="no image view"):
        image(view.slice(3, 0, 2))
