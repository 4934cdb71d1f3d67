# Guestline's chores. A fresh clone needs make and Rust; `make try` and `make test` see to the rest.

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests agent build try test test-only lint fmt install clean audit fuzz compat

CARGO ?= cargo
PREFIX ?= /usr/local
TARGET := $(abspath $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target))
export CARGO_TARGET_DIR := $(TARGET)

# The programs for guests first: the controller's build script embeds the files that these name.
with_agent = agent=$$(guest-agent/build.sh) && floor=$$(guest-agent/build.sh guestline-floor) && \
	guest=$$(guest-agent/build.sh guestline-guest) && \
	GUESTLINE_AGENT="$$agent" GUESTLINE_FLOOR="$$floor" GUESTLINE_GUEST="$$guest"

# The oldest QEMU that is promised to work. Where it cannot be had, only the tests that need it fail.
oldest_qemu = { GUESTLINE_OLDEST_QEMU=$${GUESTLINE_OLDEST_QEMU:-$$(setup/qemu-7.2.sh)} || true; }

# What checks bills of materials; likewise.
sbom_python = { GUESTLINE_SBOM_PYTHON=$${GUESTLINE_SBOM_PYTHON:-$$(setup/sbom-validators.sh)} || true; }

help:            ## show this
	@sed -n 's/^\([a-z-]*\):[^#]*## */  make \1\t/p' Makefile

try: build       ## install what is missing, build, run a check in a machine
	$(TARGET)/release/guestline check 'grep -q sse2 /proc/cpuinfo'

test: setup-tests test-only   ## install what is missing, build, run all tests, those on real machines included

setup:           ## install what is missing (says what; sudo only when not root)
	setup/host.sh

setup-tests:
	setup/host.sh --tests

ARCH ?= x86_64
agent:           ## build the static agent, of ARCH (x86_64, aarch64), and print its path
	@guest-agent/build.sh --arch $(ARCH)

build: setup     ## build the program with the agent inside
	$(with_agent) $(CARGO) build --locked --release -p guestline-cli
	@echo "built: $(TARGET)/release/guestline"

test-only:       ## as test, on a host that has all it needs
	@$(with_agent) && export GUESTLINE_AGENT GUESTLINE_FLOOR GUESTLINE_GUEST && \
	$(CARGO) build --locked -p guestline-cli && \
	export GUESTLINE_PROGRAM="$(TARGET)/debug/guestline" && \
	$(oldest_qemu) && export GUESTLINE_OLDEST_QEMU && \
	$(sbom_python) && export GUESTLINE_SBOM_PYTHON && \
	if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --locked --workspace; \
	else \
		$(CARGO) test --locked --workspace -- --test-threads 2; \
	fi

lint:            ## rustfmt and clippy, warnings denied; the agents that other builds leave out build, too
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	guest-agent/build.sh --libc gnu
	@if [ -d "$$(rustc --print sysroot)/lib/rustlib/aarch64-unknown-linux-musl" ]; then \
		guest-agent/build.sh --arch aarch64; fi

fmt:             ## format
	$(CARGO) fmt --all

install: build   ## install the program below PREFIX
	install -D -m 755 $(TARGET)/release/guestline $(DESTDIR)$(PREFIX)/bin/guestline

audit:           ## check licences, bans and sources of dependencies (needs cargo-deny)
	$(CARGO) deny --locked check licenses bans sources

FUZZ_SECONDS ?= 60
FUZZ_TARGETS := port_framing tty_framing messages host_session guest_session tree_writer

fuzz:            ## fuzz decoders and sessions for FUZZ_SECONDS each (installs cargo-fuzz where it is missing)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@cd fuzz && for target in $(FUZZ_TARGETS); do \
		mkdir -p "corpus/$$target" && \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run -s none "$$target" "corpus/$$target" "seeds/$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=1024 || exit 1; \
	done

compat:          ## run today's host and tests against the agents of released versions, where history has them
	scripts/compat.sh

clean:           ## remove what was built here
	$(CARGO) clean
