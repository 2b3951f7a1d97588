/* memory: the device's memory and page-locked memory.
 *
 * The device's memory is one reserved range of addresses. A block gets pages of its own, ends where they end
 * (but for 256-byte alignment), and an untouchable page follows; freed pages become untouchable, and their
 * addresses come back only when the range is used up. Pages of live blocks can be touched while queued work
 * runs and not otherwise, unless MB_EMULATOR_OPEN=1 (or kernels may use ordinary memory anyway). What a
 * block's alignment leaves over is poisoned under the address sanitizer. Fresh memory is all ones: very large
 * blocks see a file of ones until they write, so that they cost only what they use; others of a MiB and more
 * get huge pages, which change their protection much faster.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>

#include "internal.h"

namespace emulated
{

enum : size_t {
    ALIGNMENT = 256,
    HUGE_PAGE = 2 << 20,
    HUGE_FROM = 1 << 20,
    ONES = 16 << 20,
    ONES_FROM = 65 << 20
};

struct Block {
    size_t bytes;
    char *span; /* its pages, and how many bytes of them */
    size_t span_bytes;
};
struct Span {
    char *data;
    size_t bytes;
};

static struct {
    char *range, *end, *unused; /* unused: nothing from here on was ever given out */
    size_t page, total, live, live_pinned;
    std::map<const char *, Block> *blocks; /* by where they begin */
    std::map<const char *, size_t> *pinned;
    std::vector<Span> *freed, *opened; /* opened: by memory_open_blocks */
    int ones;                          /* the file */
    bool is_ready, is_always_open;
    bool is_writable; /* the live blocks' pages, now */
} memory;

/* Pages that are no block's: with a flag that keeps the kernel from joining them with blocks that are
 * closed, and so from splitting them off again at every change of protection. */
static void set_apart(char *span, size_t bytes)
{
    (void)madvise(span, bytes, MADV_DONTDUMP);
}

