/* test_emulator_runtime: the emulated GPU around its kernels: what is queued runs as late as it may, captures
 * replay, memory is apart from the host's, misuse gives the real runtime's errors, cuBLAS's twin multiplies.
 *
 * 1. queue 2. capture 3. memory 4. launches 5. cuBLAS
 */
#include "emulator_fixture.h"

/* ---- 1. queue ---- */

static __global__ void add_kernel(float *x, int n, float what)
{
    for (int i = (int)(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += (int)(gridDim.x * blockDim.x))
        x[i] += what;
}

static void test_deferred(void **)
{
    float *pinned = NULL, *d = NULL;
    float pageable[4] = {1, 2, 3, 4};
    cudaStream_t stream;
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ok(cudaMallocHost(&pinned, sizeof pageable));
    ok(cudaMalloc(&d, sizeof pageable));
    /* ordinary memory is read at once, page-locked memory when the copy runs */
    ok(cudaMemcpyAsync(d, pageable, sizeof pageable, cudaMemcpyHostToDevice, stream));
    pageable[0] = 100;
    MB_LAUNCH(add_kernel, 2, 32, 0, stream, d, 4, 0.5f);
    pinned[0] = pinned[3] = -1;
    ok(cudaMemcpyAsync(pinned, d, sizeof pageable, cudaMemcpyDeviceToHost, stream));
    assert_true(mb_emulator_pending() == 3 && pinned[0] == -1 && pinned[3] == -1); /* nobody has waited */
    ok(cudaStreamSynchronize(stream));
    assert_true(mb_emulator_pending() == 0 && pinned[0] == 1.5f && pinned[3] == 4.5f);
    ok(cudaMemcpyAsync(d, pinned, sizeof pageable, cudaMemcpyHostToDevice, stream));
    pinned[0] = 7; /* too early: the copy has not run */
    ok(cudaMemcpyAsync(pageable, d, sizeof pageable, cudaMemcpyDeviceToHost, stream)); /* waits */
    assert_true(pageable[0] == 7 && pageable[3] == 4.5f && mb_emulator_pending() == 0);
    ok(cudaMemsetAsync(d, 0, sizeof pageable, stream));
    ok(cudaMemcpy(pageable, d, sizeof pageable,
                  cudaMemcpyDeviceToHost)); /* of another stream: not after the memset */
    assert_true(pageable[0] == 7);
    ok(cudaDeviceSynchronize());
    assert_true(host(d, 4)[0] == 0);
    ok(cudaFree(d)), ok(cudaFreeHost(pinned)), ok(cudaStreamDestroy(stream));
}

static void test_streams(void **)
{
    float *d = device(std::vector<float>(8)), *pinned = NULL, ms = -1;
    cudaStream_t a, b;
    cudaEvent_t start, done;
    ok(cudaMallocHost(&pinned, 4));
    ok(cudaStreamCreateWithFlags(&a, cudaStreamNonBlocking)),
        ok(cudaStreamCreateWithFlags(&b, cudaStreamNonBlocking));
    ok(cudaEventCreate(&start)), ok(cudaEventCreate(&done));
    ok(cudaEventRecord(start, a));
    MB_LAUNCH(add_kernel, 1, 32, 0, a, d, 8, 3.0f);
    ok(cudaEventRecord(done, a));
    ok(cudaMemcpyAsync(pinned, d, 4, cudaMemcpyDeviceToHost, b));
    ok(cudaStreamSynchronize(b)); /* b never waited for a */
    assert_true(pinned[0] == 0 && mb_emulator_pending() == 3);
    assert_int_equal(cudaEventElapsedTime(&ms, start, done), cudaErrorNotReady);
    ok(cudaStreamWaitEvent(b, done, 0));
    ok(cudaMemcpyAsync(pinned, d, 4, cudaMemcpyDeviceToHost, b));
    MB_LAUNCH(add_kernel, 1, 32, 0, a, d, 8, 3.0f); /* behind the event: not waited for */
    ok(cudaStreamSynchronize(b));
    assert_true(pinned[0] == 3 && mb_emulator_pending() == 1);
    ok(cudaEventElapsedTime(&ms, start, done));
    assert_true(ms >= 0);
    ok(cudaEventRecord(done, a));
    assert_int_equal(cudaEventQuery(done), cudaErrorNotReady);
    ok(cudaEventQuery(done));
    MB_LAUNCH(add_kernel, 1, 32, 0, a, d, 8, 3.0f);
    assert_int_equal(cudaStreamQuery(a), cudaErrorNotReady);
    ok(cudaStreamQuery(a));
    assert_true(host(d, 8)[7] == 9);
    ok(cudaEventDestroy(start)), ok(cudaEventDestroy(done));
    ok(cudaStreamDestroy(a)), ok(cudaStreamDestroy(b)), ok(cudaFreeHost(pinned)), ok(cudaFree(d));
}

/* The legacy stream waits for blocking streams and they for it. */
static void test_legacy_stream(void **)
{
    float *d = device(std::vector<float>(4));
    cudaStream_t blocking;
    ok(cudaStreamCreate(&blocking));
    MB_LAUNCH(add_kernel, 1, 32, 0, blocking, d, 4, 1.0f);
    assert_true(host(d, 4)[0] == 1);
    MB_LAUNCH(add_kernel, 1, 32, 0, 0, d, 4, 1.0f);
    ok(cudaStreamSynchronize(blocking));
    assert_int_equal(mb_emulator_pending(), 0);
    ok(cudaStreamDestroy(blocking)), ok(cudaFree(d));
}

/* ---- 2. capture ---- */

static void test_capture(void **)
{
    float *d = device(std::vector<float>(64)), *pinned = NULL;
    cudaStream_t stream, other;
    cudaEvent_t fork_event, join_event;
    cudaGraph_t graph;
    cudaGraphExec_t run;
    cudaStreamCaptureStatus status;
    ok(cudaMallocHost(&pinned, 256));
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    ok(cudaEventCreateWithFlags(&fork_event, cudaEventDisableTiming));
    ok(cudaEventCreateWithFlags(&join_event, cudaEventDisableTiming));
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    ok(cudaStreamIsCapturing(stream, &status));
    assert_int_equal(status, cudaStreamCaptureStatusActive);
    MB_LAUNCH(add_kernel, 2, 32, 0, stream, d, 64, 2.0f);
    ok(cudaEventRecord(fork_event, stream));
    ok(cudaStreamWaitEvent(other, fork_event, 0));
    MB_LAUNCH(add_kernel, 2, 32, 0, other, d, 32, 10.0f);
    ok(cudaEventRecord(join_event, other));
    ok(cudaStreamWaitEvent(stream, join_event, 0));
    ok(cudaMemcpyAsync(pinned, d, 256, cudaMemcpyDeviceToHost, stream));
    ok(cudaStreamEndCapture(stream, &graph));
    assert_int_equal(mb_emulator_pending(), 0); /* recorded, not queued */
    ok(cudaGraphInstantiate(&run, graph, 0));
    ok(cudaGraphDestroy(graph));
    pinned[0] = -1;
    for (int i = 1; i <= 3; i++) {
        ok(cudaGraphLaunch(run, stream));
        assert_true(i > 1 || pinned[0] == -1);
        ok(cudaStreamSynchronize(stream));
        assert_true(pinned[0] == 12.0f * (float)i && pinned[63] == 2.0f * (float)i);
    }
    ok(cudaGraphExecDestroy(run));
    ok(cudaEventDestroy(fork_event)), ok(cudaEventDestroy(join_event));
    ok(cudaStreamDestroy(stream)), ok(cudaStreamDestroy(other)), ok(cudaFreeHost(pinned)), ok(cudaFree(d));
}

static void breaks(cudaError_t (*call)(cudaStream_t stream, float *data), cudaError_t expected)
{
    float *d = device(std::vector<float>(4));
    cudaStream_t stream;
    cudaGraph_t graph;
    ok(cudaDeviceSynchronize());
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    assert_int_equal(call(stream, d), expected);
    MB_LAUNCH(add_kernel, 1, 32, 0, stream, d, 4, 1.0f);
    assert_int_equal(cudaGetLastError(), cudaErrorStreamCaptureInvalidated);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    assert_null(graph);
    (void)cudaGetLastError();
    MB_LAUNCH(add_kernel, 1, 32, 0, stream, d, 4, 1.0f); /* the stream works again */
    ok(cudaStreamSynchronize(stream));
    assert_true(host(d, 4)[0] == 1);
    ok(cudaStreamDestroy(stream)), ok(cudaFree(d));
}

static void test_capture_broken(void **)
{
    static void *block;
    static float ordinary[4];
    const cudaError_t refused = cudaErrorStreamCaptureUnsupported;
    breaks([](cudaStream_t, float *) { return cudaMalloc(&block, 64); }, refused);
    breaks([](cudaStream_t, float *d) { return cudaFree(d); }, refused);
    breaks([](cudaStream_t, float *) { return cudaMallocHost(&block, 64); }, refused);
    breaks([](cudaStream_t stream, float *) { return cudaStreamSynchronize(stream); }, refused);
    breaks([](cudaStream_t stream, float *) { return cudaStreamQuery(stream); }, refused);
    breaks([](cudaStream_t, float *) { return cudaDeviceSynchronize(); }, refused);
    breaks([](cudaStream_t, float *d) { return cudaMemcpy(ordinary, d, 16, cudaMemcpyDeviceToHost); },
           refused);
    breaks(
        [](cudaStream_t s, float *d) { return cudaMemcpyAsync(d, ordinary, 16, cudaMemcpyHostToDevice, s); },
        refused);
    breaks(
        [](cudaStream_t s, float *d) { return cudaMemcpyAsync(ordinary, d, 16, cudaMemcpyDeviceToHost, s); },
        refused);
}

static void test_capture_unjoined(void **)
{
    float *d = device(std::vector<float>(4));
    cudaStream_t stream, other;
    cudaEvent_t event;
    cudaGraph_t graph;
    ok(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    ok(cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking));
    ok(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    ok(cudaEventRecord(event, stream));
    ok(cudaStreamWaitEvent(other, event, 0));
    MB_LAUNCH(add_kernel, 1, 32, 0, other, d, 4, 1.0f);
    assert_int_equal(cudaEventSynchronize(event), cudaErrorCapturedEvent);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    ok(cudaEventRecord(event, stream));
    ok(cudaStreamWaitEvent(other, event, 0));
    MB_LAUNCH(add_kernel, 1, 32, 0, other, d, 4, 1.0f);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureUnjoined);
    (void)cudaGetLastError();
    ok(cudaEventRecord(event, other)); /* no longer part of a capture */
    ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    assert_int_equal(cudaStreamWaitEvent(stream, event, 0), cudaErrorStreamCaptureIsolation);
    assert_int_equal(cudaStreamEndCapture(stream, &graph), cudaErrorStreamCaptureInvalidated);
    (void)cudaGetLastError();
    ok(cudaEventDestroy(event)), ok(cudaStreamDestroy(stream)), ok(cudaStreamDestroy(other)), ok(cudaFree(d));
}

/* ---- 3. memory ---- */

static void test_memory(void **)
{
    const int64_t before = mb_emulator_live_bytes();
    unsigned char *d = NULL, *big = NULL, *pinned = NULL;
    size_t left = 0, total = 0, left_after = 0;
    ok(cudaMemGetInfo(&left, &total));
    ok(cudaMalloc(&d, 1000)), ok(cudaMalloc(&big, (size_t)100 << 20)), ok(cudaMallocHost(&pinned, 10));
    ok(cudaMemGetInfo(&left_after, &total));
    assert_true(left - left_after == 1000 + ((size_t)100 << 20) && total == (size_t)4096 << 20);
    assert_int_equal(mb_emulator_live_bytes() - before, 1000 + (100 << 20) + 10);
    assert_true((uintptr_t)d % 256 == 0 && (uintptr_t)big % 256 == 0);
    for (unsigned char c : host(d, 1000)) assert_int_equal(c, 0xff); /* fresh memory is NaN */
    for (unsigned char c : host(big + ((size_t)90 << 20), 1000)) assert_int_equal(c, 0xff);
    ok(cudaMemset(big + 5, 3, 7));
    assert_true(host(big, 20)[4] == 0xff && host(big, 20)[11] == 3 && host(big, 20)[12] == 0xff);
    cudaPointerAttributes attributes;
    ok(cudaPointerGetAttributes(&attributes, big + 5));
    assert_int_equal(attributes.type, cudaMemoryTypeDevice);
    ok(cudaPointerGetAttributes(&attributes, pinned + 5));
    assert_int_equal(attributes.type, cudaMemoryTypeHost);
    ok(cudaPointerGetAttributes(&attributes, &left));
    assert_int_equal(attributes.type, cudaMemoryTypeUnregistered);
    ok(cudaFree(d)), ok(cudaFree(big)), ok(cudaFreeHost(pinned)), ok(cudaFree(NULL));
    assert_int_equal(mb_emulator_live_bytes(), before);
    assert_int_equal(cudaMalloc(&big, (size_t)5000 << 20), cudaErrorMemoryAllocation);
    assert_null(big);
    (void)cudaGetLastError();
}

static void test_memory_misuse(void **)
{
    float *d = device(std::vector<float>(100)), x[200] = {}, *pinned = NULL;
    ok(cudaMallocHost(&pinned, 16));
    assert_int_equal(cudaFree(d + 4), cudaErrorInvalidValue);
    assert_int_equal(cudaFree(x), cudaErrorInvalidValue);
    assert_int_equal(cudaFreeHost(x), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(x, d, 404, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(d + 100, x, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemset(d + 99, 0, 8), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(x, d, 4, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(d, d + 1, 8, cudaMemcpyDeviceToDevice), cudaErrorInvalidValue);
    assert_int_equal(cudaPeekAtLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    ok(cudaGetLastError());
    ok(cudaMemcpy(x, d, 400, cudaMemcpyDefault));
    ok(cudaFree(d)), ok(cudaFreeHost(pinned));
    assert_int_equal(cudaFree(d), cudaErrorInvalidValue);
    assert_int_equal(cudaMemcpy(x, d, 4, cudaMemcpyDeviceToHost), cudaErrorInvalidValue);
    (void)cudaGetLastError();
}

static __global__ void touch_kernel(volatile float *x, int64_t at)
{
    x[at] = 1.0f;
}

static void test_memory_touched(void **)
{
    dies([]() { *(volatile float *)device(std::vector<float>(4)) = 1; }, "");
    dies(
        []() {
            float *d = device(std::vector<float>(4));
            ok(cudaDeviceSynchronize());
            (void)*(volatile float *)d;
        },
        "");
    dies(
        []() { /* the next page, behind the 256 bytes that any block has */
               MB_LAUNCH(touch_kernel, 1, 1, 0, 0, device(std::vector<float>(100)), (int64_t)128);
               (void)cudaDeviceSynchronize();
        },
        "");
    dies(
        []() {
            float *d = device(std::vector<float>(100));
            ok(cudaFree(d));
            MB_LAUNCH(touch_kernel, 1, 1, 0, 0, d, (int64_t)0);
            (void)cudaDeviceSynchronize();
        },
        "");
#ifdef __SANITIZE_ADDRESS__
    dies(
        []() { /* one element behind the end, one before the start */
               MB_LAUNCH(touch_kernel, 1, 1, 0, 0, device(std::vector<float>(101)), (int64_t)101);
               (void)cudaDeviceSynchronize();
        },
        "use-after-poison");
    dies(
        []() {
            MB_LAUNCH(touch_kernel, 1, 1, 0, 0, device(std::vector<float>(101)), (int64_t)-1);
            (void)cudaDeviceSynchronize();
        },
        "use-after-poison");
#endif
}

static void test_host_pointer(void **)
{
    struct pair {
        int64_t n;
        float *data;
    };
    static float ordinary[4];
    dies([]() { MB_LAUNCH(add_kernel, 1, 32, 0, 0, ordinary, 4, 1.0f); }, "argument 1 holds");
    dies(
        []() {
            float on_stack[4] = {};
            MB_LAUNCH(add_kernel, 1, 32, 0, 0, on_stack, 4, 1.0f);
        },
        "ordinary host memory");
    dies(
        []() {
            const pair p = {4, new float[4]};
            void (*kernel)(pair) = [](pair) {};
            MB_LAUNCH(kernel, 1, 1, 0, 0, p);
        },
        "argument 1 holds");
    setenv("MB_EMULATOR_PAGEABLE", "1", 1);
    MB_LAUNCH(add_kernel, 1, 32, 0, 0, ordinary, 4, 1.0f);
    ok(cudaDeviceSynchronize());
    unsetenv("MB_EMULATOR_PAGEABLE");
    assert_true(ordinary[3] == 1.0f);
}

/* ---- 4. launches ---- */

static __global__ void empty_kernel() {}
static __global__ void static_over_kernel()
{
    MB_SHARED(float, room, 10000);
    room[threadIdx.x] = 0;
}

static void refused(dim3 grid, dim3 block, size_t bytes, cudaError_t error)
{
    MB_LAUNCH(empty_kernel, grid, block, bytes, 0);
    assert_int_equal(cudaGetLastError(), error);
    ok(cudaGetLastError());
}

static void test_launch_errors(void **)
{
    refused(1, 1025, 0, cudaErrorInvalidConfiguration);
    refused(1, dim3(32, 33), 0, cudaErrorInvalidConfiguration);
    refused(1, dim3(1, 1, 65), 0, cudaErrorInvalidConfiguration);
    refused(1, 0, 0, cudaErrorInvalidConfiguration);
    refused(0, 32, 0, cudaErrorInvalidConfiguration);
    refused(dim3(1, 65536), 32, 0, cudaErrorInvalidConfiguration);
    refused(1, 32, (48 << 10) + 1, cudaErrorInvalidValue);
    refused(1, 1024, 48 << 10, cudaSuccess);
    ok(cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 << 10));
    refused(1, 32, 100 << 10, cudaSuccess);
    refused(1, 32, (100 << 10) + 1, cudaErrorInvalidValue);
    assert_int_equal(
        cudaFuncSetAttribute(empty_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (227 << 10) + 1),
        cudaErrorInvalidValue);
    (void)cudaGetLastError();
    cudaStream_t gone;
    ok(cudaStreamCreate(&gone)), ok(cudaStreamDestroy(gone));
    MB_LAUNCH(empty_kernel, 1, 1, 0, gone);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    ok(cudaDeviceSynchronize());
    dies([]() { MB_LAUNCH(static_over_kernel, 1, 32, 20000, 0), (void)cudaDeviceSynchronize(); },
         "the launch fails beyond 49152; allow more by cudaFuncSetAttribute");
}

static void test_device(void **)
{
    cudaDeviceProp p;
    int n = 0, value = 0;
    ok(cudaGetDeviceCount(&n));
    assert_int_equal(n, 1);
    ok(cudaGetDeviceProperties(&p, 0));
    assert_string_equal(p.name, "emulated GPU");
    assert_true(p.major == 9 && p.sharedMemPerBlockOptin == 227 << 10);
    ok(cudaDeviceGetAttribute(&value, cudaDevAttrPageableMemoryAccess, 0));
    assert_int_equal(value, 1);
    assert_int_equal(cudaSetDevice(1), cudaErrorInvalidDevice);
    assert_string_equal(cudaGetErrorName(cudaGetLastError()), "cudaErrorInvalidDevice");
}

/* ---- 5. cuBLAS ---- */

template <typename T> static float value(const T *data, int64_t i)
{
    return mb_float(data[i]);
}

/* Column-major, in f64: exact for small whole numbers. */
template <typename T, typename U>
static std::vector<U> plain(bool ta, bool tb, int m, int n, int k, float alpha, const std::vector<T> &a,
                            int lda, const std::vector<T> &b, int ldb, float beta, std::vector<U> c, int ldc)
{
    for (int j = 0; j < n; j++)
        for (int i = 0; i < m; i++) {
            double sum = 0;
            for (int l = 0; l < k; l++)
                sum += (double)value(a.data(), ta ? l + (int64_t)i * lda : i + (int64_t)l * lda) *
                       value(b.data(), tb ? j + (int64_t)l * ldb : l + (int64_t)j * ldb);
            U *to = &c[(size_t)(i + (int64_t)j * ldc)];
            *to = mb_from_float<U>((float)(alpha * sum + (beta == 0 ? 0.0 : (double)beta * mb_float(*to))));
        }
    return c;
}

template <typename T> static std::vector<T> numbers(size_t n, uint32_t seed)
{
    std::vector<T> x(n);
    for (size_t i = 0; i < n; i++) x[i] = mb_from_float<T>(small((uint32_t)i + seed * 7919));
    return x;
}

template <typename T, typename U>
static void check_gemm(cublasHandle_t handle, cudaDataType in, cudaDataType out, float beta)
{
    const int m = 5, n = 7, k = 9, lda = 11, ldb = 10, ldc = 6;
    const float alpha = 0.5f;
    for (int t = 0; t < 4; t++) {
        const bool ta = t % 2 != 0, tb = t / 2 != 0;
        const std::vector<T> a = numbers<T>(11 * 9, 1), b = numbers<T>(10 * 9, 2);
        std::vector<U> c = numbers<U>(6 * 7, 3);
        if (beta == 0) c[0] = mb_from_float<U>(NAN); /* must not be read */
        T *da = device(a), *db = device(b);
        U *dc = device(c);
        assert_int_equal(cublasGemmEx(handle, ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb ? CUBLAS_OP_T : CUBLAS_OP_N,
                                      m, n, k, &alpha, da, in, lda, db, in, ldb, &beta, dc, out, ldc,
                                      CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT),
                         CUBLAS_STATUS_SUCCESS);
        assert_true(mb_emulator_pending() > 0);
        const std::vector<U> want = plain(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
        assert_memory_equal(host(dc, c.size()).data(), want.data(), c.size() * sizeof(U));
        ok(cudaFree(da)), ok(cudaFree(db)), ok(cudaFree(dc));
    }
}

static void test_gemm(void **)
{
    cublasHandle_t handle;
    const float one = 1;
    float *d = device(std::vector<float>(64));
    assert_int_equal(cublasCreate_v2(&handle), CUBLAS_STATUS_SUCCESS);
    check_gemm<float, float>(handle, CUDA_R_32F, CUDA_R_32F, 0.0f);
    check_gemm<float, float>(handle, CUDA_R_32F, CUDA_R_32F, 1.0f);
    check_gemm<mb_bf16, float>(handle, CUDA_R_16BF, CUDA_R_32F, 1.0f);
    check_gemm<mb_bf16, mb_bf16>(handle, CUDA_R_16BF, CUDA_R_16BF, 0.0f);
    check_gemm<mb_bf16, mb_bf16>(handle, CUDA_R_16BF, CUDA_R_16BF, 2.0f);
    const auto gemm = [&](int m, int lda, int ldb, int ldc, cudaDataType in, cudaDataType out) {
        return cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_T, m, 3, 2, &one, d, in, lda, d, in, ldb, &one, d,
                            out, ldc, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    };
    assert_int_equal(gemm(4, 4, 3, 4, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(gemm(0, 1, 3, 1, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_SUCCESS);
    assert_int_equal(gemm(4, 3, 3, 4, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(gemm(4, 4, 2, 4, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(gemm(4, 4, 3, 3, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(gemm(-1, 4, 3, 4, CUDA_R_32F, CUDA_R_32F), CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(gemm(4, 4, 3, 4, CUDA_R_32F, CUDA_R_16BF), CUBLAS_STATUS_NOT_SUPPORTED);
    assert_int_equal(cublasDestroy_v2(handle), CUBLAS_STATUS_SUCCESS);
    dies(
        []() {
            cublasHandle_t h;
            const float alpha = 1, beta = 0;
            float *x = device(std::vector<float>(16));
            (void)cublasCreate_v2(&h);
            (void)cublasGemmEx(h, CUBLAS_OP_N, CUBLAS_OP_N, 4, 4, 5, &alpha, x, CUDA_R_32F, 4, x, CUDA_R_32F,
                               5, &beta, x, CUDA_R_32F, 4, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
            (void)cudaDeviceSynchronize();
        },
        "of which 64 lie in a live block");
    ok(cudaFree(d));
}

static void test_gemm_grouped(void **)
{
    typedef std::vector<mb_bf16> matrix;
    cublasHandle_t handle;
    const int m[2] = {3, 4}, n[2] = {5, 0}, k[2] = {6, 7}, lda[2] = {6, 7}, ldb[2] = {6, 7}, ldc[2] = {3, 4};
    const int sizes[2] = {2, 1};
    const float alpha[2] = {1, 1}, beta[2] = {1, 0};
    const cublasOperation_t ta[2] = {CUBLAS_OP_T, CUBLAS_OP_T}, tb[2] = {CUBLAS_OP_N, CUBLAS_OP_N};
    const matrix a[2] = {numbers<mb_bf16>(18, 1), numbers<mb_bf16>(18, 2)},
                 b[2] = {numbers<mb_bf16>(30, 3), numbers<mb_bf16>(30, 4)}, c = numbers<mb_bf16>(15, 5);
    mb_bf16 *pa[3] = {device(a[0]), device(a[1]), NULL}, *pb[3] = {device(b[0]), device(b[1]), NULL};
    mb_bf16 *pc[3] = {device(c), device(c), NULL};
    mb_bf16 **da = device(std::vector<mb_bf16 *>(pa, pa + 3)),
            **db = device(std::vector<mb_bf16 *>(pb, pb + 3));
    mb_bf16 **dc = device(std::vector<mb_bf16 *>(pc, pc + 3));
    assert_int_equal(cublasCreate_v2(&handle), CUBLAS_STATUS_SUCCESS);
    const auto grouped = [&](cudaDataType out) {
        return cublasGemmGroupedBatchedEx(handle, ta, tb, m, n, k, alpha, (const void *const *)da,
                                          CUDA_R_16BF, lda, (const void *const *)db, CUDA_R_16BF, ldb, beta,
                                          (void *const *)dc, out, ldc, 2, sizes, CUBLAS_COMPUTE_32F);
    };
    assert_int_equal(grouped(CUDA_R_32F), CUBLAS_STATUS_NOT_SUPPORTED);
    assert_int_equal(grouped(CUDA_R_16BF), CUBLAS_STATUS_SUCCESS);
    for (int g = 0; g < 2; g++) {
        const matrix want = plain(true, false, 3, 5, 6, 1.0f, a[g], 6, b[g], 6, 1.0f, c, 3);
        assert_memory_equal(host(pc[g], 15).data(), want.data(), 30);
        ok(cudaFree(pa[g])), ok(cudaFree(pb[g])), ok(cudaFree(pc[g]));
    }
    ok(cudaFree(da)), ok(cudaFree(db)), ok(cudaFree(dc));
    assert_int_equal(cublasDestroy_v2(handle), CUBLAS_STATUS_SUCCESS);
}

/* ---- */

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_deferred),       cmocka_unit_test(test_streams),
        cmocka_unit_test(test_legacy_stream),  cmocka_unit_test(test_capture),
        cmocka_unit_test(test_capture_broken), cmocka_unit_test(test_capture_unjoined),
        cmocka_unit_test(test_memory),         cmocka_unit_test(test_memory_misuse),
        cmocka_unit_test(test_memory_touched), cmocka_unit_test(test_host_pointer),
        cmocka_unit_test(test_launch_errors),  cmocka_unit_test(test_device),
        cmocka_unit_test(test_gemm),           cmocka_unit_test(test_gemm_grouped),
    };
    cmocka_set_message_output(CM_OUTPUT_TAP);
    return cmocka_run_group_tests(tests, NULL, fixture_teardown);
}
