##@ Reproduces the tables of SpinalNet (arXiv 2007.03347). Each finished log of a run is a target, so make is the scheduler:
##@ -j 4 runs four jobs at a time (on a CPU: OMP_NUM_THREADS=1 make -j 4 ...), -k goes on past a failure, and a second call
##@ runs only what is missing. Logs that ship in results/reference never count as yours.
RUNS ?= 10
DATA ?= data
PYTHON3 ?= python3
PYTHON ?= .venv/bin/python
# Where there are GPUs, each job waits for a free place on one of them (tools/slot.py).
ifeq ($(origin GPUS),undefined)
GPUS := $(shell $(PYTHON3) tools/slot.py --gpus)
endif
JOBS_PER_GPU ?= 1
export GPUS JOBS_PER_GPU
# Memory in large pages, where Linux has them to give: less time is lost on page faults, and no number changes. Other systems
# take no notice.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
TAB := $(subst ,,	)
comma := ,
empty :=
space := $(empty) $(empty)
JOB = $(PYTHON3) tools/job.py
LAUNCH ?= $(if $(strip $(GPUS)),$(PYTHON3) tools/slot.py )$(PYTHON)

MAKEFLAGS += --no-builtin-rules
.DEFAULT_GOAL := help
.SECONDEXPANSION:
SEEDS := $(shell awk 'BEGIN { if ("$(RUNS)" ~ /^[0-9]+$$/) for (seed = 0; seed < $(RUNS) + 0; seed++) print seed }')
$(if $(SEEDS),,$(error RUNS must be a whole number, 1 or more, not '$(RUNS)'))
$(if $(filter 1,$(words $(DATA))),,$(error DATA must be a folder without blanks in its name, not '$(DATA)'))
# The environment is needed only where its python is used; order-only, since a newer one makes no finished log old.
PYTHON_READY := $(if $(filter .venv/%,$(PYTHON)),.venv/.installed)
LAUNCH_READY := $(if $(filter .venv/%,$(LAUNCH)),.venv/.installed)

# ---- Rows ------------------------------------------------------------------------------------------------------------------
# $(call rows,GROUP,SCRIPT,NETWORK,HEADS,PROTOCOLS[,OPTIONS[,SEEDS]]): each head x protocol x option is a row, made by
# reproduce-GROUP; each seed of it is one log, results/logs/<script>/<network>-<head>-<protocol>[-<option>]-s<seed>.jsonl
# (results/SCHEMA.md). A new row of the paper is one more line in "The list"; a new group is also named in the help.

GROUPS :=
NETWORKS :=
IMAGE_SCRIPTS :=
FUNCTIONS := sum sinsum product sinproduct
MNIST_FAMILY := mnist fashion_mnist kmnist qmnist
EMNIST_FAMILY := emnist_digits emnist_letters emnist_balanced
CIFAR_FAMILY := cifar10 cifar100

script_name = $(basename $(notdir $1))
row_name = results/logs/$(script_name)/$2-$(head)-$(protocol)$(patsubst %,-%,$(filter-out none,$(option)))
# Only scripts with images have data to fetch. The file that says that they are there is not among them: they may be read-only.
data_ready = $(if $(filter Regression/%,$1),,results/data/$(script_name)/$(subst /,_,$(DATA)).ready)

# What the parts of a log's name are on the command line. The regression script has one network, mlp; arch2 and mlp have
# heads of one size.
network_flags = $(if $(filter mlp,$1),,--network $1)
head_flags = --head $(if $(filter fc,$2),fc,spinal $(if $(filter arch2 mlp,$1),,$(call size_flags,$(subst x, ,$(2:spinal%=%)))))
size_flags = --layers $(word 1,$1) --width $(word 2,$1)
$(foreach function,$(FUNCTIONS),$(eval FLAGS_$(function) := --function $(function)))
FLAGS_broadcast := --noise broadcast
FLAGS_bf16 := --precision bf16
$(foreach p,0.0 0.25 0.5,$(eval FLAGS_drop$(p) := --fc-dropout $(p)))
option_flags = $(foreach part,$(subst -, ,$1),$(FLAGS_$(part)))
data_flags = $(if $(filter Regression/%,$1),,--data-dir $(DATA))
before_seed = $(strip $1 $(call network_flags,$2) $(call option_flags,$(option)) $(call head_flags,$2,$(head)) \
    --protocol $(protocol))

