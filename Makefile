# The commands of the repository. `make` lists them. Where a command needs Debian packages (packaging/apt-dependencies)
# it installs them when run as root, and says so.

CARGO ?= cargo
# Where Cargo puts the programs that `make build` builds.
PROGRAMS := $(or $(CARGO_TARGET_DIR),target)/debug
# The demo and most tests make network namespaces.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo)
# What builds tests and runs them in a virtual machine.
IN_VM = $(AS_ROOT) env "PATH=$$PATH"

.DEFAULT_GOAL := help
.PHONY: help dependencies dependencies-vm build check test test-vm test-long fuzz demo demo-down bench-control bench-fleet \
    dependencies-api dependencies-bench bench-mesh bench-policy

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

dependencies: ## install the Debian packages that are needed and missing (as root)
	@packaging/install-dependencies

build: dependencies ## build the programs
	$(CARGO) build --locked --workspace --bins

check: dependencies ## format, licences of dependencies, lints and documentation, all without a warning
	$(CARGO) fmt --all --check
	packaging/check-licences
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --package plexd-fuzz --features guided --bins -- -D warnings
	@# Modules are private and documented all the same: the documents are for those who read the code.
	RUSTDOCFLAGS='-Dwarnings -Arustdoc::private_intra_doc_links' \
	    $(CARGO) doc --locked --workspace --no-deps --document-private-items

test: build dependencies-vm dependencies-api ## every test; as root, for those in network namespaces and in a virtual machine
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    set -x; $(CARGO) nextest run --locked --workspace --no-fail-fast; \
	else \
	    set -x; $(CARGO) test --locked --workspace --lib --bins --tests --no-fail-fast; \
	fi
	$(CARGO) test --locked --workspace --doc
	$(IN_VM) tests/vm/test

# Those whose names begin with long_, of which nothing is in `make test`.
LONG_BY_NEXTEST = $(CARGO) nextest run --locked --workspace --no-fail-fast --success-output immediate \
    --run-ignored only --filterset 'test(/(^|::)long_/)'
LONG_BY_CARGO = $(CARGO) test --locked --workspace --tests --no-fail-fast -- --ignored --nocapture --test-threads 6 long_

# Property tests with cases of another seed each time; one that fails prints its case.
PROPERTIES = $(CARGO) test --locked --workspace --lib --quiet

test-long: build ## nodes through each fault of their control plane for minutes, other cases of property tests, fuzzing (30 minutes); as root
	@log=$$(mktemp); trap 'kill $$!; exit 130' INT TERM; \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
	    $(LONG_BY_NEXTEST) >"$$log" 2>&1 & \
	else \
	    $(LONG_BY_CARGO) >"$$log" 2>&1 & \
	fi; \
	tail --lines +1 --follow --pid $$! "$$log"; \
	wait $$!; status=$$?; \
	grep --only-matching 'fault .* converged .*' "$$log" | sort; \
	rm -f "$$log"; exit $$status
	@for seed in $$(shuf --input-range 2-1000000000 --head-count 5); do \
	    echo "property tests, PROPTEST_RNG_SEED=$$seed"; PROPTEST_RNG_SEED=$$seed $(PROPERTIES) || exit; \
	done
	@$(MAKE) --no-print-directory fuzz SECONDS=60

fuzz: dependencies ## fuzzing guided by coverage; TARGET=one of them (else each), SECONDS=60 for each
	@for target in $(or $(TARGET),$$(tests/fuzz/run targets)); do \
	    nice tests/fuzz/run fuzz $$target $(or $(SECONDS),60) || exit; \
	done

demo: build ## two nodes and a control plane on this machine, shown step by step; KEEP=1 leaves them running
	$(AS_ROOT) $(PROGRAMS)/plexd-demo up $(if $(KEEP),--keep)

demo-down: ## remove what `make demo KEEP=1` left
	$(AS_ROOT) $(PROGRAMS)/plexd-demo down

dependencies-api: dependencies
	@packaging/install-schemathesis

dependencies-vm: dependencies
	@packaging/install-dependencies apt-dependencies-vm

test-vm: build dependencies-vm ## part of it: what needs another kernel than this, with WireGuard, in a virtual machine; as root
	$(IN_VM) tests/vm/test

bench-control: build dependencies-vm ## what a rotation of a node's key loses, of 1,000 datagrams a second each way, here and in a virtual machine
	$(IN_VM) tests/vm/bench-control

# Timers make these figures, not the speed of the code: the profile that is built already will do.
bench-fleet: ## what 1,000 nodes ask of their control plane: at start, in steady state, after an outage (8 minutes)
	$(CARGO) bench --locked --profile dev --package plexd-core --bench fleet

dependencies-bench: dependencies
	@packaging/install-dependencies apt-dependencies-bench

bench-mesh: dependencies-bench dependencies-vm ## what a mesh of 1, 10, 1,000 and 10,000 peers costs a node, and what the built-in WireGuard carries beside wireguard-go
	$(CARGO) build --locked --release --bins --package plexd-core --package plexd-ctl --package plexd-devcp --package plexd-e2e
	$(AS_ROOT) $(PROGRAMS:debug=release)/plexd-bench-mesh
	$(AS_ROOT) $(PROGRAMS:debug=release)/plexd-bench-throughput
	$(IN_VM) PLEXD_BIN_DIR=$(abspath $(PROGRAMS:debug=release)) tests/vm/bench-mesh

bench-policy: dependencies-vm ## what policy costs a packet, what passes while it changes and core restarts, and how soon a flushed table is back
	$(CARGO) build --locked --release --bins --package plexd-core --package plexd-ctl --package plexd-devcp --package plexd-e2e
	$(AS_ROOT) $(PROGRAMS:debug=release)/plexd-bench-policy
	$(IN_VM) tests/vm/bench-policy
