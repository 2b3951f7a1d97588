/* cuda: creation of the backend: the device, its stream, its memory.
 *
 * One process uses one GPU: number local_rank of those it sees, or, where ranks share, local_rank modulo
 * their number. MB_CUDA_SHARED=1 (tests): tensors may lie in ordinary memory; every op waits. MB_CUDA_WAIT=1:
 * every op waits, so that a failure names its op. MB_CUDA_GROUPED=own|cublas|wgmma: whose expert products.
 *
 * 1. errors 2. memory 3. choice of a device 4. creation
 */
#include "ops/cuda/cuda.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/cuda/blas.h"

/* ---- 1. errors ---- */

mb_status mb_cuda_fail(cudaError_t error, const char *what, const char *function, const char *file, int line)
{
    const mb_status code = error == cudaErrorMemoryAllocation ? MB_ENOMEM : MB_EDEVICE;
    (void)cudaGetLastError(); /* the record; an error that stays comes again */
    return mb_status_fail(code, function, file, line, "CUDA: %s (%s) at %s", cudaGetErrorString(error),
                          cudaGetErrorName(error), what);
}

mb_status mb_cuda_launched(const char *function, const char *file, int line)
{
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? MB_OK : mb_cuda_fail(error, "a launch", function, file, line);
}

/* ---- 2. memory, and recorded work ---- */

/* Device blocks are counted with their size, which is kept in a small table of the host: cudaFree does not
 * say. */
typedef struct cuda_block {
    void *data;
    size_t bytes;
} cuda_block;

typedef struct cuda_state {
    mb_cuda base; /* first: what the other files see */
    cuda_block *blocks;
    int64_t block_count, block_room;
} cuda_state;

static bool remember_block(cuda_state *state, void *data, size_t bytes)
{
    if (state->block_count == state->block_room) {
        const int64_t room = state->block_room < 64 ? 64 : 2 * state->block_room;
        cuda_block *grown = (cuda_block *)mb_realloc(state->blocks, (size_t)room, sizeof *grown);
        if (grown == NULL) return false;
        state->blocks = grown;
        state->block_room = room;
    }
    state->blocks[state->block_count].data = data;
    state->blocks[state->block_count++].bytes = bytes;
    state->base.live_bytes += (int64_t)bytes;
    if (state->base.live_bytes > state->base.peak_bytes) state->base.peak_bytes = state->base.live_bytes;
    return true;
}

static void forget_block(cuda_state *state, void *data)
{
    for (int64_t i = 0; i < state->block_count; i++) {
        if (state->blocks[i].data != data) continue;
        state->base.live_bytes -= (int64_t)state->blocks[i].bytes;
        state->blocks[i] = state->blocks[--state->block_count];
        return;
    }
}

static void *device_alloc(void *context, size_t bytes)
{
    cuda_state *state = (cuda_state *)context;
    void *data = NULL;
    const size_t wanted = bytes > 0 ? bytes : 64;
    const cudaError_t error = cudaMalloc(&data, wanted);
    if (error == cudaSuccess && remember_block(state, data, wanted) &&
        cudaMemsetAsync(data, 0, wanted, state->base.stream) == cudaSuccess)
        return data;
    size_t left = 0, all = 0;
    (void)cudaGetLastError();
    (void)cudaMemGetInfo(&left, &all);
    mb_fail(MB_ENOMEM,
            "not enough GPU memory for a block of %zu bytes: %zu of %zu MiB are free, %lld MiB are ours",
            bytes, left >> 20, all >> 20, (long long)(state->base.live_bytes >> 20));
    if (data != NULL) {
        forget_block(state, data);
        (void)cudaFree(data);
    }
    return NULL;
}

static void device_free(void *context, void *data)
{
    forget_block((cuda_state *)context, data);
    (void)cudaFree(data); /* waits for what is queued */
}

/* Ordinary memory does when none can be locked. Page-locked blocks begin with a 64-byte head that says
 * which. */
typedef struct pinned_head {
    bool is_pinned;
    char pad[63];
} pinned_head;

static void *pinned_alloc(void *context, size_t bytes)
{
    void *data = NULL;
    const size_t wanted = bytes + sizeof(pinned_head);
    (void)context;
    const bool is_pinned = cudaMallocHost(&data, wanted) == cudaSuccess;
    if (is_pinned) {
        memset(data, 0, wanted);
    } else {
        (void)cudaGetLastError();
        data = mb_calloc(wanted, 1);
        if (data == NULL) return NULL;
    }
    pinned_head *head = (pinned_head *)data;
    head->is_pinned = is_pinned;
    return head + 1;
}

static void pinned_free(void *context, void *data)
{
    pinned_head *head = (pinned_head *)data - 1;
    (void)context;
    if (head->is_pinned)
        (void)cudaFreeHost(head);
    else
        mb_free(head);
}

