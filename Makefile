# palmtop: `make demo` and `make test` are all a fresh machine needs, with python3 (3.11) and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO := build/intents.bundle
WEB := sample_apps/web
# The app for browsers needs node; its tests say so where there is none.
WEB_BUILT := $(if $(shell command -v npm 2>/dev/null),$(WEB)/build/.built)
SENTENCE ?= réveille-moi à sept heures

.PHONY: coverage demo test web web-build check format conformance bench fuzz install clean help

help:
	@echo "make demo         export the sample checkpoint to all formats, verify it, run a sentence through each"
	@echo "make test         the test suite"
	@echo "make web          the sample app for browsers, built with the sample bundle and served on this machine"
	@echo "make check        ruff and mypy"
	@echo "make conformance  coremltools' own operator tests, executed by palmtop's interpreter"
	@echo "make coverage     which architectures and tasks export and verify, in each format (hours; goes on where it was)"
	@echo "make fuzz         rebuilt tokenizers against those of transformers, on 100,000 texts each"
	@echo "make bench        speed, size and agreement beside what others make of the same checkpoints"

install: $(STAMP)

# torch first and by its exact version: a looser requirement can pull gigabytes of CUDA packages.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' || (echo "palmtop needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (about two minutes, 2 GB)"
	@$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[export,test,check]'
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/palmtop export sample_apps/checkpoints/intents -o $(DEMO) --force
	$(BIN)/palmtop run $(DEMO) "$(SENTENCE)" --target all

test: $(STAMP) $(WEB_BUILT)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

web-build: $(WEB)/build/.built

$(WEB)/node_modules/.installed: $(WEB)/package-lock.json $(WEB)/package.json
	cd $(WEB) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

WEB_SOURCES := $(shell find $(WEB)/src $(WEB)/scripts $(WEB)/public -type f) \
	$(addprefix $(WEB)/,index.html examples.json vite.config.ts tsconfig.json) \
	runtime/manifest.schema.json runtime/tokenizer_spec.schema.json

$(WEB)/build/.built: $(WEB)/node_modules/.installed $(WEB_SOURCES)
	cd $(WEB) && npm run --silent build -- --logLevel warn && npm run --silent golden
	@touch $@

web: $(STAMP) $(WEB)/build/.built
	$(BIN)/palmtop export sample_apps/checkpoints/intents -o build/web/intents.bundle --to onnx --force
	cd $(WEB) && node scripts/embed.mjs dist ../../build/web/intents.bundle && npm run --silent preview

# The folders are the packages palmtop.*; type checkers see them so through links under build/.
check: $(STAMP)
	@mkdir -p build/typing/palmtop
	@for folder in export quantize runtime; do ln -sfn ../../../$$folder build/typing/palmtop/$$folder; done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	MYPYPATH=build/typing $(BIN)/mypy -p palmtop.runtime -p palmtop.quantize -p palmtop.export

conformance: $(STAMP)
	$(BIN)/python tests/conformance/run.py

bench: $(STAMP)
	$(BIN)/python benchmarks/graphs.py
	$(BIN)/python benchmarks/mil_speed.py
	$(BIN)/python benchmarks/pipelines.py
	$(BIN)/python benchmarks/cold_start.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/quantization.py
	$(BIN)/python benchmarks/generation.py
	$(BIN)/python benchmarks/export_time.py
	$(BIN)/python benchmarks/growth.py

coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.coverage.run $(COVERAGE)

fuzz: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz.moses 100000
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.fuzz.pieces 100000

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info
