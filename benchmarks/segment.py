"""Segment from Zarr to Zarr, against the bare network, MONAI's sliding window, and itself with one worker.

Both sides take turns in one run. Ours is the whole command but for the start of workers and the loading of
the model (a small volume goes first): statistics, prediction, classes, pyramids, seam score, everything read
from Zarr and written to it. The others find their voxels in memory and leave their results there.

    python benchmarks/segment.py [--case rate monai workers depth] [--quick]

MONAI comes with `pip install --no-deps monai` (Makefile: bench).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import zarr
from report import write_report

from unetflow.architecture import UNetSpec
from unetflow.geometry import BlockGrid, Box
from unetflow.nn.checkpoint import export_model, load_model
from unetflow.nn.predict import Predictor
from unetflow.nn.unet import UNet, memory_format
from unetflow.numerics.tissue import tissue
from unetflow.runtime.cluster import open_client
from unetflow.settings import make_settings
from unetflow.stages.segment import segment
from unetflow.stages.segment_plan import plan
from unetflow.stages.work import Conditions
from unetflow.storage.volume import open_volume

NOTE = (
    "Ours: Zarr to Zarr, two workers of one thread where nothing else is said. Times by the clock, each side once"
    " (workers: the median of three turns), after a small volume that loads the model. Weights are drawn, not"
    " trained; the volume is made tissue."
)
ROUNDS = 3  # of one worker and two, by turns
RATE_BAR, MONAI_BAR, WORKERS_BAR = 0.90, 1.7, 1.8


@dataclass(frozen=True)
class Case:
    """A network and a volume."""

    name: str
    spec: UNetSpec
    shape: tuple[int, ...]
    window: int


def cases(padding: str, quick: bool) -> list[Case]:
    side, depth = (1024, 128) if quick else (4096, 384)
    wide = UNetSpec.build(dims=2, depth=3, base_channels=32, padding=padding)
    deep = UNetSpec.build(dims=3, depth=2, base_channels=16, padding=padding)
    return [
        Case(f"2-D base 32 depth 3 {padding}, {side}^2", wide, (side, side), 512),
        Case(f"3-D base 16 depth 2 {padding}, {depth}^3", deep, (depth,) * 3, 96),
    ]


def main() -> int:
    """Measure case by case; a report each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", default=["rate", "monai", "workers", "depth"])
    parser.add_argument("--quick", action="store_true", help="small volumes: a try, no measurement")
    options = parser.parse_args()
    fails = False
    with tempfile.TemporaryDirectory() as folder, open_client("local", workers=2) as two:
        for number, name in enumerate(options.case):
            place = Path(folder, str(number))
            place.mkdir()
            rows = MEASURES[name](place, two, options.quick)
            write_report(f"segment-{name}" + ("-quick" if options.quick else ""), rows, NOTE)
            fails |= any(r["holds"] == "FAIL" for r in rows)
    return int(fails)


def rate(folder: Path, client: Any, quick: bool) -> list[dict[str, str]]:
    """Against the bare network with its soft-max, in a loop on the same tiles in memory."""
    rows = []
    for number, case in enumerate(cases("valid", quick)):
        bench = Bench(folder / str(number), case)
        bench.ours(client, 0)
        seconds, found = bench.ours(client, 1)
        kept = int(np.prod(case.shape))
        predictor = bench.predictor()
        layout = memory_format(case.spec.dims)

        def whole_layers(tile: np.ndarray[Any, Any], predictor: Predictor = predictor, layout: Any = layout) -> Any:
            with torch.inference_mode():
                return predictor._model(torch.from_numpy(tile[None]).contiguous(memory_format=layout)).softmax(1)

        # The bar is for the harder of the two: our own row by row pass. The other is the module as torch runs it.
        for name, call, bar in (
            ("row by row", predictor.probabilities, RATE_BAR),
            ("layer by layer", whole_layers, None),
        ):
            bare, how = bench.bare(call)
            what = f"{case.name}: voxels/s against the bare network, {name} ({how})"
            ratio = bare / seconds
            rows.append(row(what, per(kept, seconds), per(kept, bare), ratio, bar, bar is None or ratio >= bar, found))
    return rows


