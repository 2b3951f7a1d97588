/* dnnl: products by oneDNN's matmul primitive with every dimension known at creation, and a scratchpad per
 * thread. f32 operands are plain or packed by the library; the right operand of bf16 products is in our
 * panels.
 *
 * Each thread keeps its own table of primitives (with their memory objects), found by the shape of the
 * product; oneDNN's own cache below it lets the threads' copies share the generated code. A table that is
 * full is emptied.
 *
 * 1. table of primitives
 * 2. running
 * 3. packing
 * 4. creation
 */
#include "ops/cpu/dense_library.h"

#ifdef MB_HAVE_DNNL
#include <omp.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "ops/cpu/dnnl_compat.h"

enum { TABLE_SLOTS = 4096, TABLE_FULL = 3072, CACHE_CAPACITY = 4096 };

typedef struct shape_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t threads;
    bool is_a_transposed, is_b_transposed, accumulate, has_bias, is_packed, is_bf16, is_c_bf16;
    char pad[5]; /* zero: keys are compared by bytes */
} shape_key;

typedef struct entry {
    shape_key key;
    dnnl_primitive_t primitive; /* NULL: free slot */
    dnnl_memory_t a, b, bias, c, scratchpad;
    size_t scratchpad_bytes;
} entry;

typedef struct thread_state {
    dnnl_stream_t stream;
    entry *entries; /* [TABLE_SLOTS] */
    int64_t used;
    void *scratchpad;
    size_t scratchpad_bytes;
} thread_state;

typedef struct state {
    dnnl_engine_t engine;
    int threads;
    thread_state *thread;
} state;

typedef struct packed_matrix {
    mb_dense_packed base;
    int64_t k, n;
    dnnl_memory_t memory;
    void *data;
} packed_matrix;

#define TRY_DNNL(call)                                                                                       \
    do {                                                                                                     \
        dnnl_status_t code = (call);                                                                         \
        if (code != dnnl_success) MB_RAISE(MB_EUNSUPPORTED, "oneDNN error %d in %s", (int)code, #call);      \
    } while (0)

/* ---- 1. table of primitives ---- */

static void entry_destroy(entry *e)
{
    dnnl_memory_t memories[] = {e->a, e->b, e->bias, e->c, e->scratchpad};
    for (int i = 0; i < 5; i++) {
        if (memories[i] != NULL) dnnl_memory_destroy(memories[i]);
    }
    if (e->primitive != NULL) dnnl_primitive_destroy(e->primitive);
    memset(e, 0, sizeof *e);
}

static mb_status attr_create(bool accumulate, dnnl_primitive_attr_t *out_attr)
{
    mb_status status = MB_OK;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_post_ops_t post_ops = NULL;
    TRY_DNNL(dnnl_primitive_attr_create(&attr));
    TRY_DNNL(dnnl_primitive_attr_set_scratchpad_mode(attr, dnnl_scratchpad_mode_user));
    if (accumulate) {
        TRY_DNNL(dnnl_post_ops_create(&post_ops));
        TRY_DNNL(mb_dnnl_append_sum(post_ops));
        TRY_DNNL(dnnl_primitive_attr_set_post_ops(attr, post_ops));
    }
    *out_attr = attr;
    attr = NULL;
done:
    if (post_ops != NULL) dnnl_post_ops_destroy(post_ops);
    if (attr != NULL) dnnl_primitive_attr_destroy(attr);
    return status;
}

/* Memory objects of a product's primitive; their data are set at each run. */
static mb_status entry_memories(state *s, mb_dnnl_pd_ref pd, bool has_bias, entry *e)
{
    mb_status status = MB_OK;
    mb_dnnl_md_ref scratchpad = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    e->scratchpad_bytes = dnnl_memory_desc_get_size(scratchpad);
    TRY_DNNL(dnnl_memory_create(&e->scratchpad, scratchpad, s->engine, DNNL_MEMORY_NONE));
    TRY_DNNL(dnnl_memory_create(&e->a, dnnl_primitive_desc_query_md(pd, dnnl_query_src_md, 0), s->engine,
                                DNNL_MEMORY_NONE));
    TRY_DNNL(dnnl_memory_create(&e->b, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0), s->engine,
                                DNNL_MEMORY_NONE));
    TRY_DNNL(dnnl_memory_create(&e->c, dnnl_primitive_desc_query_md(pd, dnnl_query_dst_md, 0), s->engine,
                                DNNL_MEMORY_NONE));
    if (has_bias) {
        TRY_DNNL(dnnl_memory_create(&e->bias, dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 1),
                                    s->engine, DNNL_MEMORY_NONE));
    }
done:
    return status;
}

