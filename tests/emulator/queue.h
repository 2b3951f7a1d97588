/* queue: operations, streams, events and captures, as queue.cc and capture.cc share them. */
#ifndef MB_EMULATOR_QUEUE_H
#define MB_EMULATOR_QUEUE_H

#include <memory>
#include <set>
#include <thread>

#include "internal.h"

namespace emulated
{

struct Capture;
struct Event;

struct Operation {
    enum Kind { work, record, wait } kind;
    const char *name;
    std::function<void()> run;
    std::vector<const void *> touched; /* work: the blocks of the device that it touches; empty: any */
    std::shared_ptr<Event> event;      /* record */
    uint64_t target;                   /* wait: the id of the record waited for */
    uint64_t id, stream;               /* given when queued; stream 0 is the legacy one */
    bool is_blocking;                  /* its stream waits for the legacy one and back */
};

/* Which operations of a capture come before a point of it. */
typedef std::vector<bool> Covered;

struct Event {
    bool has_timing;
    uint64_t recorded, done;          /* id of the last record queued and of the last one run */
    double time;                      /* of the last one run, seconds */
    std::shared_ptr<Capture> capture; /* of the last record, when that was captured */
    Covered covered;
};

/* From cudaStreamBeginCapture to the end of it. */
struct Capture {
    cudaStream_t origin;
    cudaStreamCaptureMode mode;
    std::thread::id thread;
    bool is_broken, is_over;
    std::vector<Operation> operations;
    std::set<cudaStream_t> streams;
};

/* Append to a stream, or to its capture. Sets the last error when it fails. */
cudaError_t enqueue(cudaStream_t stream, Operation &&operation);
/* Do one operation now (the device's memory is open). */
void perform(Operation *operation);
/* The captures that go on. */
std::set<std::shared_ptr<Capture>> &captures();
cudaError_t break_capture(Capture *capture, cudaError_t error, const char *why);
/* A stream of a capture is destroyed: the capture is broken, and over if it began there. */
void leave_capture(cudaStream_t stream);

} // namespace emulated

struct CUstream_st {
    uint64_t id;
    bool is_blocking;
    std::shared_ptr<emulated::Capture> capture;
    emulated::Covered covered;
};
struct CUevent_st {
    std::shared_ptr<emulated::Event> event;
};
struct CUgraph_st {
    std::shared_ptr<std::vector<emulated::Operation>> operations;
};
struct CUgraphExec_st {
    std::shared_ptr<std::vector<emulated::Operation>> operations;
};

#endif