def monai(folder: Path, client: Any, quick: bool) -> list[dict[str, str]]:
    """Against MONAI's sliding window with overlap 0.5 and Gaussian weights, in memory, on both cores."""
    rows = []
    for number, case in enumerate(cases("same", quick)):
        bench = Bench(folder / str(number), case)
        bench.ours(client, 0)
        seconds, found = bench.ours(client, 1)
        theirs, p = bench.monai()
        whole = bench.whole()
        away = [float(np.abs(each - whole).max()) for each in (bench.stored(), p)]
        kept = int(np.prod(case.shape))
        what = f"{case.name}: seconds against MONAI, greatest difference {away[0]:.1e} and {away[1]:.1e}"
        holds = theirs >= MONAI_BAR * seconds and away[0] <= max(away[1], 0.5 / 255 + 1e-5)
        rows.append(row(what, per(kept, seconds), per(kept, theirs), theirs / seconds, MONAI_BAR, holds, found))
    return rows


def workers(folder: Path, client: Any, quick: bool) -> list[dict[str, str]]:
    """Two workers against one, a thread each."""
    rows = []
    for number, case in enumerate(cases("valid", quick)):
        bench = Bench(folder / str(number), case)
        times: dict[str, list[float]] = {"one": [], "two": []}
        for turn in range(0, 4 * (1 if quick else ROUNDS), 4):
            with open_client("local", workers=1, threads=1) as one:
                bench.ours(one, turn)
                times["one"].append(bench.ours(one, turn + 1)[0])
            bench.ours(client, turn + 2)
            seconds, found = bench.ours(client, turn + 3)
            times["two"].append(seconds)
            print(times, flush=True)
        single, double = median(times["one"]), median(times["two"])
        kept = int(np.prod(case.shape))
        what = f"{case.name}: two workers against one"
        ratio = single / double
        rows.append(row(what, per(kept, double), per(kept, single), ratio, WORKERS_BAR, ratio >= WORKERS_BAR, found))
    return rows


def depth(folder: Path, client: Any, quick: bool) -> list[dict[str, str]]:
    """Depth 4, padded: what the exact halo costs at each tile, and what a blend gives instead."""
    spec = UNetSpec.build(dims=2, depth=4, base_channels=16, padding="same")
    side = 1024 if quick else 2048
    rows = []
    for number, window in enumerate((256, 512, 1024)):
        case = Case(f"2-D base 16 depth 4 same, {side}^2, window {window}", spec, (side, side), window)
        bench = Bench(folder / str(number), case)
        theirs, p = bench.monai()
        whole = bench.whole()
        halo = sum(n[0] for n in spec.halo)
        for mode, tile in (("exact", window - halo), ("blend", window)):
            bench.settings = {"mode": mode, "tile": [tile, tile], "dtype": "float32"}
            bench.ours(client, 2 * (mode == "blend"))
            seconds, found = bench.ours(client, 1 + 2 * (mode == "blend"))
            away = [float(np.abs(each - whole).max()) for each in (bench.stored(), p)]
            what = f"{case.name}: {mode} against MONAI, greatest difference {away[0]:.1e} and {away[1]:.1e}"
            kept = side * side
            rows.append(row(what, per(kept, seconds), per(kept, theirs), theirs / seconds, None, True, found))
    return rows


MEASURES: dict[str, Callable[[Path, Any, bool], list[dict[str, str]]]] = {
    "rate": rate, "monai": monai, "workers": workers, "depth": depth,
}  # fmt: skip


