"""Read where to run: the name of a cluster file, a path, an address, or a scheduler file."""

from __future__ import annotations

import difflib
import shutil
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from unetflow.errors import InputError

KINDS = ("local", "cuda", "slurm", "pbs", "lsf", "sge", "address")


@dataclass(frozen=True)
class ClusterSpec:
    """A place to run, as a cluster file says it.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    workers : int or str, optional
        Worker processes: ``4``, or ``"2:8"`` for at least 2 and at most 8. A queue's jobs grow
        and shrink between the two; a local cluster starts the larger number.
    threads : int, optional
        Threads that each worker computes with.
    security : bool
        TLS with certificates made for the run, for every cluster that is started here.
    dashboard : bool
        Dask's dashboard, on loopback at a free port.
    startup_timeout : float
        Seconds to wait for the first worker.
    margin : float, optional
        Seconds ahead of a job's walltime after which it begins no further block; by default a
        twentieth of it, 30 to 300 s.
    address, scheduler_file : str, optional
        Of a running scheduler (kind "address").
    tls : mapping
        ``ca_file``, ``cert`` and ``key`` for a ``tls://`` address.
    options : mapping
        The queue's own options, or those of Dask's cluster class.
    """

    kind: str = "local"
    workers: int | str | None = None
    threads: int | None = None
    security: bool = True
    dashboard: bool = False
    startup_timeout: float = 600.0
    margin: float | None = None
    address: str | None = None
    scheduler_file: str | None = None
    tls: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worker_range(self) -> tuple[int, int] | None:
        """Least and largest number of workers, or None where the cluster decides."""
        return None if self.workers is None else _parse_workers(self.workers)


def cluster_folders() -> list[Path]:
    """Return the folders in which a cluster's name is looked up."""
    package = Path(__file__).resolve().parents[1]
    return [folder for folder in (package / "_cluster", package.parent / "cluster") if folder.is_dir()]


def known_clusters() -> list[str]:
    """Return the names that ``--cluster`` knows."""
    return ["none", *sorted({file.stem for folder in cluster_folders() for file in folder.glob("*.toml")})]


def copy_cluster(name: str, folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Copy a cluster file, and the script that submits commands to its queue, to where a user edits them.

    Parameters
    ----------
    name : str
        One of `known_clusters`.

    Returns
    -------
    list of pathlib.Path
        The new files.

    Raises
    ------
    InputError
        For an unknown name, or a file that is there already.
    """
    spec = read_cluster(name)
    source = next((f for f in cluster_folders() if (f / f"{name}.toml").is_file()), None)
    if source is None:
        raise InputError(f"what is copied is named {', '.join(known_clusters()[1:])}, got '{name}'; name one of these")
    script = {"slurm": "submit.sbatch", "pbs": "submit.pbs", "lsf": "submit.lsf"}.get(spec.kind)
    files = [source / f"{name}.toml", *([source / script] if script else [])]
    targets = [folder / file.name for file in files]
    for target in targets:
        if target.exists() and not overwrite:
            raise InputError(f"a copy must be a new file, {target} is there; name another folder, or give --overwrite")
    folder.mkdir(parents=True, exist_ok=True)
    for file, target in zip(files, targets, strict=True):
        shutil.copy(file, target)
    return targets


def read_cluster(cluster: str, overrides: Mapping[str, Any] | None = None) -> ClusterSpec:
    """Find out what ``cluster`` means; ``overrides`` win over its file.

    Parameters
    ----------
    cluster : str
        A name of `known_clusters`, the path of a TOML file, ``tcp://`` or ``tls://``, or the
        path of a scheduler file (``.json``).
    overrides : mapping, optional
        Keys of a cluster file; what is no such key counts as one of its ``options``.

    Raises
    ------
    InputError
        For an unknown name, an unreadable file, an unknown key or a value of the wrong type.
    """
    values = _read(cluster)
    known = {f.name for f in fields(ClusterSpec)}
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        if key == "options":
            values["options"] = {**values.get("options", {}), **value}
        elif key in known:
            values[key] = value
        else:
            values["options"] = {**values.get("options", {}), key: value}
    return _checked(values, cluster)


def _read(cluster: str) -> dict[str, Any]:
    if "://" in cluster:
        return {"kind": "address", "address": cluster}
    path = Path(cluster)
    if path.suffix == ".json":
        return {"kind": "address", "scheduler_file": str(_existing(path))}
    if path.suffix == ".toml" or path.name != cluster:
        return _read_toml(_existing(path))
    for folder in cluster_folders():
        if (folder / f"{cluster}.toml").is_file():
            return _read_toml(folder / f"{cluster}.toml")
    raise InputError(
        f"a cluster is a name, a file or an address, and '{cluster}' is none; known names are "
        f"{', '.join(known_clusters())}{_hint(cluster, known_clusters())}"
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"a cluster file must exist, {path} does not; known names are {', '.join(known_clusters())}")
    return path


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"a cluster file must be readable TOML, {path} is not: {error}") from error
    known = [f.name for f in fields(ClusterSpec)]
    for key in values:
        if key not in known:
            raise InputError(
                f"a cluster file has the keys {', '.join(known)}, and {path} has '{key}'{_hint(key, known)}"
            )
    return values


def _checked(values: dict[str, Any], source: str) -> ClusterSpec:
    """Refuse values of the wrong type, in the file's own words."""
    allowed: dict[str, tuple[type, ...]] = {
        "kind": (str,), "workers": (int, str), "threads": (int,), "security": (bool,), "dashboard": (bool,),
        "startup_timeout": (int, float), "margin": (int, float), "address": (str,), "scheduler_file": (str,),
        "tls": (dict,), "options": (dict,),
    }  # fmt: skip
    for key, value in values.items():
        is_flag = isinstance(value, bool) and bool not in allowed[key]
        if is_flag or not isinstance(value, allowed[key]):
            kinds = " or ".join(kind.__name__ for kind in allowed[key])
            raise InputError(f"cluster {source}: '{key}' must be {kinds}, got {value!r}")
    spec = ClusterSpec(**values)
    if spec.kind not in KINDS:
        hint = _hint(spec.kind, KINDS)
        raise InputError(f"cluster {source}: kind must be one of {', '.join(KINDS)}, got '{spec.kind}'{hint}")
    if spec.threads is not None and spec.threads < 1:
        raise InputError(f"cluster {source}: threads must be at least 1, got {spec.threads}")
    if spec.startup_timeout <= 0 or (spec.margin is not None and spec.margin <= 0):
        raise InputError(f"cluster {source}: startup_timeout and margin are seconds above 0; mend them")
    if spec.workers is not None:
        _parse_workers(spec.workers)
    if spec.kind == "address" and not (spec.address or spec.scheduler_file):
        raise InputError(f"cluster {source}: kind 'address' needs an address or a scheduler_file; give one")
    return spec


def _parse_workers(workers: int | str) -> tuple[int, int]:
    """Read ``N`` or ``N:M``."""
    try:
        low, _, high = str(workers).partition(":")
        least, most = int(low), int(high or low)
    except ValueError:
        least, most = 0, 0
    if not 1 <= least <= most:
        raise InputError(f"workers must be N, or N:M with 1 <= N <= M, got '{workers}'; write for instance 2:8")
    return least, most


def _hint(word: str, known: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""
