"""A set of block numbers that stays small: a bit a number, in pages where numbers are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

_PAGE_BITS = 12  # 4096 numbers a page: 512 bytes


class NumberSet(Collection[int]):
    """Whole numbers, kept as bits: ten million neighbours take little over a megabyte.

    Examples
    --------
    >>> numbers = NumberSet([3, 4, 70_000])
    >>> 4 in numbers, 5 in numbers, len(numbers), list(numbers)
    (True, False, 3, [3, 4, 70000])
    """

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._pages: dict[int, bytearray] = {}
        self._count = 0
        for number in numbers:
            self.add(number)

    def add(self, number: int) -> bool:
        """Take a number in and say whether it is new."""
        page = self._pages.get(number >> _PAGE_BITS)
        if page is None:
            page = self._pages[number >> _PAGE_BITS] = bytearray(2**_PAGE_BITS // 8)
        place, bit = _place(number)
        is_new = not page[place] & bit
        page[place] |= bit
        self._count += is_new
        return is_new

    def __contains__(self, number: object) -> bool:
        page = self._pages.get(number >> _PAGE_BITS) if isinstance(number, int) else None
        if page is None or not isinstance(number, int):
            return False
        place, bit = _place(number)
        return bool(page[place] & bit)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[int]:
        """Yield the numbers in order."""
        for first in sorted(self._pages):
            page = self._pages[first]
            for place, byte in enumerate(page):
                if byte:
                    start = (first << _PAGE_BITS) + place * 8
                    yield from (start + bit for bit in range(8) if byte >> bit & 1)

    def __or__(self, other: Iterable[int]) -> NumberSet:
        """Return the numbers that are in either."""
        joined = NumberSet()
        joined._pages = {first: bytearray(page) for first, page in self._pages.items()}
        joined._count = self._count
        for number in other:
            joined.add(number)
        return joined


def _place(number: int) -> tuple[int, int]:
    """Return the byte of a page, and the bit in it, that stand for a number."""
    rest = number & (2**_PAGE_BITS - 1)
    return rest >> 3, 1 << (rest & 7)
