# `make demo` and `make test` set everything up on a machine with Python 3.11+ and make.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# The tests also check every annotated tensor shape.
CHECKED = --jaxtyping-packages=circuitvit,beartype.beartype

# Two processes, a file each; big files first would leave one of them alone at the end.
TWO = -n logical --dist loadfile --no-loadscope-reorder
QUICK = ablated_run acdc advice altered_weights card circuit config edge_graph errors \
	files comparability half_precision hooked image_labels metrics new_head overlap paired_images \
	preprocessing processors saturation schedule scores surgery torchvision_ops vit writer_outputs

.PHONY: demo test quick lint exhaustive attack

demo: $(READY)
	$(BIN)/circuitvit demo

test: $(READY)
	$(BIN)/python -m pytest $(CHECKED) $(TWO) -m "not exhaustive and not attack"

quick: $(READY)
	$(BIN)/python -m pytest $(CHECKED) $(TWO) -m "not exhaustive and not attack" $(foreach name,$(QUICK),$(wildcard tests/*/test_$(name).py))

exhaustive: $(READY)
	$(BIN)/python -m pytest $(CHECKED) -m exhaustive --timeout=7200

# Hostile files, kills, full disks; CIRCUITVIT_ATTACK_SEED draws others.
attack: $(READY)
	$(BIN)/python -m pytest -n logical --dist worksteal -m attack --timeout=900 tests/attack

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,timm,onnx]'
	touch $(READY)
