"""From the SOURCE of a conversion to volumes that can be read by box, every refusal included."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from unetflow.errors import InputError

if TYPE_CHECKING:
    from unetflow.formats import Oriented, Source
    from unetflow.storage.volume import Volume

    # Both have axes, grid_axes, shape, n_channels, dtype, voxel_size and read(box) -> (C, *box.shape).
    Readable: TypeAlias = Volume | Oriented

DEFAULT_AXES = {2: "yx", 3: "zyx"}


def open_source(
    source: str,
    *,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    as_labels: bool = False,
    collection: bool = False,
    level: int = 0,
) -> tuple[dict[str, Readable], str]:
    """Open what a conversion reads.

    Returns
    -------
    images : dict
        By name; a single image has the name "".
    digest : str
        Of metadata, sizes and times of what was opened.

    Raises
    ------
    InputError
        If it is missing, damaged, of a kind that is not read, or does not fit ``axes``.
    """
    from unetflow.storage.store import find_node, is_url, normalise

    check_axes(axes)
    _refuse_remote(source)
    if is_url(source) or find_node(normalise(source)) is not None:
        return _open_zarr(source, axes, voxel_size, collection, level)
    if level:
        raise InputError(f"only Zarr images have levels, got level {level} of {source}; leave it out")
    return _open_foreign(source, axes, voxel_size, as_labels, collection)


def _refuse_remote(source: str) -> None:
    """Refuse HDF5 and N5 behind a URL."""
    from unetflow.formats import split_source
    from unetflow.formats.inner_path import is_hdf5, is_n5
    from unetflow.storage.store import is_url

    file, _ = split_source(source)
    if is_url(source) and not source.startswith("file://") and (is_hdf5(file) or is_n5(file)):
        raise InputError(f"HDF5 and N5 must lie in a folder of this machine, got {source}; copy it first")


def check_axes(axes: str | None) -> None:
    """Refuse letters that name no axis, twice the same, or no plane."""
    if axes is not None and (
        not set(axes) <= set("tczyx") or len(set(axes)) != len(axes) or not set("yx") <= set(axes)
    ):
        raise InputError(f"axes are letters of tczyx, each once, y and x among them, got '{axes}'; try zyx")


def _open_zarr(
    source: str, axes: str | None, voxel_size: Sequence[float] | None, collection: bool, level: int
) -> tuple[dict[str, Readable], str]:
    from unetflow.stages.work import digest_of
    from unetflow.storage.volume import open_images

    volumes = open_images(source, axes=axes, voxel_size=voxel_size, level=level)
    digest = digest_of({name: volume.digest() for name, volume in volumes.items()})
    images: dict[str, Readable] = dict(volumes)
    if collection and list(images) == [""]:
        images = {Path(source).stem: images[""]}
    return images, digest


def _open_foreign(
    source: str,
    axes: str | None,
    voxel_size: Sequence[float] | None,
    as_labels: bool,
    collection: bool,
) -> tuple[dict[str, Readable], str]:
    from unetflow.formats import by_name, digest_files, open_files
    from unetflow.stages.work import digest_of

    files = open_files(source, as_labels=as_labels)
    first = files[0]
    if collection:
        arranged = {name: _alone(file, axes) for name, file in by_name(files).items()}
    elif len(files) > 1 or (axes is not None and len(axes) == len(first.shape) + 1):
        arranged = {"": _stack(source, files, axes)}
    else:
        arranged = {"": _alone(first, axes)}
    if as_labels and axes is None:
        _refuse_colours(first, next(iter(arranged.values()))[1])
    _check_grey(arranged)
    images: dict[str, Readable] = {
        name: _orient(opened, letters, voxel_size) for name, (opened, letters) in arranged.items()
    }
    digest = digest_files([path for file in files for path in file.files])
    datasets = [file.dataset for file in files]
    return images, digest_of([digest, datasets]) if any(datasets) else digest


def _alone(file: Source, axes: str | None) -> tuple[Source, str]:
    """Return one file and the letters of its stored axes."""
    from unetflow.formats import Grey

    n = len(file.shape)
    if axes is None:
        return file, _own_axes(file)
    if len(axes) == n:
        return file, axes
    if len(axes) == n - 1 and "c" in (file.axes or "") and "c" not in axes:
        return Grey.of(file), axes
    raise InputError(
        f"axes need one letter for each of the {n} axes of {file.path} {file.shape}, got '{axes}'; "
        f"for instance {file.axes or 'tczyx'[-n:]}"
    )


def _stack(source: str, files: list[Source], axes: str | None) -> tuple[Source, str]:
    """Stack files of one shape along the axis of ``axes`` that they lack."""
    from unetflow.formats import Grey, Stacked

    first = files[0]
    for other in files[1:]:
        is_other_dataset = other.dataset != first.dataset
        if (other.shape, other.dtype, type(other)) != (first.shape, first.dtype, type(first)) or is_other_dataset:
            raise InputError(
                f"files are stacked only if they are of one kind, shape and type, got {first.path} "
                f"{first.shape} {first.dtype} and {other.path} {other.shape} {other.dtype}; "
                "give --collection to keep them apart"
            )
    n = len(first.shape)
    if axes is not None and len(axes) == n and "c" in (first.axes or "") and "c" not in axes:
        first, n = Grey.of(first), n - 1
    if axes is None:
        axes = _default_stack_axes(first)
    if len(axes) != n + 1:
        raise InputError(
            f"to stack {len(files)} files of {n} axes, axes need {n + 1} letters, got '{axes}'; "
            "name the axis that the files lack too, or give --collection to keep them apart"
        )
    new, own = _split_axes(first, axes)
    return Stacked.of(source, first, len(files), new + own), new + own


def _own_axes(file: Source) -> str:
    """Return a file's axes as its metadata or its number of axes say."""
    n = len(file.shape)
    axes = file.axes or DEFAULT_AXES.get(n)
    if axes is None or not set("yx") <= set(axes):
        raise InputError(
            f"the axes of {file.path} {file.shape} are not known, got {n} axes without usable metadata; "
            f"give --axes, for instance {'tczyx'[-n:] if 2 <= n <= 5 else 'zyx'}"
        )
    return axes


