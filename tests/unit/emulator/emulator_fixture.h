/* emulator_fixture: what the emulator's tests share: vectors to the device and back, children that must
 * fail. */
#ifndef EMULATOR_FIXTURE_H
#define EMULATOR_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

extern "C" {
#include <cmocka.h>
}

#include <cublas_v2.h>

#include "emulator.h"
#include "ops/cuda/device.cuh"

#define ok(call) assert_int_equal((int)(call), (int)cudaSuccess)

static const char *const orders[] = {"forward", "reverse", "1", "2", "77"};

static inline void set_order(const char *order)
{
    assert_int_equal(setenv("MB_EMULATOR_ORDER", order, 1), 0);
}

template <typename T> static T *device(const std::vector<T> &values)
{
    T *data = NULL;
    ok(cudaMalloc(&data, values.size() * sizeof(T)));
    ok(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    ok(cudaDeviceSynchronize()); /* a copy from ordinary memory may return before it has arrived */
    return data;
}

template <typename T> static std::vector<T> host(const T *data, size_t n)
{
    std::vector<T> values(n);
    ok(cudaGetLastError());
    ok(cudaMemcpy(values.data(), data, n * sizeof(T), cudaMemcpyDeviceToHost));
    return values;
}

/* In a child, `body` must end the program and say `part` on stderr ("": anything). */
static inline void dies(void (*body)(), const char *part)
{
    int pipes[2], status = 0;
    char text[65536];
    size_t n = 0;
    assert_int_equal(pipe(pipes), 0);
    fflush(NULL);
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        for (int number : {SIGSEGV, SIGBUS, SIGABRT}) signal(number, SIG_DFL); /* cmocka has handlers */
        dup2(pipes[1], 2), close(pipes[0]), close(pipes[1]);
        body();
        _exit(0);
    }
    close(pipes[1]);
    for (ssize_t got = 1; got > 0;) {
        got = read(pipes[0], text + n, sizeof text - 1 - n);
        if (got > 0) n += (size_t)got;
    }
    text[n] = '\0';
    close(pipes[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if ((WIFEXITED(status) && WEXITSTATUS(status) == 0) || strstr(text, part) == NULL) {
        print_message("# status 0x%x, said: %s\n# expected an end with '%s'\n", status, text, part);
        fail();
    }
}

/* A number in -8..8 that depends on i: products and sums of them are exact. */
static inline float small(uint32_t i)
{
    i = i * 2654435761u ^ i >> 7;
    return (float)((int)(i >> 16 & 15) - 8);
}

/* Nothing is allocated or queued at the end. */
static int fixture_teardown(void **)
{
    if (mb_emulator_live_bytes() == 0 && mb_emulator_pending() == 0) return 0;
    print_message("# left behind: %lld bytes, %lld operations\n", (long long)mb_emulator_live_bytes(),
                  (long long)mb_emulator_pending());
    return 1;
}

#endif
