"""Launch lists: which launches wait for which, and nothing is lost in a manifest."""

from __future__ import annotations

import json

import pytest

from pwopt.targets.launches import Access, Address, Launch, LaunchList, Window, dependencies


def place(offset: int, kind: str = "workspace") -> Address:
    return Address(kind, 0, offset)


def launch(reads: list[Access], writes: list[Access]) -> Launch:
    return Launch("k", (1, 1, 1), 32, 0, (), tuple(reads), tuple(writes))


def block(offset: int, size: int = 64, kind: str = "workspace") -> Access:
    return Access(place(offset, kind), size, size, size)


def channels(first: int, count: int, *, of: int = 64, pixels: int = 10) -> Access:
    """Some bytes of every pixel."""
    return Access(place(first), (pixels - 1) * of + count, count, of)


@pytest.mark.parametrize(
    ("a", "b", "overlap"),
    [
        (block(0), block(64), False),
        (block(0), block(63), True),
        (block(0), block(0, kind="output"), False),
        (channels(0, 16), channels(16, 16), False),
        (channels(16, 16), channels(0, 17), True),
        (channels(48, 16), channels(0, 48), False),
        (channels(48, 17), channels(0, 48), True),  # into the next pixel
        (channels(0, 16), channels(640, 16), False),
        (channels(0, 16), channels(16, 16, of=32), True),  # not easily told
        (channels(0, 64), block(5, 1), True),
    ],
)
def test_overlap(a: Access, b: Access, overlap: bool) -> None:
    assert a.overlaps(b) == overlap
    assert b.overlaps(a) == overlap


def test_every_kind_of_dependency() -> None:
    a, b, c = block(0), block(64), block(128)
    launches = [
        launch([], [a]),
        launch([a], [b]),  # reads what 0 wrote
        launch([a], [c]),  # likewise: a branch
        launch([], [a]),  # writes over what 1 and 2 read
        launch([], [a]),  # writes over what 3 wrote
        launch([b, c], [block(192)]),  # 0 is over when 1 is
        launch([], [block(256)]),  # on its own
    ]
    assert dependencies(launches) == [(), (0,), (0,), (1, 2), (3,), (1, 2), ()]


def test_producers_of_a_concatenation_are_independent() -> None:
    branches = [launch([block(4096)], [channels(16 * i, 16)]) for i in range(4)]
    launches = [launch([], [block(4096)]), *branches, launch([channels(0, 64)], [block(9000)])]
    assert dependencies(launches) == [(), (0,), (0,), (0,), (0,), (1, 2, 3, 4)]


def test_a_manifest_loses_nothing() -> None:
    window = Window(place(64), "float16", (8, 4), (16,), (8, 2), (1, 1), 128)
    launches = LaunchList(
        (
            Launch(
                "k_1",
                (3, 2, 1),
                128,
                65536,
                (place(0, "input"), window, place(8, "constant")),
                (block(0, kind="input"), channels(3, 5)),
                (block(64, kind="output"),),
            ),
            launch([], []),
        ),
        1 << 33,
    )
    assert LaunchList.from_json(json.loads(json.dumps(launches.to_json()))) == launches
