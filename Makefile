# make demo   set up what is missing, then embed 200 sentences with four arms: table, plot, JSON in out/
# make test   set up what is missing, then lint, type check and run all tests
# make interpreted  the GPU kernels without a GPU: in Triton's interpreter, and compiled (Linux on x86-64)
# make architectures  over a hundred models, each compiled and checked in a process of its own (hours)
# make experiment  complete one prompt 1,000 times while other requests come and go: table, plot, JSON in out/
# make bench  speed and memory against stock PyTorch, as ratios
#
# PYTHON=python3.12 chooses the interpreter of the virtual environment, PIP_ARGS is passed to pip install.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo experiment test lint kernels unit interpreted architectures bench clean

demo: kernels
	$(BIN)/python examples/embeddings.py

experiment: kernels
	$(BIN)/python examples/determinism.py

test: lint unit

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

# Each worker is a process of its own: more than one thread in each would only make them wait for each other.
# Tests that compare thread counts set them themselves.
unit: kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# Triton stays out of the virtual environment: a CPU build of torch has none, another build has its own.
interpreted: $(INSTALLED) .triton
	OMP_NUM_THREADS=1 PYTHONPATH=.triton $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal tests/interpreted

.triton: | $(INSTALLED)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps --target $@ triton==3.6.0

# Before the workers start, so that none compiles what another compiles too.
kernels: $(INSTALLED)
	$(BIN)/python tests/build_kernels.py

architectures: kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures.run --resume --jobs 2

bench: $(INSTALLED)
	for script in $(filter-out benchmarks/gpu_% benchmarks/interleaved.py, $(wildcard benchmarks/*.py)); do $(BIN)/python $$script || exit 1; done

clean:
	rm -rf $(VENV) .triton out build *.egg-info .pytest_cache .ruff_cache

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) -c constraints.txt -e '.[test,demo,dev]'
	# timm asks for torchvision, of which its models need nothing; so it comes without what it asks for.
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --no-deps -c constraints.txt timm
	touch $@
