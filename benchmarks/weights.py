"""Border weights against distance transforms: one of the same array, and one for each object.

Both sides take turns in one process on one thread. Time is the process's own (CPU), which is that
of the clock on an idle machine; the fastest of the rounds counts. The gain of a second thread is
by the clock. Objects are cells drawn with a seed: the nearest of random centres, no farther than
a radius, with gaps between them. The transform for each object keeps the two nearest as it goes, which
spares it the memory of a stack.

    python benchmarks/weights.py [--rounds 7]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Read by the numerical libraries when they are loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
from report import write_report  # noqa: E402
from scipy import ndimage  # noqa: E402

from unetflow.numerics.weights import border_weight, weight_map  # noqa: E402

W0, SIGMA, TOLERANCE = 10.0, 5.0, 1e-5
# Shape, objects, voxel size, and how many times one transform's time we may take.
CASES = (
    ((1024, 1024), 400, (1.0, 1.0), 3.0),
    ((1024, 1024), 3000, (1.0, 1.0), 3.0),
    ((128, 128, 128), 500, (1.0, 1.0, 1.0), 5.0),
    ((128, 128, 128), 500, (4.0, 1.0, 1.0), None),
)
STACK_BAR, MEMORY_BAR = 100.0, 8.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        print(peak_of(options.peak))
        return 0
    for ndim in (2, 3):
        weigh(np.eye(8).astype(int).reshape((8, 8, 1)[:ndim]), (1.0,) * ndim)  # compiles, or loads what was
    rows, all_ids = [], [cells(shape, n) for shape, n, _, _ in CASES]
    for (shape, n, voxel_size, bar), ids in zip(CASES, all_ids, strict=True):
        ours, theirs = race(
            lambda ids=ids, size=voxel_size: weigh(ids, size),
            lambda ids=ids, size=voxel_size: ndimage.distance_transform_edt(ids == 0, sampling=size),
            options.rounds,
        )
        what = f"{name(shape)}, {n} objects, voxel {name(voxel_size)}: against one transform"
        rows.append(row(what, ms(ours), ms(theirs), ours / theirs, bar, bar is None or ours <= bar * theirs))
    rows.append(against_stack(all_ids[0], options.rounds))
    rows += [memory(ids) for ids in (all_ids[0], all_ids[2])]
    rows += [second_thread(ids, options.rounds) for ids in (all_ids[0], all_ids[2])]
    note = (
        f"w0 {W0:g}, sigma {SIGMA:g}, tolerance {TOLERANCE:g}; ids of int32; one thread, CPU time, best of"
        f" {options.rounds} by turns; the transform for each object was run once, on all objects; memory beyond the"
        " inputs, of the whole weight map; two threads by the clock."
    )
    write_report("weights", rows, note)
    return 1 if any(r["holds"] == "FAIL" for r in rows) else 0


def cells(shape: tuple[int, ...], n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = rng.choice(int(np.prod(shape)), n, replace=False)
    marks = np.zeros(shape, np.int32)
    marks.flat[centres] = np.arange(1, n + 1)
    distance, nearest = ndimage.distance_transform_edt(marks == 0, return_indices=True)
    ids = marks[tuple(nearest)]
    inside = distance <= 0.55 * (marks.size / n) ** (1 / len(shape))
    for axis in range(len(shape)):
        inside &= (ids == np.roll(ids, 1, axis)) & (ids == np.roll(ids, -1, axis))
    inside.flat[centres] = True
    return np.where(inside, ids, 0)


def weigh(ids: np.ndarray, voxel_size: tuple[float, ...], threads: int = 1) -> np.ndarray:
    return border_weight(ids, voxel_size, W0, SIGMA, TOLERANCE, threads=threads)


def race(
    one: Callable[[], object], other: Callable[[], object], rounds: int, clock: Callable[[], float] = time.process_time
) -> tuple[float, float]:
    best = [np.inf, np.inf]
    for _ in range(rounds):
        for i, run in enumerate((one, other)):
            before = clock()
            run()
            best[i] = min(best[i], clock() - before)
    return best[0], best[1]


def against_stack(ids: np.ndarray, rounds: int) -> dict[str, str]:
    size = (1.0,) * ids.ndim
    before = time.process_time()
    first, second = np.full(ids.shape, np.inf), np.full(ids.shape, np.inf)
    objects = np.unique(ids[ids > 0])
    for n in objects:
        distance = ndimage.distance_transform_edt(ids != n)
        np.minimum(second, np.maximum(first, distance), out=second)
        np.minimum(first, distance, out=first)
    expected = W0 * np.exp(-((first + second) ** 2) / (2 * SIGMA**2))
    theirs = time.process_time() - before
    ours, _ = race(lambda: weigh(ids, size), lambda: None, rounds)
    expected[expected < TOLERANCE] = 0
    error = np.abs(weigh(ids, size) - expected).max()
    what = f"{name(ids.shape)}, {len(objects)} objects: a transform for each (greatest difference {error:.0e})"
    holds = theirs >= STACK_BAR * ours and error <= TOLERANCE
    return row(what, ms(ours), ms(theirs), theirs / ours, STACK_BAR, holds, "at least")


def memory(ids: np.ndarray) -> dict[str, str]:
    """Weigh in a process of its own, whose highest memory is that of this alone."""
    ids = np.tile(ids, (4, 4) if ids.ndim == 2 else (2, 2, 2))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.npy"
        np.save(path, ids)
        command = [sys.executable, __file__, "--peak", str(path)]
        peak = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    copies = peak / (4 * ids.size)
    return row(f"{name(ids.shape)}: peak memory, float32 copies", f"{copies:.1f}", "", None, MEMORY_BAR, copies < 8)


def peak_of(path: Path) -> int:
    ids = np.load(path)
    target = (ids > 0).astype(np.uint8)
    options = {"voxel_size": (1.0,) * ids.ndim, "w0": W0, "sigma": SIGMA, "tolerance": TOLERANCE}
    few = (slice(0, 64),) * ids.ndim
    weight_map(target[few], ids[few], [1.0, 2.0], **options)
    before = memory_of_process("VmRSS")
    weight_map(target, ids, [1.0, 2.0], **options)
    return memory_of_process("VmHWM") - before


def memory_of_process(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def second_thread(ids: np.ndarray, rounds: int) -> dict[str, str]:
    size = (1.0,) * ids.ndim
    two, one = race(lambda: weigh(ids, size, 2), lambda: weigh(ids, size), rounds, time.perf_counter)
    return row(f"{name(ids.shape)}: two threads against one", ms(two), ms(one), one / two, None, True)


def row(
    what: str, ours: str, theirs: str, ratio: float | None, bar: float | None, holds: bool, sense: str = "at most"
) -> dict[str, str]:
    return {
        "what": what,
        "ours": ours,
        "theirs": theirs,
        "ratio": "" if ratio is None else f"{ratio:.2f}",
        "bar": "" if bar is None else f"{sense} {bar:g}",
        "holds": "" if bar is None else ("PASS" if holds else "FAIL"),
    }


def name(numbers: tuple[float, ...]) -> str:
    return "x".join(f"{n:g}" for n in numbers)


def ms(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms"


if __name__ == "__main__":
    sys.exit(main())