/* The primitive descriptor of a shape. opt_packed: the layout of b; with is_any the library chooses it; b of
 * bf16
 * is in panels. */
static mb_status matmul_describe(state *s, const shape_key *key, const packed_matrix *opt_packed, bool is_any,
                                 dnnl_primitive_desc_t *out_pd)
{
    mb_status status = MB_OK;
    mb_dnnl_md a = {0}, b = {0}, bias = {0}, c = {0};
    dnnl_primitive_attr_t attr = NULL;
    const dnnl_data_type_t in = key->is_bf16 ? dnnl_bf16 : dnnl_f32;
    const dnnl_data_type_t out = key->is_c_bf16 ? dnnl_bf16 : dnnl_f32;
    MB_TRY(attr_create(key->accumulate, &attr));
    TRY_DNNL(mb_dnnl_md_strided(in, key->m, key->k, key->is_a_transposed ? 1 : key->lda,
                                key->is_a_transposed ? key->lda : 1, &a));
    if (key->is_bf16) {
        TRY_DNNL(mb_dnnl_md_tag(in, key->k, key->n, dnnl_BA16a64b2a, &b));
    } else if (is_any) {
        TRY_DNNL(mb_dnnl_md_tag(in, key->k, key->n, dnnl_format_tag_any, &b));
    } else if (opt_packed != NULL) {
        mb_dnnl_md_ref packed = NULL;
        TRY_DNNL(dnnl_memory_get_memory_desc(opt_packed->memory, &packed));
        TRY_DNNL(mb_dnnl_md_copy(packed, &b));
    } else {
        TRY_DNNL(mb_dnnl_md_strided(in, key->k, key->n, key->is_b_transposed ? 1 : key->ldb,
                                    key->is_b_transposed ? key->ldb : 1, &b));
    }
    if (key->has_bias) TRY_DNNL(mb_dnnl_md_strided(dnnl_f32, 1, key->n, key->n, 1, &bias));
    TRY_DNNL(mb_dnnl_md_strided(out, key->m, key->n, key->ldc, 1, &c));
    TRY_DNNL(mb_dnnl_matmul(s->engine, &a, &b, key->has_bias ? &bias : NULL, &c, attr, out_pd));
done:
    if (attr != NULL) dnnl_primitive_attr_destroy(attr);
    mb_dnnl_md_destroy(&a);
    mb_dnnl_md_destroy(&b);
    mb_dnnl_md_destroy(&bias);
    mb_dnnl_md_destroy(&c);
    return status;
}

static mb_status entry_create(state *s, const shape_key *key, const packed_matrix *opt_packed, entry *e)
{
    mb_status status = MB_OK;
    dnnl_primitive_desc_t pd = NULL;
    MB_TRY(matmul_describe(s, key, opt_packed, false, &pd));
    TRY_DNNL(dnnl_primitive_create(&e->primitive, pd));
    MB_TRY(entry_memories(s, pd, key->has_bias, e));
    e->key = *key;
done:
    if (pd != NULL) dnnl_primitive_desc_destroy(pd);
    if (status != MB_OK) entry_destroy(e);
    return status;
}

/* The thread's entry of a shape, made at first use. */
static mb_status entry_get(state *s, thread_state *own, const shape_key *key, const packed_matrix *opt_packed,
                           entry **out_entry)
{
    mb_status status = MB_OK;
    uint64_t slot = mb_hash_u64(key, sizeof *key, 0) % TABLE_SLOTS;
    while (own->entries[slot].primitive != NULL && memcmp(&own->entries[slot].key, key, sizeof *key) != 0) {
        slot = (slot + 1) % TABLE_SLOTS;
    }
    if (own->entries[slot].primitive == NULL) {
        if (own->used >= TABLE_FULL) {
            for (int64_t i = 0; i < TABLE_SLOTS; i++) entry_destroy(&own->entries[i]);
            own->used = 0;
        }
        MB_TRY(entry_create(s, key, opt_packed, &own->entries[slot]));
        own->used++;
    }
    *out_entry = &own->entries[slot];
done:
    return status;
}

/* ---- 2. running ---- */

static mb_status scratchpad_grow(thread_state *own, size_t bytes)
{
    if (bytes <= own->scratchpad_bytes) return MB_OK;
    mb_free(own->scratchpad);
    own->scratchpad_bytes = 0;
    own->scratchpad = mb_calloc(bytes, 1);
    if (own->scratchpad == NULL) return MB_ENOMEM;
    own->scratchpad_bytes = bytes;
    return MB_OK;
}