static void reserve_range()
{
    for (size_t gib = 1024; gib >= 4; gib /= 4) {
        void *range = mmap(NULL, gib << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (range == MAP_FAILED) continue;
        memory.range = memory.unused = (char *)range;
        memory.end = memory.range + (gib << 30);
        set_apart(memory.range, gib << 30);
        return;
    }
    stop("no addresses for the device's memory");
}

static void make_ready()
{
    if (memory.is_ready) return;
    const char *mib = getenv("MB_EMULATOR_MEMORY");
    memory.page = (size_t)sysconf(_SC_PAGESIZE);
    memory.total = (size_t)(mib != NULL ? strtoull(mib, NULL, 10) : 4096) << 20;
    memory.is_always_open = memory.is_writable = is_set("MB_EMULATOR_OPEN");
    memory.blocks = new std::map<const char *, Block>();
    memory.pinned = new std::map<const char *, size_t>();
    memory.freed = new std::vector<Span>();
    memory.opened = new std::vector<Span>();
    memory.ones = -1;
    reserve_range();
    memory.is_ready = true;
}

static void protect(char *span, size_t bytes, int protection)
{
    if (mprotect(span, bytes, protection) != 0) stop("mprotect of %zu bytes: %s", bytes, strerror(errno));
}

static void protect_all(bool is_writable)
{
    if (memory.is_writable == is_writable) return;
    memory.is_writable = is_writable;
    for (const auto &entry : *memory.blocks)
        protect(entry.second.span, entry.second.span_bytes, is_writable ? PROT_READ | PROT_WRITE : PROT_NONE);
}

void memory_open()
{
    make_ready();
    protect_all(true);
}

void memory_open_blocks(const std::vector<const void *> &addresses)
{
    make_ready();
    if (memory.is_writable) return;
    for (const void *address : addresses) {
        auto next = memory.blocks->upper_bound((const char *)address);
        if (next == memory.blocks->begin()) continue;
        const Block &block = (--next)->second;
        protect(block.span, block.span_bytes, PROT_READ | PROT_WRITE);
        memory.opened->push_back({block.span, block.span_bytes});
    }
}

/* Where kernels may use ordinary memory, everything stays open: what the host may touch there is not the
 * question. */
void memory_close()
{
    if (!memory.is_always_open && !allows_pageable()) protect_all(false);
    for (const Span &span : *memory.opened) protect(span.data, span.bytes, PROT_NONE);
    memory.opened->clear();
}

static bool make_ones()
{
    char *fill = (char *)malloc(ONES);
    memory.ones = memfd_create("emulator-ones", MFD_CLOEXEC);
    bool is_made = fill != NULL && memory.ones >= 0;
    if (is_made) {
        memset(fill, 0xff, ONES);
        is_made = pwrite(memory.ones, fill, ONES, 0) == (ssize_t)ONES;
    }
    free(fill);
    return is_made;
}

/* Pages of all ones. */
static bool fill_ones(char *span, size_t bytes)
{
    size_t mapped = 0;
    (void)madvise(span, bytes, MADV_DODUMP);
    if (bytes >= HUGE_PAGE && bytes < ONES_FROM) (void)madvise(span, bytes, MADV_HUGEPAGE);
    if (bytes >= ONES_FROM && (memory.ones >= 0 || make_ones()))
        for (; bytes - mapped >= ONES; mapped += ONES)
            if (mmap(span + mapped, ONES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE,
                     memory.ones, 0) == MAP_FAILED)
                break;
    if (mprotect(span + mapped, bytes - mapped, PROT_READ | PROT_WRITE) != 0) return false;
    memset(span + mapped, 0xff, bytes - mapped);
    return true;
}

/* `bytes` of pages with an untouchable one behind; NULL: none left. */
static char *take_span(size_t *bytes)
{
    const size_t alignment = *bytes % HUGE_PAGE == 0 ? (size_t)HUGE_PAGE : memory.page;
    const size_t skipped = (alignment - (uintptr_t)memory.unused % alignment) % alignment;
    if ((size_t)(memory.end - memory.unused) >= skipped + *bytes + memory.page) {
        char *span = memory.unused + skipped;
        memory.unused = span + *bytes + memory.page;
        return span;
    }
    for (size_t i = 0; i < memory.freed->size(); i++) {
        const Span span = (*memory.freed)[i];
        if (span.bytes < *bytes) continue;
        memory.freed->erase(memory.freed->begin() + (ptrdiff_t)i);
        *bytes = span.bytes;
        ASAN_UNPOISON_MEMORY_REGION(span.data, span.bytes);
        return span.data;
    }
    return NULL;
}

cudaError_t memory_alloc(void **data, size_t bytes)
{
    make_ready();
    *data = NULL;
    if (bytes == 0) return cudaSuccess;
    const size_t wanted = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    const size_t page = wanted >= HUGE_FROM ? (size_t)HUGE_PAGE : memory.page;
    size_t pages = (wanted + page - 1) / page * page;
    if (bytes > memory.total || memory.live + wanted > memory.total)
        return fail(cudaErrorMemoryAllocation, NULL);
    char *span = take_span(&pages);
    if (span == NULL || !fill_ones(span, pages))
        return fail(cudaErrorMemoryAllocation, "no addresses are left");
    char *begin = span + pages - wanted;
    ASAN_POISON_MEMORY_REGION(span, begin - span);
    ASAN_POISON_MEMORY_REGION(begin + bytes, wanted - bytes);
    (*memory.blocks)[begin] = {bytes, span, pages};
    memory.live += bytes;
    if (!memory.is_writable) protect(span, pages, PROT_NONE);
    *data = begin;
    return cudaSuccess;
}

cudaError_t memory_free(void *data)
{
    make_ready();
    if (data == NULL) return cudaSuccess;
    const auto found = memory.blocks->find((const char *)data);
    if (found == memory.blocks->end())
        return fail(cudaErrorInvalidValue, "cudaFree of %p, which is %s", data,
                    memory_of(data, NULL) == Memory::device
                        ? "not the start of a live block of the device's memory"
                        : "not the device's memory");
    const Block block = found->second;
    memory.blocks->erase(found);
    memory.live -= block.bytes;
    memory.freed->push_back({block.span, block.span_bytes});
    if (mmap(block.span, block.span_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
             -1, 0) == MAP_FAILED)
        stop("freed memory cannot be taken away: %s", strerror(errno));
    set_apart(block.span, block.span_bytes);
    return cudaSuccess;
}

cudaError_t memory_alloc_pinned(void **data, size_t bytes)
{
    make_ready();
    *data = NULL;
    if (bytes == 0) return cudaSuccess;
    if (posix_memalign(data, memory.page, bytes) != 0) return fail(cudaErrorMemoryAllocation, NULL);
    memset(*data, 0xff, bytes);
    (*memory.pinned)[(const char *)*data] = bytes;
    memory.live_pinned += bytes;
    return cudaSuccess;
}

cudaError_t memory_free_pinned(void *data)
{
    make_ready();
    if (data == NULL) return cudaSuccess;
    const auto found = memory.pinned->find((const char *)data);
    if (found == memory.pinned->end())
        return fail(cudaErrorInvalidValue, "cudaFreeHost of %p, which is not the start of page-locked memory",
                    data);
    memory.live_pinned -= found->second;
    memory.pinned->erase(found);
    free(data);
    return cudaSuccess;
}

static size_t bytes_of(const Block &block)
{
    return block.bytes;
}
static size_t bytes_of(size_t bytes)
{
    return bytes;
}

/* Bytes from `at` to the end of the block that it lies in; 0: in none. */
template <typename T> static size_t left_in(const std::map<const char *, T> &blocks, const char *at)
{
    auto next = blocks.upper_bound(at);
    if (next == blocks.begin()) return 0;
    --next;
    const size_t offset = (size_t)(at - next->first), bytes = bytes_of(next->second);
    return offset < bytes ? bytes - offset : 0;
}

Memory memory_of(const void *data, size_t *opt_left)
{
    make_ready();
    const char *at = (const char *)data;
    const bool is_device = at >= memory.range && at < memory.end;
    const size_t left = is_device ? left_in(*memory.blocks, at) : left_in(*memory.pinned, at);
    if (opt_left != NULL) *opt_left = left;
    return is_device ? Memory::device : left > 0 ? Memory::pinned : Memory::host;
}

void memory_size(size_t *left, size_t *total)
{
    make_ready();
    *total = memory.total;
    *left = memory.total - memory.live;
}

} // namespace emulated

