# make demo    train a small robust network and compress it, from nothing
# make test    the tests, from nothing
PYTHON ?= python3
DATA ?= cifar-10-batches-bin
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-arm lint format bench reproduce docs wheel clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1	/' | expand -t 12

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || \
	  { echo "error: $(PYTHON) is $$($(PYTHON) -V 2>&1); fsrp-edge needs Python 3.11 or 3.12: make PYTHON=python3.11 …"; exit 2; }
	$(PYTHON) -m venv $(VENV)

# Stamps: an environment is installed again when the requirements change.
$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing fsrp-edge into $(VENV) (about 3 minutes and 3 GB) …"
	@$(PIP) --editable '.[onnx,tflite,samples]'
	@touch $@

$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing fsrp-edge and its development tools into $(VENV) (about 4 minutes and 5 GB) …"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp ## Train resnet18.pt adversarially on handwritten digits, then compress it for a Jetson Nano
	@mkdir -p demo
	cd demo && ../$(BIN)/fsrp-edge train --arch resnet18 --data digits --input-size 40 --eps 0.1 --epochs 3 \
	  --batch-size 32 --learning-rate 0.02 --crop-padding 0 --out resnet18.pt
	cd demo && ../$(BIN)/fsrp-edge compress resnet18.pt --target jetson-nano
	@echo "These run in demo/, with the environment turned on: cd demo && . ../$(BIN)/activate"

test: $(VENV)/dev.stamp ## Run the tests (under 10 minutes, installation included)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow' -n 2 --dist loadfile # two workers, one thread each

test-slow: $(VENV)/dev.stamp ## Run the tests that take longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

test-arm: $(VENV)/dev.stamp ## Measure real files as 64-bit Arm code, emulated, behind ssh (Debian; makes .arm, 650 MB)
	$(BIN)/python tests/bench/arm_root.py .arm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/bench/test_arm.py

lint: $(VENV)/dev.stamp ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/dev.stamp ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp ## Run the benchmark that takes minutes and needs no data (the others: benchmarks/README.md)
	$(BIN)/python -m benchmarks.run

reproduce: $(VENV)/dev.stamp ## Rerun what is missing of the robust pruning table of the small networks (days on 2 cores; resumable): make reproduce DATA=cifar-10-batches-bin
	$(BIN)/python -m benchmarks.robust_pruning --data $(DATA)

docs: $(VENV)/dev.stamp ## Build the documentation into build/docs, with its links checked
	NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m mkdocs build --strict

wheel: $(VENV)/dev.stamp ## Build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## Remove the environment and the demo
	rm -rf $(VENV) demo dist
