# `make demo` and `make test` set everything up on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The tests also check every annotated tensor shape.
CHECKED = --jaxtyping-packages=circuitvit,beartype.beartype

.PHONY: demo test lint exhaustive

demo: $(READY)
	$(BIN)/circuitvit demo

test: $(READY)
	$(BIN)/python -m pytest $(CHECKED) -n logical --dist loadfile -m "not exhaustive"

exhaustive: $(READY)
	$(BIN)/python -m pytest $(CHECKED) -m exhaustive --timeout=7200

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,timm,onnx]'
	touch $(READY)