using namespace emulated;

int64_t mb_emulator_live_bytes(void)
{
    Lock lock;
    return (int64_t)(memory.live + memory.live_pinned);
}

void mb_emulated_check_range(const char *name, const char *what, const void *data, size_t bytes)
{
    Lock lock;
    size_t left = 0;
    if (bytes == 0) return;
    const Memory kind = memory_of(data, &left);
    if (kind == Memory::host && allows_pageable()) return;
    if (kind == Memory::host)
        stop("%s: %s at %p is ordinary host memory, which a GPU cannot reach", name, what, data);
    if (left < bytes)
        stop("%s: %s at %p is of %zu bytes, of which %zu lie in a live block of %s memory", name, what, data,
             bytes, left, kind == Memory::device ? "the device's" : "page-locked");
}

/* An address that mmap, malloc or the stack would give on 64-bit Linux (and not the sanitizer's shadow),
 * of memory that is there. */
static bool is_host_address(uint64_t value)
{
    unsigned char resident = 0;
    if (value < 0x500000000000u || value >= 0x1000000000000u) return false;
    return mincore((void *)(value / memory.page * memory.page), memory.page, &resident) == 0;
}

void mb_emulated_check_argument(const char *kernel, int number, const void *argument, size_t bytes)
{
    Lock lock;
    if (allows_pageable()) return;
    for (size_t at = 0; at + sizeof(uint64_t) <= bytes; at += sizeof(uint64_t)) {
        uint64_t value = 0;
        memcpy(&value, (const char *)argument + at, sizeof value);
        if (value == 0 || memory_of((const void *)(uintptr_t)value, NULL) != Memory::host) continue;
        if (is_host_address(value))
            stop("launch of %s: argument %d holds %p at byte %zu: ordinary host memory, which a GPU cannot "
                 "reach",
                 kernel, number, (void *)(uintptr_t)value, at);
    }
}
