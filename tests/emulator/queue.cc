/* queue: streams, events, copies and launches.
 *
 * Whatever a GPU may do later is put off until something waits for it: a wait looks back through the queue
 * for what it needs (its stream, the streams that its events come from, and what the legacy stream orders)
 * and runs that, in the order it was issued. So a result read without a wait, or work of two streams without
 * an event between, shows.
 *
 * 1. the queue 2. streams 3. events 4. copies 5. memory 6. launches
 */
#include "queue.h"

#include <stdio.h>
#include <time.h>

#include <deque>

namespace emulated
{

/* ---- 1. the queue ---- */

static std::deque<Operation> &queue()
{
    static std::deque<Operation> *all = new std::deque<Operation>();
    return *all;
}

static uint64_t last_id, last_stream;

static std::set<cudaStream_t> &streams()
{
    static std::set<cudaStream_t> *all = new std::set<cudaStream_t>();
    return *all;
}

static bool is_legacy(cudaStream_t stream)
{
    return stream == NULL || stream == cudaStreamLegacy;
}

bool is_stream(cudaStream_t stream)
{
    return is_legacy(stream) || streams().count(stream) > 0;
}

/* The legacy stream would have to wait for a blocking stream that only records. */
static cudaError_t check_legacy()
{
    for (cudaStream_t other : streams())
        if (other->is_blocking && other->capture != NULL && !other->capture->is_over)
            return break_capture(other->capture.get(), cudaErrorStreamCaptureImplicit,
                                 "work for the legacy stream while a blocking stream captures");
    return cudaSuccess;
}

cudaError_t enqueue(cudaStream_t stream, Operation &&operation)
{
    if (!is_stream(stream)) return fail(cudaErrorInvalidResourceHandle, "%s: no such stream", operation.name);
    if (!is_legacy(stream) && stream->capture != NULL) {
        Capture *capture = stream->capture.get();
        if (capture->is_broken)
            return fail(cudaErrorStreamCaptureInvalidated, "%s: the capture is broken", operation.name);
        capture->operations.push_back(std::move(operation));
        stream->covered.resize(capture->operations.size());
        stream->covered.back() = true;
        return cudaSuccess;
    }
    if (is_legacy(stream)) {
        const cudaError_t error = check_legacy();
        if (error != cudaSuccess) return error;
    }
    operation.id = ++last_id;
    operation.stream = is_legacy(stream) ? 0 : stream->id;
    operation.is_blocking = !is_legacy(stream) && stream->is_blocking;
    if (operation.kind == Operation::record) operation.event->recorded = operation.id;
    queue().push_back(std::move(operation));
    return cudaSuccess;
}

static double now()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void perform(Operation *operation)
{
    if (operation->kind == Operation::work) {
        if (is_set("MB_EMULATOR_TRACE")) fprintf(stderr, "CUDA emulator: runs %s\n", operation->name);
        operation->run();
    } else if (operation->kind == Operation::record) {
        operation->event->done = operation->id;
        operation->event->time = now();
    }
}

/* What must run before something is done. */
struct Needed {
    std::set<uint64_t> streams, ids;
    bool all_blocking, legacy, all;
};

/* Copies open only the blocks they are between: waits for them alone come often. */
static void open_for(const std::deque<Operation> &operations)
{
    std::vector<const void *> touched;
    for (const Operation &operation : operations) {
        if (operation.kind == Operation::work && operation.touched.empty()) {
            memory_open();
            return;
        }
        touched.insert(touched.end(), operation.touched.begin(), operation.touched.end());
    }
    memory_open_blocks(touched);
}

/* Run what is needed, first queued first. */
static void run_needed(Needed needed)
{
    std::deque<Operation> taken, left;
    for (size_t i = queue().size(); i-- > 0;) {
        Operation &operation = queue()[i];
        const bool is_taken =
            needed.all || needed.ids.count(operation.id) > 0 || needed.streams.count(operation.stream) > 0 ||
            (needed.all_blocking && operation.is_blocking) || (needed.legacy && operation.stream == 0);
        if (is_taken) {
            needed.streams.insert(operation.stream);
            if (operation.stream == 0) needed.all_blocking = true;
            if (operation.is_blocking) needed.legacy = true;
            if (operation.kind == Operation::wait) needed.ids.insert(operation.target);
        }
        (is_taken ? taken : left).push_front(std::move(operation));
    }
    queue().swap(left);
    if (taken.empty()) return;
    open_for(taken);
    for (Operation &operation : taken) perform(&operation);
    memory_close();
}

void run_all()
{
    Needed needed = {};
    needed.all = true;
    run_needed(needed);
}

static void run_stream(cudaStream_t stream)
{
    Needed needed = {};
    if (is_legacy(stream))
        needed.streams.insert(0), needed.all_blocking = true;
    else
        needed.streams.insert(stream->id), needed.legacy = stream->is_blocking;
    run_needed(needed);
}

} // namespace emulated

