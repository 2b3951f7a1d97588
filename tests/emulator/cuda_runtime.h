/* cuda_runtime: CUDA C for a host compiler, so that kernels run where there is no GPU and no toolkit.
 *
 * Stands in for the toolkit's header of this name: compile a .cu file with
 *     g++ -std=c++17 -DMB_CUDA_EMULATED -Itests/emulator -Isrc -x c++
 * What a program of the right form does on a GPU it does here; what would be undefined there is reported
 * here where it can be seen (README.md, emulator.h). Kernels are started by MB_LAUNCH only.
 *
 * emulated_types.h: vector types, attributes; emulated_api.h: runtime functions; emulated_device.h: what
 * kernels call; emulated_launch.h: MB_LAUNCH.
 */
#ifndef MB_EMULATED_CUDA_RUNTIME_H
#define MB_EMULATED_CUDA_RUNTIME_H

#ifndef MB_CUDA_EMULATED
#error "this is the emulator's cuda_runtime.h: compile with -DMB_CUDA_EMULATED"
#endif

#include "emulated_types.h"

#include "emulated_api.h"

#include "emulated_device.h"

#include "emulated_launch.h"

#endif
