# make help says what there is.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

PREFIX ?= /usr/local
DESTDIR ?=

# rustup puts cargo where a shell that was not logged in does not look.
export PATH := $(PATH):$(HOME)/.cargo/bin
# Whose leftovers the suite's last test looks for.
export BANGER_TEST_RUN := $(shell date +%s%N)

CARGO ?= cargo
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# All programs, side by side: bangerd looks for those that belong to it beside itself.
BIN := $(TARGET_DIR)/banger
# The guest agent runs in guests that have no libc, or another one.
AGENT_TARGET := x86_64-unknown-linux-gnu
AGENT_FLAGS := $(RUSTFLAGS) -C target-feature=+crt-static

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## install what is missing from Debian packages
	@scripts/setup

.PHONY: build
build: ## all programs in target/banger
	$(CARGO) build --locked --release -p banger-cli -p banger-daemon -p banger-network -p banger-vmm
	RUSTFLAGS='$(AGENT_FLAGS)' $(CARGO) build --locked --profile agent --target $(AGENT_TARGET) -p banger-agent
	@mkdir -p $(BIN)
	@install -C -m 0755 $(TARGET_DIR)/release/banger $(TARGET_DIR)/release/bangerd \
		$(TARGET_DIR)/release/banger-netguard $(TARGET_DIR)/release/banger-cage \
		$(TARGET_DIR)/$(AGENT_TARGET)/agent/banger-agent $(BIN)

.PHONY: install
install: build ## install below PREFIX (/usr/local), with DESTDIR before it
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/banger
	install -m 0755 $(BIN)/banger $(BIN)/bangerd $(DESTDIR)$(PREFIX)/bin
	install -m 0755 $(BIN)/banger-agent $(BIN)/banger-netguard $(BIN)/banger-cage $(DESTDIR)$(PREFIX)/lib/banger

.PHONY: demo
demo: setup build ## from nothing to a patch: this repository in a virtual machine
	@BANGER_BIN_DIR='$(BIN)' scripts/demo

.PHONY: lint
lint: ## format, clippy, dependencies, shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		echo '$(CARGO) deny check'; $(CARGO) deny --locked check; \
	else echo 'skipped: cargo-deny is not installed'; fi
	@if command -v shellcheck >/dev/null; then \
		echo 'shellcheck'; shellcheck scripts/setup scripts/demo scripts/fuzz .ci/run; \
	else echo 'skipped: shellcheck is not installed'; fi

# The cheap checks first; the scenarios run the real binaries in real virtual machines.
.PHONY: test
test: setup lint build unit scenarios ## everything that CI checks

.PHONY: unit
unit: ## tests that need no virtual machine
	$(CARGO) test --locked --workspace --exclude banger-testkit

.PHONY: scenarios
scenarios: build ## tests that run virtual machines
	BANGER_BIN_DIR='$(BIN)' $(CARGO) test --locked -p banger-vmm --test conformance -- guest --nocapture
	BANGER_BIN_DIR='$(BIN)' $(CARGO) test --locked --no-fail-fast -p banger-testkit

MINUTES ?= 10
.PHONY: soak
soak: build ## random operations and kills for MINUTES=n (10), and a minute of sixteen clients
	BANGER_BIN_DIR='$(BIN)' BANGER_CONTENTION_SECONDS=60 $(CARGO) test --locked -p banger-testkit --test contention
	BANGER_BIN_DIR='$(BIN)' BANGER_SOAK_MINUTES=$(MINUTES) $(CARGO) test --locked -p banger-testkit --test soak \
		-- --ignored --nocapture

.PHONY: fuzz
fuzz: ## each fuzz target for SECONDS_EACH=n (60)
	@scripts/fuzz

.PHONY: bench
bench: setup build ## measure against floors of the same run
	BANGER_BIN_DIR='$(BIN)' $(CARGO) run --locked --release -p banger-testkit --bin banger-bench

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
