# `make demo` and `make test` set up all they need: a virtual environment, torch, the build.
# With another torch (the first time, or after `rm -rf .venv`), for example without CUDA:
#   make demo TORCH="torch --index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
TRITON_OLDEST := 3.6.0
BIN := $(VENV)/bin
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.c' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
# The tests compile the CUDA kernels, for which no GPU is needed: nvcc from PyPI where there is none.
NVCC_VERSION := 13.0
ifeq ($(shell command -v nvcc)$(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc),)
TOOLKIT := build/cuda-$(NVCC_VERSION)/nvidia/cu13
WITH_NVCC := CUDA_HOME=$(CURDIR)/$(TOOLKIT)
endif

# Most tests keep one thread busy: processes side by side, with a thread each, take half the time of one.
PARALLEL := -n auto --maxprocesses 8 --dist loadgroup
PYTEST := $(WITH_NVCC) $(BIN)/python -m pytest $(PARALLEL)
COVERAGE := --cov=mirnet_fast --cov-branch --cov-report=term

.PHONY: demo test test-all lint sanitized sanitize faults fuzz fuzz-sanitized bench gpu photos ship docs site format build clean

demo: build
	$(BIN)/mirnet-fast demo --iso 3200 --out demo/camera
	$(BIN)/mirnet-fast demo --out demo/denoise
	$(BIN)/mirnet-fast compare --weights mirnet_fast/pretrained/denoise.safetensors --out demo/compare

# The cases that take minutes; tests/__init__.py says which they are. All of them: test-all.
# COVERED=1: with the coverage, which takes a tenth longer.
test: lint build $(TOOLKIT)
	$(PYTEST) $(if $(COVERED),$(COVERAGE)) -m "not exhaustive"

# AFTER_TEST=1: right after `make test COVERED=1`, whose cases are not run again; the coverage is that of both.
test-all: lint build $(VENV)/foreign-installed $(TOOLKIT)
	$(PYTEST) $(COVERAGE) $(if $(AFTER_TEST),-m exhaustive --cov-append)
	$(BIN)/pip install -q --upgrade --no-deps --target build/triton-oldest triton==$(TRITON_OLDEST)
	PYTHONPATH=build/triton-oldest $(PYTEST) -p no:cacheprovider tests/ops tests/test_kernels_compile.py \
	    tests/test_kernels_convolutions.py \
	    -m "not exhaustive" -k "Triton or kernels_convolutions or (few and nothing_is_wrong)"
	$(MAKE) sanitize CASES="not exhaustive"
	$(MAKE) site

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# Which suite catches which planted fault.
faults: build $(TOOLKIT)
	$(WITH_NVCC) $(BIN)/python -m tests.faults

# The C++ kernels, and the emulated CUDA ones, under AddressSanitizer and UBSan: a copy of the tree, so
# that its build is one apart. libstdc++ comes early too, or ASan does not find what throws exceptions.
# CASES: of which kind, as pytest's -m takes it.
SANITIZED := build/sanitized
UNDER_SANITIZERS = cd $(CURDIR)/$(SANITIZED) && CXX=$(CURDIR)/tests/sanitized-g++ $(WITH_NVCC)
SANITIZED_PYTHON = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
    ASAN_OPTIONS=detect_leaks=0 $(CURDIR)/$(BIN)/python
SANITIZED_PYTEST = $(SANITIZED_PYTHON) -m pytest $(PARALLEL) -q -p no:cacheprovider tests/ops tests/test_matrix_unit.py \
    -m "$(CASES)"
