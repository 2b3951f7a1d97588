/* blocks: a launch runs block after block; the threads of a block take turns on fibers.
 *
 * A thread runs until it returns or waits. Threads that have not begun need no stack: the fiber whose thread
 * has returned takes the next, so that a kernel without barriers runs all its threads, of all blocks, on one
 * fiber without any switch. A thread that waits keeps its fiber, and another fiber goes on. When nobody can
 * go on and not all have returned, the block would hang: that is reported with who waits where.
 *
 * 1. state 2. the report 3. turns 4. barriers and warps 5. launches
 */
#include <stdarg.h>
#include <stdio.h>

#include "internal.h"

mb_emulated_state mb_emulated_now;

namespace emulated
{

/* ---- 1. state ---- */

enum class State : uint8_t { fresh, ready, barrier, warp, returned };

struct Thread {
    Fiber *fiber; /* that it waits on */
    State state;
    mb_emulated_warp_kind kind;
    uint32_t mask;
    mb_emulated_exchange *exchange;
    const char *file;
    int line;
    uint3 index;
    Copies copies;
};

/* Threads that can run, in order. */
struct Ready {
    enum : unsigned { ROOM = 2048 };
    uint16_t ids[ROOM];
    unsigned first, n;
    void push_back(uint16_t id) { ids[(first + n++) % ROOM] = id; }
    void push_front(uint16_t id)
    {
        first = (first + ROOM - 1) % ROOM;
        ids[first] = id;
        n++;
    }
    uint16_t pop()
    {
        const uint16_t id = ids[first];
        first = (first + 1) % ROOM;
        n--;
        return id;
    }
};

struct Run {
    const mb_emulated_launch *launch;
    Order order;
    Permutation blocks;
    uint64_t block, block_count; /* blocks begun */
    unsigned thread_count, returned;
    Thread *current;
    Fiber *fiber, *main;
    Ready ready;
    struct {
        unsigned arrived;
        mb_emulated_reduction reduction;
        int holding, result; /* threads whose predicate holds */
        const char *file;
        int line;
    } barrier;
    uint32_t waiting[THREADS_MOST / WARP]; /* lanes of each warp in a warp operation */
};

static Run run;
static Thread threads[THREADS_MOST];
static std::vector<Fiber *> &idle = *new std::vector<Fiber *>(); /* never destroyed */
static uint64_t launches;

static unsigned id_of(const Thread *thread)
{
    return (unsigned)(thread - threads);
}

Copies *running_copies()
{
    return &run.current->copies;
}

Order *running_order()
{
    return &run.order;
}

const char *running_name()
{
    return run.launch != NULL ? run.launch->name : "";
}

/* ---- 2. the report ---- */

void describe_running(char *text, size_t room)
{
    char order[64];
    text[0] = '\0';
    if (run.launch == NULL) return;
    const uint3 b = blockIdx, t = threadIdx;
    order_describe(order, sizeof order);
    snprintf(text, room,
             "kernel %s, block (%u,%u,%u), thread (%u,%u,%u), MB_EMULATOR_ORDER=%s: ", run.launch->name, b.x,
             b.y, b.z, t.x, t.y, t.z, order);
}

static bool is_alike(const Thread &a, const Thread &b)
{
    if (a.state != b.state) return false;
    if (a.state == State::returned) return true;
    return a.line == b.line && strcmp(a.file, b.file) == 0 &&
           (a.state != State::warp || (a.kind == b.kind && a.mask == b.mask));
}

static void describe_thread(const Thread &thread)
{
    if (thread.state == State::returned)
        fprintf(stderr, "have returned\n");
    else if (thread.state == State::barrier)
        fprintf(stderr, "wait at __syncthreads, %s:%d\n", thread.file, thread.line);
    else
        fprintf(stderr, "wait at %s of lanes 0x%08x, %s:%d\n", warp_kind_name(thread.kind), thread.mask,
                thread.file, thread.line);
}

[[noreturn]] static void report_stuck()
{
    unsigned from = 0;
    fprintf(stderr, "CUDA emulator: kernel %s, block (%u,%u,%u) of %u threads waits for ever:\n",
            run.launch->name, blockIdx.x, blockIdx.y, blockIdx.z, run.thread_count);
    for (unsigned i = 1; i <= run.thread_count; i++) {
        if (i < run.thread_count && is_alike(threads[i], threads[from])) continue;
        fprintf(stderr, "CUDA emulator:   threads %u to %u ", from, i - 1);
        describe_thread(threads[from]);
        from = i;
    }
    stop("every thread of a block must reach every barrier, every lane of the mask every warp operation");
}

/* ---- 3. turns ---- */

static void work(Fiber *self);

static Fiber *take_idle()
{
    if (idle.empty()) return fiber_create(work);
    Fiber *fiber = idle.back();
    idle.pop_back();
    return fiber;
}

/* The running thread waits (or is among the ready): others go on; returns when it is its turn again. */
static void give_way()
{
    Thread *self = run.current;
    if (run.ready.n == 0) report_stuck();
    Thread *next = &threads[run.ready.pop()];
    if (next == self) return;
    self->fiber = run.fiber;
    Fiber *to = next->fiber != NULL ? next->fiber : take_idle();
    run.current = next;
    fiber_switch(self->fiber, to);
    run.fiber = self->fiber;
    self->fiber = NULL;
    threadIdx = self->index;
}

/* The next block's threads are ready; false when it was the last. */
static bool begin_block()
{
    if (run.block == run.block_count) return false;
    const dim3 grid = run.launch->grid;
    const uint64_t at = run.blocks(run.block++);
    uint16_t order[THREADS_MOST];
    blockIdx = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y), (unsigned)(at / grid.x / grid.y)};
    for (unsigned i = 0; i < run.thread_count; i++) {
        threads[i].state = State::fresh;
        order[i] = (uint16_t)i;
    }
    run.order.shuffle(order, run.thread_count);
    run.ready.first = 0, run.ready.n = run.thread_count;
    memcpy(run.ready.ids, order, run.thread_count * sizeof *order);
    run.returned = 0;
    shared_begin_block();
    return true;
}

