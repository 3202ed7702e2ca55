# Two commands: `make demo` trains both stages on a laptop, `make test` runs the tests.
# Each makes a virtual environment in .venv first; PYTHON chooses the interpreter.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := runs/demo
# `make test PYTEST_FLAGS=--check_shapes` also checks the annotated shapes of all calls.
PYTEST_FLAGS ?=

.PHONY: demo test lint clean

# Each command below is one that you would type; a second `make demo` finds what is done.
# Keeping freed memory makes training on a CPU a little faster (glibc only), and two devices
# the second stage 1.3 times (docs/training.md, "On a CPU").
demo: export MALLOC_MMAP_MAX_ = 0
demo: export MALLOC_TRIM_THRESHOLD_ = 4294967296
demo: export MALLOC_TOP_PAD_ = 67108864
demo: $(INSTALLED)
	$(BIN)/python -m ldm_jax.data.shapes --data_dir=$(DEMO)/data --image_size=32 --max_shapes=1 \
	    --num_train=20000 --num_validation=256
	$(BIN)/python train.py --config=configs/shapes_autoencoder.py \
	    --config.data.data_dir=$(DEMO)/data --workdir=$(DEMO)/autoencoder
	XLA_FLAGS=--xla_force_host_platform_device_count=2 \
	$(BIN)/python train.py --config=configs/shapes_class.py \
	    --config.data.data_dir=$(DEMO)/data --workdir=$(DEMO)/class \
	    --config.first_stage.workdir=$(DEMO)/autoencoder
	$(BIN)/python sample.py --workdir=$(DEMO)/class --outdir=$(DEMO)/samples \
	    --num_samples=48 --batch_size=24 --show_unguided
	@$(BIN)/python -m ldm_jax.evaluation.summary $(DEMO)/autoencoder $(DEMO)/class
	@echo "samples: $(DEMO)/samples/grid.png, one class per column"
	@echo "without guidance, and with it: $(DEMO)/samples/sheet.png"

test: $(INSTALLED) lint
	$(BIN)/python -m pytest $(PYTEST_FLAGS) --numprocesses=auto --maxprocesses=4 \
	    --dist=loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

# Python compiles a module when it is first imported: a few of all that are installed.
$(INSTALLED): setup.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; give PYTHON=...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]'
	@touch $@

clean:
	rm -rf .venv $(DEMO)
