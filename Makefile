# make demo and make test do everything on a fresh Debian machine with Go.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build

PACKAGES := softhsm2 opensc opensc-pkcs11 libnss3 libnss3-tools swtpm swtpm-tools tpm2-tools libtss2-tcti-swtpm0 openssl openssh-client strace sqlite3 jq curl xxd procps gcc libc6-dev
SUDO     := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
GO       ?= go
BIN      := bin
CACHE    := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/bulla-test
CHRONYD  := $(CACHE)/chrony/usr/sbin/chronyd
VERSION  := $(shell git describe --tags --always --abbrev=12 --dirty 2>/dev/null || echo devel)
# Reproducible: no paths, no build ids, no time.
STATIC   := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X main.release=$(VERSION)'

.PHONY: build deps test uml browser demo run bench bench-large fuzz crash release lint clean bench-peers profile FORCE

deps: ## install what tests and demo need (quiet, only what is missing)
	@missing=; for p in $(PACKAGES); do \
	  dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	if [ -n "$$missing" ]; then echo "installing:$$missing"; \
	  $(SUDO) apt-get -qq update >/dev/null; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq install -y --no-install-recommends $$missing >/dev/null; fi
	@[ -x "$(CHRONYD)" ] || { $(SUDO) apt-get -qq update >/dev/null; ./softhsm-test/fetch-chrony.sh; } # unpacked, never installed

build: ## bin/bullad and bin/bulla
	@mkdir -p $(BIN)
	$(GO) build -trimpath -ldflags '-X main.release=$(VERSION)' -o $(BIN)/bullad ./cmd/bullad
	$(STATIC) -o $(BIN)/bulla ./cmd/bulla

test: deps build ## all tests, one foreign target, the race detector where goroutines meet
	GOOS=darwin GOARCH=arm64 $(STATIC) -o /dev/null ./cmd/bulla
	$(GO) test ./...
	$(GO) test -race ./ledger ./hsm ./clock/... ./api/server
	BULLA_CHRONYD=$(CHRONYD) $(GO) test $(if $(SUDO),-exec "sudo --preserve-env=BULLA_CHRONYD") -tags chrony -run Chronyd ./clock/ntp

UML := $(CACHE)/uml/usr/bin/linux.uml
$(UML):
	@mkdir -p $(CACHE); work=$$(mktemp -d); trap 'rm -rf $$work' EXIT; cd $$work; \
	get() { apt-get -qq -o APT::Sandbox::User=$$(id -un) download user-mode-linux; }; get || { $(SUDO) apt-get -qq update; get; }; \
	dpkg -x user-mode-linux_*.deb root; rm -rf $(CACHE)/uml; mv root $(CACHE)/uml

uml: $(UML) ## the clock under real steps, slews and a leap second, in a User-Mode Linux guest (unpacked, never installed)
	CGO_ENABLED=0 BULLA_UML=$(UML) $(GO) test -count=1 -tags uml -run UML -v ./clock/ntp

browser: ## the auditor's page in a real browser (Debian's chromium, installed here if it is missing)
	@command -v chromium >/dev/null || { echo "installing: chromium"; $(SUDO) apt-get -qq update >/dev/null; \
	  DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get -qq install -y --no-install-recommends chromium >/dev/null; }
	BULLA_CHROMIUM=$$(command -v chromium) $(GO) test -count=1 -tags browser -run Browser -v ./verify

demo: deps build ## a complete appliance, end to end, on this machine's own log
	@BIN=$(BIN) ./docs/demo.sh

run: deps build ## a throwaway appliance in the foreground, in ./dev
	$(BIN)/bullad dev --dir dev

lint:
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

bench: build ## Go benchmarks of every stage
	$(GO) test -run '^$$' -bench . -benchmem ./...

bench-large: ## verify a log of ten million entries from a directory: speed on one core and two, and memory; takes 4 GB below the user's cache
	BULLA_BENCH_ENTRIES=10000000 $(GO) test -run '^$$' -bench Large -benchtime 1x -timeout 0 ./verify

# DISK=directory on the disk to measure; a quiet machine takes about ten minutes.
ROUNDS  ?= 5
SECONDS ?= 5
GROWTH  ?= 0
PEERS   := $(BIN)/peers -bin $(BIN) $(if $(DISK),-disk $(DISK))

$(BIN)/peers: FORCE
	@mkdir -p $(BIN)
	cd peers && $(GO) vet . && $(GO) test . && $(GO) build -trimpath -o ../$(BIN)/peers .
FORCE:

bench-peers: deps build $(BIN)/peers ## us and other stores in turns on one disk; the result goes to docs/performance.md
	$(PEERS) -rounds $(ROUNDS) -seconds $(SECONDS) -growth $(GROWTH) $(if $(CASES),-cases $(CASES)) -json $(BIN)/peers.json -doc docs/performance.md

profile: deps build $(BIN)/peers ## CPU, allocation, block and mutex profiles of a running bullad, case by case, in ./profiles
	$(PEERS) -seconds $(SECONDS) -profile profiles

FUZZTIME ?= 60s
fuzz: ## every fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; fuzz="$(GO) test -run ^$$ -fuzz ^$$f\$$ -fuzztime $(FUZZTIME) -fuzzminimizetime 5x $$p"; \
	    $$fuzz || $$fuzz; done; done # the fuzzer at times reports its own deadline as a failure; an input that fails is kept, and fails again

CRASH_ROUNDS ?= 200
crash: deps build ## kill -9 under load, CRASH_ROUNDS times
	BULLA_CRASH_ROUNDS=$(CRASH_ROUNDS) $(GO) test -count=1 -timeout 60m -run 'Crash' -v ./softhsm-test/...

release: ## bulla for every platform, twice, and compared
	@rm -rf dist && mkdir -p dist/again
	@for t in linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64; do \
	  out=bulla-$${t%/*}-$${t#*/}; echo $$out; \
	  GOOS=$${t%/*} GOARCH=$${t#*/} $(STATIC) -o dist/$$out ./cmd/bulla; \
	  GOOS=$${t%/*} GOARCH=$${t#*/} $(STATIC) -a -o dist/again/$$out ./cmd/bulla; \
	  cmp dist/$$out dist/again/$$out; done
	@rm -r dist/again; cd dist && sha256sum bulla-* > SHA256SUMS && cat SHA256SUMS

clean:
	rm -rf $(BIN) dist