using namespace emulated;

int64_t mb_emulator_pending(void)
{
    Lock lock;
    return (int64_t)queue().size();
}

cudaError_t mb_emulated_enqueue(cudaStream_t stream, const char *name, std::function<void()> work)
{
    Lock lock;
    Operation operation = {};
    operation.name = name;
    operation.run = std::move(work);
    return enqueue(stream, std::move(operation));
}

cudaError_t cudaDeviceSynchronize()
{
    Lock lock;
    if (is_forbidden_now("cudaDeviceSynchronize")) return cudaErrorStreamCaptureUnsupported;
    run_all();
    return cudaSuccess;
}

cudaError_t cudaDeviceReset()
{
    return cudaDeviceSynchronize();
}

/* ---- 2. streams ---- */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned int flags)
{
    Lock lock;
    if ((flags & ~(unsigned)cudaStreamNonBlocking) != 0)
        return fail(cudaErrorInvalidValue, "cudaStreamCreateWithFlags: flags 0x%x", flags);
    *stream = new CUstream_st();
    (*stream)->id = ++last_stream;
    (*stream)->is_blocking = (flags & cudaStreamNonBlocking) == 0;
    streams().insert(*stream);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *stream)
{
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned int flags, int)
{
    return cudaStreamCreateWithFlags(stream, flags);
}

/* What is queued stays so, as on a GPU. */
cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    Lock lock;
    if (is_legacy(stream) || !is_stream(stream))
        return fail(cudaErrorInvalidResourceHandle, "cudaStreamDestroy: no such stream");
    if (stream->capture != NULL)
        (void)break_capture(stream->capture.get(), cudaErrorStreamCaptureInvalidated,
                            "a stream of it is destroyed");
    if (stream->capture != NULL) stream->capture->streams.erase(stream);
    streams().erase(stream);
    delete stream;
    return cudaSuccess;
}

static cudaError_t check_waitable(cudaStream_t stream, const char *call)
{
    if (!is_stream(stream)) return fail(cudaErrorInvalidResourceHandle, "%s: no such stream", call);
    if (!is_legacy(stream) && stream->capture != NULL)
        return break_capture(stream->capture.get(), cudaErrorStreamCaptureUnsupported, call);
    return is_legacy(stream) ? check_legacy() : cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    Lock lock;
    const cudaError_t error = check_waitable(stream, "cudaStreamSynchronize");
    if (error == cudaSuccess) run_stream(stream);
    return error;
}

/* What is pending runs, and is found done by the next question. */
cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    Lock lock;
    const cudaError_t error = check_waitable(stream, "cudaStreamQuery");
    if (error != cudaSuccess) return error;
    const size_t before = queue().size();
    run_stream(stream);
    return queue().size() == before ? cudaSuccess : cudaErrorNotReady;
}

/* ---- 3. events ---- */

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned int flags)
{
    Lock lock;
    if ((flags & ~3u) != 0) return fail(cudaErrorInvalidValue, "cudaEventCreateWithFlags: flags 0x%x", flags);
    *event = new CUevent_st();
    (*event)->event =
        std::make_shared<Event>(Event{(flags & cudaEventDisableTiming) == 0, 0, 0, 0, NULL, {}});
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *event)
{
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    Lock lock;
    if (event == NULL) return fail(cudaErrorInvalidResourceHandle, "cudaEventDestroy of NULL");
    delete event;
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    Lock lock;
    if (event == NULL) return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord of NULL");
    Event *own = event->event.get();
    if (is_stream(stream) && !is_legacy(stream) && stream->capture != NULL) {
        if (stream->capture->is_broken) return fail(cudaErrorStreamCaptureInvalidated, "cudaEventRecord");
        own->capture = stream->capture;
        own->covered = stream->covered;
        return cudaSuccess;
    }
    own->capture = NULL;
    Operation operation = {};
    operation.kind = Operation::record;
    operation.name = "cudaEventRecord";
    operation.event = event->event;
    return enqueue(stream, std::move(operation));
}

