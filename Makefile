## Reproduces the tables of SpinalNet (arXiv 2007.03347). Each finished log of a run is a target, so make is the scheduler:
## -j 4 runs four jobs at a time (on a CPU: OMP_NUM_THREADS=1 make -j 4 ..., so that they do not fight for its cores),
## -k goes on past a failure, and a second call runs only what is missing.
##
## Settings, each as `make TARGET NAME=value`:
##   RUNS=10      runs (seeds) of each row; the paper: ten
##   DATA=data    folder for the data sets; they are downloaded once
##   GPUS="0 1"   GPUs to use (default: all); with JOBS_PER_GPU=4 (default: 1) eight jobs run at a time, four on each
##   LAUNCH=...   what stands before each script; default: the python of .venv. Cluster: LAUNCH="srun python"
##   PYTHON=...   the python of tables and tests; default: that of .venv, which is made when it is needed
##   ROWS=...     rows of `make status`, `failures` and `slurm`: what stands behind reproduce-, for instance mnist-family
##   AT_ONCE=8    runs at a time: for the time left in `make status` (default: as many as run now), at most, for `slurm`
##   SLURM_FLAGS="--partition=gpu --gpus=1 --time=24:00:00"   for sbatch
##   DEMO_RUNS=2  runs of each row of Table I in the demo
##
RUNS ?= 10
DATA ?= data
DEMO_RUNS ?= 2
PYTHON3 ?= python3
PYTHON ?= .venv/bin/python
# Where there are GPUs, each job waits for a free place on one of them (tools/slot.py).
GPUS ?= $(shell nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null)
JOBS_PER_GPU ?= 1
export GPUS JOBS_PER_GPU
TAB := $(subst ,,	)
JOB = $(PYTHON3) tools/job.py
LAUNCH ?= $(if $(strip $(GPUS)),$(PYTHON3) tools/slot.py )$(PYTHON)

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
SEEDS := $(shell awk 'BEGIN { if ("$(RUNS)" ~ /^[0-9]+$$/) for (seed = 0; seed < $(RUNS) + 0; seed++) print seed }')
$(if $(SEEDS),,$(error RUNS must be a whole number, 1 or more, not '$(RUNS)'))
# The environment is needed only where its python is used; order-only, since a newer one makes no finished log old.
PYTHON_READY := $(if $(filter .venv/%,$(PYTHON)),.venv/.installed)
LAUNCH_READY := $(if $(filter .venv/%,$(LAUNCH)),.venv/.installed)

# ---- Rows ------------------------------------------------------------------------------------------------------------------
# $(call rows,GROUP,SCRIPT,NETWORK,HEADS,PROTOCOLS[,OPTIONS[,SEEDS]]): each head x protocol x option x seed is one log,
# results/logs/<script>/<network>-<head>-<protocol>[-<option>]-s<seed>.jsonl (results/SCHEMA.md), made by reproduce-GROUP.
# A new row of the paper is one more line in "The list"; a new group also gets a line in "Targets".

GROUPS :=
IMAGE_SCRIPTS :=
FUNCTIONS := sum sinsum product sinproduct
MNIST_FAMILY := mnist fashion_mnist kmnist qmnist
EMNIST_FAMILY := emnist_digits emnist_letters emnist_balanced
CIFAR_FAMILY := cifar10 cifar100

script_name = $(basename $(notdir $1))
log_name = results/logs/$(script_name)/$2-$(head)-$(protocol)$(patsubst %,-%,$(filter-out none,$(option)))-s$(seed).jsonl
# Only scripts with images have data to fetch. One job does it, so that two never write the same file.
data_ready = $(if $(filter Regression/%,$1),,$(DATA)/.$(script_name)-ready)

# What the parts of a log's name are on the command line. The regression script has one network, mlp; arch2 and mlp have
# heads of one size.
network_flags = $(if $(filter mlp,$1),,--network $1)
head_flags = --head $(if $(filter fc,$2),fc,spinal $(if $(filter arch2 mlp,$1),,$(call size_flags,$(subst x, ,$(2:spinal%=%)))))
size_flags = --layers $(word 1,$1) --width $(word 2,$1)
$(foreach function,$(FUNCTIONS),$(eval FLAGS_$(function) := --function $(function)))
FLAGS_broadcast := --noise broadcast
option_flags = $(foreach part,$(subst -, ,$1),$(FLAGS_$(part)))
data_flags = $(if $(filter Regression/%,$1),,--data-dir $(DATA))
command = $(strip $1 $(call network_flags,$2) $(call option_flags,$(option)) $(call head_flags,$2,$(head)) \
    --protocol $(protocol) --seed $(seed) $(call data_flags,$1) --quiet)

