/* emulator: what tests may ask the emulated GPU, from C and C++, and the environment it obeys.
 *
 * Read whenever it matters, so that a test may change it between launches:   MB_EMULATOR_ORDER      forward
 * (default), reverse, or a number (a seed): the order in which the blocks of a                          grid
 * and the threads of a block run, and when asynchronous copies to shared memory
 * arrive: at the wait for them, at once, or either by chance. Results must not depend
 * on it.   MB_EMULATOR_PAGEABLE=1 (or MB_CUDA_SHARED=1) kernels may be given ordinary host memory
 * MB_EMULATOR_TRACE=1    name on stderr what runs Read at the first use of the device:   MB_EMULATOR_OPEN=1
 * the host may touch device memory   MB_EMULATOR_MEMORY     MiB of device memory, 4096 by default
 */
#ifndef MB_EMULATOR_H
#define MB_EMULATOR_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of device and of page-locked memory not yet freed. */
int64_t mb_emulator_live_bytes(void);
/* Operations (kernels, copies, memsets, event records) queued that nothing has waited for. */
int64_t mb_emulator_pending(void);
/* Kernels run since the start. */
int64_t mb_emulator_launches(void);

#ifdef __cplusplus
}
#endif

#endif
