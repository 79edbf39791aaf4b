"""The code of the documentation: fenced blocks, and how each is run."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
MARK = "# Not run by the tests: "
CODE = ("sh", "python", "toml")
OTHER = ("", "text", "json")  # drawings, and what commands say


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: str
    language: str
    text: str

    @property
    def is_marked(self) -> bool:
        """Whether it says itself, in its first line and for readers too, why no test runs it."""
        return self.text.startswith(MARK)

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a block of shell commands, without comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def names_of_pages() -> list[str]:
    return sorted(path.name for path in DOCS.glob("*.md"))


def text_of(page: str) -> str:
    return (DOCS / page).read_text()


def blocks_of(page: str) -> list[Block]:
    found = re.findall(r"^```([^\n]*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [Block(page, language, text) for language, text in found]


def run_block(block: Block, names: dict[str, Any]) -> None:
    """Run a block in the current folder; ``names`` are what Python blocks of the page have defined."""
    if block.language == "python":
        exec(compile(block.text, block.page, "exec"), names)
    elif block.language == "toml":
        _read_settings(block.text)
    else:
        for words in block.commands:
            _run_line(words, names)


def _read_settings(text: str) -> None:
    """Read a part of a project file; a part that has no data is one all the same."""
    import tomllib

    from unetflow.settings import make_settings

    values = tomllib.loads(text)
    assert values
    make_settings(values)


def _run_line(words: list[str], names: dict[str, Any]) -> None:
    from newcomer import SMALL, run

    target = None
    if ">" in words:
        words, target = words[: words.index(">")], words[-1]
    if words[:2] == ["pip", "install"]:
        for package in words[2:]:
            assert_known(package)
    elif words[:2] == ["python", "-c"]:
        exec(compile(words[2], "python -c", "exec"), names)
    elif words[0] == "unetflow":
        small = [f"--set={value}" for value in SMALL] if words[1] in ("prepare", "train", "segment") else []
        result = run(*words[1:], *small)
        assert result.exit_code == 0, (words, result.stderr, result.exception)
        if target:
            Path(target).write_text(result.stdout)
    else:
        raise AssertionError(f"no test knows how to run {words}: mark the block with '{MARK}why.'")


def assert_known(package: str) -> None:
    """Assert that an extra of ours exists; whether pip finds other packages is not ours to test."""
    import tomllib

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if package.startswith("unetflow["):
        for extra in package.removeprefix("unetflow[").removesuffix("]").split(","):
            assert extra in extras, package


def assert_parses(words: list[str]) -> None:
    """Assert that a command that is not run, and each of its options, exists."""
    import typer.main

    from unetflow.cli import app

    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(command.name, rest)