# The rule of one log: GROUP, SCRIPT, NETWORK, and the variables of the loops below. Until it is finished the log is called
# .jsonl.part, so that make never takes a half for a whole. It depends on no script: an edit voids no finished run. A log
# that is there needs neither environment nor data. tools/job.py remembers a failure.
define one_log
LOGS_$1 += $(log)
GROUP_$(log) := $1
READY_$(log) := $(call data_ready,$2)
COMMAND_$(log) := $(call command,$2,$3)
$(log): | $(if $(wildcard $(log)),,$(LAUNCH_READY) $(call data_ready,$2))
	$$(JOB) $$@ $$(LAUNCH) $(call command,$2,$3)
endef
define rows
$(eval GROUPS += $(filter-out $(GROUPS),$1))\
$(eval IMAGE_SCRIPTS += $(filter-out Regression/% $(IMAGE_SCRIPTS),$2))\
$(foreach head,$4,$(foreach protocol,$5,$(foreach option,$(or $6,none),$(foreach seed,$(or $7,$(SEEDS)),\
$(foreach log,$(call log_name,$2,$3),$(eval $(call one_log,$1,$2,$3)))))))
endef
define data_rule
$(call data_ready,$1): | $(LAUNCH_READY)
	$$(LAUNCH) $1 --fetch-only --data-dir $(DATA)
	@mkdir -p $$(@D) && touch $$@
endef

# ---- The list --------------------------------------------------------------------------------------------------------------
# Table I; `broadcast` is the released script's noise, which spreads over a 1000 x 1000 target (Q1)
$(call rows,regression,Regression/synthetic_regression.py,mlp,fc spinal6x50,published corrected,$(FUNCTIONS))
$(call rows,regression,Regression/synthetic_regression.py,mlp,fc spinal6x50,published,$(FUNCTIONS:=-broadcast))
# Table II
$(foreach set,$(MNIST_FAMILY),$(call rows,$(set),MNIST/$(set).py,cnn,fc spinal6x8 spinal6x10,published corrected))
$(foreach set,$(MNIST_FAMILY),$(call rows,$(set),MNIST/$(set).py,vgg5,fc spinal4x128,published corrected))
$(foreach set,$(EMNIST_FAMILY),$(call rows,$(set),EMNIST/$(set).py,cnn,fc spinal6x8 spinal6x10,published corrected))
$(foreach set,$(EMNIST_FAMILY),$(call rows,$(set),EMNIST/$(set).py,vgg5,fc spinal4x128,published corrected))
# CIFAR: widths of the tables' labels, and for the ResNets also those of the released scripts (256 and 512)
$(foreach set,$(CIFAR_FAMILY),$(call rows,$(set),CIFAR/$(set).py,vgg19,fc spinal4x512,published corrected))
$(foreach set,$(CIFAR_FAMILY),$(foreach net,vgg11 vgg13,$(call rows,$(set),CIFAR/$(set).py,$(net),fc spinal4x1024,published corrected)))
$(call rows,cifar100,CIFAR/cifar100.py,vgg16,fc spinal4x512,published corrected)
$(call rows,cifar10,CIFAR/cifar10.py,resnet18,fc spinal4x20 spinal4x256,published corrected)
$(call rows,cifar10,CIFAR/cifar10.py,resnet34,fc spinal4x256,published corrected)
$(foreach net,resnet18 resnet34,$(call rows,cifar100,CIFAR/cifar100.py,$(net),fc spinal4x128 spinal4x512,published corrected))
$(call rows,cifar10,CIFAR/cifar10.py,densenet,fc spinal8x16 spinal8x64,published corrected)
$(call rows,cifar10,CIFAR/cifar10.py,lenet,fc spinal6x20,published corrected)
$(call rows,cifar10,CIFAR/cifar10.py,cnn,fc spinal4x128,published corrected)
$(call rows,cifar100,CIFAR/cifar100.py,cnn,fc spinal4x256,published corrected)
# Table III (transfer): width of the Spinal head on wide_resnet101_2 as labelled; on vgg19_bn it is 4 x 1024
TRANSFER_WIDTHS := tl_cifar10:20 tl_cifar100:512 tl_caltech101:101 tl_bird225:225 tl_stanford_cars:196 tl_svhn:20 tl_cinic10:20 \
    tl_stl10:20 tl_oxford_flowers102:101 tl_fruits360:131
