# Every target sets up what it needs. `make up` is the one to try first.
PORT ?= 3000
UI_PORT ?= 8501
PARLEY_URL ?= http://127.0.0.1:$(PORT)
PYTHON ?= python3
TORCH := 2.13.0
BIN := .venv/bin
UV := VIRTUAL_ENV=.venv .venv/bin/uv pip
# uv is the faster one; pip also knows the mirrors and certificates of pip's own configuration.
INSTALL := $(UV) install --no-deps --require-hashes

export BENTOML_DO_NOT_TRACK := True
export UV_SYSTEM_CERTS := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: up serve ui test lint bench lock clean

up: .venv/run.stamp
	@$(BIN)/python -m parley.up all --port $(PORT) --ui-port $(UI_PORT)

serve: .venv/run.stamp
	@$(BIN)/python -m parley.up service --port $(PORT)

ui: .venv/run.stamp
	@PARLEY_URL=$(PARLEY_URL) $(BIN)/python -m parley.up client --ui-port $(UI_PORT)

test: .venv/dev.stamp
	$(BIN)/python -m pytest $(TESTS)

lint: .venv/dev.stamp
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

COMPILE := .venv/bin/uv pip compile --universal --generate-hashes --no-annotate --no-header --no-emit-package torch
# What `parley convert` exports with. It wants an older transformers than the service, and torchvision for other models.
EXPORT := torch==$(TORCH) optimum-intel==2.2.* openvino==2026.4.* openvino-tokenizers==2026.4.* nncf uv
RUN_EXTRAS := --extra serve --extra openvino --extra torch --extra frontend

lock: .venv/bin/uv
	$(COMPILE) pyproject.toml $(RUN_EXTRAS) -o requirements.lock
	$(COMPILE) pyproject.toml --all-extras -c requirements.lock -o requirements-dev.lock
	echo uv | $(COMPILE) - -o requirements-tools.lock
	printf '%s\n' $(EXPORT) | $(COMPILE) --no-emit-package torchvision - -o parley/engine/export/requirements.lock

.venv/bin/pip:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "parley needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv

.venv/bin/uv: requirements-tools.lock | .venv/bin/pip
	$(BIN)/pip install --quiet --require-hashes -r requirements-tools.lock
	@touch $@

# uv knows where CPU builds of torch are published. Where it cannot get there, pip takes what the configured index has.
.venv/torch.stamp: | .venv/bin/uv
	@echo "Installing torch for the CPU"; $(UV) install --torch-backend=cpu --no-deps "torch==$(TORCH)" || $(BIN)/pip install --no-deps "torch==$(TORCH)"
	@touch $@

.venv/run.stamp: requirements.lock pyproject.toml .venv/torch.stamp
	$(INSTALL) -r requirements.lock || $(BIN)/pip install --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.venv/dev.stamp: requirements-dev.lock .venv/run.stamp
	$(INSTALL) -r requirements-dev.lock || $(BIN)/pip install --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

clean:
	rm -rf .venv build artifacts
