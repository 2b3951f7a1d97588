/* internal: what the emulator's files offer each other. All of it is called with the lock held. */
#ifndef MB_EMULATOR_INTERNAL_H
#define MB_EMULATOR_INTERNAL_H

#include "cuda_runtime.h"
#include "emulator.h"

#include <mutex>
#include <vector>

#if !defined(__SANITIZE_ADDRESS__) && defined(__has_feature)
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#if !defined(__SANITIZE_THREAD__) && defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATED_ASAN 1
#else
#define EMULATED_ASAN                               0
#define ASAN_POISON_MEMORY_REGION(address, bytes)   ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace emulated
{

/* What CUDA promises of compute capability 9.0. */
enum : size_t {
    SHARED_DEFAULT = 48 << 10, /* of a block without asking */
    SHARED_MOST = 227 << 10,   /* of a block that asks */
    SHARED_OF_PROCESSOR = 228 << 10,
};
enum : int { THREADS_MOST = 1024, WARP = 32, PROCESSORS = 4 };

/* ---- api.cc: errors, the lock ---- */

/* Held by every function of the API while it works. */
struct Lock {
    Lock();
    ~Lock();
};
/* Remember the error as the calling thread's last; with a line on stderr that says why. */
cudaError_t fail(cudaError_t error, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A finding that ends the program: a line on stderr, with the kernel and block that run, and abort. */
[[noreturn]] void stop(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Environment variable `name` is "1". */
bool is_set(const char *name);
bool allows_pageable();
/* Most dynamic shared memory that launches of this kernel may ask for. */
size_t shared_limit(const void *function);

/* ---- memory.cc ---- */

enum class Memory { host, pinned, device };
/* Of the address; opt_left: bytes from there to the end of its block, 0 when it is in no live block. */
Memory memory_of(const void *data, size_t *opt_left);
void memory_size(size_t *left, size_t *total);
cudaError_t memory_alloc(void **data, size_t bytes);
cudaError_t memory_free(void *data);
cudaError_t memory_alloc_pinned(void **data, size_t bytes);
cudaError_t memory_free_pinned(void *data);
/* The device's memory can be touched between open and close. */
void memory_open();
/* Only the blocks that these addresses lie in (others are let alone). */
void memory_open_blocks(const std::vector<const void *> &addresses);
void memory_close();

/* ---- queue.cc ---- */

/* A capture is going on in which this call is not allowed: it is broken, the last error set. */
bool is_forbidden_now(const char *call);
/* Run all that is queued. */
void run_all();
bool is_stream(cudaStream_t stream);

/* ---- order.cc ---- */

/* In which order things run that may run in any. */
struct Order {
    enum Kind { forward, reverse, random } kind;
    uint64_t seed, state;
    uint64_t next();                       /* a random number */
    uint64_t below(uint64_t n);            /* of 0..n-1 */
    void shuffle(uint16_t *ids, size_t n); /* ascending ids into this order */
};
/* From the environment; number: of the launch, so that each differs. */
Order order_of(uint64_t number);
/* The i-th of n in this order. */
struct Permutation {
    uint64_t n, factor, shift;
    Order::Kind kind;
    uint64_t operator()(uint64_t i) const;
};
Permutation permutation_of(Order *order, uint64_t n);
void order_describe(char *text, size_t room);

/* ---- fibers.cc ---- */

struct Fiber;
/* The stack of the thread that called. */
Fiber *fiber_main();
/* A new one that will call run(self) when first switched to; run never returns. */
Fiber *fiber_create(void (*run)(Fiber *self));
void fiber_switch(Fiber *from, Fiber *to);

/* ---- blocks.cc ---- */

void run_launch(const mb_emulated_launch &launch);
/* ", kernel k, block (x,y,z), thread (x,y,z), order o"; "" outside of one. */
void describe_running(char *text, size_t room);
const char *running_name();

/* ---- warp.cc ---- */

/* Do what the lanes came together for; exchange[lane] NULL for lanes outside of the mask. */
void warp_perform(mb_emulated_warp_kind kind, mb_emulated_exchange *const exchange[WARP]);
const char *warp_kind_name(mb_emulated_warp_kind kind);

/* ---- shared.cc ---- */

void shared_begin(const mb_emulated_launch &launch, size_t most);
void shared_begin_block();
void shared_end_block();
/* [data, data + bytes) is inside of one array of the block. */
bool shared_holds(const void *data, size_t bytes);

/* Asynchronous copies of one thread. */
struct Copies {
    struct Copy {
        void *to;
        const void *from;
        bool is_valid, is_done;
    };
    std::vector<Copy> copies;
    std::vector<size_t> ends; /* of the committed groups, as numbers of copies */
};
/* The thread that runs, and the order of its launch. */
Copies *running_copies();
Order *running_order();

} // namespace emulated

#endif
