"""The workflow script: every stage as a user types it, on a local cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from unetflow.settings import load_settings

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted(path.parent.name for path in (ROOT / "workflows").glob("*/workflow.toml"))


def test_the_tiny_workflow_runs_every_stage_and_meets_its_scores(tmp_path: Path) -> None:
    script = ROOT / "workflows" / "end_to_end.py"
    done = subprocess.run(
        [sys.executable, script, "tiny", "--work", tmp_path, "--cluster", "local", "--workers", "2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "met" in done.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores["objects"] > 10


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_has_settings_that_load_and_a_readme(name: str) -> None:
    settings = load_settings(ROOT / "workflows" / name / "unetflow.toml")
    assert settings.data
    text = (ROOT / "workflows" / name / "README.md").read_text()
    for word in ("Data", "Terms", "Cost", "Score"):
        assert word in text, f"workflows/{name}/README.md does not tell its {word.lower()}"
