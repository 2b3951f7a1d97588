/* fibers: stacks that the threads of a block run on, and the switch between them.
 *
 * The switch is a few instructions on x86-64 and aarch64 (what a called function must preserve is pushed, the
 * stack pointer exchanged) and swapcontext elsewhere. Sanitizers are told of every switch. Stacks are kept
 * for the next launch; below each lies a page that cannot be touched.
 */
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "internal.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define EMULATED_UCONTEXT 1
#else
#define EMULATED_UCONTEXT 0
#endif

#if defined(__SANITIZE_THREAD__)
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
}
#endif

namespace emulated
{

struct Fiber {
    void *top;          /* stack pointer while another runs */
    const void *bottom; /* of the stack, and its size: for the address sanitizer */
    size_t bytes;
    void *fake, *tsan;
    void (*run)(Fiber *self);
#if EMULATED_UCONTEXT
    ucontext_t context;
#endif
};

static Fiber *leaving, *entering;

#if defined(__x86_64__)
asm(".text\n"
    ".p2align 4\n"
    ".globl mb_emulated_switch_stack\n"
    ".hidden mb_emulated_switch_stack\n"
    ".type mb_emulated_switch_stack, @function\n"
    "mb_emulated_switch_stack:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size mb_emulated_switch_stack, . - mb_emulated_switch_stack\n");
enum {
    SAVED_WORDS = 8,
    SAVED_RETURN = 6
}; /* six registers, the return address, one word that keeps alignment */
#elif defined(__aarch64__)
asm(".text\n"
    ".p2align 4\n"
    ".globl mb_emulated_switch_stack\n"
    ".hidden mb_emulated_switch_stack\n"
    ".type mb_emulated_switch_stack, %function\n"
    "mb_emulated_switch_stack:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, "
    "#144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, "
    "#144]\n"
    "  add sp, sp, #160\n"
    "  ret\n"
    ".size mb_emulated_switch_stack, . - mb_emulated_switch_stack\n");
enum { SAVED_WORDS = 20, SAVED_RETURN = 11 }; /* x19..x30, d8..d15 */
#endif
#if !EMULATED_UCONTEXT
extern "C" void mb_emulated_switch_stack(void **save_top, void *top);
#endif

/* The first thing on the new stack after every switch. */
static void arrived(Fiber *self)
{
#if EMULATED_ASAN
    __sanitizer_finish_switch_fiber(self->fake, &leaving->bottom, &leaving->bytes);
#else
    (void)self;
#endif
}

static void start()
{
    Fiber *self = entering;
    arrived(self);
    self->run(self);
    abort();
}

void fiber_switch(Fiber *from, Fiber *to)
{
    leaving = from, entering = to;
#if EMULATED_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->bytes);
#elif defined(__SANITIZE_THREAD__)
    __tsan_switch_to_fiber(to->tsan, 0);
#endif
#if EMULATED_UCONTEXT
    swapcontext(&from->context, &to->context);
#else
    mb_emulated_switch_stack(&from->top, to->top);
#endif
    arrived(from);
}

Fiber *fiber_main()
{
    static thread_local Fiber fiber;
#if defined(__SANITIZE_THREAD__)
    fiber.tsan = __tsan_get_current_fiber();
#endif
    return &fiber;
}

/* Stacks come many at a time; their tops are spread, or all would share the same few sets of the caches. */
static char *new_stack(size_t *bytes)
{
    static const size_t each = EMULATED_ASAN ? 512 << 10 : 192 << 10, many = 64;
    static char *chunk;
    static size_t used = many;
    if (used == many) {
        chunk = (char *)mmap(NULL, many * each, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (chunk == MAP_FAILED) stop("no memory for the stacks of a block's threads");
        used = 0;
    }
    char *stack = chunk + used * each;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    if (mprotect(stack, page, PROT_NONE) != 0) stop("a stack's guard page cannot be made");
    *bytes = each - page - used * 320;
    used++;
    return stack + page;
}

Fiber *fiber_create(void (*run)(Fiber *self))
{
    Fiber *fiber = new Fiber();
    char *stack = new_stack(&fiber->bytes);
    fiber->bottom = stack;
    fiber->run = run;
#if defined(__SANITIZE_THREAD__)
    fiber->tsan = __tsan_create_fiber(0);
#endif
#if EMULATED_UCONTEXT
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = fiber->bytes;
    makecontext(&fiber->context, start, 0);
#else
    void **words = (void **)(stack + fiber->bytes) - SAVED_WORDS;
    for (int i = 0; i < SAVED_WORDS; i++) words[i] = NULL;
    words[SAVED_RETURN] = (void *)start;
    fiber->top = words;
#endif
    return fiber;
}

} // namespace emulated