static mb_status entry_run(thread_state *own, entry *e, const mb_product *product)
{
    mb_status status = MB_OK;
    const packed_matrix *packed = product->opt_packed;
    dnnl_exec_arg_t arguments[5];
    int count = 0;
    MB_TRY(scratchpad_grow(own, e->scratchpad_bytes));
    TRY_DNNL(dnnl_memory_set_data_handle(e->a, (void *)(uintptr_t)product->a));
    TRY_DNNL(dnnl_memory_set_data_handle(e->c, product->c));
    if (packed == NULL) TRY_DNNL(dnnl_memory_set_data_handle(e->b, (void *)(uintptr_t)product->b));
    arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_SRC, e->a};
    arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_WEIGHTS, packed != NULL ? packed->memory : e->b};
    arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_DST, e->c};
    if (product->opt_bias != NULL) {
        TRY_DNNL(dnnl_memory_set_data_handle(e->bias, (void *)(uintptr_t)product->opt_bias));
        arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, e->bias};
    }
    if (e->scratchpad_bytes > 0) {
        TRY_DNNL(dnnl_memory_set_data_handle(e->scratchpad, own->scratchpad));
        arguments[count++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, e->scratchpad};
    }
    TRY_DNNL(dnnl_primitive_execute(e->primitive, own->stream, count, arguments));
done:
    return status;
}

/* oneDNN asks OpenMP how many threads there are, when a primitive is made and when it runs: it is told for
 * the call. */
static mb_status dnnl_run(void *opaque, int thread, int threads, const mb_product *product)
{
    mb_status status = MB_OK;
    state *s = opaque;
    const mb_product *p = product;
    thread_state *own = &s->thread[thread];
    entry *e = NULL;
    shape_key key;
    int before = omp_get_max_threads();
    memset(&key, 0, sizeof key);
    key.m = p->m, key.n = p->n, key.k = p->k, key.lda = p->lda, key.ldc = p->ldc;
    key.threads = threads;
    key.is_a_transposed = p->is_a_transposed, key.accumulate = p->accumulate;
    key.has_bias = p->opt_bias != NULL;
    key.is_packed = p->opt_packed != NULL;
    key.is_bf16 = p->is_bf16, key.is_c_bf16 = p->is_c_bf16;
    if (!key.is_packed && !key.is_bf16) key.ldb = p->ldb, key.is_b_transposed = p->is_b_transposed;
    if (before != threads) omp_set_num_threads(threads);
    MB_TRY(entry_get(s, own, &key, p->opt_packed, &e));
    MB_TRY(entry_run(own, e, p));
done:
    if (before != threads) omp_set_num_threads(before);
    return status;
}

/* ---- 3. packing ---- */

static void packed_free(mb_dense_packed *base)
{
    packed_matrix *packed = (packed_matrix *)base;
    if (packed->memory != NULL) dnnl_memory_destroy(packed->memory);
    mb_free(packed->data);
    mb_free(packed);
}

/* Copy b into the layout of out_packed->memory. */
static mb_status reorder(state *s, thread_state *own, dnnl_memory_t plain, dnnl_memory_t packed)
{
    mb_status status = MB_OK;
    mb_dnnl_md_ref from = NULL, to = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, packed}};
    TRY_DNNL(dnnl_memory_get_memory_desc(plain, &from));
    TRY_DNNL(dnnl_memory_get_memory_desc(packed, &to));
    TRY_DNNL(dnnl_reorder_primitive_desc_create(&pd, from, s->engine, to, s->engine, NULL));
    TRY_DNNL(dnnl_primitive_create(&primitive, pd));
    TRY_DNNL(dnnl_primitive_execute(primitive, own->stream, 2, arguments));
done:
    if (primitive != NULL) dnnl_primitive_destroy(primitive);
    if (pd != NULL) dnnl_primitive_desc_destroy(pd);
    return status;
}

/* The layout is the one oneDNN prefers for 128 rows; every M is then asked for with that layout. */
static mb_status dnnl_pack(void *opaque, int thread, const float *b, int64_t k, int64_t n, int64_t ldb,
                           bool is_b_transposed, void **out_packed)
{
    mb_status status = MB_OK;
    state *s = opaque;
    shape_key key;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_memory_t plain = NULL;
    packed_matrix *packed = NULL;
    mb_dnnl_md plain_md = {0};
    memset(&key, 0, sizeof key);
    key.m = 128, key.n = n, key.k = k, key.lda = k, key.ldc = n;
    MB_NEW(packed);
    packed->base.free = packed_free;
    packed->k = k, packed->n = n;
    MB_TRY(matmul_describe(s, &key, NULL, true, &pd));
    mb_dnnl_md_ref md = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    packed->data = mb_calloc(dnnl_memory_desc_get_size(md), 1);
    if (packed->data == NULL) MB_TRY(MB_ENOMEM);
    TRY_DNNL(dnnl_memory_create(&packed->memory, md, s->engine, packed->data));
    TRY_DNNL(
        mb_dnnl_md_strided(dnnl_f32, k, n, is_b_transposed ? 1 : ldb, is_b_transposed ? ldb : 1, &plain_md));
    TRY_DNNL(dnnl_memory_create(&plain, mb_dnnl_md_get(&plain_md), s->engine, (void *)(uintptr_t)b));
    MB_TRY(reorder(s, &s->thread[thread], plain, packed->memory));
    *out_packed = packed;
    packed = NULL;
done:
    if (packed != NULL) packed_free(&packed->base);
    if (plain != NULL) dnnl_memory_destroy(plain);
    if (pd != NULL) dnnl_primitive_desc_destroy(pd);
    mb_dnnl_md_destroy(&plain_md);
    return status;
}