# A log that is there needs neither environment nor data.
needs = $(if $(wildcard $1),,$(LAUNCH_READY) $2)
# The rule of the logs of one row: GROUP, SCRIPT, NETWORK, SEEDS, and the variables of the loops below. Until it is finished
# a log is called .jsonl.part, so that make never takes a half for a whole, and a finished one stays whatever happens
# (.PRECIOUS). It depends on no script: an edit voids no finished run. tools/job.py remembers a failure.
define one_row
ROWS_$1 += $(row)
GROUP_$(row) := $1
SEEDS_$(row) := $4
READY_$(row) := $(call data_ready,$2)
BEFORE_SEED_$(row) := $(call before_seed,$2,$3)
AFTER_SEED_$(row) := $(strip $(call data_flags,$2) --quiet)
$(if $(filter Regression/%,$2),$(foreach ten,$(TENS),$(eval $(call ten_logs,$(subst $(comma), ,$(ten))))))
.PRECIOUS: $(row)-s%.jsonl
$(row)-s%.jsonl: | $$$$(call needs,$$$$@,$(call data_ready,$2))
	$$(JOB) $$@ -- $$(LAUNCH) $$(BEFORE_SEED_$(row)) --seed $$* $$(AFTER_SEED_$(row))
endef
# Regression runs take seconds, half of them to start: ten seeds share a process. A rule whose targets all have a % (here in
# `jsonl`) makes all of them at once. 1: the seeds
TENS := $(shell echo '$(SEEDS)' | xargs -n 10 | tr ' ' ,)
define ten_logs
.PRECIOUS: $(foreach seed,$1,$(row)-s$(seed).json%)
$(foreach seed,$1,$(row)-s$(seed).json%): | $$$$(call needs,$$$$@)
	$$(JOB) $(1:%=$(row)-s%.jsonl) -- \
	  $$(LAUNCH) $$(BEFORE_SEED_$(row)) --seed $(firstword $1) --runs $(words $1) $$(AFTER_SEED_$(row))
endef
define rows
$(eval GROUPS += $(filter-out $(GROUPS),$1))\
$(eval NETWORKS += $(filter-out $(NETWORKS),$3))\
$(eval IMAGE_SCRIPTS += $(filter-out Regression/% $(IMAGE_SCRIPTS),$2))\
$(if $(filter $(or $(NETWORK),%),$3),\
$(foreach head,$4,$(foreach protocol,$5,$(foreach option,$(or $6,none),$(foreach row,$(call row_name,$2,$3),\
$(eval $(call one_row,$1,$2,$3,$(or $7,$(SEEDS)))))))))
endef
# One job fetches the data of a script. Those that share an archive do it one after the other: the first one fetches, the others
# look whether they can use it. A folder that is gone is fetched again, whatever the stamps say.
ARCHIVES := mnist:arch2_mnist:tl_mnist fashion_mnist:arch2_fashion_mnist:tl_fashion_mnist kmnist:arch2_kmnist qmnist:arch2_qmnist \
    emnist_digits:emnist_letters:emnist_balanced:arch2_emnist_digits cifar10:tl_cifar10 cifar100:tl_cifar100
define data_rule
$(call data_ready,$1): $(if $(wildcard $(DATA)),,FORCE) | $(LAUNCH_READY) $(call fetched_before,$(script_name))
	$$(JOB) $$@ -- $$(LAUNCH) $1 --fetch-only --data-dir $(DATA)
	@mkdir -p $$(@D) && touch $$@
