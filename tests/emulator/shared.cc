/* shared: the shared memory of the block that runs, and asynchronous copies to it.
 *
 * Arrays lie in one buffer with gaps between, each aligned as promised and no more: the dynamic one to 128
 * bytes, static ones to 16. Places are given at the first block of a launch that asks and kept; every block
 * finds all ones (NaN) in them. Gaps are poisoned under the address sanitizer, and hold a pattern that is
 * looked at after each block elsewhere.
 *
 * 1. arrays 2. copies
 */
#include <sys/mman.h>

#include "internal.h"

namespace emulated
{

/* ---- 1. arrays ---- */

enum : size_t { BUFFER = 1 << 20, GAP = 64 };
enum : int { PATTERN = 0xcb, FRESH = 0xff };

struct Array {
    const char *name;
    unsigned char *data;
    size_t bytes;
};

static struct {
    unsigned char *buffer;
    std::vector<Array> arrays;
    size_t end; /* in the buffer: of what is given out, with the gap behind */
    size_t bytes, most;
} shared;

static unsigned char *add_array(const char *name, size_t bytes, size_t alignment)
{
    /* aligned to `alignment` and not to twice that */
    const size_t from = shared.end + GAP;
    const size_t at = (from + alignment - 1) / (2 * alignment) * (2 * alignment) + alignment;
    if (at + bytes + GAP > BUFFER) stop("array '%s' does not fit into shared memory", name);
    if (EMULATED_ASAN)
        ASAN_UNPOISON_MEMORY_REGION(shared.buffer + at, bytes);
    else
        memset(shared.buffer + shared.end, PATTERN, at - shared.end),
            memset(shared.buffer + at + bytes, PATTERN, GAP);
    memset(shared.buffer + at, FRESH, bytes);
    shared.arrays.push_back({name, shared.buffer + at, bytes});
    shared.end = at + bytes + GAP;
    shared.bytes += bytes;
    return shared.buffer + at;
}

void shared_begin(const mb_emulated_launch &launch, size_t most)
{
    if (shared.buffer == NULL) {
        shared.buffer = (unsigned char *)mmap(NULL, BUFFER, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (shared.buffer == MAP_FAILED) stop("no memory for a block's shared memory");
        ASAN_POISON_MEMORY_REGION(shared.buffer, BUFFER);
    }
    if (EMULATED_ASAN)
        for (const Array &array : shared.arrays) ASAN_POISON_MEMORY_REGION(array.data, array.bytes);
    shared.arrays.clear();
    shared.end = 0, shared.bytes = 0, shared.most = most;
    mb_emulated_now.dynamic_shared = add_array("the dynamic shared memory", launch.shared_bytes, 128);
}

void shared_begin_block()
{
    for (const Array &array : shared.arrays) memset(array.data, FRESH, array.bytes);
}

static bool is_pattern(const unsigned char *data, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != PATTERN) return false;
    return true;
}

void shared_end_block()
{
    if (EMULATED_ASAN) return;
    for (const Array &array : shared.arrays) {
        if (!is_pattern(array.data + array.bytes, GAP))
            stop("the block wrote behind the end of '%s' (%zu bytes) in shared memory", array.name,
                 array.bytes);
        if (!is_pattern(array.data - GAP, GAP))
            stop("the block wrote before the start of '%s' (%zu bytes) in shared memory", array.name,
                 array.bytes);
    }
}

bool shared_holds(const void *data, size_t bytes)
{
    const unsigned char *from = (const unsigned char *)data;
    for (const Array &array : shared.arrays)
        if (from >= array.data && from + bytes <= array.data + array.bytes) return true;
    return false;
}

} // namespace emulated

using namespace emulated;

void mb_emulated_shared_find(mb_emulated_shared_place *place)
{
    place->data = add_array(place->name, place->bytes, 16);
    place->launch = mb_emulated_now.launch;
    const size_t fixed = shared.bytes - shared.arrays[0].bytes;
    if (fixed > SHARED_DEFAULT)
        stop("%zu bytes of static shared memory with '%s' (%s:%d): nvcc refuses more than %zu", fixed,
             place->name, place->file, place->line, (size_t)SHARED_DEFAULT);
    if (shared.bytes > shared.most)
        stop("%zu bytes of shared memory with '%s' (%s:%d), %zu of it dynamic: the launch fails beyond %zu%s",
             shared.bytes, place->name, place->file, place->line, shared.arrays[0].bytes, shared.most,
             shared.most == SHARED_DEFAULT ? "; allow more by cudaFuncSetAttribute" : "");
}

/* ---- 2. copies ---- */

static void perform(Copies::Copy *copy)
{
    if (copy->is_done) return;
    if (copy->is_valid)
        memcpy(copy->to, copy->from, 16);
    else
        memset(copy->to, 0, 16);
    copy->is_done = true;
}

void mb_emulated_copy_async_16(void *to, const void *from, bool is_valid, const char *file, int line)
{
    Copies *own = running_copies();
    Order *order = running_order();
    if ((uintptr_t)to % 16 != 0 || (uintptr_t)from % 16 != 0)
        stop("%s:%d: an asynchronous copy from %p to %p: both must be 16-byte aligned", file, line, from, to);
    if (!shared_holds(to, 16))
        stop("%s:%d: an asynchronous copy to %p, which is not inside of an array of shared memory", file,
             line, to);
    if (is_valid && shared_holds(from, 1))
        stop("%s:%d: an asynchronous copy from %p, which is shared memory", file, line, from);
    own->copies.push_back({to, from, is_valid, false});
    if (order->kind == Order::reverse || (order->kind == Order::random && order->below(2) == 0))
        perform(&own->copies.back());
}

void mb_emulated_copy_async_commit()
{
    Copies *own = running_copies();
    own->ends.push_back(own->copies.size());
}

void mb_emulated_copy_async_wait(int left)
{
    Copies *own = running_copies();
    if (left < 0) stop("a wait for all but %d groups of copies", left);
    if ((size_t)left >= own->ends.size()) return;
    const size_t groups = own->ends.size() - (size_t)left, n = own->ends[groups - 1];
    for (size_t i = 0; i < n; i++) perform(&own->copies[i]);
    own->copies.erase(own->copies.begin(), own->copies.begin() + (ptrdiff_t)n);
    own->ends.erase(own->ends.begin(), own->ends.begin() + (ptrdiff_t)groups);
    for (size_t &end : own->ends) end -= n;
}
