"""Foreign files, opened lazily: only the voxels of a box are read.

`open_files` turns a file, a folder or a glob into sources; `Stacked`, `Grey` and `Oriented`
combine them. What is Zarr belongs to `unetflow.storage`.
"""

from __future__ import annotations

from unetflow.formats.combine import Grey, Oriented, Stacked
from unetflow.formats.files import SUPPORTED, by_name, digest_files, list_files, open_file, open_files
from unetflow.formats.inner_path import split_source
from unetflow.formats.source import Source

__all__ = [
    "SUPPORTED",
    "Grey",
    "Oriented",
    "Source",
    "Stacked",
    "by_name",
    "digest_files",
    "list_files",
    "open_file",
    "open_files",
    "split_source",
]
