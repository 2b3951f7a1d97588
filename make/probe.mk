# What this machine has. Each library is found by pkg-config, else by a plain link test; HAVE_x is 1 or empty.
pkgc = $(shell pkg-config --cflags $(1) 2>/dev/null)
pkgl = $(shell pkg-config --libs $(1) 2>/dev/null)
has_header = $(shell printf '\#include <$(1)>\n' | $(CC) $(2) -E -x c - >/dev/null 2>&1 && echo 1)

HDF5_PC := $(shell for p in hdf5-serial hdf5 hdf5-openmpi; do pkg-config --exists $$p 2>/dev/null && echo $$p && break; done)
HAVE_HDF5 := $(if $(HDF5_PC),1)
HDF5_CFLAGS := $(call pkgc,$(HDF5_PC))
HDF5_LIBS := $(call pkgl,$(HDF5_PC))

HAVE_DNNL := $(call has_header,dnnl.h,$(CFLAGS))
DNNL_LIBS := $(if $(HAVE_DNNL),-ldnnl)
BLAS_PC := $(shell for p in openblas blis cblas blas; do pkg-config --exists $$p 2>/dev/null && echo $$p && break; done)
HAVE_CBLAS := $(if $(BLAS_PC),1)
BLAS_CFLAGS := $(call pkgc,$(BLAS_PC))
BLAS_LIBS := $(call pkgl,$(BLAS_PC))

HAVE_MPI := $(shell command -v $(MPICC) >/dev/null 2>&1 && echo 1)
MPI_CFLAGS := $(if $(HAVE_MPI),$(shell $(MPICC) --showme:compile 2>/dev/null || $(MPICC) -compile_info 2>/dev/null | cut -d' ' -f2-))
MPI_LIBS := $(if $(HAVE_MPI),$(shell $(MPICC) --showme:link 2>/dev/null || $(MPICC) -link_info 2>/dev/null | cut -d' ' -f2-))

# CUDA=no leaves the GPU out; sanitizer builds do (the emulator of the tests runs the kernels there).
CUDA_HOME ?= $(patsubst %/bin/nvcc,%,$(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard /usr/local/cuda/bin/nvcc)))
NVCC := $(if $(filter no,$(CUDA))$(SAN)$(TSAN),,$(wildcard $(CUDA_HOME)/bin/nvcc))
HAVE_CUDA := $(if $(NVCC),1)
CUDA_LIBS := $(if $(HAVE_CUDA),-L$(firstword $(wildcard $(CUDA_HOME)/lib64/libcudart_static.a $(CUDA_HOME)/lib/libcudart_static.a $(CUDA_HOME)/targets/x86_64-linux/lib/libcudart_static.a)))
CUDA_LIBS := $(patsubst %/libcudart_static.a,%,$(CUDA_LIBS)) $(if $(HAVE_CUDA),-lcudart_static -lrt -lpthread -ldl)

BASE_LIBS := $(or $(call pkgl,jansson),-ljansson) $(or $(call pkgl,libxxhash),-lxxhash)
TEXT_LIBS := $(or $(call pkgl,libpcre2-8),-lpcre2-8) $(or $(call pkgl,libutf8proc),-lutf8proc) $(or $(call pkgl,zlib),-lz)
CONFIG_LIBS := $(or $(call pkgl,libconfig),-lconfig)

# Extra compile flags and libraries per folder of src/ (beyond base).
FLAGS_store := $(HDF5_CFLAGS)
FLAGS_comm := $(MPI_CFLAGS) $(if $(HAVE_MPI),-DMB_HAVE_MPI)
FLAGS_ops := $(if $(HAVE_DNNL),-DMB_HAVE_DNNL) $(if $(HAVE_CBLAS),-DMB_HAVE_CBLAS $(BLAS_CFLAGS))
LIBS_base := $(BASE_LIBS)
LIBS_config := $(CONFIG_LIBS)
LIBS_text := $(TEXT_LIBS)
LIBS_ops := $(DNNL_LIBS) $(BLAS_LIBS) $(CUDA_LIBS)
LIBS_comm := $(MPI_LIBS) -ldl
LIBS_store := $(HDF5_LIBS)
