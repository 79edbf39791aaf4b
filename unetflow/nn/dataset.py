"""Batches of patches: a pure function of seed and step, made ahead by a thread.

::

    shards in random order   | 7 2 9 | 4 0 5 | 1 8 3 |     a group fills half the memory
    patches of a group       | mixed | mixed | mixed |     the next one is read meanwhile

Where all patches fit into memory there is one group, and the order is a plain shuffle.
"""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.nn.augment import Augmentation, augment

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Arrays = tuple[Array, Array, Array]
Prepare = Callable[[Array, npt.NDArray[np.int64]], Floats]

_ORDER, _AUGMENT = 0, 1  # keys that keep the two random streams apart


class PatchSource(Protocol):
    """Numbered patches, many to a shard; patch n lies in shard ``n // shard_size``."""

    @property
    def shard_size(self) -> int:
        """Number of patches in a shard; the last one may hold fewer."""
        ...

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> Arrays:
        """Return image (B, C, *S), target and float32 weight (B, [K, ]*S_out)."""
        ...


class Batch(NamedTuple):
    """Patches that enter one step: image (B, C, *S), target and weight (B, [K, ]*S_out)."""

    image: Floats
    target: Array
    weight: Array
    numbers: tuple[int, ...] = ()  # places of the rows in the endless sequence of samples


def as_float(image: Array, numbers: npt.NDArray[np.int64]) -> Floats:
    """Return the images as float32, not normalised."""
    return image.astype(np.float32)


