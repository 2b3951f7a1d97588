/* api: errors, properties of the device, attributes of kernels, and the lock that every call takes. */
#include <stdarg.h>
#include <stdio.h>

#include <map>

#include "internal.h"

namespace emulated
{

static std::recursive_mutex &the_mutex()
{
    static std::recursive_mutex *mutex = new std::recursive_mutex();
    return *mutex;
}

Lock::Lock()
{
    the_mutex().lock();
}
Lock::~Lock()
{
    the_mutex().unlock();
}

static thread_local cudaError_t last_error;

cudaError_t fail(cudaError_t error, const char *format, ...)
{
    last_error = error;
    if (format == NULL) return error;
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "CUDA emulator: %s: ", cudaGetErrorName(error));
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    return error;
}

void stop(const char *format, ...)
{
    char where[512];
    va_list arguments;
    va_start(arguments, format);
    describe_running(where, sizeof where);
    fprintf(stderr, "CUDA emulator: %s", where);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

bool is_set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && strcmp(value, "1") == 0;
}

bool allows_pageable()
{
    return is_set("MB_EMULATOR_PAGEABLE") || is_set("MB_CUDA_SHARED");
}

static std::map<const void *, size_t> &limits()
{
    static std::map<const void *, size_t> *map = new std::map<const void *, size_t>();
    return *map;
}

size_t shared_limit(const void *function)
{
    const auto found = limits().find(function);
    return found != limits().end() && found->second > SHARED_DEFAULT ? found->second : (size_t)SHARED_DEFAULT;
}

} // namespace emulated

using namespace emulated;

/* ---- errors ---- */

cudaError_t cudaGetLastError()
{
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

cudaError_t cudaPeekAtLastError()
{
    return last_error;
}

const char *cudaGetErrorName(cudaError_t error)
{
#define NAME(name, value, text)                                                                              \
    if (error == name) return #name;
    MB_EMULATED_ERRORS(NAME)
#undef NAME
    return "unrecognized error code";
}

const char *cudaGetErrorString(cudaError_t error)
{
#define TEXT(name, value, text)                                                                              \
    if (error == name) return text;
    MB_EMULATED_ERRORS(TEXT)
#undef TEXT
    return "unrecognized error code";
}

/* ---- device ---- */

cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 1;
    return cudaSuccess;
}

static cudaError_t check_device(int device)
{
    return device == 0 ? cudaSuccess : fail(cudaErrorInvalidDevice, "device %d of 1", device);
}

