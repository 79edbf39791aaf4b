"""The commands: parse, call one stage, print, exit code. No arithmetic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from unetflow.terminal import (
    Common,
    Result,
    after_training,
    check_place,
    copy_place,
    fail_where_wrong,
    refuse_problems,
    run_stage,
    show,
)

app = typer.Typer(
    name="unetflow",
    help="Cut microscopy volumes of any size into meaning with a U-Net, on Zarr and Dask.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

cluster_app = typer.Typer(help="Look at places to run.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")

_PLACE = "Where"
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="Project file [default: ./unetflow.toml].")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.key=value wins over the file.")]
RunOption = Annotated[str | None, typer.Option("--run", help="Folder of the run [default: run].")]
ClusterOption = Annotated[
    str | None,
    typer.Option("--cluster", help="local, none, a cluster file's name or path, an address.", rich_help_panel=_PLACE),
]
WorkersOption = Annotated[
    str | None, typer.Option("--workers", help="N, or N:M for adaptive.", rich_help_panel=_PLACE)
]
DeadlineOption = Annotated[
    str | None, typer.Option("--deadline", help="HH:MM:SS from now; then no new block starts.", rich_help_panel=_PLACE)
]
PlanOption = Annotated[bool, typer.Option("--plan", help="Print the plan, do nothing.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Start anew, whatever is there.")]
RetryOption = Annotated[bool, typer.Option("--retry-failed", help="Try quarantined blocks again.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="More on what happens, tracebacks too.")]
AxesOption = Annotated[str | None, typer.Option("--axes", help="Axes of the arrays, letters of tczyx.")]
VoxelOption = Annotated[
    str | None, typer.Option("--voxel-size", help="Micrometres per spatial axis: 0.05,0.004,0.004.")
]


def _version(wanted: bool) -> None:
    if wanted:
        from unetflow import __version__

        typer.echo(f"unetflow {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take options that stand before a command."""


