# Each target is what a person would type. `make demo` and `make test` need nothing else before them.
.PHONY: demo build test setup catalog lint bench clean

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
