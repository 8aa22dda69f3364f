# Each target is what a person would type. `make demo` and `make test` need nothing else before them.
.PHONY: demo build test setup catalog lint bench-analyse bench-curves bench-load bench-train clean

SWEEP = $(or $(CARGO_TARGET_DIR),target)/release/sweep

demo: build ## Train, analyse and plot a grokking sweep (about 5 minutes on two cores)
	$(SWEEP) local deploy/examples/grokking.yaml

build: setup ## Release binaries in target/release
	cargo build --release --workspace --bins --locked

test: ## Everything that must hold; what continuous integration runs
	bash .ci/test

setup: ## libtorch, unless LIBTORCH names one
	bash .ci/libtorch

catalog: setup ## Rewrites the embedded catalogue after an experiment or recipe has changed
	cargo run --quiet -p sweep-worker -- catalog > proto/catalog.json.new
	mv proto/catalog.json.new proto/catalog.json

lint: setup
	cargo fmt --all
	cargo clippy --workspace --all-targets --locked -- -D warnings

# Another interpreter with torch, transformers and transformer_lens: make bench-load BENCH_PYTHON=...
BENCH_PYTHON ?= .bench/venv/bin/python
ANALYSE_SPEED = $(or $(CARGO_TARGET_DIR),target)/release/examples/analyse_speed
LOAD_SPEED = $(or $(CARGO_TARGET_DIR),target)/release/examples/load_speed

bench-load: setup $(BENCH_PYTHON) ## Loading of a checkpoint beside cp, transformers and TransformerLens
	cargo build --release -p sweep-lens --example load_speed --locked
	$(BENCH_PYTHON) tests/bench/load.py .bench/gpt2-small $(LOAD_SPEED)

BENCH_TRAIN = $(or $(CARGO_TARGET_DIR),target)/release/examples/bench_train

bench-train: setup $(BENCH_PYTHON) ## Training of 1, 8 and 32 seeds beside PyTorch eager
	cargo build --release -p sweep-lab --example bench_train --locked
	$(BENCH_PYTHON) tests/bench/train.py $(BENCH_TRAIN)

bench-analyse: setup $(BENCH_PYTHON) ## Analyses of attention heads beside TransformerLens and the cost of matrix products
	cargo build --release -p sweep-lab --example analyse_speed --locked
	$(BENCH_PYTHON) tests/bench/analyse.py .bench/gpt2-small/safetensors $(ANALYSE_SPEED)

bench-curves: setup $(BENCH_PYTHON) ## The sigmoid test of many curves beside scipy
	cargo build --release -p sweep-lab --example curves_speed --locked
	$(BENCH_PYTHON) tests/bench/curves.py $(or $(CARGO_TARGET_DIR),target)/release/examples/curves_speed

.bench/venv/bin/python:
	python3 -m venv .bench/venv
	.bench/venv/bin/pip install --quiet torch==2.11.0 transformer_lens==4.3.0
