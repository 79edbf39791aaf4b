"""Elastic patches a second, one thread, against `elasticdeform`.

Ours does more for a patch: it draws the field and asks every voxel whether it folds, finds the
source box, reads it mirrored at the borders, and moves image, target and weight. `elasticdeform` draws its
field and moves image and label, ``deform_random_grid([image, label], sigma=10, points=3, mode="mirror")``.
It needs NumPy 1, so it gets an environment beside this script, made on the first run.

Both sides move the same arrays, patch by patch in turn. Time is the process's own (CPU), which is that
of the clock on an idle machine; of the rounds, the fastest counts for each seed.

    python benchmarks/elastic.py [--rounds 3] [--seeds 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

# Read by the numerical libraries when they are loaded, here and in the peer.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
from report import write_report  # noqa: E402

from unetflow.geometry import Box, mirror_indices  # noqa: E402
from unetflow.numerics.displace import warp_image, warp_truth  # noqa: E402
from unetflow.numerics.elastic import displacement, source_box  # noqa: E402

HOME = Path(__file__).resolve().parent / ".venv-elasticdeform"
PEER_PACKAGES = ("numpy<2", "scipy", "elasticdeform==0.5.1")
SIGMA, POINTS = 10.0, 3
# Shape, order of the image, and how many times as many patches as the peer we promise.
CASES = (((572, 572), 3, 3.0), ((572, 572), 1, None), ((116,) * 3, 1, 5.0), ((116,) * 3, 3, 2.0))

# Answers each line "FOLDER ORDER SEED" by the seconds of one patch.
PEER = f"""
import sys, time
import elasticdeform, numpy as np
for line in sys.stdin:
    folder, order, seed = line.split()
    image, label = np.load(folder + "/image.npy"), np.load(folder + "/label.npy")
    np.random.seed(int(seed))
    before = time.process_time()
    elasticdeform.deform_random_grid(
        [image, label], sigma={SIGMA}, points={POINTS}, order=[int(order), 0], mode="mirror"
    )
    print(time.process_time() - before, flush=True)
"""


@dataclass
class Case:
    """One row of the table, and what was measured for each seed."""

    shape: tuple[int, ...]
    order: int
    bar: float | None
    ours: dict[int, float] = field(default_factory=dict)
    theirs: dict[int, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return sum(self.theirs.values()) / sum(self.ours.values())

    @property
    def is_met(self) -> bool:
        return self.bar is None or self.ratio >= self.bar

    def row(self) -> dict[str, str]:
        return {
            "what": f"{' x '.join(map(str, self.shape))}, {'linear' if self.order == 1 else 'cubic'} image",
            "ours": f"{len(self.ours) / sum(self.ours.values()):.2f} patches/s",
            "theirs": f"{len(self.theirs) / sum(self.theirs.values()):.2f} patches/s",
            "ratio": f"{self.ratio:.1f}",
            "bar": "none" if self.bar is None else f"{self.bar:g}",
            "holds": "yes" if self.is_met else "NO",
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cases = [Case(*case) for case in CASES]
    with peer() as seconds_of_peer, tempfile.TemporaryDirectory() as folder:
        for case in cases:
            measure(case, options.seeds, options.rounds, Path(folder), seconds_of_peer)
            print(case.row(), file=sys.stderr)
    note = (
        f"sigma {SIGMA:g}, {POINTS} points an axis, image of uint8; one thread, CPU time, best of {options.rounds}; "
        f"{PEER_PACKAGES[-1]}"
    )
    write_report("elastic", [case.row() for case in cases], note)
    return 0 if all(case.is_met for case in cases) else 1


def measure(case: Case, n_seeds: int, n_rounds: int, folder: Path, seconds_of_peer: Callable[[str], float]) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, case.shape).astype(np.uint8)
    label = (rng.random(case.shape) < 0.5).astype(np.uint8)
    np.save(folder / "image.npy", image)
    np.save(folder / "label.npy", label)
    weight = np.where(label, 2.0, 0.5).astype(np.float32)
    our_patch(image, label, weight, case.order, 0)  # compiles, or loads what was compiled
    for _ in range(n_rounds):
        for seed in range(n_seeds):
            before = time.process_time()
            our_patch(image, label, weight, case.order, seed)
            seconds = time.process_time() - before
            case.ours[seed] = min(seconds, case.ours.get(seed, np.inf))
            seconds = seconds_of_peer(f"{folder} {case.order} {seed}")
            case.theirs[seed] = min(seconds, case.theirs.get(seed, np.inf))


def our_patch(image: np.ndarray, label: np.ndarray, weight: np.ndarray, order: int, seed: int) -> None:
    moved = displacement(seed, image.shape, grid=POINTS, sigma=(SIGMA,) * image.ndim)
    needed = source_box(moved, order=order)
    warp_image(read_mirrored(image, needed)[np.newaxis], needed, moved, order=order, dtype=image.dtype)
    needed = source_box(moved)
    target, weight = read_mirrored(label, needed), read_mirrored(weight, needed)
    warp_truth(target, weight, needed, moved, class_weights=(0.5, 2.0))


def read_mirrored(array: np.ndarray, box: Box) -> np.ndarray:
    for axis, (start, stop, n) in enumerate(zip(box.start, box.stop, array.shape, strict=True)):
        array = array.take(mirror_indices(start, stop, n), axis=axis)
    return array


@contextmanager
def peer() -> Iterator[Callable[[str], float]]:
    """Give a function that has the peer make a patch, and returns its seconds."""
    python = HOME / "bin" / "python"
    # pip leaves nothing behind of what it could not build: the package's folder tells whether it is all there.
    if not any(HOME.glob("lib/python*/site-packages/elasticdeform")):
        print(f"making {HOME}", file=sys.stderr)
        venv.create(HOME, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEER_PACKAGES], check=True)
    process = subprocess.Popen([python, "-c", PEER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def seconds_of(request: str) -> float:
        print(request, file=process.stdin, flush=True)
        return float(process.stdout.readline())

    with process:
        yield seconds_of
        process.stdin.close()


if __name__ == "__main__":
    sys.exit(main())