def _default_stack_axes(file: Source) -> str:
    """Name the axis along which files are stacked: z if they have none, else t."""
    own = _own_axes(file)
    if "t" in own:
        raise InputError(
            f"files with the axes {own} can be stacked in more than one way, got {file.path}; give --axes, "
            "or --collection to keep them apart"
        )
    return ("z" if "z" not in own else "t") + own


def _split_axes(file: Source, axes: str) -> tuple[str, str]:
    """Return the letter that a file lacks, and its own letters in stored order.

    Files that say nothing and have three axes or more lack the first letter.
    """
    n = len(file.shape)
    own = file.axes or (DEFAULT_AXES[2] if n == 2 else "")
    lacking = [letter for letter in axes if letter not in own]
    if own and len(lacking) == 1:
        return lacking[0], own if file.axes else axes.replace(lacking[0], "")
    return axes[0], axes[1:]


def _refuse_colours(file: Source, axes: str) -> None:
    from unetflow.formats.picture import Picture

    if isinstance(file, Picture) and "c" in axes:
        raise InputError(
            f"a label picture must hold numbers, got the colours of {file.path}; give axes without c if its "
            "channels are equal, or with c if each channel is a mask"
        )


def _check_grey(arranged: dict[str, tuple[Source, str]]) -> None:
    """Read colour pictures that stand for grey ones once, so that no worker meets a coloured one."""
    from unetflow.formats import Grey, Stacked, list_files

    for opened, _ in arranged.values():
        if isinstance(opened, Grey):
            opened.check()
        elif isinstance(opened, Stacked) and isinstance(opened.member, Grey):
            for path in list_files(opened.path):
                opened.member.at(path).check()


def _orient(file: Source, axes: str, voxel_size: Sequence[float] | None) -> Oriented:
    """Name the axes of a file and give each spatial one a voxel size in canonical order."""
    from unetflow.formats import Oriented

    spatial = [letter for letter in "zyx" if letter in axes]
    if voxel_size is not None:
        size = tuple(float(v) for v in voxel_size)
        if len(size) != len(spatial) or not all(0 < v < np.inf for v in size):
            raise InputError(
                f"a voxel size needs one length above 0 for each of {''.join(spatial)}, got {size}; "
                f"for instance {','.join(['1'] * len(spatial))}"
            )
    else:
        known = dict(zip([a for a in file.axes or "zyx" if a in "zyx"], file.voxel_size or (), strict=False))
        longest = max(known.values(), default=1.0)
        size = tuple(known.get(letter, longest) for letter in spatial)
    oriented = Oriented(file, axes, size)
    if 0 in oriented.shape:
        raise InputError(f"an image needs at least one voxel on each axis, got {file.path} {file.shape}")
    return oriented
