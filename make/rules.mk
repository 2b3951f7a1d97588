# Objects, libraries, programs and tests. No list of files is kept by hand: a folder's .c files are its library.
# A file whose name ends in _avx2.c, _avx512.c or _avx512bf16.c is compiled for that instruction set; src/stage/main_<verb>.c is moe-<verb>.

.DEFAULT_GOAL := all
.SECONDARY:
.DELETE_ON_ERROR:

sources = $(sort $(wildcard src/$(1)/*.c src/$(1)/*/*.c))
MAINS := $(sort $(wildcard src/stage/main_*.c))
objects = $(patsubst src/%.c,$(BUILD)/obj/%.o,$(filter-out $(MAINS) $(if $(HAVE_CUDA),src/ops/cuda/absent.c),$(call sources,$(1)))) $(if $(filter ops,$(1)),$(if $(HAVE_CUDA),$(CUDA_OBJECTS)))
PROGRAMS := $(patsubst src/stage/main_%.c,$(BUILD)/bin/moe-%,$(MAINS))
VERSION := $(shell git describe --always --dirty 2>/dev/null || cat VERSION 2>/dev/null || echo unknown)

AVX512 := -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma
isa_flags = $(if $(filter %_avx512.c,$(1)),$(AVX512)) $(if $(filter %_avx512bf16.c,$(1)),$(AVX512) -mavx512bf16) $(if $(filter %_avx2.c,$(1)),-mavx2 -mfma)
folder_of = $(word 2,$(subst /, ,$(1)))

$(BUILD)/obj/%.o: src/%.c $(BUILD)/flags
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CC  $<")
	$(Q)$(CC) $(CFLAGS_ALL) $(FLAGS_$(call folder_of,$<)) $(call isa_flags,$<) -MMD -MP -c $< -o $@

# Rebuild when flags change; the version goes into one file only.
$(BUILD)/flags: FORCE
	@mkdir -p $(@D); echo '$(CC) $(CFLAGS_ALL) $(FLAGS_ops) $(FLAGS_comm) $(FLAGS_store)' | cmp -s - $@ || \
	 echo '$(CC) $(CFLAGS_ALL) $(FLAGS_ops) $(FLAGS_comm) $(FLAGS_store)' > $@
$(BUILD)/version.h: FORCE
	@mkdir -p $(@D); echo '#define MB_SOURCE_VERSION "$(VERSION)"' | cmp -s - $@ || echo '#define MB_SOURCE_VERSION "$(VERSION)"' > $@
$(BUILD)/obj/base/version_info.o: $(BUILD)/version.h
$(BUILD)/obj/base/version_info.o: CFLAGS_ALL += -I$(BUILD)
FORCE:

define library
$(BUILD)/lib/libmb_$(1).a: $$(call objects,$(1))
	@mkdir -p $$(@D); rm -f $$@
	$$(Q)ar rcs $$@ $$^
endef
$(foreach f,$(FOLDERS),$(eval $(call library,$(f))))

# Libraries of a folder's layer and below: below(<folder>) = the folders listed from it on in LAYERS.
from = $(if $(filter $(1),$(firstword $(2))),$(2),$(if $(2),$(call from,$(1),$(wordlist 2,99,$(2)))))
below = $(filter $(FOLDERS),$(call from,$(1),$(LAYERS)))
archives = $(foreach f,$(call below,$(1)),$(BUILD)/lib/libmb_$(f).a)
libraries = $(foreach f,$(call below,$(1)),$(LIBS_$(f)))

$(BUILD)/bin/moe-%: $(BUILD)/obj/stage/main_%.o $(call archives,stage)
	@mkdir -p $(@D)
	$(if $(Q),@echo "  LD  $@")
	$(Q)$(CC) $< -Wl,--start-group $(call archives,stage) -Wl,--end-group $(LDFLAGS_ALL) -Wl,--as-needed $(call libraries,stage) -lm -o $@

# Unit tests: tests/unit/<folder>/test_<x>.c is linked against src/<folder> and below only (with the emulated GPU, cuda.mk).
UNIT_SOURCES := $(sort $(wildcard tests/unit/*/test_*.c))
UNIT_TESTS := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(UNIT_SOURCES))
define unit_rule
$(BUILD)/tests/$(1)/%: tests/unit/$(1)/%.c $$(call emulated_archives,$(1)) $$(wildcard tests/unit/*.h)
	@mkdir -p $$(@D)
	$$(if $$(Q),@echo "  LD  $$@")
	$$(Q)$$(CC) $$(CFLAGS_ALL) $$(FLAGS_$(1)) -Itests/unit $$< -Wl,--start-group $$(call emulated_archives,$(1)) -Wl,--end-group $$(LDFLAGS_ALL) $$(call emulated_libraries,$(1)) -lcmocka -lm -o $$@
endef
$(foreach f,$(FOLDERS),$(eval $(call unit_rule,$(f))))

.PHONY: all programs unit clean help found install bundle
all: found programs
programs: $(PROGRAMS)
unit: $(UNIT_TESTS)
lib-%: $(BUILD)/lib/libmb_%.a ; @true
test-%: ; @$(MAKE) --no-print-directory unit programs && tests/run.sh --build $(BUILD) --only '$*'

found:
	@echo "MPI $(if $(HAVE_MPI),yes,NO (mpicc not found: single process only))  HDF5 $(if $(HAVE_HDF5),yes,NO: run 'make deps')  oneDNN $(if $(HAVE_DNNL),yes,no)  CBLAS $(or $(BLAS_PC),no)  CUDA $(if $(HAVE_CUDA),$(CUDA_HOME),no)  Python with h5py $(or $(PYTHON),no)"

clean:
	rm -rf $(BUILD)/obj $(BUILD)/lib $(BUILD)/bin $(BUILD)/tests $(BUILD)/flags $(BUILD)/version.h

-include $(shell find $(BUILD)/obj -name '*.d' 2>/dev/null)
