"""Unique value names for export."""

from __future__ import annotations

from collections.abc import Iterable

Key = tuple[int, int]


class Names:
    """Gives every result of a graph a name.

    Args:
        reserved: names of the graph's ends, which only :meth:`fix` may give.
        inner: names that subgraphs define, which would hide an outer value of that name.
    """

    def __init__(self, reserved: Iterable[str], inner: Iterable[str]) -> None:
        self._taken = {*reserved, *inner}
        self._counts: dict[str, int] = {}
        self._names: dict[Key, str] = {}

    def __getitem__(self, key: Key) -> str:
        return self._names[key]

    def fix(self, key: Key, name: str) -> None:
        """Gives exactly this name."""
        self._names[key] = name

    def choose(self, key: Key, wish: str) -> None:
        """Gives the name wished for, or one like it if that is taken."""
        self._names[key] = self.fresh(wish)

    def fresh(self, wish: str) -> str:
        """A name that nothing else has."""
        name = wish
        while name in self._taken:
            self._counts[wish] = self._counts.get(wish, 0) + 1
            name = f"{wish}_{self._counts[wish]}"
        self._taken.add(name)
        return name
