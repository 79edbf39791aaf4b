"""``kill -9`` at random moments: of the driver, of a worker, of all at once. `make soak` does 20 rounds a stage."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import oracle
import psutil
import pytest
from forks import Forks
from killable import check, go_on_to_the_end, set_up

VICTIMS = ("driver", "worker", "all")
WORKERS = {  # one rank: with batch normalisation the number of ranks is a part of the result
    "train": ("--cluster", "local", "--workers", "1"),
    "prepare": ("--cluster", "local", "--workers", "2"),
    "segment": ("--cluster", "local", "--workers", "2"),
}


def worker_of(driver: int) -> psutil.Process | None:
    """Return a worker process that runs blocks, if there is one yet."""
    workers = [p for p in psutil.Process(driver).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    return random.choice(workers) if workers else None


def kill(victim: str, driver: int) -> None:
    with suppress(ProcessLookupError, psutil.NoSuchProcess):
        if victim == "all":
            os.killpg(driver, signal.SIGKILL)
        elif victim == "driver":
            os.kill(driver, signal.SIGKILL)
        elif (worker := worker_of(driver)) is not None:
            worker.kill()


def rounds(stage: str, n: int, place: Path, forks: Forks, first: int = 0) -> int:
    """Kill ``n`` times at random moments, victims by turns; return how often a command was still running then."""
    draw = random.Random(f"{stage} {n}")
    chosen = set_up(stage, place, forks)
    began = time.monotonic()
    wanted, again = chosen.wanted, ("--cluster", "none")
    if stage == "train":  # its sums depend on the number of threads: it is compared with a run on workers too
        wanted, again = "by-workers", WORKERS[stage]
        ended = forks.run(*chosen.words, *WORKERS[stage], folder=place)
        assert ended.code == 0, ended
        shutil.rmtree(place / wanted, ignore_errors=True)
        (place / chosen.folder).rename(place / wanted)
    else:
        go_on_to_the_end(chosen, place, forks, *WORKERS[stage])
    lasts, n_hit = time.monotonic() - began, 0
    for number in range(n):
        chosen = replace(set_up(stage, place, forks), wanted=wanted)
        victim = VICTIMS[(number + first) % len(VICTIMS)]
        driver = forks.start(*chosen.words, *WORKERS[stage], folder=place)
        time.sleep(draw.uniform(0.2, 0.95) * lasts)
        is_hit = psutil.pid_exists(driver) and psutil.Process(driver).status() != psutil.STATUS_ZOMBIE
        kill(victim, driver)
        ended = forks.end()
        n_hit += is_hit
        if victim == "worker":  # 75: it was killed while the cluster started
            assert ended.code in (0, 75), ended
            assert "Traceback" not in ended.told, ended
            if ended.code == 0:
                check(chosen, place)
        elif is_hit:
            assert ended.code in (-9, 0), ended
        before = oracle.done(place / chosen.folder, chosen.name)
        result = go_on_to_the_end(chosen, place, forks, *again)
        assert stage == "train" or result["blocks_skipped"] >= len(before)
    return n_hit


@pytest.mark.parametrize(("stage", "first"), [("prepare", 0), ("train", 1), ("segment", 2)])
def test_kills_at_random_moments_end_with_the_bytes_of_an_undisturbed_run(
    stage: str, first: int, place: Path, forks: Forks
) -> None:
    assert rounds(stage, 2, place, forks, first) > 0


def test_a_worker_that_stands_still_is_ended_after_block_minutes_and_the_command_goes_on(
    place: Path, forks: Forks
) -> None:
    chosen = set_up("segment", place, forks)
    words = (*chosen.words, "--cluster", "local", "--workers", "1", "--set", "cluster.block_minutes=0.4")
    driver = forks.start(*words, folder=place)
    try:
        until = time.monotonic() + 120
        while not oracle.done(place / chosen.folder, chosen.name):
            assert time.monotonic() < until and psutil.pid_exists(driver)
            time.sleep(0.01)
        worker = worker_of(driver)
        assert worker is not None
        worker.suspend()  # as where a file system does not answer
        worker.wait(timeout=90)
    except BaseException:
        kill("all", driver)
        raise
    finally:
        ended = forks.end()
    assert ended.code == 0, ended
    assert "it hangs" in ended.told
    check(chosen, place)


@pytest.mark.soak
@pytest.mark.parametrize("stage", ["prepare", "train", "segment"])
def test_twenty_kills_at_random_moments(stage: str, place: Path, forks: Forks) -> None:
    n_hit = rounds(stage, 20, place, forks)
    print(f"{stage}: 20 kills, {n_hit} of them while it ran")
    assert n_hit >= 10
