/* emulated_launch: MB_LAUNCH: checks a launch as the runtime does, copies the arguments, queues it. */
#ifndef MB_EMULATED_LAUNCH_H
#define MB_EMULATED_LAUNCH_H

#include <memory>
#include <tuple>
#include <utility>

#include "emulated_api.h"

/* A launch before it is queued. */
struct mb_emulated_launch {
    const char *name;
    const void *function;
    dim3 grid, block;
    size_t shared_bytes;
    cudaStream_t stream;
    std::shared_ptr<void> arguments;
    void (*call)(void *arguments); /* the kernel, as one thread */
};
void mb_emulated_queue_launch(mb_emulated_launch &&launch);
/* Stop when an argument (or a word of a struct) is an address of ordinary host memory, where that is not
 * allowed. */
void mb_emulated_check_argument(const char *kernel, int number, const void *argument, size_t bytes);

template <typename... P> struct mb_emulated_call {
    void (*kernel)(P...);
    std::tuple<typename std::decay<P>::type...> values;
    static void run(void *self)
    {
        mb_emulated_call *call = (mb_emulated_call *)self;
        std::apply(call->kernel, call->values);
    }
};
/* Structs with padding (or floats) are left out: what lies in the padding is no value, and may look like
 * an address. */
template <typename T>
static inline void mb_emulated_check_value(const char *kernel, int number, const T &value)
{
    if (std::is_pointer<T>::value ||
        (std::is_class<T>::value && std::has_unique_object_representations<T>::value))
        mb_emulated_check_argument(kernel, number, &value, sizeof value);
}
template <typename... P, typename... A>
static inline void mb_emulated_start(const char *name, dim3 grid, dim3 block, size_t shared_bytes,
                                     cudaStream_t stream, void (*kernel)(P...), A &&...arguments)
{
    static_assert(sizeof...(P) == sizeof...(A), "a kernel is launched with as many arguments as it takes");
    auto call = std::make_shared<mb_emulated_call<P...>>(
        mb_emulated_call<P...>{kernel, std::tuple<typename std::decay<P>::type...>((P)arguments...)});
    int number = 0;
    std::apply([&](const auto &...value) { (mb_emulated_check_value(name, ++number, value), ...); },
               call->values);
    mb_emulated_queue_launch(
        {name, (const void *)kernel, grid, block, shared_bytes, stream, call, mb_emulated_call<P...>::run});
}
/* MB_LAUNCH(kernel or (kernel<a, b>), grid, block, dynamic shared bytes, stream, arguments...) */
#define MB_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                            \
    mb_emulated_start(#kernel, (grid), (block), (size_t)(shared_bytes), (stream), kernel, ##__VA_ARGS__)

#endif
