/* order: the order of blocks, threads and copies, by MB_EMULATOR_ORDER. */
#include <stdio.h>
#include <stdlib.h>

#include "internal.h"

namespace emulated
{

/* splitmix64 */
uint64_t Order::next()
{
    uint64_t z = state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t Order::below(uint64_t n)
{
    return (uint64_t)((unsigned __int128)next() * n >> 64);
}

void Order::shuffle(uint16_t *ids, size_t n)
{
    if (kind == forward) return;
    for (size_t i = 0; i < n; i++) {
        const size_t j = kind == reverse ? n - 1 - i : i + (size_t)below(n - i);
        if (kind == reverse && j <= i) break;
        const uint16_t id = ids[i];
        ids[i] = ids[j];
        ids[j] = id;
    }
}

Order order_of(uint64_t number)
{
    const char *text = getenv("MB_EMULATOR_ORDER");
    Order order = {Order::forward, 0, 0};
    if (text == NULL || text[0] == '\0' || strcmp(text, "forward") == 0) return order;
    if (strcmp(text, "reverse") == 0) {
        order.kind = Order::reverse;
        return order;
    }
    char *end = NULL;
    order.kind = Order::random;
    order.seed = strtoull(text, &end, 10);
    if (*end != '\0') stop("MB_EMULATOR_ORDER=%s: give forward, reverse or a number", text);
    order.state = order.seed * 0x2545f4914f6cdd1du + number;
    return order;
}

void order_describe(char *text, size_t room)
{
    const char *order = getenv("MB_EMULATOR_ORDER");
    snprintf(text, room, "%s", order != NULL && order[0] != '\0' ? order : "forward");
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        const uint64_t rest = a % b;
        a = b, b = rest;
    }
    return a;
}

Permutation permutation_of(Order *order, uint64_t n)
{
    Permutation p = {n, 1, 0, order->kind};
    if (order->kind != Order::random || n < 2) return p;
    p.shift = order->below(n);
    do p.factor = 1 + order->below(n - 1);
    while (common_divisor(p.factor, n) != 1);
    return p;
}

uint64_t Permutation::operator()(uint64_t i) const
{
    if (kind == Order::forward) return i;
    if (kind == Order::reverse) return n - 1 - i;
    return (uint64_t)(((unsigned __int128)i * factor + shift) % n);
}

} // namespace emulated