static cudaError_t check_event(cudaEvent_t event, const char *call)
{
    if (event == NULL) return fail(cudaErrorInvalidResourceHandle, "%s of NULL", call);
    Capture *capture = event->event->capture.get();
    if (capture == NULL) return cudaSuccess;
    if (!capture->is_over) return break_capture(capture, cudaErrorCapturedEvent, call);
    return fail(cudaErrorCapturedEvent, "%s: the event was recorded in a capture", call);
}

static void run_event(const Event &event)
{
    Needed needed = {};
    needed.ids.insert(event.recorded);
    run_needed(needed);
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    Lock lock;
    const cudaError_t error = check_event(event, "cudaEventSynchronize");
    if (error == cudaSuccess && event->event->done < event->event->recorded) run_event(*event->event);
    return error;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    Lock lock;
    const cudaError_t error = check_event(event, "cudaEventQuery");
    if (error != cudaSuccess || event->event->done == event->event->recorded) return error;
    run_event(*event->event);
    return cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end)
{
    Lock lock;
    if (start == NULL || end == NULL || !start->event->has_timing || !end->event->has_timing ||
        start->event->recorded == 0 || end->event->recorded == 0)
        return fail(cudaErrorInvalidResourceHandle,
                    "cudaEventElapsedTime: an event without timing or not recorded");
    if (start->event->done < start->event->recorded || end->event->done < end->event->recorded)
        return cudaErrorNotReady;
    *milliseconds = (float)(1e3 * (end->event->time - start->event->time));
    return cudaSuccess;
}

/* ---- 4. copies ---- */

static const char *const memory_names[] = {"ordinary host memory", "page-locked host memory",
                                           "the device's memory"};

/* That `bytes` at `data` lie in one block, where it is memory of ours. */
static cudaError_t check_copied(const char *call, const void *data, size_t bytes, bool must_be_device,
                                bool must_be_host, Memory *out_kind)
{
    size_t left = 0;
    *out_kind = memory_of(data, &left);
    if (data == NULL) return fail(cudaErrorInvalidValue, "%s: a NULL pointer", call);
    if (*out_kind != Memory::host && left < bytes)
        return fail(cudaErrorInvalidValue, "%s: %zu bytes at %p, of which %zu lie in a live block of %s",
                    call, bytes, data, left, memory_names[(int)*out_kind]);
    if ((must_be_device && *out_kind != Memory::device) || (must_be_host && *out_kind == Memory::device))
        return fail(cudaErrorInvalidValue, "%s: %p is %s, which the kind of copy says it is not", call, data,
                    memory_names[(int)*out_kind]);
    return cudaSuccess;
}

static void check_still_there(const char *call, Memory kind, const void *data, size_t bytes)
{
    size_t left = 0;
    if (kind == Memory::host) return;
    if (memory_of(data, &left) != kind || left < bytes)
        stop("%s runs, but its %zu bytes at %p of %s were freed", call, bytes, data, memory_names[(int)kind]);
}

struct Copied {
    const char *call;
    void *to;
    const void *from;
    size_t bytes;
    Memory to_kind, from_kind;
};

static Operation copy_operation(const Copied &c)
{
    Operation operation = {};
    operation.name = c.call;
    if (c.to_kind == Memory::device) operation.touched.push_back(c.to);
    if (c.from_kind == Memory::device) operation.touched.push_back(c.from);
    if (c.from_kind == Memory::host && c.to_kind == Memory::device) { /* staged: the source may change now */
        auto staged =
            std::make_shared<std::vector<char>>((const char *)c.from, (const char *)c.from + c.bytes);
        operation.run = [c, staged]() {
            check_still_there(c.call, c.to_kind, c.to, c.bytes);
            memcpy(c.to, staged->data(), c.bytes);
        };
        return operation;
    }
    operation.run = [c]() {
        check_still_there(c.call, c.to_kind, c.to, c.bytes);
        check_still_there(c.call, c.from_kind, c.from, c.bytes);
        memcpy(c.to, c.from, c.bytes);
    };
    return operation;
}