/* A fiber: threads that have not begun, one after another. */
static void work(Fiber *self)
{
    for (;;) {
        Thread *thread = run.current;
        run.fiber = self;
        threadIdx = thread->index;
        thread->state = State::ready;
        run.launch->call(run.launch->arguments.get());
        thread->state = State::returned;
        if (!thread->copies.copies.empty()) thread->copies.copies.clear(), thread->copies.ends.clear();
        run.returned++;
        Fiber *to = NULL;
        if (run.ready.n == 0) {
            if (run.returned < run.thread_count) report_stuck();
            shared_end_block();
            if (!begin_block()) to = run.main;
        }
        if (to == NULL) {
            run.current = &threads[run.ready.pop()];
            to = run.current->fiber;
        }
        if (to == NULL) continue;
        idle.push_back(self);
        fiber_switch(self, to);
    }
}

/* ---- 4. barriers and warps ---- */

} // namespace emulated

using namespace emulated;

/* All have arrived: everyone is ready again. */
static void release_block()
{
    uint16_t order[THREADS_MOST];
    const unsigned n = run.thread_count;
    const int holding = run.barrier.holding;
    run.barrier.result = run.barrier.reduction == MB_EMULATED_AND  ? holding == (int)n
                         : run.barrier.reduction == MB_EMULATED_OR ? holding > 0
                                                                   : holding;
    run.barrier.arrived = 0, run.barrier.holding = 0;
    for (unsigned i = 0; i < n; i++) {
        order[i] = (uint16_t)i;
        threads[i].state = State::ready;
    }
    run.order.shuffle(order, n);
    for (unsigned i = 0; i < n; i++) run.ready.push_back(order[i]);
}

int mb_emulated_barrier(mb_emulated_reduction reduction, int predicate, const char *file, int line)
{
    Thread *self = run.current;
    if (run.barrier.arrived == 0) {
        run.barrier.reduction = reduction;
        run.barrier.file = file, run.barrier.line = line;
    } else if (reduction != run.barrier.reduction || line != run.barrier.line ||
               strcmp(file, run.barrier.file) != 0) {
        stop("this thread is at the __syncthreads of %s:%d while others are at that of %s:%d", file, line,
             run.barrier.file, run.barrier.line);
    }
    self->state = State::barrier;
    self->file = file, self->line = line;
    run.barrier.holding += predicate != 0;
    if (++run.barrier.arrived == run.thread_count) release_block();
    give_way();
    return run.barrier.result;
}

