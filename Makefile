# Every target builds the environment it needs, once, in .venv. Start with: make demo
PYTHON ?= $(firstword $(foreach name,python3.11 python3 python,$(shell command -v $(name) 2>/dev/null)))
PIP := $(PYTHON) -m pip --python .venv/bin/python --disable-pip-version-check
PIP5 := $(PYTHON) -m pip --python .venv5/bin/python --disable-pip-version-check
export PIP_USER := 0
# librosa compiles itself at its first import and keeps the result. Two test processes that do so at once overwrite each other's files, and
# numba may then crash on what is left, so it is done here, once.
COMPILED := import librosa; librosa.yin, librosa.feature.mfcc

.DEFAULT_GOAL := help
.PHONY: help demo test check test-transformers5 clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "make %-20s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: export CODECPROBE_CACHE = $(CURDIR)/runs/cache
demo: .venv/ready  ## both main jobs on the embedded data: two tables, and a report folder with pictures
	.venv/bin/codecprobe speaker-probe --out runs/demo/speaker-probe
	.venv/bin/lmprobe terrain --out runs/demo/terrain

test: .venv/ready  ## run the tests, offline
	.venv/bin/python -m pytest -n 2

check: .venv/checkers  ## format, lint and type-check
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

test-transformers5: .venv5/ready  ## run the tests of everything that touches transformers on transformers 5
	.venv5/bin/python -m pytest -n 2 -m transformers tests

clean:  ## remove the environments
	rm -rf .venv .venv5

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip .venv
	$(PIP) install --quiet --constraint constraints.txt --editable ".[qwen,test]"
	.venv/bin/python -c "$(COMPILED)"
	@touch $@

.venv/checkers: .venv/ready
	$(PIP) install --quiet --constraint constraints.txt --editable ".[qwen,test,check]"
	@touch $@

.venv5/ready: pyproject.toml constraints5.txt
	$(PYTHON) -m venv --without-pip .venv5
	$(PIP5) install --quiet --constraint constraints5.txt --editable ".[test]"
	$(PIP5) install --quiet --no-deps qwen-tts==0.1.1
	.venv5/bin/python -c "$(COMPILED)"
	@touch $@
