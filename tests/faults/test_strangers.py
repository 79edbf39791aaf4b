"""Project files, NGFF metadata and model headers from strangers: one line of refusal, no traceback, no hang.

`make test` draws a few hundred of each, `make soak` ten thousand.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetflow.errors import InputError

SECONDS = 20  # no input of a few kB may take that long, on any machine
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
SOAK = settings(max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck))

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**53, 1e308, float("nan")])
WORDS = st.text(max_size=12) | st.sampled_from(
    ["../../etc/passwd", "/", "", "a\nb", "$(touch x)", "zyx", "\x00", "s3://", "file:///etc", "x" * 3000]
)
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=12
)


@contextmanager
def in_time() -> Iterator[None]:
    """Fail where something takes so long that it hangs."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_clean(call: Callable[[], Any]) -> None:
    """Assert that a call succeeds, or refuses in one line."""
    with in_time():
        try:
            call()
        except InputError as error:
            assert str(error).strip()
        except FileNotFoundError as error:  # the command line gives it as a refusal too
            assert error.filename


def at_random(strategy: Any) -> Callable[[Callable[[Path, Any], None]], Callable[[Path], None]]:
    """Make two tests of one: a short draw, and ten thousand for `make soak`."""

    def wrap(check: Callable[[Path, Any], None]) -> Callable[[Path], None]:
        many = pytest.param(SOAK, id="10000", marks=pytest.mark.soak)

        @pytest.mark.parametrize("how", [pytest.param(QUICK, id="few"), many])
        def test(tmp_path: Path, how: settings) -> None:
            how(given(strategy)(lambda drawn: check(tmp_path, drawn)))()

        test.__name__ = check.__name__
        return test

    return wrap


SECTIONS = ("run", "data", "prepare", "model", "train", "segment", "cluster")


def _fields() -> list[str]:
    from unetflow.settings import Settings

    names = []
    for section in SECTIONS:
        annotation: Any = Settings.model_fields[section].annotation
        record = annotation if hasattr(annotation, "model_fields") else annotation.__args__[0]
        names += [f"{section}.{field}" for field in record.model_fields]
    return names


@at_random(st.dictionaries(st.sampled_from(_fields()) | WORDS, VALUES, max_size=5))
def test_any_settings_are_taken_or_refused(folder: Path, drawn: dict[str, Any]) -> None:
    from unetflow.settings import make_settings

    values: dict[str, Any] = {}
    for name, value in drawn.items():
        section, _, field = name.partition(".")
        if section == "data":
            values["data"] = [{"raw": "a", "labels": "b", field: value}]
        elif isinstance(values.setdefault(section, {}), dict):
            values[section][field] = value
    is_clean(lambda: make_settings(values, folder=str(folder)))


@at_random(st.binary(max_size=400) | st.text(max_size=400).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_project_file_are_taken_or_refused(folder: Path, drawn: bytes) -> None:
    from unetflow.settings import load_settings

    (folder / "unetflow.toml").write_bytes(drawn)
    is_clean(lambda: load_settings(folder / "unetflow.toml"))


def changed(document: Any, draw: st.DataObject) -> Any:
    """Put drawn values in some places of a document."""
    if isinstance(document, dict):
        out = {}
        for key, value in document.items():
            fate = draw.draw(st.integers(0, 9))
            if fate == 0:
                continue
            out[key] = draw.draw(VALUES) if fate == 1 else changed(value, draw)
        return out
    if isinstance(document, list):
        return [draw.draw(VALUES) if draw.draw(st.integers(0, 9)) == 0 else changed(v, draw) for v in document]
    return draw.draw(VALUES) if draw.draw(st.integers(0, 9)) == 0 else document


IMAGE = {
    "zarr_format": 3,
    "node_type": "group",
    "attributes": {
        "ome": {
            "version": "0.5",
            "multiscales": [{
                "axes": [{"name": n, "type": "space", "unit": "micrometer"} for n in "zyx"],
                "datasets": [
                    {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5, 0.5]}]}
                ],
                "coordinateTransformations": [{"type": "translation", "translation": [0, 0, 0]}],
            }],
        }
    },
}  # fmt: skip
ARRAY = {
    "zarr_format": 3,
    "node_type": "array",
    "shape": [4, 4, 4],
    "data_type": "uint8",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 2, 2]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "fill_value": 0,
    "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 1, "checksum": True}}],
    "dimension_names": ["z", "y", "x"],
    "attributes": {},
}
ARRAY_V2 = {
    "zarr_format": 2, "shape": [4, 4], "chunks": [2, 2], "dtype": "|u1", "compressor": {"id": "zstd", "level": 1},
    "fill_value": 0, "order": "C", "filters": None, "dimension_separator": ".",
}  # fmt: skip


def write(path: Path, document: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))


@at_random(st.data())
def test_any_metadata_are_taken_or_refused(folder: Path, drawn: st.DataObject) -> None:
    from unetflow.storage.volume import open_images

    name = f"v{drawn.draw(st.integers(0, 2))}.zarr"
    if name == "v2.zarr":
        write(folder / name / ".zarray", changed(ARRAY_V2, drawn))
        write(folder / name / ".zattrs", changed({"_ARRAY_DIMENSIONS": ["y", "x"]}, drawn))
    else:
        write(folder / name / "zarr.json", changed(IMAGE, drawn))
        write(folder / name / "0" / "zarr.json", changed(ARRAY, drawn))

    def look() -> None:
        for volume in open_images(str(folder / name)).values():
            volume.digest()
            assert volume.path.startswith(str(folder)), "it climbed out"

    is_clean(look)


def headers() -> Any:
    """Draw the beginning of a safetensors file: a length, and what should be JSON."""
    lengths = st.sampled_from([0, 1, 8, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
    bodies = VALUES.map(lambda v: json.dumps(v).encode()) | st.binary(max_size=100)
    right = bodies.map(lambda body: len(body).to_bytes(8, "little") + body + bytes(16))
    return right | st.tuples(lengths, bodies).map(lambda p: p[0].to_bytes(8, "little") + p[1]) | st.binary(max_size=200)


@at_random(headers())
def test_any_bytes_as_a_model_are_refused(folder: Path, drawn: bytes) -> None:
    from unetflow.nn.checkpoint import load_model

    (folder / "model.safetensors").write_bytes(drawn)
    with pytest.raises(InputError), in_time():
        load_model(folder / "model.safetensors")


@at_random(st.data())
def test_any_record_in_a_model_is_taken_or_refused(folder: Path, drawn: st.DataObject) -> None:
    import torch

    from unetflow.architecture import UNetSpec
    from unetflow.nn.checkpoint import load_model
    from unetflow.nn.tensorfile import write_tensors

    record = {"architecture": changed(UNetSpec.build(depth=1, base_channels=2).to_dict(), drawn)}
    write_tensors(folder / "m.safetensors", {"head.bias": torch.zeros(2)}, changed(record, drawn))
    with pytest.raises(InputError), in_time():
        load_model(folder / "m.safetensors")


class Canary:
    """Sings where a pickle is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_models_place_is_never_loaded(tmp_path: Path) -> None:
    import torch

    from unetflow.nn.checkpoint import load_latest, load_model

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Canary(tmp_path / "sang")))
    with pytest.raises(InputError):
        load_model(tmp_path)
    torch.save({"model": Canary(tmp_path / "sang")}, tmp_path / "step-00000001.safetensors")
    with pytest.raises(InputError):
        load_latest(tmp_path)
    assert not (tmp_path / "sang").exists()
