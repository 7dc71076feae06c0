# `make demo` and `make test` are all you need; each sets itself up on a fresh machine.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export TF_CPP_MIN_LOG_LEVEL ?= 2

# With it, `make benchmark` need not download Fashion-MNIST.
DATA_DIR ?=
# The CPU build of torch, where it is not the usual one.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: demo test test-web sanitize lint docs benchmark matrix setup clean

setup: $(VENV)/package

# A venv that was cut off half-way has no `installed` file and is made anew.
$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "Python 3.10 to 3.13 is needed. Received: $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test ! -L $(VENV) || { echo "$(VENV) is a link to another folder, which would be emptied: remove the link"; exit 1; }
	@echo "Setting up $(VENV) (a few minutes, once)"
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	@touch $@

# From here, not a copy: `import rigl_tf` works from any folder, and is what stands here.
$(VENV)/package: $(VENV)/installed pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: setup
	$(BIN)/python -m scripts.demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/pyright
	$(BIN)/clang-format --dry-run --Werror rigl_tf/execution/engine.cc

# The site, in site/. A broken link, or a public name that is in no page or has no docstring, fails.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

test: lint docs
	$(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

# The operations in C++ under AddressSanitizer and UndefinedBehaviorSanitizer of g++; five minutes. Not
# watched: memory that TensorFlow keeps to its end, and the checks for which g++ cannot compile its headers.
SANITIZERS := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined \
  -fno-sanitize=vptr,null,nonnull-attribute,returns-nonnull-attribute
sanitize: export CXX = g++ $(SANITIZERS)
sanitize: export ASAN_OPTIONS = detect_leaks=0
sanitize: setup
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  $(BIN)/python -m pytest tests/execution/test_engine.py tests/execution/test_convolutions.py \
	  tests/execution/test_fuzz.py

# The pages of `export(..., format="web")` and of `report` in headless Chromium. All of it must be there, and pass.
test-web: setup .web/installed
	@command -v chromium || command -v chromium-browser || command -v google-chrome || { \
	  sudo=$$(command -v sudo || true); $$sudo apt-get update && \
	  $$sudo apt-get install --yes --no-install-recommends chromium; }
	RIGL_TF_WEB=required $(BIN)/python -m pytest -m "not slow" tests/scripts/test_browser.py tests/scripts/test_pages.py

.web/installed:
	@command -v npm > /dev/null || { echo "npm is needed: install Node.js from https://nodejs.org"; exit 1; }
	@echo "Setting up .web, for the pages in a browser (once)"
	@mkdir -p .web
	npm install --prefix .web --silent --no-save --no-audit --no-fund --ignore-scripts \
	  @litertjs/core@2.5.3 puppeteer-core@24
	@touch $@

# Each of them is alone in its environment. What cannot be installed is told of on the page, and the
# others are measured.
.venv-torch/installed:
	@echo "Setting up .venv-torch, for the benchmark (a few minutes, once)"
	$(PYTHON) -m venv --clear .venv-torch
	.venv-torch/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
	  --extra-index-url $(TORCH_INDEX) torch==2.13.0 sparselab==0.2.2 && touch $@ \
	  || echo "torch and sparselab are left out: they cannot be installed"

.venv-tfmot/installed:
	@echo "Setting up .venv-tfmot, for the benchmark (a few minutes, once)"
	$(PYTHON) -m venv --clear .venv-tfmot
	.venv-tfmot/bin/python -m pip install --quiet --disable-pip-version-check --retries 1 \
	  'tensorflow>=2.21,<2.22' tf_keras tensorflow-model-optimization==0.8.1 && touch $@ \
	  || echo "TFMOT is left out: it cannot be installed"

benchmark: setup .venv-torch/installed .venv-tfmot/installed
	rm -f results/time_to_accuracy.csv
	$(BIN)/python -m scripts.benchmark.time_to_accuracy $(if $(DATA_DIR),--data_dir=$(DATA_DIR))
	$(BIN)/python -m scripts.benchmark.execution
	$(BIN)/python -m scripts.benchmark.networks
	$(BIN)/python -m scripts.benchmark.crossover

# The core tests in other versions of Python and Keras; `CELLS=3.11:3.12,3.13:3.15` for some.
matrix:
	$(PYTHON) -m scripts.checks.matrix $(if $(CELLS),--cells=$(CELLS))

clean:
	rm -rf $(VENV) .venv-torch .venv-tfmot .venv-matrix .web demo site
