# Two commands matter: `make lab` shows what Evergate does, `make test` checks that it does.

# Name of the lab; another name stands beside it.
LAB ?= evergate
# A development build: ready sooner, and shared with the tests. `make lab PROFILE=release` for speed.
PROFILE ?= dev
TARGET := $(or $(CARGO_TARGET_DIR),target)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
EVERGATE := $(abspath $(TARGET))/evergate

.PHONY: help lab lab-up lab-down test bench deps build

help:
	@echo "make lab       bring up two small clouds on this machine and walk through them"
	@echo "make lab-down  take them down again; nothing stays behind"
	@echo "make test      run every check and test"
	@echo "make bench     measure speed and memory"

# Two labs beside each other: HA routers, then distributed ones in the deployment of the documents.
lab: lab-up
	@$(EVERGATE) lab --name $(LAB) demo
	@echo
	@echo "Bringing up the lab '$(LAB)_dvr' …"
	@$(EVERGATE) lab --name $(LAB)_dvr up --profile dvr-ha --network-hosts 2 --compute-hosts 2
	@$(EVERGATE) lab --name $(LAB)_dvr demo

lab-up: deps build
	@echo "Bringing up the lab '$(LAB)' …"
	@$(EVERGATE) lab --name $(LAB) up

lab-down: build
	@$(EVERGATE) lab --name $(LAB) down
	@$(EVERGATE) lab --name $(LAB)_dvr down

test: deps
	@cargo xtask ci

bench: deps
	@cargo xtask bench

deps:
	@scripts/deps

build:
	@cargo build --locked --quiet --profile $(PROFILE) --package evergate
