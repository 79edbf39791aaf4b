"""Between a command and its stage: settings, cluster, signals, exit codes, and what is printed.

Exit codes are those of the contract: 0 done, 1 failed, 2 wrong usage, 3 finished with
quarantined blocks, 75 stopped and the same command goes on.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from unetflow.errors import InputError, Interrupted, StageError, is_away

Result = Mapping[str, Any]  # of a stage, or what a plan says
COUNT_FILE = "UNETFLOW_COUNT_FILE"  # set by cluster/submit.*
EXIT_FAILED, EXIT_USAGE, EXIT_QUARANTINED, EXIT_AGAIN = 1, 2, 3, 75


@dataclass(frozen=True)
class Common:
    """The options that all commands share."""

    cluster: str | None = None
    workers: str | None = None
    deadline: str | None = None
    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    config: Path | None = None
    sets: list[str] | None = None
    run: str | None = None

    def settings(self, raw: str | None = None, labels: str | None = None) -> Any:
        """Read the project file; arguments win."""
        from unetflow.settings import load_settings, with_values

        settings = load_settings(self.config, self.sets or ())
        if raw is not None:
            if labels is None:
                raise InputError(f"prepare needs RAW and LABELS, got only {raw}; name the labels too")
            table = {"raw": str(_absolute(raw)), "labels": str(_absolute(labels))}
            same = [d for d in settings.data if settings.resolve(d.raw) == raw and settings.resolve(d.labels) == labels]
            rest = same[0].model_dump(exclude_unset=True, exclude={"raw", "labels"}) if same else {}
            settings = with_values(settings, {"data": [{**rest, **table}]})
        if self.run is not None:
            settings = with_values(settings, {"run": {"dir": str(Path(self.run).absolute())}})
        return settings


    def share_of_machine(self) -> tuple[int | None, int]:
        """Return how many workers a plan counts with, None for one a core or GPU, and the threads of each."""
        if self.cluster == "none":
            return 1, len(os.sched_getaffinity(0))
        wish = str(self.workers or "").rpartition(":")[2]
        if not wish.isdigit():
            return None, 1
        return int(wish), max(1, len(os.sched_getaffinity(0)) // max(1, int(wish)))


def _absolute(path: str) -> str | Path:
    return path if "://" in path else Path(path).absolute()


def run_stage(
    common: Common,
    work: Callable[..., Result],
    *,
    needs_cluster: bool = True,
    keeps_logs: bool = False,
    wants_gpu: bool | None = None,
    local_workers: int | None = None,
) -> Result:
    """Run a stage with the cluster it asks for, and turn errors into exit codes.

    With ``keeps_logs``, warnings of workers go to files in ``RUN/logs``. Where a cluster has workers with
    and without a GPU, ``wants_gpu`` says which of them the stage uses; None is all. On this machine it gets
    ``local_workers`` unless somebody says how many; None is one a core.
    """
    _configure_logging(common)
    try:
        if not inspect.signature(work).parameters:
            return work()
        if not needs_cluster:
            from unetflow.stages.work import Conditions

            return work(Conditions())
        return _run_on_cluster(common, work, keeps_logs, wants_gpu, local_workers)
    except (InputError, FileNotFoundError) as error:
        _fail(common, error, EXIT_USAGE)
    except Interrupted as error:
        _fail(common, error, EXIT_AGAIN, f"to go on, give the same command again:\n  {_same_command()}")
    except KeyboardInterrupt:
        _fail(common, Interrupted("stopped at once"), EXIT_AGAIN, f"to go on:\n  {_same_command()}")
    except (StageError, OSError) as error:
        if is_away(error):
            _fail(common, error, EXIT_AGAIN, f"when it is back, give the same command again:\n  {_same_command()}")
        _fail(common, error, EXIT_FAILED)
    raise AssertionError("unreachable")


def _run_on_cluster(
    common: Common, work: Callable[..., Result], keeps_logs: bool, wants_gpu: bool | None, local_workers: int | None
) -> Result:
    from unetflow.runtime.cluster import open_client
    from unetflow.runtime.devices import for_stage
    from unetflow.runtime.progress import make_progress
    from unetflow.runtime.signals import stop_on_signals
    from unetflow.runtime.walltime import LastStart
    from unetflow.stages.work import Conditions

    deadline, is_walltime = _deadline(common.deadline)
    name, options = cluster_of(common)
    settings = common.settings()
    logs = settings.run_folder / "logs" if keeps_logs else None
    block_seconds = 60 * settings.cluster.block_minutes
    with stop_on_signals() as should_stop:
        watch = LastStart(make_progress(quiet=common.quiet), should_stop, deadline, is_walltime=is_walltime)
        try:
            with open_client(
                name, workers=common.workers, options=options, log_folder=logs, local_workers=local_workers
            ) as client:
                if client is not None and wants_gpu is not None:
                    client = for_stage(client, wants_gpu=wants_gpu)
                return work(Conditions(client, watch, watch, deadline, block_seconds=block_seconds))
        finally:
            _tell_script(watch.n_recorded + TrainingDisplay.n_saved)


def _tell_script(n_recorded: int) -> None:
    """Tell a job script how many blocks, or steps, this start brought to the disk."""
    file = os.environ.get(COUNT_FILE)
    if file:
        Path(file).write_text(f"{n_recorded}\n")


def cluster_of(common: Common) -> tuple[str, dict[str, Any]]:
    """Return the cluster's name and options: the option wins over the project file."""
    if common.cluster is not None:
        return common.cluster, {}
    from unetflow.settings import PROJECT_FILE, load_settings

    if common.config is None and not Path(PROJECT_FILE).is_file() and not common.sets:
        return "local", {}
    cluster = load_settings(common.config, common.sets or ()).cluster
    options = dict(cluster.options)
    if cluster.workers is not None and common.workers is None:
        options["workers"] = str(cluster.workers)
    return cluster.file or cluster.kind or "local", options


