"""The numbers that `init` proposes for network, patches and training, from what the data look like and the machine.

Pure arithmetic on what was found; each number comes with its reason. The rules, in words:

- The network sees at least one object across, three levels deep or more; objects are those of the labels.
- A patch shows three objects across, no less than the default and no more than the image.
- Width is what the machine trains in minutes: that of the paper on a GPU, less than half of it on a few cores.
- As many patches a step as a GPU's memory holds, two on a processor; patches shrink where two do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unetflow.architecture import UNetSpec
from unetflow.forward_memory import weight_bytes
from unetflow.geometry import Shape
from unetflow.memory import format_bytes
from unetflow.stages.look import Looks, patch_shape, pooling
from unetflow.stages.machine import Machine
from unetflow.stages.template import Choice

Section = dict[str, Choice]

PATCH = {2: 192, 3: 48}  # output of a training patch on a processor, in voxels of an axis
GPU_PATCH = {2: 320, 3: 80}
MOST_PATCH = {2: 512, 3: 128}
GPU_BATCH = {2: 8, 3: 2}
SHARE = 0.5  # of the memory that training may take: the estimate is no promise
EVEN, RARE = 0.15, 0.05  # share of the rarest class


@dataclass(frozen=True)
class Facts:
    """What the data look like.

    Parameters
    ----------
    lengths : tuple of int
        Of the smallest image, along the network's axes.
    voxel_size : tuple of float
        Along the same axes.
    lead : int
        Spatial axes that the network does not see.
    kind : str
    channels, classes : int
    looks : Looks
        Of the labels.
    """

    lengths: Shape
    voxel_size: tuple[float, ...]
    lead: int
    kind: str
    channels: int
    classes: int
    looks: Looks

    @property
    def dims(self) -> int:
        """Axes that the network sees."""
        return len(self.lengths)


def propose_model(facts: Facts, machine: Machine) -> Section:
    """Choose the network but for its number of axes."""
    depth, why = _depth(facts, machine)
    pool, kernel = pooling(facts.voxel_size, depth)
    section: Section = {"depth": Choice(depth, why), "base_channels": _width(facts.dims, machine)}
    section["norm"] = Choice("batch", "learns in hundreds of steps instead of thousands")
    section["dropout"] = Choice(0.0, "short training does not over-fit")
    if facts.dims == 3:
        section["padding"] = Choice("same", "in 3-D the context of unpadded patches costs more than they give")
    if facts.kind == "multilabel":
        section["head"] = Choice("sigmoid", "classes overlap")
    if any(min(window) == 1 for window in pool):
        section["pool"] = Choice(pool, "an axis is pooled only once its voxels are about as long as the others")
        section["kernel"] = Choice(kernel, "and is not convolved before")
    return section


def _depth(facts: Facts, machine: Machine) -> tuple[int, str]:
    """Go as deep as it takes to see an object across, as far as the image and the machine allow."""
    shortest = min(facts.lengths[-2:])
    most = (4 if facts.dims == 2 else 3) + (machine.gpu is not None)
    most = max(2, min(most, int(math.log2(max(1, shortest / 8)))))
    least = min(3 + (machine.gpu is not None and facts.dims == 2), most)
    size = facts.looks.object_width
    fitting = [depth for depth in range(least, most + 1) if size is None or seen(depth) >= size]
    depth = fitting[0] if fitting else most
    if size is None:
        return depth, f"it sees {seen(depth)} voxels across, enough for most cells"
    return depth, f"it sees {seen(depth)} voxels across; objects are about {size:.0f} wide"


def seen(depth: int) -> int:
    """Return how many voxels a network of this depth sees across."""
    return 2 * UNetSpec.build(depth=depth).margin[-1]


def _width(dims: int, machine: Machine) -> Choice:
    if machine.gpu is not None:
        return Choice(64 if dims == 2 else 32, f"a GPU has the time ({machine.title})")
    if dims == 3:
        return Choice(16, f"more steps in the same minutes ({machine.title}); 32 on a GPU")
    return Choice(
        24 if machine.cores <= 4 else 32,
        f"more steps in the same minutes ({machine.title}); 64 on a GPU",
    )


def propose_prepare(facts: Facts, model: Mapping[str, Choice], machine: Machine) -> tuple[Section, int]:
    """Choose the patches, and how many a step takes."""
    numbers = {key: choice.value for key, choice in model.items()}
    shape, batch, why = _fit(facts, numbers, machine)
    section: Section = {
        "patches": Choice(500 if facts.dims == 2 else 200, "made in a minute or two; flips and turns add more"),
        "patch_shape": Choice([*[1] * facts.lead, *shape], why),
    }
    sigma = round(10 * min(1.0, max(shape[-2:]) / 388))
    if sigma < 10:
        section["elastic_sigma"] = Choice(float(max(2, sigma)), "by its length a patch bends as much as the paper's")
    share = facts.looks.rarest
    if share is not None and share >= EVEN:
        section["class_balance"] = Choice(
            False, f"the rarest class has {share:.0%} of the voxels: weights would only make it likelier than it is"
        )
    if share is not None and share < RARE:
        section["foreground_fraction"] = Choice(0.5, f"the rarest class has {share:.1%} of the voxels")
    return section, batch


def _fit(facts: Facts, numbers: Mapping[str, Any], machine: Machine) -> tuple[Shape, int, str]:
    """Return a patch and a batch that fit the memory."""
    size, dims = facts.looks.object_width or 0.0, facts.dims
    usual = PATCH[dims] if machine.gpu is None else GPU_PATCH[dims]
    wanted = min(MOST_PATCH[dims], max(usual, math.ceil(3 * size)))
    reason = "smaller patches, more of them, fit a laptop" if machine.gpu is None else "large ones use a GPU well"
    reason = "the network's input; " + ("it shows three objects across" if wanted > usual else reason)
    room = SHARE * machine.memory
    while True:
        shape = patch_shape(numbers, [min(wanted, n) for n in facts.lengths])
        spec = _spec(numbers, facts)
        batch = 2 if machine.gpu is None else GPU_BATCH[dims]
        while batch > 2 and training_bytes(spec, shape, batch) > room:
            batch //= 2
        if training_bytes(spec, shape, batch) <= room or wanted <= 32:
            return shape, batch, reason
        wanted = wanted * 3 // 4
        reason = f"the network's input; larger ones do not fit half of {format_bytes(machine.memory)}"


def _spec(numbers: Mapping[str, Any], facts: Facts) -> UNetSpec:
    return UNetSpec.build(**{**numbers, "in_channels": facts.channels, "out_channels": facts.classes})


def training_bytes(spec: UNetSpec, shape: Sequence[int], batch: int) -> int:
    """Estimate the bytes of a training step in float32: features kept for the gradient, weights, Adam.

    A bound for unpadded networks, whose features shrink on the way.
    """
    norms = 2 if spec.norm != "none" else 1
    total = 0.0
    for level in range(spec.depth + 1):
        voxels = math.prod(n / s for n, s in zip(shape, spec.stride(level), strict=True))
        c = spec.channels(level)
        kept = 2 * c * norms  # two convolutions down
        if level < spec.depth:
            kept += 2 * c * norms + c + (2 * c if spec.skip == "concat" else c)  # and up, and what they read
        total += kept * voxels
    finest = math.prod(shape) * (2 * spec.channels(0) + 4 * spec.out_channels)  # gradients on their way, the loss
    return int(4 * batch * (total + finest) + 4 * weight_bytes(spec))


def propose_train(facts: Facts, machine: Machine, batch: int) -> Section:
    """Choose the training loop's numbers."""
    steps = (900 if facts.dims == 2 else 300) if machine.gpu is None else 4000
    time = "some ten minutes on two cores" if machine.gpu is None else "some ten minutes on a GPU"
    why = "batch normalisation wants more than one patch" if machine.gpu is None else f"fit {machine.title}"
    section: Section = {
        "steps": Choice(steps, f"{time}; more is better"),
        "batch_size": Choice(batch, why),
        "optimizer": Choice("adam", "needs no tuning of the rate"),
        "learning_rate": Choice(0.002 if facts.dims == 2 else 0.001, "of adam with batch normalisation"),
        "schedule": Choice("cosine", "ends at zero, so that the last steps settle"),
        "validate_every": Choice(100 if machine.gpu is None else 200, "a look now and then; the best is kept"),
        "brightness": Choice(0.1, "makes up for uneven light"),
        "contrast": Choice(0.1, "the same"),
    }
    share = facts.looks.rarest
    if share is not None and share < RARE:
        why = f"Dice takes the rarest class, {share:.1%} of the voxels, as a whole"
        section["loss"] = Choice("cross_entropy+dice", why)
    return section