cudaError_t cudaSetDevice(int device)
{
    return check_device(device);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDeviceFlags(unsigned int)
{
    return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp *properties, int device)
{
    Lock lock;
    size_t left = 0;
    const cudaError_t error = check_device(device);
    if (error != cudaSuccess) return error;
    cudaDeviceProp p = {};
    snprintf(p.name, sizeof p.name, "emulated GPU");
    memory_size(&left, &p.totalGlobalMem);
    p.sharedMemPerBlock = SHARED_DEFAULT;
    p.sharedMemPerBlockOptin = SHARED_MOST;
    p.sharedMemPerMultiprocessor = SHARED_OF_PROCESSOR;
    p.regsPerBlock = p.regsPerMultiprocessor = 65536;
    p.warpSize = WARP;
    p.maxThreadsPerBlock = THREADS_MOST;
    p.maxThreadsDim[0] = p.maxThreadsDim[1] = 1024, p.maxThreadsDim[2] = 64;
    p.maxGridSize[0] = 0x7fffffff, p.maxGridSize[1] = p.maxGridSize[2] = 65535;
    p.totalConstMem = 65536;
    p.major = 9, p.minor = 0;
    p.multiProcessorCount = PROCESSORS;
    p.concurrentKernels = 1;
    p.pciBusID = 1;
    p.unifiedAddressing = 1;
    p.l2CacheSize = 50 << 20;
    p.maxThreadsPerMultiProcessor = 2048;
    p.maxBlocksPerMultiProcessor = 32;
    p.managedMemory = p.concurrentManagedAccess = p.pageableMemoryAccess = 1;
    *properties = p;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device)
{
    cudaDeviceProp p;
    const cudaError_t error = cudaGetDeviceProperties(&p, device);
    if (error != cudaSuccess) return error;
    switch (attribute) {
    case cudaDevAttrMaxThreadsPerBlock:
        *value = p.maxThreadsPerBlock;
        break;
    case cudaDevAttrMaxBlockDimX:
        *value = p.maxThreadsDim[0];
        break;
    case cudaDevAttrMaxBlockDimY:
        *value = p.maxThreadsDim[1];
        break;
    case cudaDevAttrMaxBlockDimZ:
        *value = p.maxThreadsDim[2];
        break;
    case cudaDevAttrMaxGridDimX:
        *value = p.maxGridSize[0];
        break;
    case cudaDevAttrMaxGridDimY:
        *value = p.maxGridSize[1];
        break;
    case cudaDevAttrMaxGridDimZ:
        *value = p.maxGridSize[2];
        break;
    case cudaDevAttrMaxSharedMemoryPerBlock:
        *value = (int)p.sharedMemPerBlock;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *value = (int)p.sharedMemPerBlockOptin;
        break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrWarpSize:
        *value = p.warpSize;
        break;
    case cudaDevAttrMaxRegistersPerBlock:
        *value = p.regsPerBlock;
        break;
    case cudaDevAttrMultiProcessorCount:
        *value = p.multiProcessorCount;
        break;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
        *value = p.maxThreadsPerMultiProcessor;
        break;
    case cudaDevAttrMaxBlocksPerMultiprocessor:
        *value = p.maxBlocksPerMultiProcessor;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *value = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *value = p.minor;
        break;
    case cudaDevAttrL2CacheSize:
        *value = p.l2CacheSize;
        break;
    case cudaDevAttrConcurrentKernels:
    case cudaDevAttrUnifiedAddressing:
    case cudaDevAttrManagedMemory:
    case cudaDevAttrConcurrentManagedAccess:
    case cudaDevAttrPageableMemoryAccess:
        *value = 1;
        break;
    case cudaDevAttrIntegrated:
    case cudaDevAttrPageableMemoryAccessUsesHostPageTables:
        *value = 0;
        break;
    default:
        return fail(cudaErrorInvalidValue, "cudaDeviceGetAttribute(%d)", (int)attribute);
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device)
{
    const cudaError_t error = check_device(device);
    if (error != cudaSuccess) return error;
    return snprintf(text, (size_t)room, "0000:01:00.0") < room ? cudaSuccess
                                                               : fail(cudaErrorInvalidValue, NULL);
}

cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer)
{
    *can = 0;
    const cudaError_t error = check_device(device);
    return error != cudaSuccess ? error : check_device(peer);
}

cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned int)
{
    return fail(cudaErrorPeerAccessUnsupported, "peer %d", peer);
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

/* ---- kernels ---- */

cudaError_t mb_emulated_function_attribute(const void *function, cudaFuncAttribute attribute, int value)
{
    Lock lock;
    if (attribute == cudaFuncAttributePreferredSharedMemoryCarveout)
        return value >= -1 && value <= 100 ? cudaSuccess
                                           : fail(cudaErrorInvalidValue, "a carveout of %d%%", value);
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return fail(cudaErrorInvalidValue, "cudaFuncSetAttribute(%d)", (int)attribute);
    if (value < 0 || (size_t)value > SHARED_MOST)
        return fail(cudaErrorInvalidValue,
                    "cudaFuncSetAttribute: %d bytes of dynamic shared memory; at most %zu", value,
                    (size_t)SHARED_MOST);
    limits()[function] = (size_t)value;
    return cudaSuccess;
}

cudaError_t mb_emulated_occupancy(int *blocks, const void *function, int threads, size_t dynamic_bytes)
{
    Lock lock;
    *blocks = 0;
    if (threads <= 0 || threads > THREADS_MOST || dynamic_bytes > shared_limit(function))
        return threads <= 0 ? fail(cudaErrorInvalidValue, NULL) : cudaSuccess;
    const int by_threads = 2048 / ((threads + WARP - 1) / WARP * WARP);
    const int by_memory =
        (int)(SHARED_OF_PROCESSOR / (dynamic_bytes + 1024)); /* 1 KiB per block is the system's */
    *blocks = by_threads < by_memory ? by_threads : by_memory;
    if (*blocks > 32) *blocks = 32;
    return cudaSuccess;
}