endef
# The stamp of the script before this one in its list.
fetched_before = $(foreach list,$(ARCHIVES),$(call one_before,$1,$(subst :, ,$(list))))
one_before = $(if $(filter $1,$(wordlist 2,9,$2)),$(call data_ready,$(lastword $(call until,$1,$2))))
until = $(if $(filter $1,$(firstword $2)),,$(firstword $2) $(call until,$1,$(wordlist 2,9,$2)))
.PHONY: FORCE

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
# Table III (transfer): width of the Spinal head on wide_resnet101_2 as labelled; on vgg19_bn it is 4 x 1024. The published
# vgg19_bn never calls its new head (Q1): the rows of both heads are the same network, and it is run once, as the FC row.
TRANSFER_WIDTHS := tl_cifar10:20 tl_cifar100:512 tl_caltech101:101 tl_bird225:225 tl_stanford_cars:196 tl_svhn:20 tl_cinic10:20 \
    tl_stl10:20 tl_oxford_flowers102:101 tl_fruits360:131
TRANSFER_FAMILY := $(foreach pair,$(TRANSFER_WIDTHS),$(word 1,$(subst :, ,$(pair))))
transfer_rows = $(call rows,$1,Transfer_Learning/$1.py,wide_resnet101_2,fc spinal4x$2,published corrected)\
$(call rows,$1,Transfer_Learning/$1.py,vgg19_bn,fc,published corrected)\
$(call rows,$1,Transfer_Learning/$1.py,vgg19_bn,spinal4x1024,corrected)
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
ARCH2_SIZES := MNIST/arch2_mnist:26x30 MNIST/arch2_fashion_mnist:26x300 MNIST/arch2_kmnist:26x50 MNIST/arch2_qmnist:26x50 \
    EMNIST/arch2_emnist_digits:26x50
arch2_rows = $(call rows,arch2,$1.py,arch2,spinal$2,published corrected,,$(wordlist 1,2,$(SEEDS)))
$(foreach pair,$(ARCH2_SIZES),$(call arch2_rows,$(word 1,$(subst :, ,$(pair))),$(word 2,$(subst :, ,$(pair)))))
# In no table of the paper: equal dropout in both heads of the small CNN (published: 0.5 in the FC head, none in the Spinal
# head; corrected: none in both), and bf16 beside fp32
DROPOUT_SETS := mnist fashion_mnist
$(foreach set,$(DROPOUT_SETS),$(call rows,dropout,MNIST/$(set).py,cnn,fc,published,drop0.0 drop0.25)\
$(call rows,dropout,MNIST/$(set).py,cnn,spinal6x8 spinal6x10,published,drop0.25 drop0.5)\
$(call rows,dropout,MNIST/$(set).py,cnn,fc spinal6x8 spinal6x10,corrected,drop0.5))
$(foreach set,$(DROPOUT_SETS),$(call rows,bf16,MNIST/$(set).py,cnn,fc spinal6x8,published,bf16)\
$(call rows,bf16,MNIST/$(set).py,vgg5,fc spinal4x128,published,bf16))

$(foreach script,$(IMAGE_SCRIPTS),$(eval $(call data_rule,$(script))))

# ---- Targets ---------------------------------------------------------------------------------------------------------------
.PHONY: help
help:
	@awk '/^##@ / { sub(/^##@ /, ""); print } /^##- / { sub(/^##- /, ""); printf "\n%s\n", $$0 } /^##  / { sub(/^## /, ""); print } \
	      /^[a-z0-9_-]+:.*## / { target = $$0; sub(/:.*/, "", target); sub(/.*## /, ""); printf "  make %-18s %s\n", target, $$0 }' \
	      $(firstword $(MAKEFILE_LIST))

##- Use
# Two jobs at a time, each on one core: threads of two jobs that share a core wait for each other.
ifeq ($(MAKECMDGOALS),demo)
MAKEFLAGS += -j2
endif
.PHONY: demo demo-digits demo-functions
demo-digits demo-functions: export OMP_NUM_THREADS = 1
demo-digits: | $(LAUNCH_READY)
	$(LAUNCH) MNIST/optdigits.py --network cnn --head both --runs 4 --results-dir demo --quiet
	$(LAUNCH) MNIST/optdigits.py --network cnn --head fc --fc-dropout 0 --runs 4 --results-dir demo --quiet