/* The lanes of `mask` are ready again: they go on before other warps do (or, by chance, behind them). */
static void release_lanes(unsigned warp, uint32_t mask)
{
    uint16_t order[WARP];
    unsigned n = 0;
    for (unsigned lane = 0; lane < WARP; lane++) {
        if ((mask >> lane & 1) == 0) continue;
        order[n++] = (uint16_t)(warp * WARP + lane);
        threads[warp * WARP + lane].state = State::ready;
    }
    run.waiting[warp] &= ~mask;
    run.order.shuffle(order, n);
    if (run.order.kind == Order::random && run.order.below(2) == 0) {
        for (unsigned i = 0; i < n; i++) run.ready.push_back(order[i]);
    } else {
        while (n > 0) run.ready.push_front(order[--n]);
    }
}

static uint32_t lanes_of(unsigned warp)
{
    const unsigned n = run.thread_count - warp * WARP;
    return n >= WARP ? 0xffffffffu : (1u << n) - 1;
}

/* The mask a lane waits with, complete when all its lanes wait with the same. */
static bool is_complete(unsigned warp, const Thread *self)
{
    if ((run.waiting[warp] & self->mask) != self->mask) return false;
    for (unsigned lane = 0; lane < WARP; lane++) {
        const Thread *other = &threads[warp * WARP + lane];
        if ((self->mask >> lane & 1) == 0) continue;
        if (other->mask != self->mask) return false;
        if (other->kind != self->kind)
            stop("this lane is at %s (%s:%d), lane %u of its warp at %s (%s:%d)", warp_kind_name(self->kind),
                 self->file, self->line, lane, warp_kind_name(other->kind), other->file, other->line);
    }
    return true;
}

void mb_emulated_warp(mb_emulated_warp_kind kind, uint32_t mask, mb_emulated_exchange *exchange,
                      const char *file, int line)
{
    Thread *self = run.current;
    const unsigned warp = id_of(self) / WARP, lane = id_of(self) % WARP;
    if ((mask >> lane & 1) == 0)
        stop("%s:%d: lane %u calls %s with mask 0x%08x, which leaves it out", file, line, lane,
             warp_kind_name(kind), mask);
    if (kind >= MB_EMULATED_MMA && lanes_of(warp) != 0xffffffffu)
        stop("%s:%d: %s needs a whole warp; this block has %u threads", file, line, warp_kind_name(kind),
             run.thread_count);
    self->state = State::warp;
    self->kind = kind, self->mask = mask & lanes_of(warp), self->exchange = exchange;
    self->file = file, self->line = line;
    run.waiting[warp] |= 1u << lane;
    if (is_complete(warp, self)) {
        mb_emulated_exchange *all[WARP];
        for (unsigned i = 0; i < WARP; i++)
            all[i] = (self->mask >> i & 1) != 0 ? threads[warp * WARP + i].exchange : NULL;
        warp_perform(kind, all);
        release_lanes(warp, self->mask);
    }
    give_way();
}

unsigned __activemask()
{
    const unsigned warp = id_of(run.current) / WARP;
    uint32_t mask = lanes_of(warp);
    for (unsigned lane = 0; lane < WARP; lane++)
        if (threads[warp * WARP + lane].state == State::returned) mask &= ~(1u << lane);
    return mask;
}

void mb_emulated_trap(const char *file, int line)
{
    stop("__trap, %s:%d", file, line);
}

/* ---- 5. launches ---- */

static void number_threads(dim3 block)
{
    run.thread_count = block.x * block.y * block.z;
    for (unsigned i = 0; i < run.thread_count; i++) {
        threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        threads[i].fiber = NULL;
    }
}

void emulated::run_launch(const mb_emulated_launch &launch)
{
    run.launch = &launch;
    run.order = order_of(++launches);
    run.block = 0;
    run.block_count = (uint64_t)launch.grid.x * launch.grid.y * launch.grid.z;
    run.blocks = permutation_of(&run.order, run.block_count);
    number_threads(launch.block);
    memset(run.waiting, 0, sizeof run.waiting);
    memset(&run.barrier, 0, sizeof run.barrier);
    blockDim = launch.block, gridDim = launch.grid;
    mb_emulated_now.launch = launches;
    shared_begin(launch, shared_limit(launch.function) > SHARED_DEFAULT ? SHARED_MOST : SHARED_DEFAULT);
    (void)begin_block();
    run.main = fiber_main();
    run.current = &threads[run.ready.pop()];
    fiber_switch(run.main, take_idle());
    run.launch = NULL;
    mb_emulated_now.launch = 0;
}

int64_t mb_emulator_launches(void)
{
    Lock lock;
    return (int64_t)launches;
}
