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
ifndef BANGER_TEST_RUN
export BANGER_TEST_RUN := $(shell date +%s%N)
endif

CARGO ?= cargo
TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
# All programs, side by side: bangerd looks for those that belong to it beside itself.
BIN := $(TARGET_DIR)/banger
# The guest agent runs in guests that have no libc, or another one.
AGENT_TARGET := x86_64-unknown-linux-gnu
AGENT_FLAGS := $(RUSTFLAGS) -C target-feature=+crt-static

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

.PHONY: setup
setup: ## install what running, building and testing need
	@scripts/setup

.PHONY: setup-demo
setup-demo:
	@scripts/setup demo

.PHONY: build
build: build-programs build-agent ## all programs in target/banger
	@mkdir -p '$(BIN)'
	@install -C -m 0755 '$(TARGET_DIR)/release/banger' '$(TARGET_DIR)/release/bangerd' \
		'$(TARGET_DIR)/release/banger-netguard' '$(TARGET_DIR)/release/banger-responder' \
		'$(TARGET_DIR)/release/banger-cage' \
		'$(TARGET_DIR)/$(AGENT_TARGET)/agent/banger-agent' '$(BIN)'

.PHONY: build-programs build-agent build-tests
build-programs:
	$(CARGO) build --locked --release -p banger-cli -p banger-daemon -p banger-network -p banger-vmm
build-agent:
	RUSTFLAGS='$(AGENT_FLAGS)' $(CARGO) build --locked --profile agent --target $(AGENT_TARGET) -p banger-agent
build-tests:
	$(CARGO) test --locked --workspace --no-run

.PHONY: install
install: build ## install below PREFIX (/usr/local), with DESTDIR before it
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(PREFIX)/lib/banger'
	install -m 0755 '$(BIN)/banger' '$(BIN)/bangerd' '$(DESTDIR)$(PREFIX)/bin'
	install -m 0755 '$(BIN)/banger-agent' '$(BIN)/banger-netguard' '$(BIN)/banger-responder' '$(BIN)/banger-cage' \
		'$(DESTDIR)$(PREFIX)/lib/banger'

.PHONY: demo
demo: setup-demo build ## from nothing to a patch: this repository in a virtual machine
	@BANGER_BIN_DIR='$(BIN)' scripts/demo

SHELL_SCRIPTS := scripts/setup scripts/demo scripts/fuzz .ci/run \
	scripts/clean-room scripts/clean-room.d/enter scripts/clean-room.d/first-hour scripts/clean-room.d/suite

.PHONY: lint
lint: ## format, clippy, dependencies, shell scripts
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
		echo '$(CARGO) deny check'; $(CARGO) deny --locked check; \
	else echo 'skipped: cargo-deny is not installed'; fi
	@if command -v shellcheck >/dev/null; then \
		echo 'shellcheck'; shellcheck --external-sources --check-sourced $(SHELL_SCRIPTS); \
	else echo 'skipped: shellcheck is not installed'; fi

# As many targets at once as there are cores: a link, and a guest that boots, keep only one of them busy. Each is shown when it ends.
JOBS ?= $(shell nproc)
SIDE_BY_SIDE = $(MAKE) --no-print-directory --jobs=$(JOBS) --output-sync=target

# What compiles first; then it runs, to the end also where something fails.
.PHONY: test
test: setup ## everything that CI checks
	@$(SIDE_BY_SIDE) lint build build-tests
	@$(MAKE) --no-print-directory run-scenarios AND=unit

.PHONY: unit
unit: ## tests that need no virtual machine
	$(CARGO) test --locked --no-fail-fast --workspace --exclude banger-testkit

.PHONY: scenarios
scenarios: build run-scenarios ## tests that run virtual machines

# The files of crates/testkit/tests, a program each. The longest first, so that none is left when the others are done; and alone
# at the end the one that looks for what all of them have left.
LONGEST := crash_matrix warm first_run systemd
LAST := zz_nothing_left
FILES := $(shell cd crates/testkit/tests && ls -d *.rs */main.rs | sed 's,/main.rs,,; s,\.rs$$,,')
SCENARIOS := $(LONGEST) $(filter-out $(LONGEST) $(LAST),$(FILES)) conformance testkit

# Where the directories of sandboxes lie (crates/testkit/src/place.rs): all scenarios run in a user's home, and these, by file
# and test, in the other places as well: a path that is long, or odd, or short enough to hide a mistake.
PLACES := tmp deep space
# In the odd ones an image is built as well: programs of others run there.
IN_ODD_PLACES := \
	first_run/a_kernel_and_an_image_are_made_from_nothing

IN_ALL_PLACES := \
	contract/the_daemon_starts_by_itself_is_one_and_describes_itself \
	exec/the_guest_commands_status_is_ours \
	fork/a_fork_goes_on_from_there_as_a_machine_of_its_own \
	fork/a_vm_goes_back_to_any_moment_that_was_kept \
	lifecycle/files_and_sockets_are_private_from_birth \
	lifecycle/vms_outlive_the_daemon_and_another_daemon_finds_them \
	network/a_guest_reaches_the_outside_and_never_the_hosts_loopback_unless_asked \
	warm/a_saved_template_is_what_was_saved \
	workspace/what_the_guest_did_comes_back_as_a_patch_that_makes_the_same_tree \
	workspace_out/a_change_is_applied_merged_or_put_on_a_branch_and_the_host_s_own_work_is_safe

.PHONY: run-scenarios clean-user
run-scenarios:
	@trap 'status=$$?; $(MAKE) --no-print-directory clean-user || status=$$?; exit $$status' EXIT; status=0; \
	$(SIDE_BY_SIDE) --keep-going $(SCENARIOS:%=scenario-%) $(PLACES:%=place-%) $(AND) || status=$$?; \
	$(MAKE) --no-print-directory scenario-$(LAST) && exit $$status

clean-user: ## remove the user that root's test runs make
	@$(CARGO) test --locked --quiet -p banger-testkit --test $(LAST) -- --ignored --nocapture

SCENARIO := BANGER_BIN_DIR='$(BIN)' $(CARGO) test --locked
scenario-conformance:
	$(SCENARIO) --workspace --test conformance -- guest --nocapture
scenario-testkit:
	$(SCENARIO) -p banger-testkit --lib --bins
# Every second cell. All of them take 20 minutes: make matrix.
scenario-crash_matrix:
	BANGER_MATRIX_PART=half $(SCENARIO) -p banger-testkit --test crash_matrix
scenario-%:
	$(SCENARIO) -p banger-testkit --test $*
place-deep place-space: IN_THIS_PLACE := $(IN_ODD_PLACES)
place-%:
	BANGER_TEST_PLACE=$* $(SCENARIO) --no-fail-fast -p banger-testkit \
		$(addprefix --test ,$(sort $(patsubst %/,%,$(dir $(IN_ALL_PLACES) $(IN_THIS_PLACE))))) \
		-- --exact $(notdir $(IN_ALL_PLACES) $(IN_THIS_PLACE))

.PHONY: matrix
matrix: build ## every step of every operation with every fault, some 20 minutes
	$(SCENARIO) -p banger-testkit --test crash_matrix -- --nocapture

# An empty ROOMS is the short set that CI runs.
ROOMS ?= --all
.PHONY: clean-room
clean-room: setup build ## the demo as a stranger runs it, in every variant of a fresh Debian; ROOMS=plain for one
	@scripts/clean-room $(ROOMS)

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
