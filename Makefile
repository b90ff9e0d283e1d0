# The verbs, in the order in which one needs them. Every one sets up what it lacks.
.PHONY: setup demo build serve test test-system test-all check mutate soak fuzz docs bench clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STAMP := $(VENV)/.set-up

MODELS ?= $(patsubst models/%.toml,%,$(wildcard models/*.toml))
ENGINES ?=
MODEL_REPOSITORY ?= model_repository
GRPC_PORT ?= 8001
# Doors by HTTP of `make serve`; none by default. HTTP_PORT=8000 and METRICS_PORT=8002 are the usual ones.
HTTP_PORT ?=
METRICS_PORT ?=
OUT ?= out
# The model of `make demo`. brain-swinunetr takes minutes where brain-unet takes seconds.
DEMO_MODEL ?= brain-unet
STARTED := $(shell date +%s)
# What `make mutate` changes (paths of modules or names of groups; all by default), and the share of the mutants.
MODULES ?=
SAMPLE ?= 1
# Readers for `make fuzz`; all by default, each for so many minutes. `make soak` takes MINUTES too.
TARGET ?=
MINUTES ?=
# Processes that share the test files. Most tests keep one core busy, so one a core; each starts a server of its own.
WORKERS ?= 2

setup: $(STAMP)

# What a user needs: the three distributions and the server.
$(INSTALLED): client/pyproject.toml build/pyproject.toml server/pyproject.toml constraints.txt server/voxtile_server/install/triton.txt server/voxtile_server/install/engines.txt client/voxtile/outputs/page/pack.py
	@echo "installing into $(VENV); torch is the largest package"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable build --editable "client[all]" --editable "server[gateway]" --constraint constraints.txt
	$(BIN)/python -m voxtile_server.install.fetch
	@touch $@

# What tests, checks and the documentation need beside that. It is as large again.
$(STAMP): $(INSTALLED) requirements-dev.txt requirements-nnunet.txt constraints.txt
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --requirement requirements-nnunet.txt
	@touch $@

# The engine that was fastest on this machine answers; `models.demo` says at the end what it gained over PyTorch.
demo: $(INSTALLED)
	@mkdir -p $(OUT)
	$(BIN)/python models/training/mni152.py $(OUT)
	@$(BIN)/python -m models.demo settings $(OUT)
	$(BIN)/voxtile-build spec models/$(DEMO_MODEL).toml --settings $(OUT)/demo.toml --repository $(OUT)/model_repository \
		|| test $$? -eq 4  # an engine missed a limit; the other one was published
	$(BIN)/voxtile-build point $(DEMO_MODEL) fastest --repository $(OUT)/model_repository
	$(BIN)/python -m voxtile_server.run_with --repository $(OUT)/model_repository --log-file $(OUT)/server.log -- \
		$(BIN)/voxtile segment $(OUT)/mni152_t1.nii.gz --model $(DEMO_MODEL) \
		--output $(OUT)/mask.nii.gz --json $(OUT)/report.json --preview $(OUT)/preview.png
	@$(BIN)/python -m models.demo gain $(OUT) --model $(DEMO_MODEL) --started $(STARTED)

build: $(INSTALLED)
	@for model in $(MODELS); do \
		$(BIN)/voxtile-build spec models/$$model.toml --repository $(MODEL_REPOSITORY) \
			$(foreach engine,$(ENGINES),--engines $(engine)) || exit $$?; \
	done

# After `make demo` alone, the demo's models are the only ones; a repository that the user names is never replaced.
serve: $(INSTALLED)
	@repository="$(MODEL_REPOSITORY)"; demo="$(OUT)/model_repository"; \
	holds_models() { ls "$$1"/*/config.pbtxt >/dev/null 2>&1; }; \
	if [ "$(origin MODEL_REPOSITORY)" = file ] && ! holds_models "$$repository" && holds_models "$$demo"; then \
		echo "$$repository holds no model (make build fills it); serving the demo's models from $$demo"; \
		repository="$$demo"; \
	fi; \
	exec $(BIN)/voxtile-server --repository "$$repository" \
		--grpc-port $(GRPC_PORT) $(if $(HTTP_PORT),--http-port $(HTTP_PORT)) \
		$(if $(METRICS_PORT),--metrics-port $(METRICS_PORT))

# What trains networks or runs the benchmark takes long; `test-all` runs it too. A test that hangs or brings its process
# down ends the run: pytest-xdist would wait for ever for what that process had still to do.
# PyTorch and NumPy compute on one thread in each of the processes: together they would have more threads than cores.
PYTEST := OMP_WAIT_POLICY=passive OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0

test: setup
	$(PYTEST) --timeout 600 --timeout-method thread -m "not slow and not training and not system"

# With the packages of tests/system-packages.txt: apt-get install $$(cat tests/system-packages.txt)
test-system: setup
	$(PYTEST) --timeout 600 --timeout-method thread -m "system and not slow and not training"

test-all: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy client/voxtile build/voxtile_build server/voxtile_server bench docs/generate
	$(BIN)/lint-imports

# Changes the code in small ways; ends with 1 where no test notices a change that nobody has judged.
mutate: setup
	$(BIN)/python -m tests.mutation $(MODULES) --sample $(SAMPLE) --workers $(WORKERS)

# Four clients and two servers, disturbed without pause; nothing may be lost, wrong or left behind.
soak: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m tests.soak --minutes $(or $(MINUTES),30)

# Gives the readers damaged files; only their own errors may come out.
fuzz: setup
	$(BIN)/python -m tests.fuzz $(TARGET) --minutes $(or $(MINUTES),10)

# Strict: a dead link or a page that is not in the navigation ends the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir $(OUT)/site
	@echo "the site: $(OUT)/site/index.html   with search: $(BIN)/python -m http.server --directory $(OUT)/site"

bench: setup
	$(BIN)/python -m bench --out $(OUT)/bench

clean:
	rm -rf $(OUT) $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find model_repository -mindepth 1 -maxdepth 1 ! -name README.md -exec rm -rf {} +