demo-functions: | $(LAUNCH_READY)
	$(LAUNCH) Regression/synthetic_regression.py --head both --runs 2 --results-dir demo --quiet
demo: demo-digits demo-functions | $(PYTHON_READY) ## FC head against Spinal head in 3 minutes, without a download; everything goes to demo/
	@$(PYTHON) tools/demo.py

.PHONY: test test-all
test: | $(PYTHON_READY) ## the fast tests, offline: 3 minutes on two cores
	$(PYTHON) -m pytest -q -n 2 --dist loadfile -m "not slow" tests
test-all: | $(PYTHON_READY) ## all tests: also uv (wants a package index), kills in every family, 10,000 odd inputs
	SPINALNET_UV=1 SPINALNET_FUZZ=10000 $(PYTHON) -m pytest -q tests

# The list's rows by target. make starts what stands first first: where there are GPUs the longest, so that no long run is left
# to the end, elsewhere the shortest, as the longest would take weeks.
ORDER := $(shell awk -F, 'NR > 1 { line[NR] = $$1 "/" $$2 } END { if ("$(strip $(GPUS))" == "") \
    for (k = NR; k > 1; k--) print line[k]; else for (k = 2; k <= NR; k++) print line[k] }' results/plan.csv)
in_order = $(foreach network,$(ORDER),$(filter results/logs/$(network)-%,$1)) $(filter-out $(ORDER:%=results/logs/%-%),$1)
PARTS_all := $(filter-out arch2 tl_other dropout bf16,$(GROUPS))
PARTS_mnist-family := $(MNIST_FAMILY)
PARTS_emnist-family := $(EMNIST_FAMILY)
PARTS_cifar-family := $(CIFAR_FAMILY)
PARTS_transfer := $(TRANSFER_FAMILY)
$(foreach group,$(GROUPS),$(eval PARTS_$(group) := $(group)))
FAMILIES := all mnist-family emnist-family cifar-family transfer
TARGETS := $(FAMILIES) $(GROUPS)
$(if $(filter-out $(TARGETS),$(ROWS)),$(error ROWS must be one of $(TARGETS), not '$(ROWS)'))
$(if $(filter-out $(NETWORKS),$(NETWORK)),$(error NETWORK must be one of $(sort $(NETWORKS)), not '$(NETWORK)'))
rows_of = $(strip $(call in_order,$(foreach part,$(PARTS_$1),$(ROWS_$(part)))))
none_of = $(if $(rows_of),,$(error $1 has no row with NETWORK=$(NETWORK)))
# Without -j: as many jobs as there are places on the GPUs (one without GPUs).
PLACES = $(shell echo $$(($(words $(subst $(comma), ,$(GPUS))) * $(JOBS_PER_GPU))))
JOBS = $(if $(or $(filter -j%,$(MAKEFLAGS)),$(filter 0,$(PLACES))),,-j$(PLACES))
# A dry run of them says no more than what would run.
DRY := $(findstring n,$(firstword -$(filter-out --%,$(MAKEFLAGS))))

.PHONY: $(TARGETS:%=reproduce-%) $(TARGETS:%=runs-%) reproduce-theory
# A row by its name is all its logs. What only prints needs no such rules, and is quick even with RUNS=1000.
ifneq ($(filter-out help list,$(or $(MAKECMDGOALS),help)),)
.PHONY: $(foreach group,$(GROUPS),$(ROWS_$(group)))
$(foreach group,$(GROUPS),$(foreach row,$(ROWS_$(group)),$(eval $(row): $(SEEDS_$(row):%=$(row)-s%.jsonl))))
endif
$(TARGETS:%=reproduce-%): reproduce-%:
	+@$(call none_of,$*)status=0; $(MAKE) --no-print-directory $(JOBS) --keep-going runs-$* || status=$$?; $(if $(DRY),exit $$status; )\
	$(if $(filter all,$*),$(MAKE) --no-print-directory tables || status=$$?; )\
	$(MAKE) --no-print-directory --silent failures; exit $$status
