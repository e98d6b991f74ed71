# SPDX-License-Identifier: MIT
# The words people try first; the build itself is Meson's.

BUILD     ?= build
PREFIX    ?= /usr/local
HELPERDIR ?= /sbin
DROPIN    ?= false
DESTDIR   ?=
SEEDS     ?= 500
JOBS      ?= 2

# Another python, earlier in PATH, may lack pytest.
PYTHON := /usr/bin/python3
FORMAT := $(shell command -v clang-format-14 || echo clang-format)
SOURCES = $(shell find src tests bench -name '*.[ch]')

.PHONY: all deps check quick-check check-engines oracle bench bench-requests demo install deb static format check-format clean help

## build plyfs
all: $(BUILD)/build.ninja
	@meson compile -C $(BUILD) >$(BUILD)/compile.log 2>&1 || { cat $(BUILD)/compile.log; exit 1; }
	@echo "built $(BUILD)/plyfs"

$(BUILD)/build.ninja:
	@command -v meson >/dev/null || { echo "meson is missing: run make deps as root" >&2; exit 1; }
	@meson setup $(BUILD) --prefix=$(PREFIX) -Dhelperdir=$(HELPERDIR) -Ddropin=$(DROPIN)

## install what the build and the tests need, with apt (as root)
deps:
	@contrib/install-deps

## run everything: unit, integration, oracle, sanitizers; the last line counts (as root)
check:
	@contrib/install-deps
	@$(PYTHON) tests/run --seeds $(SEEDS)

## the same without sanitizers, slow tests and most of the oracle (as root)
quick-check:
	@$(PYTHON) tests/run --quick

## podman, buildah, docker and containerd on plyfs; installs what is missing of them (as root)
check-engines:
	@contrib/install-deps engines
	@$(PYTHON) tests/run --only build,engines

## random operations on plyfs and the kernel's overlayfs, compared: make oracle SEEDS=5000
oracle: all
	@$(PYTHON) -B tests/oracle/run --plyfs $(BUILD)/plyfs --seeds $(SEEDS) --jobs $(JOBS)

## against the kernel's overlayfs and others, 10 minutes; QUICK=1: 2; docs/performance.md (as root)
bench: all
	@contrib/install-deps bench
	@$(PYTHON) -B bench/run

## how many FUSE requests and system calls each operation of the benchmark costs (as root)
bench-requests: all
	@contrib/install-deps bench
	@$(PYTHON) -B bench/requests

## a tour on three layers made from directories of this machine (as root)
demo:
	@contrib/demo

## into PREFIX (/usr/local) and HELPERDIR (/sbin) below DESTDIR; DROPIN=true: as fuse-overlayfs too
install: $(BUILD)/build.ninja
	@ninja -C $(BUILD) build.ninja >/dev/null # knows of options that are new
	@meson configure $(BUILD) -Dprefix=$(PREFIX) -Dhelperdir=$(HELPERDIR) -Ddropin=$(DROPIN)
	@$(MAKE) --no-print-directory all
	DESTDIR="$(DESTDIR)" meson install -C $(BUILD) --no-rebuild

## Debian packages in build-deb/: plyfs, and plyfs-fuse-overlayfs that takes fuse-overlayfs' place
deb:
	@contrib/install-deps deb
	@contrib/make-deb

## build-static/plyfs, which needs no library and no file beside it
static:
	@contrib/install-deps build
	@test -e build-static/build.ninja || meson setup build-static --buildtype=release \
		-Dtests=disabled -Dc_link_args='-static-pie -s' >/dev/null
	@meson compile -C build-static >build-static/compile.log 2>&1 || \
		{ cat build-static/compile.log; exit 1; }
	@echo "built build-static/plyfs, $$(stat -c %s build-static/plyfs) bytes"

## clang-format over all C
format:
	$(FORMAT) -i $(SOURCES)

## fail when clang-format would change something
check-format:
	$(FORMAT) --dry-run --Werror $(SOURCES)

## remove all build directories
clean:
	rm -rf $(BUILD) build-*

## this list
help:
	@awk '/^## / { text = substr($$0, 4); next } \
		text { sub(/:.*/, ""); printf "make %-14s %s\n", $$0, text; text = "" }' Makefile