sanitized: $(VENV)/installed $(TOOLKIT)
	mkdir -p $(SANITIZED)
	cp -ru setup.py build_support pyproject.toml README.md LICENSE csrc kernels mirnet_fast tests $(SANITIZED)
	rm -f $(SANITIZED)/mirnet_fast/*.so
	$(UNDER_SANITIZERS) MIRNET_FAST_BUILD=cpu $(CURDIR)/$(BIN)/python setup.py -q build_ext --inplace

sanitize: sanitized
	$(UNDER_SANITIZERS) $(SANITIZED_PYTEST) -k "not Triton and not Cuda and \
	    (test_contract or into_a_map or special or far_apart or wrong or in_bands or sums or empty_batch)"
	for isa in base avx2; do $(UNDER_SANITIZERS) MIRNET_FAST_CPU_ISA=$$isa $(SANITIZED_PYTEST) \
	    -k "not Triton and not Cuda and test_contract and (sliced or many_pixels)" || exit; done
	$(UNDER_SANITIZERS) $(SANITIZED_PYTEST) -k "Cuda and (test_contract or chunks or another_order or empty_batch)"

# Random calls, networks and changes; what fails is told by its seed (tests/fuzz.py).
CALLS ?= 20000
fuzz: build
	for isa in base avx2 avx512 avx512_bf16; do MIRNET_FAST_CPU_ISA=$$isa $(BIN)/python -m tests.fuzz ops --calls $(CALLS) || exit; done
	$(BIN)/python -m tests.fuzz networks changes --calls $$(($(CALLS) / 40))

fuzz-sanitized: sanitized
	for isa in base avx2 avx512 avx512_bf16; do $(UNDER_SANITIZERS) MIRNET_FAST_CPU_ISA=$$isa $(SANITIZED_PYTHON) -m tests.fuzz ops \
	    --calls $(CALLS) || exit; done

# A table of time, ratios, GB/s and GFLOP/s comes last. QUICK=1: a look in one to two minutes, rows in a file.
bench: build
	$(if $(QUICK),MIRNET_BENCH_QUICK=1) $(BIN)/python -m pytest benches \
	    $(if $(QUICK),-q --benchmark-quiet --results build/bench-quick.json)

# Tests and benchmarks on this machine's GPU, in nine minutes; without one, a trial of all that on tiny maps.
# By a Python that has torch already, where there is one: nothing is installed then.
gpu:
	if $(PYTHON) -c "import torch" 2> /dev/null; then $(PYTHON) benches/gpu.py; \
	else $(MAKE) build && $(BIN)/python benches/gpu.py; fi

# The photos that recipes name, and those for testing, from Debian's packages, into photos/.
photos: build
	$(BIN)/python benches/photos.py

# The network that was trained in the folder RUN comes with the package from now on: make ship RUN=FOLDER
TASK ?= denoise
ship: photos
	$(BIN)/pip install -q bm3d
	$(BIN)/python benches/ship.py $(RUN) --task $(TASK)
	$(BIN)/mirnet-fast demo --out build/demo
	$(BIN)/python docs/photo.py build/demo

# The pictures in docs/ that are drawn from what the code does and from benches/results, then the site.
docs: build $(VENV)/docs-installed
	$(BIN)/python docs/memory_plan.py
	$(BIN)/mirnet-fast demo --out build/demo
	$(BIN)/python docs/photo.py build/demo
	$(BIN)/python docs/traffic.py
	$(BIN)/mirnet-fast report benches/results/*.json --out docs/report
	$(MAKE) site

# The site of docs/ in build/site; a warning is an error.
site: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# Always asked: ninja knows best what is out of date, and needs no time if nothing is.
build: $(VENV)/installed
	$(BIN)/python setup.py -q build_ext --inplace

build/cuda-$(NVCC_VERSION)/%: $(VENV)/torch-installed
	$(BIN)/pip install -q --no-deps --target build/cuda-$(NVCC_VERSION) $(foreach part, \
	    cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl, 'nvidia-$(part)==$(NVCC_VERSION).*')
	touch $@

$(VENV)/installed: setup.py $(wildcard build_support/*.py) pyproject.toml $(VENV)/torch-installed
	$(BIN)/pip install --no-build-isolation -e '.[test]'
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/pip install -q --no-build-isolation -e '.[docs]'
	touch $@

# The torch that is there stays, whatever torchvision there may be for a newer one.
$(VENV)/foreign-installed: $(VENV)/installed
	$(BIN)/pip install -q --no-build-isolation -e '.[foreign]' \
	    torch==$$($(BIN)/python -c 'import torch; print(torch.__version__)')
	touch $@

$(VENV)/torch-installed:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(TORCH)
	$(BIN)/pip install 'setuptools>=77' ninja
	touch $@

clean:
	rm -rf build demo *.egg-info mirnet_fast/*.so mirnet_fast/build.json
