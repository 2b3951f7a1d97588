# The CUDA backend (src/ops/cuda/*.cu). Built when nvcc is found (CUDA_HOME=, or on the path; CUDA=no leaves it out): machine code for A100 and
# H100, and PTX that newer chips compile when they load it. cuBLAS, NCCL and NVML are opened at run time, so programs start without them.
# Beside it, always where there is a C++ compiler: the same files for the host emulator of tests/emulator. Unit tests and MPI tests are
# linked with that, and the programs in $(BUILD)/emulated/bin, so that every kernel runs in `make test` on a machine without a GPU.
CXX ?= g++
HAVE_CXX := $(shell command -v $(CXX) >/dev/null 2>&1 && echo 1)
CUDA_ARCHS ?= -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_90,code=compute_90

# A file whose name ends in _sm90.cu uses what only that chip has (sm_90a): it is compiled for it alone.
CUDA_ARCHS_SM90 ?= -gencode arch=compute_90a,code=sm_90a
CUDA_SOURCES := $(sort $(wildcard src/ops/cuda/*.cu))
CUDA_HEADERS := $(wildcard src/ops/cuda/*.h src/ops/cuda/*.cuh) $(wildcard src/ops/*.h src/base/*.h src/tensor/*.h)
NVCCFLAGS_ALL := -std=c++17 -g -O3 -Isrc --expt-relaxed-constexpr --threads 2 $(if $(WERROR),-Werror all-warnings) \
 -Xcompiler -Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics -DMB_CUDA_HOME='"$(CUDA_HOME)"' $(NVCCFLAGS)
CUDA_OBJECTS := $(patsubst src/%.cu,$(BUILD)/obj/%.o,$(CUDA_SOURCES))

$(CUDA_OBJECTS): $(BUILD)/obj/%.o: src/%.cu $(CUDA_HEADERS) $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(if $(Q),@echo "  NVCC $<")
	$(Q)$(NVCC) $(NVCCFLAGS_ALL) $(if $(filter %_sm90.cu,$<),$(CUDA_ARCHS_SM90),$(CUDA_ARCHS)) -c $< -o $@ 2> $@.warnings; code=$$?; cat $@.warnings >&2; exit $$code

$(BUILD)/cuda-flags: FORCE
	@mkdir -p $(@D); echo '$(NVCC) $(NVCCFLAGS_ALL) $(CUDA_ARCHS) $(CXX) $(CXXFLAGS_EMULATED)' | cmp -s - $@ || echo '$(NVCC) $(NVCCFLAGS_ALL) $(CUDA_ARCHS) $(CXX) $(CXXFLAGS_EMULATED)' > $@

# The emulated library: all of src/ops, its CUDA files compiled for the host (not for the thread sanitizer: its threads are fibers, and
# hundreds of times slower there).
EMULATOR_SOURCES := $(sort $(wildcard tests/emulator/*.cc))
EMULATOR_HEADERS := $(wildcard tests/emulator/*.h)
CXXFLAGS_EMULATED := -std=c++17 -g $(if $(SAN),-O1 -fno-omit-frame-pointer,-O2) -Wall -Wextra -Wno-unknown-pragmas $(if $(WERROR),-Werror) -fopenmp -ffp-contract=off \
 $(if $(SAN),$(SANFLAGS)) -DMB_CUDA_EMULATED -Itests/emulator -Isrc
EMULATED_OBJECTS := $(patsubst src/%.cu,$(BUILD)/obj/emulated/%.o,$(CUDA_SOURCES)) $(patsubst tests/%.cc,$(BUILD)/obj/emulated/%.o,$(EMULATOR_SOURCES))

$(BUILD)/obj/emulated/%.o: src/%.cu $(CUDA_HEADERS) $(EMULATOR_HEADERS) $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CXX  $<")
	$(Q)$(CXX) $(CXXFLAGS_EMULATED) -x c++ -c $< -o $@
$(BUILD)/obj/emulated/%.o: tests/%.cc $(CUDA_HEADERS) $(EMULATOR_HEADERS) $(BUILD)/cuda-flags
	@mkdir -p $(@D)
	$(if $(Q),@echo "  CXX  $<")
	$(Q)$(CXX) $(CXXFLAGS_EMULATED) -c $< -o $@
# What tests are linked with: the emulated library in the place of the real one.
EMULATED := $(HAVE_CXX)
emulated_archives = $(if $(EMULATED),$(patsubst %/libmb_ops.a,%/libmb_ops_emulated.a,$(call archives,$(1))),$(call archives,$(1)))
emulated_libraries = $(if $(EMULATED),$(filter-out $(CUDA_LIBS),$(call libraries,$(1))) -lstdc++ -ldl,$(call libraries,$(1)))
