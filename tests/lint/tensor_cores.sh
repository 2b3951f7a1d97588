#!/usr/bin/env bash
# Says which kernels that should run on tensor cores do not: by cuobjdump's disassembly (HMMA, HGMMA) of each object where it is installed (on the path,
# beside nvcc, or in MB_CUOBJDUMP), else by the PTX that nvcc writes (mma.sync). Prints nothing when all is well.
# Usage: tests/lint/tensor_cores.sh BUILD
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$1
nvcc=$(command -v nvcc || echo "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc")
tool=${MB_CUOBJDUMP:-$(command -v cuobjdump || true)}
[ -n "$tool" ] || { [ ! -x "$(dirname "$nvcc")/cuobjdump" ] || tool=$(dirname "$nvcc")/cuobjdump; }

# Instructions of one architecture in the object of a file.
count() { # FILE ARCH
    if [ -n "$tool" ]; then
        "$tool" -sass -arch "$2" "$build/obj/ops/cuda/$1.o" | grep -c -E 'HMMA\.16816\.F32\.BF16|HGMMA.*\.BF16' || true
    else
        "$nvcc" -std=c++17 -Isrc --expt-relaxed-constexpr -arch "${2/sm/compute}" -ptx "src/ops/cuda/$1.cu" -o - | grep -c -E 'mma.sync.aligned.m16n8k16|wgmma.mma_async' || true
    fi
}

for file in attention attention_backward grouped grouped_sm90; do
    for arch in sm_80 sm_90 sm_90a; do
        [ "${file#*_sm90}" = "$file" ] && [ "$arch" = sm_90a ] && continue
        [ -z "$tool" ] && [ "$arch" = sm_80 ] && continue # PTX is the same for both
        [ "${file#*_sm90}" != "$file" ] && [ "$arch" != sm_90a ] && continue
        n=$(count "$file" "$arch")
        [ "$n" -gt 0 ] || echo "src/ops/cuda/$file.cu has no tensor-core instructions for $arch"
        [ -z "${VERBOSE:-}" ] || echo "$file $arch: $n"
    done
done
