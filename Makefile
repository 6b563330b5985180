# `make` alone lists what can be made.
.DEFAULT_GOAL := help
SHELL := /bin/bash

target_dir := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "%-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## build the pinned etcd, Kubernetes, kwok and Consul once, into .tools/bin
	@tests/tools/build

.PHONY: run
run: tools ## run kube-consul on a real local cluster and say what to try (RUN_FLAGS=--exit-after-ready checks it)
	cargo build --release --package kube-consul --package kube-consul-stack --bin kube-consul --bin local-cluster
	@exec "$(target_dir)/release/local-cluster" $(RUN_FLAGS)

.PHONY: test
test: tools ## run all tests: format, lints, units, and everything against the real cluster
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo test --workspace

.PHONY: deny
deny: ## check the dependencies: advisories, licences, sources (builds cargo-deny first)
	cargo install --locked --version 0.20.2 --root .tools/cargo-deny cargo-deny
	.tools/cargo-deny/bin/cargo-deny check

version := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
static_target := x86_64-unknown-linux-gnu
image_dir := $(target_dir)/image

.PHONY: image
image: ## build the image kube-consul:VERSION with docker or buildah
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --package kube-consul --target $(static_target)
	mkdir -p $(image_dir)
	cp $(target_dir)/$(static_target)/release/kube-consul docker/Dockerfile $(image_dir)/
	@if docker info >/dev/null 2>&1; then \
	  docker build --build-arg VERSION=$(version) --tag kube-consul:$(version) $(image_dir); \
	elif command -v buildah >/dev/null; then \
	  buildah --storage-driver vfs bud --isolation chroot --build-arg VERSION=$(version) --tag kube-consul:$(version) $(image_dir); \
	else \
	  echo "expected a running docker or buildah, found neither: install one of them" >&2; exit 1; \
	fi
	@ls -l $(image_dir)/kube-consul | awk '{printf "image: kube-consul:$(version), %.1f MB\n", $$5 / 1000000}'

.PHONY: bench
bench: ## measure, each figure beside a floor of the same run
	cargo bench
