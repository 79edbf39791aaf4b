#!/usr/bin/env python3
"""Drive every stage of one workflow, with the commands that a user would type.

    python workflows/end_to_end.py isbi2012 --data DATA --work WORK [--cluster local]

A workflow is a folder with ``unetflow.toml`` (the numbers) and ``workflow.toml`` (what is
converted, segmented and scored, and which scores are expected).
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def main() -> int:
    """Run the stages and compare the scores with the expected ones."""
    arguments = _parse()
    folder = HERE / arguments.workflow
    steps = tomllib.loads((folder / "workflow.toml").read_text())
    work = Path(arguments.work).absolute()
    work.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "unetflow.toml", work / "unetflow.toml")
    place = ["--cluster", arguments.cluster, *(["--workers", arguments.workers] if arguments.workers else [])]
    sets = [word for text in arguments.set for word in ("--set", text)]

    seconds: dict[str, float] = {}
    for step in steps.get("make", []):
        _make(work, step)
    for step in steps.get("convert", []):
        source = _stage_files(Path(arguments.data).absolute(), work, step)
        seconds["convert"] = seconds.get("convert", 0) + _convert(work, source, step, place)
    for stage in ("prepare", "train"):
        seconds[stage] = _run(work, [stage, *place, *sets, "--json"])["seconds"]
    scores: dict[str, Any] = {}
    for step in steps["segment"]:
        out = step.get("out", "segmented.zarr")
        found = _run(work, ["segment", step["volume"], "--out", out, *step.get("options", []), *place, *sets, "--json"])
        seconds["segment"] = found["seconds"]
        scores |= {"objects": found.get("objects")}
        truth = step["truth"]
        scores |= _run(work, ["evaluate", out, truth, *step.get("evaluate", []), *place, *sets, "--json"])
    return _judge(work, scores, steps.get("expect", {}), seconds)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", choices=sorted(p.parent.name for p in HERE.glob("*/workflow.toml")))
    parser.add_argument("--data", default="../shared/data", help="folder of the annotated images")
    parser.add_argument("--work", required=True, help="folder in which everything is made")
    parser.add_argument("--cluster", default="local", help="as for the commands")
    parser.add_argument("--workers", help="as for the commands")
    parser.add_argument("--set", action="append", default=[], help="section.key=value, as for the commands")
    return parser.parse_args()


def _make(work: Path, step: dict[str, Any]) -> None:
    """Make a synthetic volume."""
    from unetflow.stages.synthetic import make_tissue

    raw, labels = work / step["raw"], work / step["labels"]
    if not raw.exists():
        make_tissue(str(raw), str(labels), step["shape"], seed=step["seed"], voxel_size=step["voxel_size"])


def _stage_files(data: Path, work: Path, step: dict[str, Any]) -> Path:
    """Link the chosen files into a folder of their own, so that one convert takes them."""
    files = sorted((path for pattern in step["files"] for path in data.glob(pattern)), key=lambda path: path.name)
    files = [path for path in files if not any(word in path.stem for word in step.get("exclude", []))]
    files = files[step.get("skip", 0) :][: step.get("first")]
    if not files:
        sys.exit(f"no files {step['files']} in {data}; name the folder with --data")
    folder = work / "files" / step["target"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in files:
        (folder / path.name).symlink_to(path)
    return folder if len(files) > 1 else folder / files[0].name


def _convert(work: Path, source: Path, step: dict[str, Any], place: list[str]) -> float:
    words = ["convert", str(source), step["target"], *step.get("options", []), *place, "--json"]
    return float(_run(work, words)["seconds"])


def _run(work: Path, words: list[str]) -> dict[str, Any]:
    """Run one command in the work folder and return its JSON."""
    print("$ unetflow", shlex.join(words), file=sys.stderr, flush=True)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "unetflow", *words], cwd=work, stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    result["seconds"] = time.monotonic() - started
    return result


def _judge(work: Path, scores: dict[str, Any], expected: dict[str, Any], seconds: dict[str, float]) -> int:
    """Print the scores beside the expected ones; 1 where one is missed."""
    missed = 0
    for name, bound in expected.items():
        value: Any = scores
        for part in name.split("/"):
            value = value.get(part) if isinstance(value, dict) else None
        words = {"least": f"at least {bound.get('least')}", "most": f"at most {bound.get('most')}"}
        is_met = value is not None and bound.get("least", value) <= value <= bound.get("most", value)
        missed += not is_met
        print(f"{name:24} {value}  {' and '.join(words[k] for k in bound)}  {'met' if is_met else 'MISSED'}")
    print("seconds  " + ", ".join(f"{name} {value:.0f}" for name, value in seconds.items()))
    (work / "scores.json").write_text(json.dumps({"scores": scores, "seconds": seconds}, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
