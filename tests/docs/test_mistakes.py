"""docs/mistakes.md: each command is given as it stands there, and answers what the page says it does."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import zarr
from newcomer import PROJECT, SHAPE, run
from pages import blocks_of, text_of
from PIL import Image

PAGE = "mistakes.md"
HOME = "/home/me/cells"  # where the page says that the project lies
DISK = "/mnt/disk"
RNG = np.random.default_rng(0)


def save(name: str, array: np.ndarray) -> Callable[[], None]:
    return lambda: zarr.save_array(name, array)


def save_planes(heights: tuple[int, ...] = (100, 100, 100)) -> None:
    Path("slices").mkdir()
    for number, height in enumerate(heights):
        Image.fromarray(RNG.integers(0, 255, (height, 132)).astype(np.uint8)).save(f"slices/{number}.png")


def save_photo() -> None:
    Image.fromarray(RNG.integers(0, 255, (100, 132, 3)).astype(np.uint8)).save("photo.png")
    assert run("convert", "photo.png", "photo.zarr").exit_code == 0


def change_project(old: str, new: str) -> None:
    assert old in PROJECT
    Path("unetflow.toml").write_text(PROJECT.replace(old, new))
    shutil.rmtree("run")


def name_a_mask() -> None:
    save("mask.zarr", (RNG.integers(0, 2, SHAPE) * 255).astype(np.uint8))()
    change_project('labels = "labels.zarr"', 'labels = "mask.zarr"\nkind = "classes"')


def save_not_a_number() -> None:
    array = RNG.random(SHAPE).astype(np.float32)
    array[1, 2, 3] = np.nan
    save("nan.zarr", array)()


def start_a_thesis() -> None:
    Path("thesis").mkdir()
    Path("thesis", "chapter1.txt").write_text("mine")


# What is there when the mistake of that number is made, beside a finished project.
BEFORE: dict[int, Callable[[], object]] = {
    2: save_planes,
    3: lambda: save_planes((100, 100, 90)),
    5: save_photo,
    6: save_photo,
    7: save("float.zarr", np.zeros(SHAPE, np.float32)),
    8: save("small.zarr", np.ones((3, 50, 66), np.uint8)),
    9: name_a_mask,
    10: save("empty.zarr", np.zeros(SHAPE, np.uint8)),
    11: lambda: change_project('labels = "labels.zarr"', 'labels = "labels.zarr"\nroi = "0:3,0:100,200:300"'),
    12: lambda: Path("unetflow.toml").unlink(),
    13: lambda: shutil.rmtree("run"),
    17: save_not_a_number,
    18: lambda: shutil.rmtree("run"),
    19: start_a_thesis,
    24: save("small.zarr", np.ones((3, 50, 66), np.uint8)),
}
SECTIONS = re.split(r"^## ", text_of(PAGE), flags=re.MULTILINE)[1:]
BLOCKS = blocks_of(PAGE)
MISTAKES = {int(title.partition(".")[0]): title.splitlines()[0] for title in SECTIONS if title[0].isdigit()}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system for as long as a test takes."""
    place = tmp_path / "disk"
    with ExitStack() as stack:

        def mount(options: str) -> Path:
            if os.geteuid() != 0:
                pytest.skip("only root may mount a file system")
            place.mkdir()
            words = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
            if subprocess.run(words, capture_output=True).returncode:
                pytest.skip("file systems cannot be mounted here")
            stack.callback(subprocess.run, ["umount", str(place)], check=True)
            return place

        yield mount


def said(text: str, place: Path) -> str:
    """Return a message with what differs from one machine to the next as the page writes it."""
    text = text.replace(str(place), HOME).replace(str(place.parent / "disk"), DISK)
    text = re.sub(r"process \d+ on host \S+,", "process 4711 on host node3,", text)
    text = re.sub(r"block \d+ \([\d:,]+\)", "block 2 (2:3,0:100,0:132)", text)
    text = re.sub(r"/c/0/\d+/", "/c/0/2/", text)
    return re.sub(r"\d+ bytes are free", "4096 bytes are free", " ".join(text.split()))


def files() -> set[str]:
    return {str(p) for p in Path().rglob("*") if p.is_file() and p.name != "lock.guard"}


@pytest.mark.parametrize("number", MISTAKES)
def test_a_mistake_is_answered_as_the_page_says(
    number: int, place: Path, disk: Callable[[str], Path]
) -> None:
    from unetflow.storage.lock import acquire_lock

    command, answer = BLOCKS[2 * (number - 1) : 2 * number]
    assert (command.language, answer.language) == ("sh", "text")
    BEFORE.get(number, lambda: None)()
    if "--cluster cuda" in command.text and find_spec("dask_cuda"):
        pytest.skip("this machine can")
    before = files()
    (words,) = command.commands
    with ExitStack() as stack:
        if "twice at once" in MISTAKES[number]:
            stack.enter_context(acquire_lock("raw.unetflow.zarr/.unetflow"))
        if DISK in command.text:
            small = disk("size=120k" if "full" in MISTAKES[number] else "size=1m,ro")
            words = [word.replace(DISK, str(small)) for word in words]
        result = run(*words[1:])
    title = MISTAKES[number]
    told = [line for line in result.stderr.splitlines() if line.startswith(("unetflow: ", "class "))]
    assert [said(line, place) for line in told] == [" ".join(answer.text.split())], title
    wanted = {10: 0, 25: 1}.get(number, 2)
    assert result.exit_code == wanted, (title, result.stderr)
    if wanted == 2:
        assert files() == before, "what is refused writes nothing"


def test_the_page_has_the_twenty_commonest_and_their_exit_codes() -> None:
    assert list(MISTAKES) == list(range(1, len(MISTAKES) + 1))
    assert len(MISTAKES) >= 20 and len(BLOCKS) == 2 * len(MISTAKES)
    assert set(BEFORE) <= set(MISTAKES)