$(TARGETS:%=runs-%): runs-%: $$(call rows_of,$$*)
reproduce-all: ## every row of Tables I, II and III, ten runs each; then the tables. Or a part, reproduce-NAME:
##      Table I      regression
##      Table II     mnist-family (mnist fashion_mnist kmnist qmnist), emnist-family (emnist_digits emnist_letters
##                   emnist_balanced), cifar-family (cifar10 cifar100)
##      Table III    transfer (tl_cifar10 tl_cifar100 tl_caltech101 tl_bird225 tl_stanford_cars tl_svhn tl_cinic10
##                   tl_stl10 tl_oxford_flowers102 tl_fruits360)
##      no table     arch2, tl_other (released code, the paper's text), dropout, bf16, theory
reproduce-theory: | $(LAUNCH_READY)
	$(LAUNCH) Regression/universal_approximation.py
	$(LAUNCH) Regression/tabular.py --demo diabetes --runs $(RUNS) --quiet

.PHONY: list status failures plan
# A make of its own, which knows nothing of -n and -j.
SELF := $(MAKE)
LIST = MAKEFLAGS= RUNS='$(RUNS)' DATA='$(DATA)' ROWS='$(ROWS)' NETWORK='$(NETWORK)' $(SELF) --no-print-directory --silent list
LISTED = $(call in_order,$(foreach group,$(or $(PARTS_$(ROWS)),$(GROUPS)),$(ROWS_$(group))))
status: ## what is done, running, failed, stopped and waiting, and the time left; ROWS=NAME for a part
	@$(LIST) | $(PYTHON3) tools/runs.py $(AT_ONCE:%=--at-once %)
failures: ## failed runs and failed fetches of data, each with its message and the command that repeats it
	@$(LIST) | $(PYTHON3) tools/runs.py failures
plan: ## GPU-hours that each part will take, estimated from counted operations and from what has run
	@$(LIST) | $(PYTHON3) tools/runs.py plan --sum $(foreach name,$(FAMILIES),$(name)=$(subst $(space),$(comma),$(PARTS_$(name))))
one_line = $(info $(GROUP_$1)$(TAB)$1-s$2.jsonl$(TAB)$(READY_$1)$(TAB)$(BEFORE_SEED_$1) --seed $2 $(AFTER_SEED_$1))
HASH := \#
ONE_NETWORK = $(HASH) Table III, vgg19_bn, published: FC and Spinal row are the same network (its new head is never called), so once
list: ## a line for each run: group, log, the file that says that its data are there, command
	@$(if $(filter %/vgg19_bn-fc-published,$(LISTED)),$(info $(ONE_NETWORK)))\
	$(strip $(foreach row,$(LISTED),$(foreach seed,$(SEEDS_$(row)),$(call one_line,$(row),$(seed)))) :)

# Data are fetched first, here: nodes that compute often have no network. Each task has its GPU from Slurm, so no slot.py.
.PHONY: slurm
slurm: ROWS := $(or $(ROWS),all)
missing_of = $(filter-out $(wildcard $1-s*.jsonl),$(SEEDS_$1:%=$1-s%.jsonl))
SLURM_DATA = $(sort $(foreach row,$(LISTED),$(if $(call missing_of,$(row)),$(READY_$(row)))))
slurm: | $(PYTHON_READY) ## submit what is missing as job arrays: ROWS=mnist-family SLURM_FLAGS="--gpus=1 --time=24:00:00"
	-@$(if $(SLURM_DATA),$(SELF) --no-print-directory --keep-going $(SLURM_DATA))
	@$(LIST) | $(PYTHON3) tools/runs.py tasks --job "$(JOB)" \
	  --launch "$(if $(filter file,$(origin LAUNCH)),$(PYTHON),$(LAUNCH))" | AT_ONCE=$(AT_ONCE) tools/slurm.sh $(SLURM_FLAGS)