def check_place(common: Common) -> Result:
    """Try the cluster of a command or of the project file, with the inputs that the project names."""
    from unetflow.runtime.check import check_cluster

    name, options = cluster_of(common)
    settings = common.settings()
    inputs = [settings.resolve(path) for data in settings.data for path in (data.raw, data.labels)]
    return check_cluster(name, settings.run_folder, options=options, inputs=inputs)


def copy_place(name: str, folder: Path, *, overwrite: bool) -> list[str]:
    """Copy a cluster file and its job script to where a user edits them."""
    from unetflow.runtime.clusterfile import copy_cluster

    return [str(path) for path in copy_cluster(name, folder, overwrite=overwrite)]


def refuse_problems(problems: list[str]) -> None:
    """Say what a run on a cluster would fail at, and leave with 2; nothing where all is well."""
    for problem in problems:
        typer.echo(f"unetflow: {problem}", err=True)
    if problems:
        raise typer.Exit(EXIT_USAGE)


def _deadline(text: str | None) -> tuple[float | None, bool]:
    """Return the monotonic time at which to stop, and whether it is the end of the job that this runs in."""
    from unetflow.runtime.walltime import end_of_job, margin_of

    given = None
    if text is not None:
        try:
            hours, minutes, seconds = (int(part) for part in text.split(":"))
        except ValueError:
            raise InputError(f"--deadline needs HH:MM:SS, got '{text}'; for instance 01:30:00") from None
        given = time.monotonic() + hours * 3600 + minutes * 60 + seconds
    end = end_of_job()
    if end is None:
        return given, False
    left = end - time.time()
    last = time.monotonic() + left - margin_of(max(0.0, left))
    return (given, False) if given is not None and given < last else (last, True)


def _configure_logging(common: Common) -> None:
    level = logging.DEBUG if common.verbose else logging.WARNING if common.quiet else logging.INFO
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("unetflow").setLevel(level)


def _fail(common: Common, error: BaseException, code: int, advice: str | None = None) -> None:
    if common.verbose:
        logging.getLogger("unetflow").error("", exc_info=error)
    # Some, such as a TimeoutError of Dask's, have no words of their own.
    said = str(error) or f"{type(error).__name__} (-v tells where)"
    typer.echo(f"unetflow: {said}", err=True)
    if advice:
        typer.echo(advice, err=True)
    if common.as_json:
        typer.echo(json.dumps({"error": said, "exit": code}))
    raise typer.Exit(code)


def _same_command() -> str:
    import shlex

    return shlex.join(["unetflow", *sys.argv[1:]])


def show(result: Result, common: Common, advice: str | None, *, again: str = " --retry-failed") -> None:
    """Print a result, and leave with 3 where blocks are quarantined; ``again`` is what tries them once more."""
    if common.as_json:
        typer.echo(json.dumps(result))
    else:
        for line in _lines(result):
            typer.echo(line)
    quarantined = result.get("quarantined")
    if quarantined:
        typer.echo(
            f"unetflow: finished without {len(quarantined)} blocks: {', '.join(quarantined[:10])}; "
            f"mend the cause, then:\n  {_same_command()}{again}",
            err=True,
        )
        raise typer.Exit(EXIT_QUARANTINED)
    if advice and not common.quiet and not common.as_json:
        typer.echo(advice, err=True)


