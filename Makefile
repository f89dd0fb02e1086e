# `make help` says what there is. Recipes live in tests/tools.
.DEFAULT_GOAL := help
.PHONY: help setup lint format test-unit test-fleet test-metal test demo bench build install changelog clean

PYTHON := .cache/venv/bin/python

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup:  ## install what is missing: Debian packages, and one Python environment per ansible-core
	@sh tests/tools/setup.sh

lint: setup  ## every check that runs nothing of ours; ONLY="ruff mypy" for some of them
	@$(PYTHON) tests/tools/lint.py $(ONLY)

format: setup  ## let ruff put Python files in shape; ONLY="paths"
	@sh tests/tools/format.sh $(ONLY)

test-unit: setup  ## unit tests under every tested ansible-core
	@$(PYTHON) tests/tools/suites.py unit

test-fleet: setup  ## playbooks on a fleet of container hosts
	@$(PYTHON) tests/tools/suites.py fleet

test-metal: setup  ## the same on emulated bare machines with an IOMMU
	@$(PYTHON) tests/tools/suites.py metal

test: setup  ## lint, test-unit, test-fleet and test-metal; closes with "N passed, N failed"
	@$(PYTHON) tests/tools/suites.py all

demo: setup  ## watch a guest move between two hosts of a throw-away fleet
	@$(PYTHON) -m tests.lab.demo

bench: setup  ## measure; prints ratios and never fails on time
	@$(PYTHON) tests/tools/suites.py bench

build: setup  ## the collection as a tarball in .cache/dist
	@sh tests/tools/build.sh

install: setup  ## build, and install below .cache/installed
	@sh tests/tools/build.sh install

changelog: setup  ## release notes of the version in galaxy.yml, from changelogs/fragments
	@sh tests/tools/changelog.sh

clean:  ## remove everything that was made
	@sh tests/tools/clean.sh