##- Report
.PHONY: tables reference-report same-numbers rerun tuned-heads bench costs gradients samples
tables: | $(PYTHON_READY) ## your results/logs beside the paper and the reference: results/tables/README.md
	$(PYTHON) tools/report/make.py
reference-report: | $(PYTHON_READY) ## results/reference: report, tables and figures from the logs that ship
	$(PYTHON) tools/report/make.py --reference
BASE ?=
same-numbers: | $(PYTHON_READY) ## does the present text of the scripts give the numbers of BASE=commit? Short runs, minutes
	$(PYTHON) tools/same_numbers.py $(BASE)
rerun: | $(PYTHON_READY) ## run reference logs again, in rerun/, and compare them: LOGS="mnist/cnn-fc-published"
	$(PYTHON) tools/rerun.py rerun --data $(DATA) --subset $(DATA)/subset $(LOGS)
tuned-heads: | $(PYTHON_READY) ## our experiment: each head of the small CNN tuned alike; 5 to 7 core hours in results/tuned_heads, then make tables
	$(PYTHON) tools/tuned_heads.py run results/tuned_heads --data $(DATA)
# What ships: BENCH=results
BENCH ?= results/tables
bench: | $(PYTHON_READY) ## our speed against the published loop's, on an idle machine: results/tables/bench.md
	$(PYTHON) tools/bench.py --data-dir $(DATA) --output $(BENCH)
costs: | $(PYTHON_READY) ## count the operations of every network: results/costs.csv, results/plan.csv
	$(PYTHON) tools/measure_costs.py
gradients: | $(PYTHON_READY) ## gradient norms by layer, untrained and trained: results/gradients.csv; minutes
	$(PYTHON) tools/measure_gradients.py
samples: | $(PYTHON_READY) ## the figure that needs data: images before and after augmentation
	$(PYTHON) tools/draw_samples.py --data-dir $(DATA)

##- Upkeep
.PHONY: check sync clean clean-unfinished
check: ## is the text that the scripts share the same in all of them?
	$(PYTHON3) tools/sync.py --check
sync: ## copy shared text from its origin into all other scripts
	$(PYTHON3) tools/sync.py
# Both print what they remove. Neither touches finished logs, data, demo/ or .venv.
clean: ## remove caches: __pycache__, .pytest_cache, .hypothesis, .ruff_cache
	@find . \( -path ./.venv -o -path ./.git -o -path './$(DATA)' \) -prune -o -type d \
	  \( -name __pycache__ -o -name .pytest_cache -o -name .hypothesis -o -name .ruff_cache \) -prune -print -exec rm -rf {} +
clean-unfinished: ## remove unfinished runs, which then start anew, and notes of failures
	@test ! -d results/logs || find results/logs -type f \( -name '*.part' -o -name '*.pt' -o -name '*.tmp' -o -name '*.running' \) \
	  -print -exec rm -f {} +
	@test ! -d results/failed || find results/failed -type f -name '*.json' -print -exec rm -f {} +

##- Settings, each as `make TARGET NAME=value`
##   RUNS=10      runs (seeds) of each row          DATA=data    folder of the data sets, each downloaded once
##   NETWORK=cnn  only rows of this network        GPUS="0 1"   GPUs to use (default: those of CUDA_VISIBLE_DEVICES, or all),
##                with JOBS_PER_GPU=4 (1) runs on each at a time
##   LAUNCH=...   what stands before each script, for instance "srun python"; PYTHON=... the python of all else
##   AT_ONCE=8    runs at a time: for the time left in `make status`, and at most in `make slurm`

.venv/.installed: requirements.txt
	@$(PYTHON3) -c 'import sys; sys.exit("error: set PYTHON3= to a python 3.11 or later" * (sys.version_info < (3, 11)) or 0)'
	$(PYTHON3) -m venv .venv
	.venv/bin/python -m pip install --quiet -r requirements.txt
	@touch $@
