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
