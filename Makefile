# `make` alone lists what can be made.
.DEFAULT_GOAL := help
SHELL := /bin/bash

target_dir := $(or $(CARGO_TARGET_DIR),target)

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: tools
tools: ## build the pinned etcd, Kubernetes, kwok, Consul and CoreDNS once, into .tools/bin
	@tests/tools/build

.PHONY: run
run: tools ## run kube-consul on a real local cluster and say what to try (RUN_FLAGS=--exit-after-ready checks it)
	cargo build --release --package kube-consul --package kube-consul-stack --bin kube-consul --bin local-cluster
	@exec "$(target_dir)/release/local-cluster" $(RUN_FLAGS)

.PHONY: unit
unit: ## run the unit tests: seconds once compiled, no root, no cluster
	cargo test --workspace --lib

.PHONY: lint
lint: ## check the format and the lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

.PHONY: docs
docs: ## write anew what is generated in docs/
	UPDATE_DOCS=1 cargo test --lib cli::tests::documentation::the_page_of_flags

.PHONY: generated
generated: ## write the gRPC code anew, after a change of its .proto
	UPDATE_GENERATED=1 cargo test --lib grpc::tests::generated

.PHONY: test
test: tools lint ## run all tests: format, lints, units, and everything against the real cluster
	tests/tools/package buildah chromium chromedriver=chromium-driver promtool=prometheus fish zsh jq valgrind
	@# What a test would compile beside all the others, which mind their time.
	$(MAKE) --no-print-directory image-program PROFILE=dev
	cargo test --workspace
	cargo test --bench core

.PHONY: deny
deny: ## check the dependencies: advisories, licences, sources (builds cargo-deny first)
	cargo install --locked --version 0.20.2 --root .tools/cargo-deny cargo-deny
	.tools/cargo-deny/bin/cargo-deny check

version := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
# PROFILE=dev builds on what `make test` builds: half a minute instead of many.
PROFILE ?= release
IMAGE ?= kube-consul:$(version)
BUILDAH ?= buildah --storage-driver vfs
# docker where it runs, else buildah.
ENGINE ?= $(shell docker info >/dev/null 2>&1 && echo docker || echo buildah)
image_dir := $(target_dir)/image
image_program := $(image_dir)/$(PROFILE:dev=debug)/kube-consul
image_context := $(image_dir)/context-$(PROFILE)

# Only the last link is static, so all that other builds have compiled is used: it goes to the same
# build directory, but not over the program that they have linked.
.PHONY: image-program
image-program:
	CARGO_BUILD_BUILD_DIR="$(abspath $(target_dir))" CARGO_TARGET_DIR="$(abspath $(image_dir))" \
	  cargo rustc --profile $(PROFILE) --package kube-consul --bin kube-consul -- -C target-feature=+crt-static

.PHONY: image
image: image-program ## build the image kube-consul:VERSION with docker or buildah
	mkdir -p $(image_context)/names/bin $(image_context)/names/usr/local/bin
	cp $(image_program) docker/Dockerfile $(image_context)/
	for name in katalog-sync-daemon katalog-sync-sidecar consul-registration-hook; do \
	  ln -sfn ../kube-consul $(image_context)/names/bin/$$name; done
	ln -sfn ../../../kube-consul $(image_context)/names/usr/local/bin/consul8s
	@case $(ENGINE) in \
	docker) docker build --build-arg VERSION=$(version) --tag $(IMAGE) $(image_context) ;; \
	buildah) \
	  command -v buildah >/dev/null || { echo "expected a running docker or buildah, found neither: install one of them (Debian, Ubuntu: apt-get install buildah)" >&2; exit 1; }; \
	  $(BUILDAH) bud --isolation chroot --build-arg VERSION=$(version) --tag $(IMAGE) $(image_context) ;; \
	*) echo "ENGINE: expected docker or buildah, found '$(ENGINE)'" >&2; exit 1 ;; \
	esac
	@ls -l $(image_context)/kube-consul | awk '{printf "image: $(IMAGE), %.1f MB\n", $$5 / 1000000}'

.PHONY: consul-secrets
consul-secrets: ## make the Secrets of manifests/consul-servers (NAMESPACE=kube-consul DATACENTER=dc1 TLS=secrets)
	@NAMESPACE="$(NAMESPACE)" DATACENTER="$(DATACENTER)" TLS="$(TLS)" manifests/consul/secrets create

# Without BENCH_FLAGS the figures go to docs/performance.md as well.
.PHONY: bench
bench: tools ## measure, each figure beside a floor of the same run: half an hour (BENCH_FLAGS=propagation: less)
	@tests/tools/package valgrind
	cargo bench --bench cluster -- --docs docs $(BENCH_FLAGS)
	$(if $(BENCH_FLAGS),,cargo bench --bench core -- --warm-up-time 1 --measurement-time 3)
