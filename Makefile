# moebatch: build, test, demo. `make help` lists the targets; V=1 shows the commands; SAN=1 builds with the address and
# undefined sanitizers, TSAN=1 with the thread one (run its tests by tests/tsan.sh).
# Every folder of src/ becomes one static library; a program or test links the libraries of its layer and below.

BUILD ?= build$(if $(SAN),/san)$(if $(TSAN),/tsan)
CC ?= gcc
MPICC ?= mpicc
FIND_PYTHON = for p in python3 /usr/bin/python3; do $$p -c 'import h5py, matplotlib, numpy' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(FIND_PYTHON))
PREFIX ?= /usr/local
Q := $(if $(V),,@)

include make/probe.mk

WARN := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wno-missing-field-initializers
OPT ?= $(if $(SAN)$(TSAN),-O1 -fno-omit-frame-pointer,-O2)
SANFLAGS := $(if $(SAN),-fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined,)$(if $(TSAN),-fsanitize=thread,)
CFLAGS_ALL := -std=c17 -D_GNU_SOURCE -g $(OPT) $(WARN) $(if $(WERROR),-Werror) -fopenmp -ffp-contract=off $(SANFLAGS) -Isrc $(CFLAGS)
LDFLAGS_ALL := -fopenmp $(SANFLAGS) $(LDFLAGS)

# Layers in link order, highest first.
LAYERS := stage serve measure choose learn model store comm ops text config tensor base
FOLDERS := $(foreach l,$(LAYERS),$(if $(wildcard src/$(l)/*.c src/$(l)/*/*.c),$(l)))

include make/cuda.mk
include make/rules.mk
include make/emulated.mk
include make/mpi.mk
include make/deps.mk
include make/check.mk
