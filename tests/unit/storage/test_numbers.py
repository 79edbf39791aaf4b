"""The set of block numbers: a Python set's answers in an eighth of a byte a number."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from unetflow.storage.numbers import NumberSet

NUMBERS = st.one_of(st.integers(0, 40), st.integers(4090, 4100), st.integers(0, 2**60))


@given(st.lists(NUMBERS), st.lists(NUMBERS), st.lists(NUMBERS))
def test_it_answers_as_a_python_set_does(added: list[int], joined: list[int], asked: list[int]) -> None:
    numbers, truth = NumberSet(), set()
    for number in added:
        assert numbers.add(number) == (number not in truth)
        truth.add(number)
    union = numbers | joined
    assert list(union) == sorted(truth | set(joined))
    assert len(union) == len(truth | set(joined))
    assert list(numbers) == sorted(truth), "a union changed what it was made of"
    assert [n in numbers for n in asked] == [n in truth for n in asked]
    assert "1" not in numbers


def test_a_number_takes_an_eighth_of_a_byte() -> None:
    tracemalloc.start()
    numbers = NumberSet(range(100_000))
    size = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(numbers) == 100_000
    assert size < 25_000
