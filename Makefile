# make demo | test | test-all | lint | setup. PYTHON: which Python (3.11 or newer) makes .venv. TORCH_INDEX: where to take torch from,
# for a laptop without a GPU (docs/install.md). make evidence | evidence-pair: the study of docs/evidence.md, or its decisive
# pair of runs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all lint setup clean evidence evidence-pair

demo: setup
	$(BIN)/vismoe demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Whatever its mark (pyproject.toml), and with every annotation of shapes checked.
test-all: setup
	VISMOE_CHECK_SHAPES=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m ''

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

evidence: setup
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.study
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.matching

evidence-pair: setup
	PYTHONPATH=benchmarks $(BIN)/python -m evidence.pair

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