class Bench:
    """One case in a folder of its own: its volume in Zarr and in memory, its model."""

    def __init__(self, folder: Path, case: Case) -> None:
        folder.mkdir()
        self.folder, self.case = folder, case
        self.settings: dict[str, Any] = {}
        torch.manual_seed(0)
        self.model = folder / "model.safetensors"
        facts = {
            "kind": "classes", "n_classes": 2, "class_map": None, "ignore": [], "dims": case.spec.dims,
            "in_channels": 1, "axes": "zyx"[-case.spec.dims :], "normalise": "none", "normalise_per": "volume",
            "normalisation": {"offset": [128.0], "scale": [64.0]},
        }  # fmt: skip
        export_model(self.model, UNet(case.spec), facts)
        raw, _ = tissue(Box.of_shape(case.shape), case.shape, seed=0)
        self.raw = raw
        for name, voxels in (("raw", raw), ("small", raw[tuple(slice(0, 64) for _ in case.shape)])):
            chunk = tuple(min(n, 512 if case.spec.dims == 2 else 64) for n in voxels.shape)
            zarr.create_array(folder / f"{name}.zarr", shape=voxels.shape, chunks=chunk, dtype="uint8")[...] = voxels

    def ours(self, client: Any, number: int) -> tuple[float, dict[str, Any]]:
        """Segment; an even number is the small volume that loads the model."""
        name = "raw" if number % 2 else "small"
        self.out = self.folder / f"{name}-{number}.zarr"
        chosen = {k: v for k, v in self.settings.items() if name == "raw" or k != "tile"}
        settings = make_settings({"segment": chosen, "model": {"dims": self.case.spec.dims}})
        found = segment(
            settings, str(self.folder / f"{name}.zarr"), model=str(self.model), out=str(self.out),
            conditions=Conditions(client),
        )  # fmt: skip
        return float(found["seconds"]), found

    def stored(self) -> np.ndarray[Any, Any]:
        p = np.asarray(zarr.open_array(self.out / "0")[1])
        return p.astype(np.float32) / np.float32(255) if p.dtype == np.uint8 else p

    def predictor(self) -> Predictor:
        return Predictor(load_model(self.model)[0])

    def bare(self, call: Callable[[np.ndarray[Any, Any]], Any]) -> tuple[float, str]:
        """Call the network in a loop on all tiles; the faster of two threads in one and two side by side."""
        made = plan(make_settings({"model": {"dims": self.case.spec.dims}}), str(self.folder / "raw.zarr"),
                    model=str(self.model), out=str(self.folder / "never.zarr"))  # fmt: skip
        tiling, [image] = made.tiling_of(made.images[0]), made.images
        tiles = [normalised(image.volume.read_mirrored(tile.source)) for tile in tiling.touching(image.domain)]
        found = {}
        with threads(1), ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(call, tiles[:2]))
            with clock() as taken:
                list(pool.map(lambda tile: call(tile).shape, tiles))
            found["two side by side"] = taken()
        with threads(2):
            call(tiles[0])
            with clock() as taken:
                for tile in tiles:
                    call(tile)
            found["two threads"] = taken()
        how = min(found, key=lambda key: found[key])
        return found[how], how

    def monai(self) -> tuple[float, np.ndarray[Any, Any]]:
        from monai.inferers import sliding_window_inference

        model = self.predictor()._model
        layout = memory_format(self.case.spec.dims)
        image = torch.from_numpy(normalised(self.raw[None]))[None]
        with torch.inference_mode(), threads(2):
            call = lambda x: model(x.contiguous(memory_format=layout)).softmax(1)  # noqa: E731
            roi = (self.case.window,) * self.case.spec.dims
            call(torch.zeros(1, 1, *roi))
            with clock() as taken:
                p = sliding_window_inference(image, roi, 1, call, overlap=0.5, mode="gaussian")
            return taken(), p[0, 1].numpy()

    def whole(self) -> np.ndarray[Any, Any]:
        """One forward pass over the whole mirrored volume, in pieces so large that their context is beyond doubt."""
        volume = open_volume(str(self.folder / "raw.zarr"))
        spec, predictor = self.case.spec, self.predictor()
        halo = tuple(2 * h for h in spec.halo[0])
        length = tuple(min(n, 1024 if spec.dims == 2 else 192) for n in volume.shape)
        result = np.empty(volume.shape, np.float32)
        with threads(2):
            for block in BlockGrid(volume.box, length, halo, halo):
                p = predictor.probabilities(normalised(volume.read_mirrored(block.outer)))[1]
                inner = tuple(slice(h, h + n) for h, n in zip(halo, block.inner.shape, strict=True))
                result[block.inner.slices] = p[inner]
        return result


def normalised(raw: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (raw.astype(np.float32) - np.float32(128)) / np.float32(64)


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    began = time.perf_counter()
    ended: list[float] = []
    yield lambda: ended[0] - began
    ended.append(time.perf_counter())


def per(voxels: int, seconds: float) -> str:
    return f"{voxels / seconds / 1e3:.0f} k/s, {seconds:.1f} s"


def row(
    what: str, ours: str, theirs: str, ratio: float, bar: float | None, holds: bool, found: dict[str, Any]
) -> dict[str, str]:
    print(what, ours, theirs, round(ratio, 3), flush=True)
    return {
        "what": what,
        "ours": ours,
        "theirs": theirs,
        "ratio": f"{ratio:.2f}",
        "bar": "" if bar is None else f"at least {bar:g}",
        "holds": "" if bar is None else ("PASS" if holds else "FAIL"),
        "seam": str(found.get("seam_score", "")),
    }


if __name__ == "__main__":
    sys.exit(main())
