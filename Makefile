# make demo | test | lint | setup; what .ci/run adds: test-marked | test-faults | test-browser | test-shapes; everything at once: test-all.
# PYTHON: which Python (3.11 or newer) makes .venv. TORCH_INDEX: where to take torch from, for a laptop without a GPU
# (docs/install.md). make bench: speed, in a few minutes; bench-peers: beside other libraries; bench-cuda: on a CUDA
# device; wheels: builds and checks both wheels (docs/performance.md). make evidence | evidence-pair: the study of docs/evidence.md, or its decisive pair of runs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
AXE := .venv/axe-core-4.14.1/axe.min.js

# Without it each process would compile all it imports anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-marked test-faults test-browser test-shapes test-all lint setup clean evidence evidence-pair \
	bench bench-peers bench-cuda wheels

demo: setup
	$(BIN)/vismoe demo

test: setup
	$(PYTEST)

# What `make test` leaves out by its mark (pyproject.toml).
test-marked: setup
	$(PYTEST) -m 'slow or benchmarks'

# Distributed trainings in which processes are killed, stopped, or go wrong.
test-faults: setup
	$(PYTEST) -m faults tests/faults

# The service's page, in Debian's Chromium; axe-core, from npm, checks that everybody can use it.
test-browser: setup $(AXE)
	@command -v chromium > /dev/null || { as=$$(test "$$(id -u)" = 0 || echo sudo); \
		$$as apt-get update -q && $$as apt-get install -y -q --no-install-recommends chromium; }
	VISMOE_AXE=$(AXE) $(PYTEST) -m browser tests/browser

$(AXE): $(READY)
	@mkdir -p $(@D)
	@cd $(@D) && npm pack --silent axe-core@$(patsubst axe-core-%,%,$(notdir $(@D))) > /dev/null && \
		tar -xzf axe-core-*.tgz --strip-components=1 package/axe.min.js && touch axe.min.js

# With every annotation of shapes checked, the rooms that hand tensors to each other; `make test` checks moe's.
test-shapes: setup
	VISMOE_CHECK_SHAPES=1 $(PYTEST) $(addprefix tests/,vit data detection tasks inference explain parallel recipes \
		training/test_fit.py weights/test_convert.py)

# Whatever its mark, and with every annotation of shapes checked.
test-all: setup
	VISMOE_CHECK_SHAPES=1 $(PYTEST) -m ''

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

evidence: setup
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.study
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.matching

evidence-pair: setup
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.pair

# Networks, then layers; tables in runs/bench/.
bench: setup
	rm -rf runs/bench && mkdir -p runs/bench
	$(BIN)/vismoe bench vmoe_tiny_patch16_224_every2_e8 vmoe_small_patch16_224_every2_e8 \
		timm:vit_small_patch16_224 timm:resnet50 --seconds 1 --csv runs/bench/networks.csv
	$(BIN)/python benchmarks/layer_speed.py --seconds 0.3 --out runs/bench/layers.csv

bench-peers: setup
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/peers.py

bench-cuda: setup
	$(BIN)/python benchmarks/cuda_device.py

wheels: setup
	$(BIN)/python .ci/wheels.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vismoe needs Python 3.11 or newer; make PYTHON=python3.12 … names another one" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install -q -c constraints.txt --index-url $(TORCH_INDEX) torch torchvision)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[all,dev]'
	@touch $@

clean:
	rm -rf .venv build dist
