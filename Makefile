# Every target makes .venv by itself; a machine needs Python 3.11 or later (with venv) and make.
#   make demo   a run on a small volume of its own      make test   what has to pass
# Another interpreter: make PYTHON=python3.12 ...       Options for pip: its own PIP_* variables.

SHELL := /bin/bash
PYTHON ?= $(shell command -v python3.11 || echo python3)
BIN := .venv/bin
INSTALLED := .venv/.installed
TESTS := $(BIN)/python -m pytest

.PHONY: help install demo test lint bench bench-train soak test-browser test-gpu test-slurm test-slurm-slow release-check docs clean
help:
	@echo 'make demo | test | lint | bench | bench-train | soak | test-browser | test-gpu | test-slurm | test-slurm-slow | release-check | docs | install | clean'

install: $(INSTALLED)

# torch comes first and alone: named exactly, pip takes the build that this machine's own pip settings
# offer (a CPU wheel where they name one), and nothing that follows can draw in another.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "unetflow needs Python 3.11 or later, $(PYTHON) is $$($(PYTHON) -V 2>&1); use make PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/unetflow demo

# Two processes share the files of tests: much of a test is waiting for the processes that it starts.
test: $(INSTALLED)
	$(TESTS) -n 2 --dist loadfile -m 'not slurm and not gpu and not soak and not browser and not release' --cov=unetflow --cov-fail-under=85

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

# One script a claim; the first that fails ends the run. What they share has no main part.
bench: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt monai dask-image pims slicerator imageio
	@for script in $$(grep -l __main__ benchmarks/*.py | grep -v train_peers); do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

# Hours: fifteen minutes for each of three sides and three seeds; it goes on where it stopped.
bench-train: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt monai
	$(BIN)/python benchmarks/train_peers.py --work work/train-peers

# What takes many minutes: memory that must not grow with the volume, kills at random moments.
soak: $(INSTALLED)
	$(TESTS) tests -m soak -s --timeout=0

# pytest ends with 5 where no test carries the mark: said in plain words, and no failure.
test-gpu: $(INSTALLED)
	@$(TESTS) tests -m gpu --timeout=0; code=$$?; \
	  if [ $$code -eq 5 ]; then echo 'no test carries the mark "gpu": nothing was tested'; exit 0; fi; exit $$code

# The report in a headless Chromium, which pip cannot bring; on Debian: apt-get install chromium
test-browser: $(INSTALLED)
	$(TESTS) tests -m browser

# A real SLURM on this machine, started and stopped by the tests: cluster/slurm-one-node/install.sh
# installs it. Those marked slow wait on the queue's own clock, for minutes.
test-slurm: $(INSTALLED)
	$(TESTS) tests/slurm -m 'slurm and not slow'

test-slurm-slow: $(INSTALLED)
	$(TESTS) tests/slurm -m 'slurm and slow' --timeout=1200

# Builds wheel and sdist, and runs the smallest workflow from the wheel in an environment that holds nothing else.
release-check: $(INSTALLED)
	$(TESTS) tests/release -m release --timeout=0

# The site of docs/, in site/; a warning is an error.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo 'look at site/index.html; search needs a server: python -m http.server -d site'

clean:
	rm -rf .venv build dist site htmlcov .coverage .coverage.* .benchmarks .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
