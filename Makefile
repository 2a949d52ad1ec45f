# make demo and make test set everything up by themselves; they need Python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test test-slow fuzz soak large-raster lint clean

help:
	@echo "make setup      .venv with everything: the library, the experiments, the tools"
	@echo "make demo       train BN, GN and LCN on the miniature of Cityscapes and compare them"
	@echo "make test       lint and test"
	@echo "make test-slow  the tests that take minutes each"
	@echo "make fuzz       2,000 damaged inputs, counted by what becomes of them (about 10 minutes)"
	@echo "make soak       100 kills of trainings, each compared bit for bit (an hour or more)"
	@echo "make large-raster  a map of 100,000 x 100,000 pixels in 2 GB (half an hour)"
	@echo "make lint       ruff and mypy"
	@echo "make clean      remove .venv, runs, demo, generated data and what building left"

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11; try: make PYTHON=python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (PyTorch is several gigabytes; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[experiments,dev]'
	@touch $@

demo: $(READY)
	$(BIN)/python train.py -m experiment=table1_w18_bn,table1_w18_gn,table1_w18_lcn data=mini trainer.devices=1 runs=demo/runs
	$(BIN)/python scripts/report.py demo/runs --out demo

test: $(READY) lint
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

fuzz: $(READY)
	$(BIN)/python tests/fuzz.py $(if $(SEED),--seed $(SEED))

soak: $(READY)
	$(BIN)/python tests/soak.py $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS))

large-raster: $(READY)
	$(BIN)/python tests/large_raster.py --size 100000

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs demo data/mini build *.egg-info
