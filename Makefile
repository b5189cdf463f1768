# make demo     train a small model on virtual nodes of this machine, kill a rank, and look at the report
# make test     all tests
# make venv     .venv/bin/opt-launch, for runs of your own; demo and test make it too
#
# Needs Linux, Python 3.11 or newer with its venv module, and nothing installed beforehand. make PYTHON=python3.12
# chooses the Python of .venv.

PYTHON ?= python3
TEST_PROCESSES ?= 3
UNPRIVILEGED_TESTS ?= tests/launcher tests/chaos

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help venv dev slurm sshd test test-unprivileged lint demo bench clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo 'make lint     style and types'
	@echo 'make bench    detectors on real curves and on OPT-175B, trainings that go wrong, recovery here and on Slurm, supervision, long runs, start-up, hosts'
	@echo 'make clean    removes .venv, caches and demo-runs'

venv: .venv/.installed

dev: .venv/.installed-dev

.venv/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12' >&2; exit 1; }
	@test -e $(BIN)/python && $(BIN)/python -m pip --version >/dev/null || $(PYTHON) -m venv --clear .venv || \
		{ echo 'on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@touch $@

# torch by itself and first: the build that fits the machine is the one pip chooses.
.venv/.installed: pyproject.toml constraints.txt | .venv/.python
	@echo 'installing $(TORCH) and what else is needed into .venv: this takes minutes'
	@$(PIP) $(TORCH)
	@$(PIP) -e .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@$(PIP) -e '.[dev]'
	@touch $@

# A real Slurm for the tests. Where it cannot be installed they say so, and fail in CI.
SLURM := slurmctld slurmd slurm-client munge slurmdbd mariadb-server
slurm:
	@PATH="$$PATH:/usr/sbin"; command -v slurmctld slurmd srun munged slurmdbd mariadbd >/dev/null && exit 0; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0; \
	export DEBIAN_FRONTEND=noninteractive; \
	apt-get install -qq --no-install-recommends $(SLURM) >/dev/null || \
	{ apt-get update -qq && apt-get install -qq --no-install-recommends $(SLURM) >/dev/null; } || \
	echo 'no Slurm could be installed' >&2

# An ssh server for the tests, who start their own. That the system's is not started is its file's doing.
sshd:
	@PATH="$$PATH:/usr/sbin"; command -v sshd ssh-keygen >/dev/null && exit 0; \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0; \
	export DEBIAN_FRONTEND=noninteractive; mkdir -p /etc/ssh && touch /etc/ssh/sshd_not_to_be_run; \
	apt-get install -qq --no-install-recommends openssh-server openssh-client >/dev/null || \
	{ apt-get update -qq && apt-get install -qq --no-install-recommends openssh-server openssh-client >/dev/null; } || \
	echo 'no ssh server could be installed' >&2

# Everything as whoever calls, and the parts that need rights once more as a user who has none.
test: dev slurm sshd
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal
	$(MAKE) --no-print-directory test-unprivileged

test-unprivileged: dev
	.ci/unprivileged $(BIN)/python -m pytest -n $(TEST_PROCESSES) -m 'not slow' -p no:cacheprovider \
		$(wildcard $(UNPRIVILEGED_TESTS))

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

demo: venv
	$(BIN)/python examples/demo.py

bench: venv slurm sshd
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/hosts.py
	$(BIN)/python benchmarks/localize.py
	$(BIN)/python benchmarks/supervision.py
	OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node 2 benchmarks/signals.py
	$(BIN)/python benchmarks/fold.py
	$(BIN)/python benchmarks/detectors.py
	$(BIN)/python benchmarks/opt175b.py
	$(BIN)/python benchmarks/trainings.py
	$(BIN)/python benchmarks/recovery.py
	$(BIN)/python benchmarks/slurm.py

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis demo-runs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
