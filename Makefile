# make help tells what there is.
GO ?= go
# The version is the last tag's, with what came since; outside a clone, what the
# file VERSION says.
VERSION ?= $(or $(patsubst v%,%,$(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)),$(shell cat VERSION 2>/dev/null),0.0.0-dev)
COMMIT ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'
# Each fuzz target runs for this long.
FUZZTIME ?= 30s
# Built by go run at this version: nobody has to install it.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: help build demo test race bench lint fuzz setup clean

help: ## what there is
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## bin/blixard and bin/blixard-monitor, static
	$(BUILD) -o bin/ ./cmd/blixard ./cmd/blixard-monitor

setup: ## what the lab needs: packages, the hosts' root file system
	@$(GO) run ./lab/cmd/lab setup

demo: build ## a real host with QEMU guests, one of which breaks
	@$(GO) build -o bin/demo ./lab/cmd/demo
	@bin/demo -bin bin

test: setup ## everything, the lab included; needs root
	@$(GO) test -json -count=1 -timeout=20m ./... | $(GO) run ./internal/tally

race: setup ## the same under the race detector; needs gcc
	@CGO_ENABLED=1 $(GO) test -race -json -count=1 -timeout=40m ./... | $(GO) run ./internal/tally

bench: build setup ## the figures: lines of name, value, goal and ok, short or absent
	@$(GO) run ./bench

lint: ## go vet and golangci-lint
	$(GO) vet ./...
	$(GO) run $(GOLANGCI_LINT) run

fuzz: ## every fuzz target, each for FUZZTIME (30s)
	@set -e; for pkg in $$($(GO) list ./...); do \
		listed=$$($(GO) test -list '^Fuzz' $$pkg); \
		for target in $$(echo "$$listed" | grep '^Fuzz' || true); do \
			echo "== $$pkg $$target"; \
			$(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 100x $$pkg; \
		done; \
	done

clean: ## what was built
	rm -rf bin
