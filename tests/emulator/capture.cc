/* capture: what streams are given is recorded instead of queued, and replayed as a graph.
 *
 * A capture begins in one stream and spreads to others by events. Every stream of it knows which of its
 * operations come before its next one (`covered`); at the end the stream where it began must have joined all.
 */
#include "queue.h"

namespace emulated
{

std::set<std::shared_ptr<Capture>> &captures()
{
    static auto *all = new std::set<std::shared_ptr<Capture>>();
    return *all;
}

cudaError_t break_capture(Capture *capture, cudaError_t error, const char *why)
{
    capture->is_broken = true;
    return fail(error, "a capture is broken by %s", why);
}

/* No stream is part of it any more. */
static void end_capture(const std::shared_ptr<Capture> &capture)
{
    for (cudaStream_t member : capture->streams) member->capture = NULL, member->covered.clear();
    capture->is_over = true;
    captures().erase(capture);
}

void leave_capture(cudaStream_t stream)
{
    const std::shared_ptr<Capture> capture = stream->capture;
    (void)break_capture(capture.get(), cudaErrorStreamCaptureInvalidated, "a stream of it being destroyed");
    if (capture->origin == stream) end_capture(capture);
    capture->streams.erase(stream);
}

bool is_forbidden_now(const char *call)
{
    bool is_broken = false;
    for (const auto &capture : captures()) {
        const bool concerns = capture->mode == cudaStreamCaptureModeGlobal ||
                              (capture->mode == cudaStreamCaptureModeThreadLocal &&
                               capture->thread == std::this_thread::get_id());
        if (!concerns) continue;
        (void)break_capture(capture.get(), cudaErrorStreamCaptureUnsupported, call);
        is_broken = true;
    }
    return is_broken;
}

/* `from` comes before what `to` gets next. */
static void cover(Covered *to, const Covered &from)
{
    if (to->size() < from.size()) to->resize(from.size());
    for (size_t i = 0; i < from.size(); i++)
        if (from[i]) (*to)[i] = true;
}

/* A stream waits for an event of a capture: it joins. */
static cudaError_t join(cudaStream_t stream, const Event &event)
{
    Capture *capture = event.capture.get();
    if (capture->is_over)
        return fail(cudaErrorCapturedEvent,
                    "cudaStreamWaitEvent: the event was recorded in a capture that is over");
    if (capture->is_broken) return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamWaitEvent");
    if (stream == NULL || stream == cudaStreamLegacy)
        return break_capture(capture, cudaErrorStreamCaptureImplicit, "the legacy stream waiting for it");
    if (stream->capture != NULL && stream->capture != event.capture) {
        (void)break_capture(stream->capture.get(), cudaErrorStreamCaptureMerge, "an event of another");
        return break_capture(capture, cudaErrorStreamCaptureMerge, "a stream of another");
    }
    if (stream->capture == NULL) {
        stream->capture = event.capture;
        stream->covered.clear();
        capture->streams.insert(stream);
    }
    cover(&stream->covered, event.covered);
    return cudaSuccess;
}

} // namespace emulated

using namespace emulated;

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned int)
{
    Lock lock;
    if (event == NULL || !is_stream(stream))
        return fail(cudaErrorInvalidResourceHandle, "cudaStreamWaitEvent: no such stream or event");
    const Event &own = *event->event;
    if (own.capture != NULL) return join(stream, own);
    if (own.recorded == 0) return cudaSuccess;
    if (stream != NULL && stream != cudaStreamLegacy && stream->capture != NULL)
        return break_capture(stream->capture.get(), cudaErrorStreamCaptureIsolation,
                             "waiting for an event outside");
    if (own.done == own.recorded) return cudaSuccess;
    Operation operation = {};
    operation.kind = Operation::wait;
    operation.name = "cudaStreamWaitEvent";
    operation.target = own.recorded;
    return enqueue(stream, std::move(operation));
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode)
{
    Lock lock;
    if (!is_stream(stream))
        return fail(cudaErrorInvalidResourceHandle, "cudaStreamBeginCapture: no such stream");
    if (stream == NULL || stream == cudaStreamLegacy)
        return fail(cudaErrorStreamCaptureUnsupported, "the legacy stream cannot be captured");
    if (mode < cudaStreamCaptureModeGlobal || mode > cudaStreamCaptureModeRelaxed)
        return fail(cudaErrorInvalidValue, "cudaStreamBeginCapture: mode %d", (int)mode);
    if (stream->capture != NULL)
        return fail(cudaErrorIllegalState, "cudaStreamBeginCapture: it captures already");
    stream->capture = std::make_shared<Capture>();
    stream->capture->origin = stream;
    stream->capture->mode = mode;
    stream->capture->thread = std::this_thread::get_id();
    stream->capture->streams.insert(stream);
    stream->covered.clear();
    captures().insert(stream->capture);
    return cudaSuccess;
}

static bool covers_all(const Covered &covered, size_t n)
{
    if (covered.size() < n) return n == 0;
    for (bool is_covered : covered)
        if (!is_covered) return false;
    return true;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph)
{
    Lock lock;
    *graph = NULL;
    if (!is_stream(stream) || stream == NULL || stream == cudaStreamLegacy || stream->capture == NULL)
        return fail(cudaErrorIllegalState, "cudaStreamEndCapture: the stream does not capture");
    const std::shared_ptr<Capture> capture = stream->capture;
    if (capture->origin != stream)
        return break_capture(capture.get(), cudaErrorStreamCaptureUnmatched, "ending it in another stream");
    if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
        return break_capture(capture.get(), cudaErrorStreamCaptureWrongThread, "ending it in another thread");
    const bool is_joined = covers_all(stream->covered, capture->operations.size());
    end_capture(capture);
    if (capture->is_broken)
        return fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture: the capture is broken");
    if (!is_joined)
        return fail(cudaErrorStreamCaptureUnjoined,
                    "cudaStreamEndCapture: a stream that joined did not come back");
    *graph = new CUgraph_st{std::make_shared<std::vector<Operation>>(std::move(capture->operations))};
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus *status)
{
    Lock lock;
    if (!is_stream(stream))
        return fail(cudaErrorInvalidResourceHandle, "cudaStreamIsCapturing: no such stream");
    *status = cudaStreamCaptureStatusNone;
    if (stream == NULL || stream == cudaStreamLegacy || stream->capture == NULL) return cudaSuccess;
    *status = stream->capture->is_broken ? cudaStreamCaptureStatusInvalidated : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *executable, cudaGraph_t graph, unsigned long long)
{
    Lock lock;
    *executable = NULL;
    if (graph == NULL) return fail(cudaErrorInvalidValue, "cudaGraphInstantiate of NULL");
    *executable = new CUgraphExec_st{graph->operations};
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t executable, cudaStream_t stream)
{
    Lock lock;
    if (executable == NULL || !is_stream(stream)) return fail(cudaErrorInvalidValue, "cudaGraphUpload");
    return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream)
{
    Lock lock;
    if (executable == NULL) return fail(cudaErrorInvalidValue, "cudaGraphLaunch of NULL");
    const auto operations = executable->operations;
    return mb_emulated_enqueue(stream, "cudaGraphLaunch", [operations]() {
        for (Operation &operation : *operations) perform(&operation);
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable)
{
    Lock lock;
    if (executable == NULL) return fail(cudaErrorInvalidValue, "cudaGraphExecDestroy of NULL");
    delete executable;
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph)
{
    Lock lock;
    if (graph == NULL) return fail(cudaErrorInvalidValue, "cudaGraphDestroy of NULL");
    delete graph;
    return cudaSuccess;
}
