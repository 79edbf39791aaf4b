"""Gradients of all ranks, added up while the backward pass still runs.

::

    parameters, last to first   | head join.0 ... | ... contract.2 | ... contract.0 |
    buckets                     |        0        |       1        |       2        |
    backward pass               ----------> ready, its sum begins ---> ready ------->

A gradient is a view into its bucket: nothing is copied. Which parameter lies in which bucket follows
from the network alone, and buckets are sent in their order; so the sums have the same bits after a
restart. (torch's DistributedDataParallel arranges its buckets anew after the first step of a process,
which for three ranks and more changes the last bits, and it averages where we need the sum.)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter

from unetflow.nn.group import Group

BUCKET_BYTES = 8 * 2**20


class _Bucket:
    """Neighbouring parameters, and one tensor that holds their gradients."""

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = parameters
        n_values = sum(parameter.numel() for parameter in parameters)
        self.values = torch.zeros(n_values, dtype=parameters[0].dtype, device=parameters[0].device)
        self.n_missing = 0
        self.sum: Any = None
        place = 0
        for parameter in parameters:
            # In the parameter's own layout, which has no gaps.
            parameter.grad = self.values.as_strided(parameter.shape, parameter.stride(), place)
            place += parameter.numel()


class GradientSums:
    """The gradients of a network that several ranks train.

    Parameters
    ----------
    parameters : iterable of Parameter
        The network's, in their order.
    group : Group
    bucket_bytes : int
        A bucket is sent once it holds as much.
    """

    def __init__(self, parameters: Iterable[Parameter], group: Group, bucket_bytes: int = BUCKET_BYTES) -> None:
        self._group, self._is_last = group, False
        self._buckets: list[_Bucket] = []
        waiting: list[Parameter] = []
        for parameter in reversed(list(parameters)):
            waiting.append(parameter)
            if sum(p.numel() * p.element_size() for p in waiting) >= bucket_bytes:
                self._buckets.append(_Bucket(waiting))
                waiting = []
        if waiting:
            self._buckets.append(_Bucket(waiting))
        self._n_sent = 0
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._take(bucket))

    def begin(self) -> None:
        """Set all gradients to 0, for a new step."""
        self._n_sent, self._is_last = 0, False
        torch._foreach_zero_([bucket.values for bucket in self._buckets])
        for bucket in self._buckets:
            bucket.n_missing, bucket.sum = len(bucket.parameters), None

    def announce_last(self) -> None:
        """Say that the next backward pass is the last of the step: buckets that are full are sent."""
        self._is_last = True

    def finish(self) -> None:
        """Wait until all gradients are added up."""
        self._send(len(self._buckets))
        self._group.finish(*(bucket.sum for bucket in self._buckets))
        for bucket in self._buckets:
            bucket.sum = None  # a sum that is done still holds the connections

    def _take(self, bucket: _Bucket) -> None:
        if not self._is_last:
            return
        bucket.n_missing -= 1
        n_ready = self._n_sent
        while n_ready < len(self._buckets) and self._buckets[n_ready].n_missing == 0:
            n_ready += 1
        self._send(n_ready)

    def _send(self, n_ready: int) -> None:
        for bucket in self._buckets[self._n_sent : n_ready]:
            bucket.sum = self._group.start_sum(bucket.values)
        self._n_sent = n_ready