static mb_status cuda_upload(mb_ops *ops, const void *host, size_t bytes, void *data)
{
    MB_CUDA_CALL(cudaMemcpyAsync(data, host, bytes, cudaMemcpyHostToDevice, mb_cuda_of(ops)->stream));
    return MB_OK;
}

static mb_status cuda_download(mb_ops *ops, const void *data, size_t bytes, void *host)
{
    MB_CUDA_CALL(cudaMemcpyAsync(host, data, bytes, cudaMemcpyDeviceToHost, mb_cuda_of(ops)->stream));
    return MB_OK;
}

static mb_status cuda_copy(mb_ops *ops, const void *from, size_t bytes, void *to)
{
    MB_CUDA_CALL(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, mb_cuda_of(ops)->stream));
    return MB_OK;
}

static mb_status cuda_zero(mb_ops *ops, void *data, size_t bytes)
{
    MB_CUDA_CALL(cudaMemsetAsync(data, 0, bytes, mb_cuda_of(ops)->stream));
    return MB_OK;
}

static mb_status cuda_wait(mb_ops *ops)
{
    MB_CUDA_CALL(cudaStreamSynchronize(mb_cuda_of(ops)->stream));
    return MB_OK;
}

/* A record is an executable graph. */
static mb_status cuda_record_begin(mb_ops *ops)
{
    MB_CUDA_CALL(cudaStreamBeginCapture(mb_cuda_of(ops)->stream, cudaStreamCaptureModeThreadLocal));
    return MB_OK;
}

static mb_status cuda_record_end(mb_ops *ops, mb_ops_record **out_record)
{
    cudaGraph_t graph = NULL;
    cudaGraphExec_t ready = NULL;
    cudaError_t error = cudaStreamEndCapture(mb_cuda_of(ops)->stream, &graph);
    if (error == cudaSuccess && out_record != NULL) error = cudaGraphInstantiate(&ready, graph, 0);
    if (graph != NULL) (void)cudaGraphDestroy(graph);
    if (out_record == NULL) {
        (void)cudaGetLastError();
        return MB_OK;
    }
    MB_CUDA_CALL(error);
    *out_record = (mb_ops_record *)ready;
    return MB_OK;
}

static mb_status cuda_record_run(mb_ops *ops, mb_ops_record *record)
{
    MB_CUDA_CALL(cudaGraphLaunch((cudaGraphExec_t)record, mb_cuda_of(ops)->stream));
    return MB_OK;
}

static void cuda_record_destroy(mb_ops_record *record)
{
    (void)cudaGraphExecDestroy((cudaGraphExec_t)record);
}

/* Shared mode: everything is ordinary memory, and an op is done when it returns. */
static mb_status shared_upload(mb_ops *ops, const void *host, size_t bytes, void *data)
{
    (void)ops;
    memcpy(data, host, bytes);
    return MB_OK;
}

static mb_status shared_download(mb_ops *ops, const void *data, size_t bytes, void *host)
{
    (void)ops;
    memcpy(host, data, bytes);
    return MB_OK;
}

static mb_status shared_zero(mb_ops *ops, void *data, size_t bytes)
{
    (void)ops;
    memset(data, 0, bytes);
    return MB_OK;
}

static const mb_ops_memory device_memory = {cuda_upload,     cuda_download,   cuda_copy,
                                            cuda_zero,       cuda_wait,       cuda_record_begin,
                                            cuda_record_end, cuda_record_run, cuda_record_destroy};
static const mb_ops_memory shared_memory = {
    shared_upload, shared_download, shared_download, shared_zero, cuda_wait, NULL, NULL, NULL, NULL};

/* ---- 3. choice of a device ---- */

bool mb_ops_cuda_is_built(void)
{
    return true;
}

int mb_ops_cuda_devices(void)
{
    int n = 0;
    if (cudaGetDeviceCount(&n) != cudaSuccess) {
        (void)cudaGetLastError();
        return 0;
    }
    return n;
}

mb_status mb_ops_cuda_bus_id(int device, char out_text[MB_OPS_BUS_ID])
{
    MB_CUDA_CALL(cudaDeviceGetPCIBusId(out_text, MB_OPS_BUS_ID, device));
    return MB_OK;
}

static mb_status choose_device(const mb_ops_options *options, int *out_device)
{
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    const int ranks = options->local_size > 0 ? options->local_size : 1;
    if (error != cudaSuccess || devices == 0) {
        (void)cudaGetLastError();
        return mb_fail(MB_EUNSUPPORTED,
                       "backend \"cuda\": no GPU can be used here (%s); use backend = \"cpu\" or "
                       "\"auto\"",
                       error != cudaSuccess ? cudaGetErrorString(error) : "this process sees none");
    }
    if (ranks > devices && !options->share_gpu)
        return mb_fail(MB_EUSAGE,
                       "backend \"cuda\": %d ranks of this node see %d GPU%s; start one rank per GPU, or let "
                       "them share with gpu.share=true",
                       ranks, devices, devices == 1 ? "" : "s");
    *out_device = options->local_rank % devices;
    return MB_OK;
}