TRANSFER_FAMILY := $(foreach pair,$(TRANSFER_WIDTHS),$(word 1,$(subst :, ,$(pair))))
transfer_rows = $(call rows,$1,Transfer_Learning/$1.py,wide_resnet101_2,fc spinal4x$2,published corrected)\
$(call rows,$1,Transfer_Learning/$1.py,vgg19_bn,fc spinal4x1024,published corrected)
$(foreach pair,$(TRANSFER_WIDTHS),$(call transfer_rows,$(word 1,$(subst :, ,$(pair))),$(word 2,$(subst :, ,$(pair)))))
# In no table of the paper: sets of its text and of the released transfer code, two runs each
other_rows = $(call rows,tl_other,Transfer_Learning/$1.py,$2,fc $3,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(call other_rows,tl_mnist,vgg19_bn,spinal4x1024)
$(call other_rows,tl_fashion_mnist,wide_resnet101_2,spinal4x1024)
$(call other_rows,tl_hymenoptera,resnet18,spinal6x5)
$(call other_rows,tl_monkey10,alexnet,spinal4x20)
$(call other_rows,tl_monkey10,wide_resnet101_2,spinal4x20)
$(call other_rows,tl_intel_image,wide_resnet101_2,spinal4x20)
# In no table of the paper: the second architecture of the released scripts, two runs each
$(call rows,arch2,MNIST/mnist.py,arch2,spinal26x30,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(call rows,arch2,MNIST/fashion_mnist.py,arch2,spinal26x300,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(call rows,arch2,MNIST/kmnist.py,arch2,spinal26x50,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(call rows,arch2,MNIST/qmnist.py,arch2,spinal26x50,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(call rows,arch2,EMNIST/emnist_digits.py,arch2,spinal26x50,published corrected,,$(wordlist 1,2,$(SEEDS)))

$(foreach script,$(IMAGE_SCRIPTS),$(eval $(call data_rule,$(script))))

# ---- Targets ---------------------------------------------------------------------------------------------------------------
.PHONY: help
help: ## this page
	@awk '/^## ?/ { sub(/^## ?/, ""); print } \
	      /^[a-z0-9_-]+:.*## / { target = $$0; sub(/:.*/, "", target); sub(/.*## /, ""); printf "  make %-26s %s\n", target, $$0 }' \
	      $(firstword $(MAKEFILE_LIST))

# Two jobs at a time, each on one core: threads of two jobs that share a core wait for each other.
ifeq ($(MAKECMDGOALS),demo)
MAKEFLAGS += -j2
endif
.PHONY: demo demo-optdigits demo-published demo-corrected
demo-optdigits demo-published demo-corrected: export OMP_NUM_THREADS = 1
demo-optdigits: | $(LAUNCH_READY)
	$(LAUNCH) MNIST/optdigits.py --network cnn --head both --runs 3 --results-dir demo --quiet
demo-published demo-corrected: demo-%: | $(LAUNCH_READY)
	$(LAUNCH) Regression/synthetic_regression.py --head both --protocol $* --runs $(DEMO_RUNS) --results-dir demo --quiet
demo: ## first look: Table I and a small image set, a few minutes on two cores
demo: demo-optdigits demo-published demo-corrected | $(PYTHON_READY)
	$(PYTHON) results/aggregate.py --results-dir demo
	@echo
	@echo 'The demo ran each row of Table I $(DEMO_RUNS) times instead of ten, so its means scatter more than those in results/.'
	@echo '  Table I               demo/tables/table1.md'
	@echo '  handwritten digits    demo/tables/other_runs.md'
	@echo '  figures               demo/figures/'

.PHONY: test check sync tables
test: | $(PYTHON_READY) ## all tests
	$(PYTHON) -m pytest -q tests
check: ## is the text that the scripts share the same in all of them?
	$(PYTHON3) tools/sync.py --check
sync: ## copy shared text from its origin into all other scripts
	$(PYTHON3) tools/sync.py

# The list's rows by target. make starts what stands first first: longest first (results/tables/plan.csv), so that no long run
# is left to the end.
LONGEST := $(shell tail -n +2 results/tables/plan.csv 2>/dev/null | cut -d, -f1,2 | tr , /)
longest_first = $(foreach network,$(LONGEST),$(filter results/logs/$(network)-%,$1)) \
    $(filter-out $(LONGEST:%=results/logs/%-%),$1)
PARTS_all := $(filter-out arch2 tl_other,$(GROUPS))
PARTS_mnist-family := $(MNIST_FAMILY)
PARTS_emnist-family := $(EMNIST_FAMILY)
PARTS_transfer := $(TRANSFER_FAMILY)
$(foreach group,$(GROUPS),$(eval PARTS_$(group) := $(group)))
TARGETS := all mnist-family emnist-family transfer $(GROUPS)
$(if $(filter-out $(TARGETS),$(ROWS)),$(error ROWS must be one of $(TARGETS), not '$(ROWS)'))
runs_of = $(call longest_first,$(foreach part,$(PARTS_$1),$(LOGS_$(part))))
# Without -j: as many jobs as there are places on the GPUs (one without GPUs).
comma := ,
PLACES = $(shell echo $$(($(words $(subst $(comma), ,$(GPUS))) * $(JOBS_PER_GPU))))
JOBS = $(if $(or $(filter -j%,$(MAKEFLAGS)),$(filter 0,$(PLACES))),,-j$(PLACES))
# A dry run of them says no more than what would run.
DRY := $(findstring n,$(firstword -$(filter-out --%,$(MAKEFLAGS))))

.PHONY: $(TARGETS:%=reproduce-%) $(TARGETS:%=runs-%)
$(TARGETS:%=reproduce-%): reproduce-%:
	+@status=0; $(MAKE) --no-print-directory $(JOBS) --keep-going runs-$* || status=$$?; $(if $(DRY),exit $$status; )\
	$(if $(filter all,$*),$(MAKE) --no-print-directory tables || status=$$?; )\
	$(MAKE) --no-print-directory --silent failures; exit $$status
$(foreach target,$(TARGETS),$(eval runs-$(target): $(call runs_of,$(target))))
reproduce-all: ## every row of the paper's tables that has a script
reproduce-regression: ## Table I: four functions, minutes on a CPU
reproduce-mnist-family: ## Table II: the four sets below
reproduce-mnist: ## Table II: MNIST
reproduce-fashion_mnist: ## Table II: Fashion-MNIST
reproduce-kmnist: ## Table II: Kuzushiji-MNIST
reproduce-qmnist: ## Table II: QMNIST
reproduce-emnist-family: ## Table II: the three splits below, one download
reproduce-emnist_digits: ## Table II: EMNIST digits
reproduce-emnist_letters: ## Table II: EMNIST letters
reproduce-emnist_balanced: ## Table II: EMNIST balanced
reproduce-cifar10: ## Table II: CIFAR-10 from scratch (wants a GPU)
reproduce-cifar100: ## Table II: CIFAR-100 from scratch (wants a GPU)
reproduce-transfer: ## Table III: the ten sets below (wants GPUs)
reproduce-tl_cifar10: ## Table III: CIFAR-10
reproduce-tl_cifar100: ## Table III: CIFAR-100
reproduce-tl_caltech101: ## Table III: Caltech-101
reproduce-tl_bird225: ## Table III: Bird225 (data by hand)
reproduce-tl_stanford_cars: ## Table III: Stanford Cars (data by hand)
reproduce-tl_svhn: ## Table III: SVHN
reproduce-tl_cinic10: ## Table III: CINIC-10 (data by hand)
reproduce-tl_stl10: ## Table III: STL-10
reproduce-tl_oxford_flowers102: ## Table III: Oxford 102 Flower
reproduce-tl_fruits360: ## Table III: Fruits 360 (data by hand)
reproduce-tl_other: ## not in the paper's tables: five more transfer sets, two runs each
reproduce-arch2: ## not in the paper's tables: arch2 of the released scripts, two runs each

.PHONY: reproduce-theory
reproduce-theory: | $(LAUNCH_READY) ## the figure of the universal approximation, and the diabetes runs
	$(LAUNCH) Regression/universal_approximation.py
	$(LAUNCH) Regression/tabular.py --demo diabetes --runs $(RUNS) --quiet

tables: | $(PYTHON_READY) ## tables, figures and report from the finished logs
	$(PYTHON) results/aggregate.py
	$(PYTHON) tools/precision.py
.PHONY: kill-test fuzz
kill-test: | $(PYTHON_READY) ## kill runs of all families fifty times and compare their logs (results/robustness.md)
	$(PYTHON) tools/kill_test.py --report results/robustness.md
fuzz: | $(PYTHON_READY) ## 10,000 odd command lines a family, and 10,000 damaged logs
	SPINALNET_FUZZ=10000 $(PYTHON) -m pytest -q tests/test_fuzz.py
.PHONY: test-uv
test-uv: | $(PYTHON_READY) ## each script with `uv run` from nothing, from a URL, and in a notebook (wants a package index)
	SPINALNET_UV=1 $(PYTHON) -m pytest -q tests/test_uv.py
.PHONY: bench costs verify
costs: | $(PYTHON_READY) ## count and time every network of the tables (results/costs.csv)
	$(PYTHON) tools/measure_costs.py
.PHONY: samples
samples: | $(PYTHON_READY) ## the figures that need data: augmented images, confusions of the best runs
	$(PYTHON) tools/draw_samples.py --data-dir $(DATA)
	$(PYTHON) tools/confusion.py --data-dir $(DATA)
verify: | $(PYTHON_READY) ## LOG=results/logs/...: run it again and compare line by line
	$(PYTHON) results/aggregate.py --verify $(LOG) --data-dir $(DATA)
bench: | $(LAUNCH_READY) ## measure our speed against the published loop's on this machine (wants it idle; downloads MNIST)
	$(LAUNCH) tools/bench.py --data-dir $(DATA)

.PHONY: list status failures
# A make of its own, which knows nothing of -n and -j.
SELF := $(MAKE)
LIST = MAKEFLAGS= RUNS='$(RUNS)' DATA='$(DATA)' ROWS='$(ROWS)' $(SELF) --no-print-directory --silent list
LISTED = $(call longest_first,$(foreach group,$(or $(PARTS_$(ROWS)),$(GROUPS)),$(LOGS_$(group))))
list: # a line for each run: group, log, the file that says that its data are there, command
	@$(foreach log,$(LISTED),$(info $(GROUP_$(log))$(TAB)$(log)$(TAB)$(READY_$(log))$(TAB)$(COMMAND_$(log)))):
status: ## what is done, running, failed, stopped and waiting, and the time left
	@$(LIST) | $(PYTHON3) tools/runs.py $(AT_ONCE:%=--at-once %)
failures: ## the failed runs, each with its message and the command that repeats it
	@$(LIST) | $(PYTHON3) tools/runs.py failures

# Data are fetched first, here: nodes that compute often have no network. Each task has its GPU from Slurm, so no slot.py.
.PHONY: slurm
SLURM_ROWS = $(or $(ROWS),all)
SLURM_DATA = $(sort $(foreach part,$(PARTS_$(SLURM_ROWS)),$(foreach log,$(LOGS_$(part)),$(if $(wildcard $(log)),,$(READY_$(log))))))
slurm: ROWS := $(SLURM_ROWS)
slurm: | $(PYTHON_READY) ## submit the missing runs to Slurm as job arrays: ROWS=mnist-family SLURM_FLAGS="--gpus=1"
	-@$(if $(SLURM_DATA),$(SELF) --no-print-directory --keep-going $(SLURM_DATA))
	@$(LIST) | $(PYTHON3) tools/slurm.py --launch "$(if $(filter file,$(origin LAUNCH)),$(PYTHON),$(LAUNCH))" \
	  --job "$(JOB)" --flags "$(SLURM_FLAGS)" $(AT_ONCE:%=--at-once %)

# Both print what they remove. Neither touches finished logs, data, demo/ or .venv.
.PHONY: clean clean-unfinished
clean: ## remove caches: __pycache__, .pytest_cache, .hypothesis
	@find . \( -path ./.venv -o -path ./.git -o -path './$(DATA)' \) -prune -o -type d \
	  \( -name __pycache__ -o -name .pytest_cache -o -name .hypothesis \) -prune -print -exec rm -rf {} +
clean-unfinished: ## remove unfinished runs, which then start anew: checkpoints and .part logs; and notes of failures
	@find results -type f \( -name '*.part' -o -name '*.pid' -o -path 'results/checkpoints/*' -o -path 'results/failed/*' \) -print -exec rm -f {} +

.venv/.installed: requirements.txt
	@$(PYTHON3) -c 'import sys; sys.exit("error: set PYTHON3= to a python 3.11 or later" * (sys.version_info < (3, 11)) or 0)'
	$(PYTHON3) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