def order(
    seed: int, epoch: int, n: int, *, shard_size: int | None = None, group: int | None = None
) -> npt.NDArray[np.int64]:
    """Return the order of ``n`` patches in an epoch, a permutation.

    Parameters
    ----------
    seed, epoch, n : int
    shard_size : int, optional
        Number of patches in a shard.
    group : int, optional
        Number of shards that are mixed with one another; absent: all of them.

    Examples
    --------
    >>> sorted(order(0, 0, 5, shard_size=2, group=1).tolist())
    [0, 1, 2, 3, 4]
    """
    rng = np.random.default_rng((seed, _ORDER, epoch))
    size = shard_size or max(1, n)
    shards = rng.permutation(-(-n // size))
    group = min(group or len(shards), len(shards)) or 1
    parts = []
    for first in range(0, len(shards), group):
        mixed = [np.arange(s * size, min(n, (s + 1) * size)) for s in shards[first : first + group]]
        parts.append(rng.permutation(np.concatenate(mixed)))
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


class Batches:
    """An endless iterator over the batches that follow ``first_step``.

    Parameters
    ----------
    source : PatchSource
    batch_size : int
        Patches a step.
    rows : sequence of int, optional
        The rows of each batch to make, for one of several ranks; absent: all of them.
    seed : int
    first_step : int
        Batches of steps before it were used already.
    prepare : callable
        ``prepare(image (B, C, *S), numbers (B,)) -> float32 image``: normalises.
    augmentation : Augmentation, optional
        Absent: patches as they are.
    memory_bytes : int
        Patches kept in memory; at least two shards.
    n_ahead : int
        Number of batches made ahead.
    place : callable
        ``place(batch)`` is what the iterator yields, and is called by the thread that makes them.
    """

    def __init__(
        self,
        source: PatchSource,
        *,
        batch_size: int,
        seed: int = 0,
        first_step: int = 0,
        prepare: Prepare = as_float,
        augmentation: Augmentation | None = None,
        memory_bytes: int = 4 * 2**30,
        n_ahead: int = 2,
        rows: Sequence[int] | None = None,
        place: Callable[[Batch], Any] = lambda batch: batch,
    ) -> None:
        if len(source) == 0:
            raise InputError("training needs at least 1 patch, got 0; prepare more of them")
        self._source, self._batch_size, self._seed = source, batch_size, seed
        self._rows = range(batch_size) if rows is None else rows
        self._place = place
        self._prepare, self._augmentation = prepare, augmentation
        self._shards = _Shards(source, memory_bytes)
        self._orders: dict[int, npt.NDArray[np.int64]] = {}
        self._queue: queue.Queue[Any] = queue.Queue(max(1, n_ahead))
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(first_step,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def close(self) -> None:
        """Stop the thread and let the patches go."""
        self._is_closed.set()
        self._thread.join()
        self._shards.close()

    def _run(self, step: int) -> None:
        while not self._is_closed.is_set():
            try:
                item: Any = self._place(self._make(step))
            except BaseException as cause:  # handed over to the thread that asks
                item = cause
            self._put(item)
            if isinstance(item, BaseException):
                return
            step += 1

    def _put(self, item: Any) -> None:
        while not self._is_closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _make(self, step: int) -> Batch:
        positions = tuple(step * self._batch_size + row for row in self._rows)
        numbers = np.array([self._number(position) for position in positions], np.int64)
        image, target, weight = self._shards.read(numbers)
        for position in positions:  # the shard wanted half a memory later is read meanwhile
            self._shards.fetch(self._number(position + self._shards.span))
        image = self._prepare(image, numbers)
        if self._augmentation is None:
            return Batch(image, target, weight, positions)
        changed = [
            augment(i, t, w, self._augmentation, np.random.default_rng((self._seed, _AUGMENT, position)))
            for i, t, w, position in zip(image, target, weight, positions, strict=True)
        ]
        image, target, weight = (np.stack(arrays) for arrays in zip(*changed, strict=True))
        return Batch(np.asarray(image, np.float32), target, weight, positions)

    def _number(self, position: int) -> int:
        """Return the patch at a position of the endless sequence of epochs."""
        n = len(self._source)
        epoch, index = divmod(position, n)
        if epoch not in self._orders:
            size, group = self._source.shard_size, self._shards.group
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = order(self._seed, epoch, n, shard_size=size, group=group)
        return int(self._orders[epoch][index])


class _Shards:
    """The shards used last, as many as memory holds."""

    def __init__(self, source: PatchSource, memory_bytes: int) -> None:
        self._source = source
        n_shards = -(-len(source) // source.shard_size)
        patch_bytes = sum(array.nbytes for array in source.read([0]))
        self._capacity = max(2, int(memory_bytes // (patch_bytes * source.shard_size)))
        self.group = n_shards if self._capacity >= n_shards else self._capacity // 2
        self._kept: OrderedDict[int, Future[Arrays]] = OrderedDict()
        self._reader = ThreadPoolExecutor(1)

    @property
    def span(self) -> int:
        """Number of patches in a group of shards."""
        return min(len(self._source), self.group * self._source.shard_size)

    def fetch(self, number: int) -> Future[Arrays]:
        """Return the patches of the shard in which a patch lies, now or soon."""
        shard = number // self._source.shard_size
        if shard not in self._kept:
            first = shard * self._source.shard_size
            numbers = range(first, min(len(self._source), first + self._source.shard_size))
            self._kept[shard] = self._reader.submit(self._source.read, numbers)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shard)
        return self._kept[shard]

    def read(self, numbers: npt.NDArray[np.int64]) -> Arrays:
        """Return the patches of these numbers, stacked."""
        patches = []
        for number in numbers.tolist():
            index = number % self._source.shard_size
            patches.append([array[index] for array in self.fetch(number).result()])
        image, target, weight = (np.stack(arrays) for arrays in zip(*patches, strict=True))
        return image, target, weight

    def close(self) -> None:
        """Let go of all patches."""
        self._reader.shutdown(cancel_futures=True)
        self._kept.clear()


def in_order(
    source: PatchSource, batch_size: int, prepare: Prepare = as_float, number: int = 0, every: int = 1
) -> Iterator[Batch]:
    """Yield every patch once, by number, as it is; the last batch may be smaller.

    Parameters
    ----------
    source : PatchSource
    batch_size : int
    prepare : callable
        As for `Batches`.
    number, every : int
        Of each ``every`` batches yield that of this number alone: ranks share them so.
    """
    for first in range(number * batch_size, len(source), every * batch_size):
        numbers = np.arange(first, min(len(source), first + batch_size))
        image, target, weight = source.read(numbers.tolist())
        yield Batch(prepare(image, numbers), target, weight)