def _lines(result: Result, indent: str = "") -> list[str]:
    lines = []
    width = max((len(str(key)) for key in result), default=0)
    for key, value in result.items():
        if isinstance(value, dict):
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
        elif value is not None and value != []:
            text = f"{value:.4f}" if isinstance(value, float) else str(value)
            lines.append(f"{indent}{str(key).ljust(width)}  {text}")
    return lines


def fail_where_wrong(result: Result, common: Common) -> None:
    """Say what of an output is damaged or differs, and leave with 1; or that all is well."""
    lines = [f"{d['array']}, voxels {d['box']}: damaged in {d['file']} ({d['cause']})" for d in result["damaged"]]
    for d in result["mismatches"]:
        other = f"its class is {d['class']}" if "class" in d else f"computed again it is {d['computed']}"
        lines.append(
            f"block {d['block']}, voxels {d['box']}: {d['array']} differs in {d['voxels']} voxels; the first, at "
            f"{tuple(d['first'])} in {d['file']}, is {d['stored']}, {other}"
        )
    for line in lines:
        typer.echo(f"unetflow: {line}", err=True)
    if lines:
        raise typer.Exit(EXIT_FAILED)
    if not common.quiet and not common.as_json:
        n = len(result["recomputed"])
        typer.echo(f"all {result['files']} files are whole, and {n} blocks computed again are the same", err=True)


def numbers(text: str | None, kind: type) -> tuple[Any, ...] | None:
    """Read ``64,64,64``."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"lengths are numbers with commas between them, got '{text}'; for instance 64,64,64") from None


def read_class_map(text: str | None) -> dict[int, int] | None:
    """Read ``0=0,255=1``."""
    if text is None:
        return None
    try:
        return {int(value): int(index) for value, index in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise InputError(f"--class-map needs value=class pairs, got '{text}'; for instance 0=0,255=1") from None


class TrainingDisplay:
    """Show steps, loss, score and time left while training, or a line a minute in a log.

    Attributes
    ----------
    n_saved : int
        Steps of this process that a checkpoint holds.
    """

    n_steps = n_saved = 0

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.last = float("-inf")

    def __enter__(self) -> TrainingDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, event: dict[str, Any]) -> None:
        """Take an event of the loop: resumed, step, skipped, validation, checkpoint."""
        kind, log = event.get("event"), logging.getLogger("unetflow")
        TrainingDisplay.n_steps += kind == "step"
        if kind == "checkpoint":
            TrainingDisplay.n_saved = TrainingDisplay.n_steps
        if self.quiet:
            return
        if kind == "resumed":
            log.info("going on after step %s", event["step"])
        elif kind == "validation":
            log.info("step %s, held out: %s", event["step"], _words(event))
        elif kind in ("step", "skipped") and sys.stderr.isatty():
            self._draw(event)
        elif kind in ("step", "skipped") and time.monotonic() - self.last > 60:
            self.last = time.monotonic()
            log.info("step %s of %s: %s", event["step"], event["steps"], _words(event))

    def _draw(self, event: dict[str, Any]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        if self.bar is None:
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
            self.task = self.bar.add_task("", total=event["steps"])
            self.bar.start()
        self.bar.update(self.task, completed=event["step"], description=_words(event))


def after_training(result: Result, monitor: str) -> str:
    """Say in one line how good the model is, and what comes next.

    Examples
    --------
    >>> after_training({"validation_dice": 0.91234, "best_step": 300}, "dice")
    'best dice on held-out patches: 0.9123, after step 300; next: unetflow segment VOLUME'
    >>> after_training({"validation_loss": None, "best_step": 300}, "loss")
    'next: unetflow segment VOLUME'
    """
    score = result.get(f"validation_{monitor}")
    advice = "next: unetflow segment VOLUME"
    if score is None:
        return advice
    return f"best {monitor} on held-out patches: {score:.4g}, after step {result['best_step']}; {advice}"


def _words(event: dict[str, Any]) -> str:
    skip = {"step", "steps", "is_best"}
    return ", ".join(
        f"{key.replace('_', ' ')} {value:.4g}" for key, value in event.items()
        if key not in skip and "/" not in key and isinstance(value, int | float)  # one class's scores have a slash
    )  # fmt: skip