static mb_status read_device(mb_ops *ops, mb_cuda *cuda, bool is_shared)
{
    int value = 0;
    cudaDeviceProp properties;
    MB_CUDA_CALL(cudaSetDevice(cuda->device));
    MB_CUDA_CALL(cudaGetDeviceProperties(&properties, cuda->device));
    MB_CUDA_TRY(mb_ops_cuda_bus_id(cuda->device, ops->bus_id));
    cuda->processors = properties.multiProcessorCount;
    cuda->capability = properties.major * 10 + properties.minor;
    cuda->shared_bytes = properties.sharedMemPerBlockOptin;
    if (cuda->capability < 80)
        return mb_fail(MB_EUNSUPPORTED,
                       "backend \"cuda\": %s has compute capability %d.%d; 8.0 (A100) is the least",
                       properties.name, properties.major, properties.minor);
    MB_CUDA_CALL(cudaDeviceGetAttribute(&value, cudaDevAttrPageableMemoryAccess, cuda->device));
    if (is_shared && value == 0)
        return mb_fail(MB_EUNSUPPORTED,
                       "MB_CUDA_SHARED=1: this driver cannot reach ordinary memory from the GPU");
    MB_CUDA_CALL(cudaDriverGetVersion(&value));
    snprintf(ops->describe, sizeof ops->describe, "cuda %.100s, %zu MiB, sm_%d, driver for CUDA %d.%d",
             properties.name, properties.totalGlobalMem >> 20, cuda->capability, value / 1000,
             value % 1000 / 10);
    return MB_OK;
}

/* ---- 4. creation ---- */

static void cuda_destroy(void *backend)
{
    cuda_state *state = (cuda_state *)backend;
    if (state == NULL) return;
    if (state->base.stream != NULL) (void)cudaStreamSynchronize(state->base.stream);
    mb_ops scope = {};
    scope.backend = backend;
    mb_cuda_blas_destroy(&scope, &state->base.blas);
    if (state->base.stream != NULL) (void)cudaStreamDestroy(state->base.stream);
    mb_free(state->blocks);
    mb_free(state);
}

static void fill_table(mb_ops_table *table)
{
    mb_cuda_fill_norm(table);
    mb_cuda_fill_act(table);
    mb_cuda_fill_embed(table);
    mb_cuda_fill_linear(table);
    mb_cuda_fill_grouped(table);
    mb_cuda_fill_head(table);
    mb_cuda_fill_rows_loss(table);
    mb_cuda_fill_attention(table);
    mb_cuda_fill_attention_backward(table);
    mb_cuda_fill_route(table);
    mb_cuda_fill_dispatch(table);
    mb_cuda_fill_adamw(table);
}

static void fill_ops(mb_ops *ops, cuda_state *state, bool is_shared)
{
    const char *wait = getenv("MB_CUDA_WAIT"), *groups = getenv("MB_CUDA_GROUPED");
    ops->name = "cuda";
    ops->row_stable = false;
    ops->memory = is_shared ? &shared_memory : &device_memory;
    ops->is_device = !is_shared;
    ops->waits = is_shared || (wait != NULL && strcmp(wait, "1") == 0);
    state->base.groups = groups == NULL                  ? MB_CUDA_GROUPS_OWN
                         : strcmp(groups, "cublas") == 0 ? MB_CUDA_GROUPS_CUBLAS
                         : strcmp(groups, "wgmma") == 0  ? MB_CUDA_GROUPS_WGMMA
                                                         : MB_CUDA_GROUPS_OWN;
    state->base.memory.name = "cuda";
    state->base.memory.alloc = device_alloc;
    state->base.memory.free = device_free;
    state->base.memory.context = state;
    state->base.pinned.name = "page-locked host";
    state->base.pinned.alloc = pinned_alloc;
    state->base.pinned.free = pinned_free;
    if (!is_shared) {
        ops->allocator = &state->base.memory;
        ops->host_allocator = &state->base.pinned;
        ops->stream = state->base.stream;
    }
    fill_table(&ops->table);
}

mb_status mb_ops_cuda_fill(mb_ops *ops, const mb_ops_options *options)
{
    const char *shared = getenv("MB_CUDA_SHARED");
    const bool is_shared = shared != NULL && strcmp(shared, "1") == 0;
    int device = 0;
    MB_CUDA_TRY(choose_device(options, &device));
    cuda_state *state = (cuda_state *)mb_calloc(1, sizeof *state);
    if (state == NULL) return MB_ENOMEM;
    ops->backend = state; /* destroyed with ops, whatever fails from here on */
    ops->backend_destroy = cuda_destroy;
    state->base.device = device;
    MB_CUDA_TRY(read_device(ops, &state->base, is_shared));
    MB_CUDA_CALL(cudaStreamCreateWithFlags(&state->base.stream, cudaStreamNonBlocking));
    MB_CUDA_TRY(mb_cuda_blas_create(ops, &state->base.blas));
    fill_ops(ops, state, is_shared);
    return MB_OK;
}