static cudaError_t queue_copy(const char *call, void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                              cudaStream_t stream, bool *out_waits)
{
    Copied c = {call, to, from, bytes, Memory::host, Memory::host};
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    *out_waits = false;
    if (!is_stream(stream)) return fail(cudaErrorInvalidResourceHandle, "%s: no such stream", call);
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault)
        return fail(cudaErrorInvalidMemcpyDirection, "%s: kind %d", call, (int)kind);
    if (bytes == 0) return cudaSuccess;
    const bool is_free = kind == cudaMemcpyDefault;
    cudaError_t error =
        check_copied(call, to, bytes, !is_free && to_device, !is_free && !to_device, &c.to_kind);
    if (error == cudaSuccess)
        error =
            check_copied(call, from, bytes, !is_free && from_device, !is_free && !from_device, &c.from_kind);
    if (error != cudaSuccess) return error;
    if ((const char *)from < (char *)to + bytes && (char *)to < (const char *)from + bytes)
        return fail(cudaErrorInvalidValue, "%s: source and target overlap", call);
    const bool is_pageable = c.to_kind == Memory::host || c.from_kind == Memory::host;
    if (is_pageable && !is_legacy(stream) && stream->capture != NULL)
        return break_capture(stream->capture.get(), cudaErrorStreamCaptureUnsupported,
                             "a copy from or to ordinary host memory (take page-locked)");
    /* into ordinary memory, or between hosts: returns when it is done */
    *out_waits = c.to_kind == Memory::host || (c.to_kind == Memory::pinned && c.from_kind != Memory::device);
    return enqueue(stream, copy_operation(c));
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    Lock lock;
    bool waits = false;
    const cudaError_t error = queue_copy("cudaMemcpyAsync", to, from, bytes, kind, stream, &waits);
    if (error == cudaSuccess && waits && (is_legacy(stream) || stream->capture == NULL)) run_stream(stream);
    return error;
}

