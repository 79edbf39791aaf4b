"""What `segment` will do, worked out from settings, model and shapes before anything runs."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.forward_memory import SLAB_BYTES_GPU, forward_bytes
from unetflow.geometry import BlockGrid, Box, Shape, parse_roi
from unetflow.memory import format_bytes
from unetflow.stages.admission import missing_of
from unetflow.stages.bricks import CHUNK_CACHE_BYTES, choose_brick, plan_reads
from unetflow.stages.figures import plan_figures, plan_output
from unetflow.stages.layout import choose_output_layout, linked_axes, on_grid
from unetflow.stages.masks import inside, lay_over
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.predict import Image
from unetflow.stages.probe import estimate
from unetflow.stages.resampled import voxel_ratio
from unetflow.stages.tile_choice import choose_tile
from unetflow.stages.tiles import Tiling

if TYPE_CHECKING:
    from unetflow.settings import Settings
    from unetflow.storage.volume import Volume

log = logging.getLogger(__name__)

SEEDS_BY_DISTANCE = {"seeds", "seed_distance", "seed_size"}
_MUCH_READING = 3.0
_MOST_TILES = 16


@dataclass(frozen=True)
class Plan:
    """What `segment` will do, worked out from settings, model and shapes."""

    settings: Settings
    model: Path
    facts: dict[str, Any]
    spec: UNetSpec
    images: tuple[Image, ...]
    out: str
    roi: str | None

    @property
    def is_collection(self) -> bool:
        """Whether the output is a group of images."""
        return self.images[0].name != ""

    def folder_of(self, image: Image) -> str:
        """Return the OME-Zarr image that an input image becomes: a path or URL."""
        return f"{self.out.rstrip('/')}/{image.name}" if image.name else self.out

    @property
    def grids(self) -> Pieces:
        """Blocks of all images, in output voxels; each owns whole shards."""
        return Pieces(tuple(BlockGrid(Box.of_shape(i.domain.shape), i.block) for i in self.images))

    @cached_property
    def blocks(self) -> Pieces | Some:
        """The blocks that get a task: without those that have no voxel inside the mask."""
        return inside(self.grids, self.images)

    def tiling_of(self, image: Image) -> Tiling:
        """Return where an image's tiles stand."""
        chosen = self.settings.segment
        return Tiling(self.spec, image.domain, image.tile, chosen.tta, chosen.mode, chosen.overlap, image.ratio)

    @cached_property
    def bricks(self) -> tuple[Shape, ...]:
        """Blocks, per grid axis, that one worker does at a stretch; for each image."""
        return tuple(choose_brick(image, self.tiling_of(image)) for image in self.images)

    @property
    def batch(self) -> int:
        """Tiles of a forward pass on a GPU: as many as `[segment] memory` holds, where tiles are small."""
        shapes = [self.tiling_of(image).input_shape for image in self.images]
        most = max(forward_bytes(self.spec, shape, itemsize=2, slab_bytes=SLAB_BYTES_GPU) for shape in shapes)
        return max(1, min(_MOST_TILES, self.settings.segment.memory // most))

    def room(self) -> dict[str, Any]:
        """Compare the result with what is free where it goes.

        Raises
        ------
        InputError
            If it is sure not to fit.
        """
        from unetflow.storage.room import check_room

        return check_room(self.out, *plan_output(self))

    def missing(self) -> dict[str, Any]:
        """Count the chunk files that are not there.

        Raises
        ------
        InputError
            If there are some and `[segment] missing` refuses them.
        """
        return missing_of([(image.volume, image.domain) for image in self.images], self.settings.segment.missing)

    def summary(self, *, n_workers: int | None = None, n_threads: int = 1) -> dict[str, Any]:
        """Return what ``--plan`` prints; some blocks are predicted to tell the time, and nothing is written.

        Parameters
        ----------
        n_workers : int, optional
            For the time; absent: one a core, or one a GPU.
        n_threads : int
            Tiles that a worker runs at once on a CPU.
        """
        first = self.images[0]
        time = estimate(self, n_workers=n_workers, n_threads=n_threads)
        figures = replace(plan_figures(self, n_threads=n_threads), seconds=round(time.seconds, 4))
        return {
            "model": str(self.model),
            "out": self.out,
            "outputs": list(self.settings.segment.outputs),
            "mode": self.settings.segment.mode,
            "images": len(self.images),
            "shape": list(first.domain.shape),
            "blocks": figures.n_blocks,
            "block": list(first.block),
            "brick": list(self.bricks[0]),
            "chunk": list(first.chunk),
            "shard": list(first.shard),
            "tiles": figures.n_tiles,
            "tile": list(first.tile[-self.spec.dims :]),
            "tile_input": list(self.tiling_of(first).input_shape),
            **({"resampled_by": list(first.ratio)} if first.ratio else {}),
            "work_factor": round(figures.work_factor, 3),
            "memory_worker": figures.memory.in_words(),
            "read": format_bytes(figures.bytes_read),
            "read_amplification": round(figures.read_amplification, 3),
            "written": f"{format_bytes(figures.bytes_written)} at most",
            "files": figures.n_files,
            "room": self.room(),
            **self.missing(),
            "time": time.in_words(),
            "figures": figures.to_json(),
        }


def plan(
    settings: Settings,
    volume: str,
    *,
    model: str | None = None,
    out: str | None = None,
    roi: str | None = None,
    mask: str | None = None,
    axes: str | None = None,
    writes: bool = True,
) -> Plan:
    """Check that model and volume fit and choose tiles and blocks; with ``writes``, that there is room too.

    Raises
    ------
    InputError
        Rule, value and cure of what cannot be done; nothing is written before.
    """
    from unetflow.nn.checkpoint import load_model
    from unetflow.storage.volume import open_images

    model_path = _model_file(settings, model)
    network, facts = load_model(str(model_path))
    spec = network.spec
    volumes = open_images(volume, axes=axes, **_hints(settings, volume, facts))
    masks: dict[str, Any] = open_images(mask, axes=None) if mask else {}
    images = tuple(
        _plan_image(settings, spec, facts, name, found, roi, masks.get(name)) for name, found in volumes.items()
    )
    if mask and any(image.mask is None for image in images):
        raise InputError(f"--mask needs a mask for each of {len(images)} images, got {sorted(masks)}; name them alike")
    _check_outputs(settings, facts)
    if settings.segment.link == "overlap" and spec.dims != 2:
        raise InputError(
            'segment.link = "overlap" joins the objects of planes, which needs a network of dims = 2, got '
            f"{spec.dims}; leave it out, for a network of dims = 3 sees over planes itself"
        )
    target = str(out) if out else f"{_stem(volume)}.unetflow.zarr"
    made = Plan(settings, model_path, facts, spec, images, target, roi)
    if writes:
        made.room()
    for image, brick in zip(made.images, made.bricks, strict=True):
        _warn_of_reading(image, plan_reads(image, made.tiling_of(image)).amplification(brick))
    return made


def _warn_of_reading(image: Image, amplification: float) -> None:
    if amplification > _MUCH_READING:
        cure = "make a copy in smaller chunks with: unetflow convert"
        if any(r > 1 for r in image.ratio):
            cure = "the network's context is long in voxels so short, take a coarser level or a coarser copy"
        log.warning(
            "chunks %s of %s do not fit a worker's cache of %s together: each is fetched %.0f times; %s",
            image.volume.chunk, image.volume.path, format_bytes(CHUNK_CACHE_BYTES), amplification, cure,
        )  # fmt: skip


def _model_file(settings: Settings, model: str | None) -> Path:
    path = Path(model) if model else settings.run_folder / "model.safetensors"
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise InputError(f"segment needs a trained model, got none at {path}; train one first, or name it with --model")
    return path


def _hints(settings: Settings, volume: str, facts: dict[str, Any]) -> dict[str, Any]:
    """Return axes and voxel size for arrays without metadata: from the project file, else the model."""
    for data in settings.data:
        if settings.resolve(data.raw) in (volume, str(Path(volume))):
            return {"default_axes": data.axes, "voxel_size": data.voxel_size, "level": data.level}
    channels = "c" if facts["in_channels"] > 1 else ""
    return {"default_axes": channels + str(facts["axes"])}


def _plan_image(
    settings: Settings, spec: UNetSpec, facts: dict[str, Any], name: str, volume: Volume, roi: str | None, mask: Any
) -> Image:
    segment = settings.segment
    if volume.n_channels != spec.in_channels:
        raise InputError(
            f"the volume must have the {spec.in_channels} channels that the model was trained on, got "
            f"{volume.n_channels} in {volume.path} (axes {volume.axes}); choose another volume or give --axes"
        )
    linked_axes(volume.grid_axes, spec.dims)
    ratio = voxel_ratio(segment.voxel_size, volume, facts, spec.dims)
    domain = parse_roi(_with_time(roi, volume), volume.shape) if roi else volume.box
    wished = {
        name: on_grid(lengths, volume.grid_axes, f"segment.{name}")
        for name, lengths in (("tile", segment.tile), ("chunk", segment.chunk), ("shard", segment.shard))
    }
    tile = choose_tile(
        spec, domain, segment.memory, tile=wished["tile"], unit=wished["shard"] or wished["chunk"],
        tta=segment.tta, mode=segment.mode, overlap=segment.overlap, ratio=ratio,
    )  # fmt: skip
    tiling = Tiling(spec, domain, tile, segment.tta, segment.mode, segment.overlap, ratio)
    layout = choose_output_layout(tiling, wished["chunk"], wished["shard"])
    over = None if mask is None else lay_over(mask, volume)
    return Image(name, volume, over, domain, tile, layout.chunk, layout.shard, layout.block, ratio)


def _with_time(roi: str, volume: Volume) -> str:
    """Let a region name the spatial axes only; time is then taken whole."""
    missing = volume.ndim - roi.count(",") - 1
    return ",".join([":"] * missing + [roi]) if missing == 1 and "t" in volume.axes else roi


def _check_outputs(settings: Settings, facts: dict[str, Any]) -> None:
    if "instances" in settings.segment.outputs and facts["kind"] == "multilabel":
        raise InputError(
            "instances need classes that do not overlap, got a multilabel model; leave instances out of segment.outputs"
        )
    wanted = settings.segment.outputs
    is_flooded = settings.segment.instances == "watershed" and settings.segment.seeds == "probability"
    if is_flooded and "instances" in wanted and "probabilities" not in wanted:
        raise InputError(
            f"a watershed floods the stored probabilities, which must be among segment.outputs, got {list(wanted)}; "
            'add probabilities, or set segment.seeds = "distance" or segment.instances = "components"'
        )


def _stem(path: str) -> str:
    name = path.rstrip("/").rpartition("/")[2]
    for ending in (".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name or "volume"


def fingerprint(made: Plan, *, tta: bool) -> dict[str, Any]:
    """Return what the bytes of the output depend on."""
    settings = made.settings.segment
    keep = {"outputs", "dtype", "threshold", "min_size", "instances", "connectivity", "link", "mode"}
    if settings.mode == "blend":
        keep.add("overlap")
    if settings.instances == "watershed":
        keep |= {"seed_threshold", "seed_size"} if settings.seeds == "probability" else SEEDS_BY_DISTANCE
    if settings.fill_holes is not False:
        keep.add("fill_holes")
    if settings.link == "overlap":
        keep.add("link_iou")
    resampled = {image.name: list(image.ratio) for image in made.images if image.ratio}
    return {
        "model": hashlib.sha256(made.model.read_bytes()).hexdigest(),
        "inputs": {
            image.name: [v.digest() for v in (image.volume, image.mask) if v is not None] for image in made.images
        },
        "roi": made.roi,
        "settings": {**settings.model_dump(mode="json", include=keep), "tta": tta},
        "tile": {image.name: list(image.tile) for image in made.images},
        "chunk": {image.name: list(image.chunk) for image in made.images},
        "shard": {image.name: list(image.shard) for image in made.images},
        "seed": made.settings.run.seed,
        **({"resampled_by": resampled} if resampled else {}),
    }