@app.command()
def init(
    raw: Annotated[str | None, typer.Argument(help="Zarr with the raw data.")] = None,
    labels: Annotated[str | None, typer.Argument(help="Zarr with the annotation.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path("unetflow.toml"),
    axes: AxesOption = None,
    voxel_size: VoxelOption = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON Schema of a project file, for editors; write nothing.")
    ] = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look at the data and write a commented project file with the numbers it proposes, and why."""
    common = Common(as_json=as_json or schema, quiet=quiet, verbose=verbose)

    def work() -> Result:
        from unetflow.errors import InputError
        from unetflow.stages.init import init as run
        from unetflow.stages.schema import project_schema
        from unetflow.terminal import numbers

        if schema and raw is not None:
            raise InputError(f"--schema is the same for all data, got {raw}; leave it out")
        if schema:
            return project_schema()
        return run(raw, labels, out=str(out), axes=axes, voxel_size=numbers(voxel_size, float), overwrite=overwrite)

    show(run_stage(common, work), common, "next: unetflow prepare")


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(help="A TIFF, folder or glob of slices, file.h5:/path, dir.n5:/path, .npy or Zarr.")
    ],
    target: Annotated[str, typer.Argument(help="The OME-Zarr to write.")],
    axes: AxesOption = None,
    voxel_size: VoxelOption = None,
    chunk: Annotated[str | None, typer.Option("--chunk", help="Per spatial axis in voxels: 64,64,64.")] = None,
    shard: Annotated[str | None, typer.Option("--shard", help="Per spatial axis in voxels.")] = None,
    as_labels: Annotated[bool, typer.Option("--as-labels", help="Write a label image.")] = False,
    collection: Annotated[bool, typer.Option("--collection", help="Keep files apart, one image each.")] = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Bring images into chunked, sharded OME-Zarr 0.5, block by block."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose)

    def work(conditions: Any) -> Result:
        from unetflow.stages.convert import convert as run
        from unetflow.terminal import numbers

        return run(
            source, target, axes=axes, voxel_size=numbers(voxel_size, float), chunk=numbers(chunk, int),
            shard=numbers(shard, int), as_labels=as_labels, collection=collection, overwrite=overwrite,
            plan_only=plan, conditions=conditions,
        )  # fmt: skip

    result = run_stage(common, work, needs_cluster=not plan, wants_gpu=False)
    show(result, common, f"wrote {target}" if not plan else None, again="")


@app.command()
def prepare(
    raw: Annotated[str | None, typer.Argument(help="Zarr with the raw data, instead of [[data]].")] = None,
    labels: Annotated[str | None, typer.Argument(help="Zarr with the annotation.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    overwrite: OverwriteOption = False,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make statistics, weight maps and elastic-deformed patches in RUN/dataset.zarr."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose, config, sets, run)

    def work(conditions: Any) -> Result:
        from unetflow.stages import prepare as stage
        from unetflow.stages import prepare_plan

        settings = common.settings(raw, labels)
        if plan:
            return prepare_plan.plan(settings).summary()
        return stage.prepare(settings, conditions=conditions, overwrite=overwrite, retry_failed=retry_failed)

    result = run_stage(common, work, needs_cluster=not plan, keeps_logs=True, wants_gpu=False)
    show(result, common, None if plan else "next: unetflow train")


@app.command()
def train(
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    initial: Annotated[
        str | None, typer.Option("--from", help="Model file or run folder whose weights are the start.")
    ] = None,
    new_head: Annotated[bool, typer.Option("--new-head", help="With --from: draw the last layer anew.")] = False,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Train a U-Net on RUN/dataset.zarr; go on where the last run stopped."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose, config, sets, run)

    def work(conditions: Any) -> Result:
        from unetflow.stages import train as stage
        from unetflow.terminal import TrainingDisplay

        settings = common.settings()
        if plan:
            return stage.plan(settings, initial, new_head).summary()
        with TrainingDisplay(quiet=quiet) as display:
            return stage.train(
                settings, conditions=conditions, initial=initial, new_head=new_head, overwrite=overwrite,
                on_event=display,
            )  # fmt: skip

    # One rank with all cores: it needs the least memory, and batch norm sees the whole batch.
    result = run_stage(common, work, needs_cluster=not plan, keeps_logs=True, wants_gpu=True, local_workers=1)
    show(result, common, None if plan else after_training(result, common.settings().train.monitor))


@app.command()
def segment(
    volume: Annotated[str, typer.Argument(help="Zarr array, OME-Zarr image or group of images; path or URL.")],
    model: Annotated[str | None, typer.Option("--model", "-m", help="Model or run folder [default: RUN].")] = None,
    out: Annotated[str | None, typer.Option("--out", "-o", help="Result [default: NAME.unetflow.zarr].")] = None,
    outputs: Annotated[str | None, typer.Option("--outputs", help="Of probabilities,classes,instances.")] = None,
    roi: Annotated[str | None, typer.Option("--roi", help="z0:z1,y0:y1,x0:x1 in voxels.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="Zarr; where it is 0 nothing is computed.")] = None,
    axes: AxesOption = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over flips and turns.")] = False,
    part: Annotated[
        str | None,
        typer.Option("--part", help="k/n: only this part of the blocks, for job arrays.", rich_help_panel=_PLACE),
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    overwrite: OverwriteOption = False,
    retry_failed: RetryOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Segment a volume of any size, block by block, into OME-Zarr."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose, config, sets, run)

    def work(conditions: Any) -> Result:
        from unetflow.settings import with_values
        from unetflow.stages import segment as stage
        from unetflow.stages import segment_plan

        settings = common.settings()
        if outputs:
            settings = with_values(settings, {"segment": {"outputs": outputs.split(",")}})
        if tta:
            settings = with_values(settings, {"segment": {"tta": True}})
        chosen: dict[str, Any] = {"model": model, "out": out, "roi": roi, "mask": mask, "axes": axes}
        if plan:
            n_workers, n_threads = common.share_of_machine()
            return segment_plan.plan(settings, volume, **chosen).summary(n_workers=n_workers, n_threads=n_threads)
        return stage.segment(
            settings, volume, part=part, conditions=conditions, overwrite=overwrite, retry_failed=retry_failed, **chosen
        )

    result = run_stage(common, work, needs_cluster=not plan, keeps_logs=True, wants_gpu=True)
    advice = "next: unetflow evaluate OUT TRUTH" if part is None else "when all parts are done: the same without --part"
    show(result, common, None if plan else advice)


@app.command()
def evaluate(
    segmentation: Annotated[str, typer.Argument(help="Output of segment, or an integer array.")],
    truth: Annotated[str, typer.Argument(help="Integer array, label image, or collection.")],
    sections: Annotated[bool, typer.Option("--sections", help="Score each plane or image on its own.")] = False,
    foreground: Annotated[int | None, typer.Option("--foreground", help="Class whose components are objects.")] = None,
    class_map: Annotated[str | None, typer.Option("--class-map", help="Truth value=class: 0=0,255=1.")] = None,
    mask: Annotated[str | None, typer.Option("--mask", help="Zarr; where it is 0 nothing counts.")] = None,
    overlays: Annotated[str | None, typer.Option("--overlays", help="Folder for pictures of the worst places.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Score a segmentation against truth."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose, config, sets, run)

    def work(conditions: Any) -> Result:
        from unetflow.stages import evaluate as stage
        from unetflow.terminal import read_class_map

        chosen: dict[str, Any] = {
            "sections": sections, "foreground": foreground, "class_map": read_class_map(class_map), "mask": mask
        }  # fmt: skip
        settings = common.settings()
        if plan:
            return stage.plan(settings, segmentation, truth, **chosen).summary()
        return stage.evaluate(settings, segmentation, truth, conditions=conditions, overlays=overlays, **chosen)

    show(run_stage(common, work, needs_cluster=not plan, wants_gpu=False), common, None)


@app.command()
def verify(
    output: Annotated[str, typer.Argument(help="Output of segment; path or URL.")],
    blocks: Annotated[int, typer.Option("--blocks", help="Random blocks to compute again; 0: checksums only.")] = 8,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Where the model is now.")] = None,
    volume: Annotated[str | None, typer.Option("--volume", help="Where the volume is now.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    deadline: DeadlineOption = None,
    plan: PlanOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Check the checksum of every chunk, then compute random blocks again and compare."""
    common = Common(cluster, workers, deadline, as_json, quiet, verbose, config, sets)

    def work(conditions: Any) -> Result:
        from unetflow.stages import verify as stage

        chosen: dict[str, Any] = {"n_blocks": blocks, "model": model, "volume": volume}
        if plan:
            return stage.plan(output, **chosen).summary()
        return stage.verify(output, conditions=conditions, **chosen)

    result = run_stage(common, work, needs_cluster=not plan, wants_gpu=blocks > 0)
    show(result, common, None)
    if not plan:
        fail_where_wrong(result, common)


@app.command()
def report(
    path: Annotated[str | None, typer.Argument(help="Run folder or output of segment [default: RUN].")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The HTML file [default: beside PATH].")] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="Where a browser reads the output from: prints a neuroglancer link.")
    ] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write one self-contained HTML file of a run or an output."""
    common = Common(None, None, None, as_json, quiet, verbose, config, sets, run)

    def work() -> Result:
        from unetflow.stages.report import report as stage

        return stage(path or str(common.settings().run_folder), out=out, url=url)

    show(run_stage(common, work), common, "open it in a browser")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where everything goes.")] = Path("unetflow-demo"),
    seed: Annotated[int, typer.Option("--seed", help="Of the made volume and of the training.")] = 0,
    cluster: ClusterOption = None,
    workers: WorkersOption = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a small volume, run every stage on it, score the result."""
    common = Common(cluster, workers, None, as_json, quiet, verbose)

    def work(conditions: Any) -> Result:
        from unetflow.stages.demo import demo as run
        from unetflow.terminal import TrainingDisplay

        with TrainingDisplay(quiet=quiet) as display:
            return run(folder, seed=seed, conditions=conditions, overwrite=overwrite, on_event=display)

    show(run_stage(common, work), common, f"look at {folder}/report.html; the result is {folder}/segmented.zarr")


@cluster_app.command()
def check(
    file: Annotated[str | None, typer.Argument(help="Name or path of a cluster file, or an address.")] = None,
    config: ConfigOption = None,
    sets: SetOption = None,
    run: RunOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Start one worker of a cluster, say what it has and sees, and stop it."""
    common = Common(file, None, None, as_json, quiet, verbose, config, sets, run)

    def work() -> Result:
        return check_place(common)

    result = run_stage(common, work)
    show(result, common, None)
    refuse_problems(result["problems"])


@cluster_app.command()
def copy(
    name: Annotated[str, typer.Argument(help="Name of a cluster file: slurm, slurm-gpu, pbs, lsf, sge, cuda ...")],
    folder: Annotated[Path, typer.Argument(help="Where the files go.")] = Path("."),
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Copy a cluster file, and the script that submits a command to that queue, to edit them."""
    common = Common(as_json=as_json, quiet=quiet, verbose=verbose)

    def work() -> Result:
        return {"files": copy_place(name, folder, overwrite=overwrite)}

    show(run_stage(common, work), common, f"edit them, then: unetflow cluster check {folder / name}.toml")


def main() -> None:
    """Run the command line."""
    app()
