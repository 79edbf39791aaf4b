"""Each command and each line of Python and TOML on the pages of docs/ runs, as it stands there."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import CODE, OTHER, assert_known, assert_parses, blocks_of, names_of_pages, run_block, text_of

PAGES = names_of_pages()
# Its commands fail, as they should: test_mistakes gives them.
FAILING = "mistakes.md"


def weights_of_theirs() -> None:
    """What the page on exchange calls ``theirs.pt``: the network of the project, by other names."""
    import torch

    from unetflow.nn.checkpoint import load_model

    network, _ = load_model("run")
    torch.save({f"theirs.{name}": tensor for name, tensor in network.state_dict().items()}, "theirs.pt")


def nothing() -> None:
    """What the reader of a page has who starts with pictures alone."""
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# What a reader of a page has, and the project of the tests lacks, or the other way round.
READERS_OWN: dict[str, Callable[[], None]] = {"exchange.md": weights_of_theirs, "tutorial.md": nothing}


@pytest.mark.parametrize("page", [p for p in PAGES if p != FAILING and any(b.language in CODE for b in blocks_of(p))])
def test_what_a_page_tells_to_type_works_in_its_order(page: str, place: Path) -> None:
    READERS_OWN.get(page, lambda: None)()
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.language in CODE and not block.is_marked:
            run_block(block, names)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_code_that_runs_or_says_that_it_is_none(page: str) -> None:
    text = text_of(page)
    assert text.count("\n```") == 2 * len(blocks_of(page)), "a fence that is not closed, or is indented"
    for block in blocks_of(page):
        assert block.language in CODE + OTHER, (page, block.language)
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    hidden = re.findall(r"^ {4}(?:unetflow|pip|python|sbatch|qsub) .*$", outside, re.MULTILINE)
    assert not hidden, "commands stand in fences, where they are run"


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_not_run_exist_with_their_options(page: str) -> None:
    for block in blocks_of(page):
        if block.language == "sh" and block.is_marked:
            for words in block.commands:
                if words[0] == "unetflow":
                    assert_parses(words)
                elif words[:2] == ["pip", "install"]:
                    assert_known(words[2])
