/* dnnl_compat: the few oneDNN calls that differ between versions 2 (descriptors are structs, operations have
 * descriptors) and 3 (descriptors are handles, primitive descriptors are made at once).
 *
 * Layer: ops (cpu backend, internal).  Uses: oneDNN.
 */
#ifndef MB_CPU_DNNL_COMPAT_H
#define MB_CPU_DNNL_COMPAT_H

#include <oneapi/dnnl/dnnl.h>
#include <stddef.h>

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t mb_dnnl_md_ref; /* how functions take a memory descriptor */
typedef const_dnnl_primitive_desc_t mb_dnnl_pd_ref;
#else
typedef const dnnl_memory_desc_t *mb_dnnl_md_ref;
typedef const_dnnl_primitive_desc_t mb_dnnl_pd_ref;
#endif

/* A matrix [rows, columns] by strides or by a named layout (any: the library chooses). Destroy in both cases.
 * */
typedef struct mb_dnnl_md {
    dnnl_memory_desc_t md;
} mb_dnnl_md;

static inline mb_dnnl_md_ref mb_dnnl_md_get(const mb_dnnl_md *md)
{
#if DNNL_VERSION_MAJOR >= 3
    return md->md;
#else
    return &md->md;
#endif
}

static inline dnnl_status_t mb_dnnl_md_strided(dnnl_data_type_t type, dnnl_dim_t rows, dnnl_dim_t columns,
                                               dnnl_dim_t row_stride, dnnl_dim_t column_stride,
                                               mb_dnnl_md *out_md)
{
    dnnl_dims_t dims = {rows, columns}, strides = {row_stride, column_stride};
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_strides(&out_md->md, 2, dims, type, strides);
#else
    return dnnl_memory_desc_init_by_strides(&out_md->md, 2, dims, type, strides);
#endif
}

static inline dnnl_status_t mb_dnnl_md_tag(dnnl_data_type_t type, dnnl_dim_t rows, dnnl_dim_t columns,
                                           dnnl_format_tag_t tag, mb_dnnl_md *out_md)
{
    dnnl_dims_t dims = {rows, columns};
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(&out_md->md, 2, dims, type, tag);
#else
    return dnnl_memory_desc_init_by_tag(&out_md->md, 2, dims, type, tag);
#endif
}

static inline dnnl_status_t mb_dnnl_md_copy(mb_dnnl_md_ref from, mb_dnnl_md *out_md)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(&out_md->md, from);
#else
    out_md->md = *from;
    return dnnl_success;
#endif
}

static inline void mb_dnnl_md_destroy(mb_dnnl_md *md)
{
#if DNNL_VERSION_MAJOR >= 3
    if (md->md != NULL) dnnl_memory_desc_destroy(md->md);
    md->md = NULL;
#else
    (void)md;
#endif
}

static inline dnnl_status_t mb_dnnl_append_sum(dnnl_post_ops_t post_ops)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_post_ops_append_sum(post_ops, 1.0f, 0, dnnl_data_type_undef);
#else
    return dnnl_post_ops_append_sum(post_ops, 1.0f);
#endif
}

/* opt_bias may be NULL. */
static inline dnnl_status_t mb_dnnl_matmul(dnnl_engine_t engine, const mb_dnnl_md *a, const mb_dnnl_md *b,
                                           const mb_dnnl_md *opt_bias, const mb_dnnl_md *c,
                                           const_dnnl_primitive_attr_t attr, dnnl_primitive_desc_t *out_pd)
{
    mb_dnnl_md_ref bias = opt_bias != NULL ? mb_dnnl_md_get(opt_bias) : NULL;
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_matmul_primitive_desc_create(out_pd, engine, mb_dnnl_md_get(a), mb_dnnl_md_get(b), bias,
                                             mb_dnnl_md_get(c), attr);
#else
    dnnl_matmul_desc_t desc;
    dnnl_status_t code =
        dnnl_matmul_desc_init(&desc, mb_dnnl_md_get(a), mb_dnnl_md_get(b), bias, mb_dnnl_md_get(c));
    if (code != dnnl_success) return code;
    return dnnl_primitive_desc_create(out_pd, &desc, attr, engine, NULL);
#endif
}

#endif