/* ---- 4. creation ---- */

static void dnnl_destroy(void *opaque)
{
    state *s = opaque;
    for (int i = 0; s->thread != NULL && i < s->threads; i++) {
        thread_state *own = &s->thread[i];
        for (int64_t j = 0; own->entries != NULL && j < TABLE_SLOTS; j++) entry_destroy(&own->entries[j]);
        mb_free(own->entries);
        mb_free(own->scratchpad);
        if (own->stream != NULL) dnnl_stream_destroy(own->stream);
    }
    mb_free(s->thread);
    if (s->engine != NULL) dnnl_engine_destroy(s->engine);
    mb_free(s);
}

/* The name of the implementation that serves ordinary shapes: "brg..." on AVX-512 has the bit guarantees. */
static mb_status implementation_get(state *s, bool is_bf16, char *out_name, size_t bytes,
                                    bool *out_row_stable)
{
    mb_status status = MB_OK;
    shape_key key;
    const char *name = "";
    dnnl_primitive_desc_t pd = NULL;
    memset(&key, 0, sizeof key);
    key.m = 128, key.n = 256, key.k = 256, key.lda = 256, key.ldb = 256, key.ldc = 256;
    key.is_bf16 = is_bf16;
    MB_TRY(matmul_describe(s, &key, NULL, false, &pd));
    TRY_DNNL(dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, &name));
    *out_row_stable = strncmp(name, "brg", 3) == 0 && strstr(name, "avx512") != NULL;
    snprintf(out_name, bytes, "%s", name);
done:
    if (pd != NULL) dnnl_primitive_desc_destroy(pd);
    return status;
}

/* Products of bf16 are used only where they are row stable; a library that refuses them has none. */
static mb_status describe(state *s, char *out_describe, size_t bytes, bool *out_row_stable, char *out_bf16)
{
    mb_status status = MB_OK;
    char name[32] = "";
    bool is_stable = false;
    const dnnl_version_t *version = dnnl_version();
    MB_TRY(implementation_get(s, false, name, sizeof name, out_row_stable));
    snprintf(out_describe, bytes, "oneDNN %d.%d.%d %s%s", version->major, version->minor, version->patch,
             name, *out_row_stable ? "" : ", fixed tiles");
    out_bf16[0] = '\0';
    if (implementation_get(s, true, name, sizeof name, &is_stable) == MB_OK && is_stable)
        memcpy(out_bf16, name, sizeof name);
    mb_status_reset();
done:
    return status;
}

static mb_status dnnl_create(int threads, void **out_state, char *out_describe, size_t bytes,
                             bool *out_row_stable, char *out_bf16)
{
    mb_status status = MB_OK;
    state *s = NULL;
    MB_NEW(s);
    s->threads = threads;
    MB_NEW_ARRAY(s->thread, threads);
    TRY_DNNL(dnnl_set_primitive_cache_capacity(CACHE_CAPACITY));
    TRY_DNNL(dnnl_engine_create(&s->engine, dnnl_cpu, 0));
    for (int i = 0; i < threads; i++) {
        TRY_DNNL(dnnl_stream_create(&s->thread[i].stream, s->engine, dnnl_stream_default_flags));
        MB_NEW_ARRAY(s->thread[i].entries, TABLE_SLOTS);
    }
    MB_TRY(describe(s, out_describe, bytes, out_row_stable, out_bf16));
    *out_state = s;
    s = NULL;
done:
    if (s != NULL) dnnl_destroy(s);
    return status;
}

const mb_dense_library *mb_dnnl_get(void)
{
    static const mb_dense_library library = {
        .name = "dnnl", .create = dnnl_create, .destroy = dnnl_destroy, .run = dnnl_run, .pack = dnnl_pack};
    return &library;
}
#else
const mb_dense_library *mb_dnnl_get(void)
{
    return NULL;
}
#endif