/* On the legacy stream. Returns when done, but for copies within the device and staged ones. */
cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind kind)
{
    Lock lock;
    bool waits = false;
    if (is_forbidden_now("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
    const cudaError_t error = queue_copy("cudaMemcpy", to, from, bytes, kind, NULL, &waits);
    if (error != cudaSuccess || bytes == 0) return error;
    const bool is_pinned = memory_of(to, NULL) == Memory::pinned || memory_of(from, NULL) == Memory::pinned;
    if (waits || is_pinned) run_stream(NULL);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                              size_t height, cudaMemcpyKind kind, cudaStream_t stream)
{
    if (width > to_pitch || width > from_pitch)
        return fail(cudaErrorInvalidValue, "cudaMemcpy2DAsync: rows of %zu bytes, pitches %zu and %zu", width,
                    to_pitch, from_pitch);
    for (size_t row = 0; row < height && width > 0; row++) {
        const cudaError_t error = cudaMemcpyAsync((char *)to + row * to_pitch,
                                                  (const char *)from + row * from_pitch, width, kind, stream);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *data, int value, size_t bytes, cudaStream_t stream)
{
    Lock lock;
    Memory kind = Memory::host;
    if (!is_stream(stream)) return fail(cudaErrorInvalidResourceHandle, "cudaMemsetAsync: no such stream");
    if (bytes == 0) return cudaSuccess;
    const cudaError_t error = check_copied("cudaMemsetAsync", data, bytes, false, false, &kind);
    if (error != cudaSuccess) return error;
    if (kind == Memory::host && !allows_pageable())
        return fail(cudaErrorInvalidValue, "cudaMemsetAsync: %p is ordinary host memory", data);
    Operation operation = {};
    operation.name = "cudaMemsetAsync";
    if (kind == Memory::device) operation.touched.push_back(data);
    operation.run = [data, value, bytes, kind]() {
        check_still_there("cudaMemsetAsync", kind, data, bytes);
        memset(data, value, bytes);
    };
    return enqueue(stream, std::move(operation));
}

cudaError_t cudaMemset(void *data, int value, size_t bytes)
{
    Lock lock;
    if (is_forbidden_now("cudaMemset")) return cudaErrorStreamCaptureUnsupported;
    return cudaMemsetAsync(data, value, bytes, NULL);
}

/* ---- 5. memory ---- */

cudaError_t cudaMalloc(void **data, size_t bytes)
{
    Lock lock;
    if (data == NULL) return fail(cudaErrorInvalidValue, "cudaMalloc(NULL)");
    if (is_forbidden_now("cudaMalloc")) return cudaErrorStreamCaptureUnsupported;
    return memory_alloc(data, bytes);
}

/* Waits for everything, as the real one does. */
cudaError_t cudaFree(void *data)
{
    Lock lock;
    if (is_forbidden_now("cudaFree")) return cudaErrorStreamCaptureUnsupported;
    if (data != NULL) run_all();
    return memory_free(data);
}

cudaError_t cudaMallocHost(void **data, size_t bytes)
{
    Lock lock;
    if (data == NULL) return fail(cudaErrorInvalidValue, "cudaMallocHost(NULL)");
    if (is_forbidden_now("cudaMallocHost")) return cudaErrorStreamCaptureUnsupported;
    return memory_alloc_pinned(data, bytes);
}

cudaError_t cudaHostAlloc(void **data, size_t bytes, unsigned int flags)
{
    if ((flags & ~7u) != 0) return fail(cudaErrorInvalidValue, "cudaHostAlloc: flags 0x%x", flags);
    return cudaMallocHost(data, bytes);
}

/* Does not wait: work queued that still uses the memory is reported when it runs. */
cudaError_t cudaFreeHost(void *data)
{
    Lock lock;
    if (is_forbidden_now("cudaFreeHost")) return cudaErrorStreamCaptureUnsupported;
    return memory_free_pinned(data);
}

cudaError_t cudaMemGetInfo(size_t *left, size_t *total)
{
    Lock lock;
    memory_size(left, total);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *data)
{
    Lock lock;
    size_t left = 0;
    const Memory kind = memory_of(data, &left);
    *attributes = {cudaMemoryTypeUnregistered, -2, NULL, (void *)data};
    if (kind == Memory::pinned) *attributes = {cudaMemoryTypeHost, 0, (void *)data, (void *)data};
    if (kind == Memory::device && left > 0) *attributes = {cudaMemoryTypeDevice, 0, (void *)data, NULL};
    return cudaSuccess;
}

/* ---- 6. launches ---- */

static cudaError_t check_launch(const mb_emulated_launch &l)
{
    const uint64_t threads = (uint64_t)l.block.x * l.block.y * l.block.z;
    if (!is_stream(l.stream))
        return fail(cudaErrorInvalidResourceHandle, "launch of %s: no such stream", l.name);
    if (l.grid.x == 0 || l.grid.y == 0 || l.grid.z == 0 || l.grid.x > 0x7fffffff || l.grid.y > 65535 ||
        l.grid.z > 65535)
        return fail(cudaErrorInvalidConfiguration, "launch of %s: a grid of %u x %u x %u", l.name, l.grid.x,
                    l.grid.y, l.grid.z);
    if (threads == 0 || threads > (uint64_t)THREADS_MOST || l.block.x > 1024 || l.block.y > 1024 ||
        l.block.z > 64)
        return fail(cudaErrorInvalidConfiguration, "launch of %s: blocks of %u x %u x %u threads", l.name,
                    l.block.x, l.block.y, l.block.z);
    if (l.shared_bytes > shared_limit(l.function))
        return fail(cudaErrorInvalidValue,
                    "launch of %s: %zu bytes of dynamic shared memory, allowed are %zu%s", l.name,
                    l.shared_bytes, shared_limit(l.function),
                    l.shared_bytes <= SHARED_MOST ? " (more by cudaFuncSetAttribute)" : "");
    return cudaSuccess;
}

void mb_emulated_queue_launch(mb_emulated_launch &&launch)
{
    Lock lock;
    if (check_launch(launch) != cudaSuccess) return;
    auto kept = std::make_shared<mb_emulated_launch>(std::move(launch));
    (void)mb_emulated_enqueue(kept->stream, kept->name, [kept]() { run_launch(*kept); });
}
