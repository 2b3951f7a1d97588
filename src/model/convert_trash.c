/* convert_trash: trash experts into a mixture of experts, and out again as a stock model.
 *
 * 1. trash: gates grow by T rows, everything else byte for byte
 * 2. plain: T experts of zero weights under a stock configuration
 */
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/rng.h"
#include "model/convert.h"
#include "model/convert_folder.h"

#define TRASH_CLOSED_BIAS       (-1e4)
#define TRASH_BIAS_CLOSED_BELOW (-1e3) /* softmax mass of such a column is exactly 0 */

/* ---- 1. trash ---- */

static mb_status trash_check(const mb_arch *arch, const char *source, const mb_convert_trash_options *options,
                             int64_t *out_trash)
{
    mb_status status = MB_OK;
    if (arch->experts == 0)
        MB_RAISE(MB_EUSAGE,
                 "%s: is a dense model, it has no router to add trash experts to; upcycle it first: "
                 "moe-convert upcycle model.path=%s output.dir=<folder>",
                 source, source);
    if (arch->trash > 0)
        MB_RAISE(MB_EUSAGE, "%s: has %lld trash experts already", source, (long long)arch->trash);
    *out_trash = options->trash_experts > 0 ? options->trash_experts : arch->picks;
    if (strcmp(options->trash_init, "normal") != 0 && strcmp(options->trash_init, "closed") != 0)
        MB_RAISE(MB_EUSAGE, "trash_init '%s' is not one of normal, closed", options->trash_init);
    if (!(options->trash_init_std >= 0)) MB_RAISE(MB_EUSAGE, "trash_init_std must not be negative");
done:
    return status;
}

/* Old rows as they are, T new ones N(0, std) in the stored type. */
static mb_status trash_write_gate(mb_convert_folder *f, const char *name, const mb_tensor *view,
                                  int64_t trash, const mb_convert_trash_options *options)
{
    mb_status status = MB_OK;
    const size_t old = mb_tensor_bytes(view), size = mb_dtype_bytes(view->dtype);
    const int64_t n = trash * view->shape[1];
    const uint32_t sub = (uint32_t)mb_hash_u64(name, strlen(name), 0);
    float *values = NULL;
    char *bytes = mb_calloc(old + (size_t)n * size, 1);
    if (bytes == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", name);
    MB_NEW_ARRAY(values, n);
    for (int64_t i = 0; i < n; i++)
        values[i] =
            (float)(options->trash_init_std * mb_rng_normal(options->seed, MB_RNG_TRASH, sub, (uint64_t)i));
    memcpy(bytes, view->data, old);
    MB_TRY(mb_dtype_from_f32(view->dtype, values, n, bytes + old));
    MB_TRY(mb_safetensors_writer_write(f->writer, name, bytes, old + (size_t)n * size));
done:
    mb_free(values);
    mb_free(bytes);
    return status;
}

/* The old biases, and zeros for the trash. */
static mb_status trash_write_bias(mb_convert_folder *f, const char *name, const mb_tensor *view,
                                  int64_t trash)
{
    mb_status status = MB_OK;
    const size_t old = mb_tensor_bytes(view), bytes = old + (size_t)trash * mb_dtype_bytes(view->dtype);
    char *values = mb_calloc(bytes, 1);
    if (values == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", name);
    memcpy(values, view->data, old);
    MB_TRY(mb_safetensors_writer_write(f->writer, name, values, bytes));
done:
    mb_free(values);
    return status;
}

mb_status mb_convert_trash(const char *source, const char *target, const mb_convert_trash_options *options)
{
    mb_status status = MB_OK;
    mb_convert_folder f = {0};
    int64_t trash = 0;
    MB_TRY(mb_convert_folder_open(&f, source));
    MB_TRY(trash_check(&f.arch, source, options, &trash));
    MB_TRY(mb_convert_folder_begin(&f, target));
    for (int pass = 0; pass < 2; pass++)
        for (int64_t i = 0; i < mb_safetensors_count(f.source_file); i++) {
            const char *name = mb_safetensors_name(f.source_file, i);
            const bool gate = mb_convert_folder_is_gate(name), bias = mb_convert_folder_is_bias(name);
            mb_tensor view;
            MB_TRY(mb_safetensors_view(f.source_file, name, &view));
            int64_t shape[MB_TENSOR_MAX_DIMS];
            memcpy(shape, view.shape, sizeof shape);
            if (gate || bias) shape[0] += trash;
            if (pass == 0)
                MB_TRY(mb_safetensors_writer_declare(f.writer, name, view.dtype, view.dims, shape));
            else if (gate)
                MB_TRY(trash_write_gate(&f, name, &view, trash, options));
            else if (bias)
                MB_TRY(trash_write_bias(&f, name, &view, trash));
            else
                MB_TRY(mb_safetensors_writer_write(f.writer, name, view.data, mb_tensor_bytes(&view)));
        }
    f.arch.trash = trash;
    f.arch.trash_logit_bias = strcmp(options->trash_init, "closed") == 0 ? TRASH_CLOSED_BIAS : 0;
    MB_TRY(mb_convert_folder_commit(&f, source, target));
done:
    mb_convert_folder_reset(&f);
    return status;
}

/* ---- 2. plain ---- */

/* A zero matrix like expert 0's for every added expert of one part: declared (pass 0) or written (pass 1). */
static mb_status plain_zero_part(mb_convert_folder *f, const mb_arch *arch, int64_t layer, const char *part,
                                 int64_t added, const void *zeros, int pass)
{
    mb_status status = MB_OK;
    char name[160];
    mb_tensor like;
    const char *moe = mb_arch_facts(arch)->moe;
    snprintf(name, sizeof name, "model.layers.%lld.%s.experts.0.%s.weight", (long long)layer, moe, part);
    if (!mb_safetensors_has(f->source_file, name))
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s is not in the source: its experts are fused (transformers 5); write it expert by expert "
                 "first (moe-convert full)",
                 name);
    MB_TRY(mb_safetensors_view(f->source_file, name, &like));
    for (int64_t e = 0; e < added; e++) {
        snprintf(name, sizeof name, "model.layers.%lld.%s.experts.%lld.%s.weight", (long long)layer, moe,
                 (long long)(arch->experts + e), part);
        if (pass == 0)
            MB_TRY(mb_safetensors_writer_declare(f->writer, name, like.dtype, like.dims, like.shape));
        else
            MB_TRY(mb_safetensors_writer_write(f->writer, name, zeros, mb_tensor_bytes(&like)));
    }
done:
    return status;
}

static mb_status plain_zero_experts(mb_convert_folder *f, const mb_arch *arch, int64_t added, int pass)
{
    mb_status status = MB_OK;
    const mb_family_facts *facts = mb_arch_facts(arch);
    const char *const parts[3] = {facts->gate, facts->up, facts->down};
    void *zeros = mb_calloc((size_t)(arch->width * arch->ffn), sizeof(double));
    if (zeros == NULL) MB_RAISE(MB_ENOMEM, "zero experts: no memory");
    for (int64_t i = 0; i < arch->layers; i++)
        for (int p = 0; p < 3 && mb_arch_is_moe(arch, i); p++)
            MB_TRY(plain_zero_part(f, arch, i, parts[p], added, zeros, pass));
done:
    mb_free(zeros);
    return status;
}

static mb_status plain_check(const mb_arch *arch, const char *source, int64_t *out_added)
{
    mb_status status = MB_OK;
    if (arch->trash == 0 && !arch->router_bias)
        MB_RAISE(MB_EUSAGE, "%s: has no trash experts; it is a plain model already", source);
    if (arch->trash_logit_bias != 0 && arch->trash_logit_bias > TRASH_BIAS_CLOSED_BELOW)
        MB_RAISE(MB_EUSAGE,
                 "%s: trash_logit_bias is %g, which a stock model cannot hold; train until it is 0", source,
                 arch->trash_logit_bias);
    *out_added = arch->trash_logit_bias == 0 ? arch->trash : 0;
done:
    return status;
}

/* A bias that is all zeros decides nothing and can go; any other changes which experts are picked. */
static mb_status plain_check_bias(const mb_convert_folder *f, const char *source, const char *name)
{
    mb_status status = MB_OK;
    mb_tensor view;
    float *values = NULL;
    MB_TRY(mb_safetensors_view(f->source_file, name, &view));
    const int64_t n = mb_tensor_count(&view);
    MB_NEW_ARRAY(values, n);
    MB_TRY(mb_dtype_to_f32(view.dtype, view.data, n, values));
    for (int64_t i = 0; i < n; i++)
        if (values[i] != 0)
            MB_RAISE(MB_EUSAGE,
                     "%s: its routers pick by a bias (%s is %g at expert %lld), for which stock model types "
                     "have no place: without it they would pick other experts; keep the folder as it is "
                     "(analysis/select_moe.py loads it in transformers)",
                     source, name, (double)values[i], (long long)i);
done:
    mb_free(values);
    return status;
}

static mb_status plain_check_biases(const mb_convert_folder *f, const char *source)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; f->arch.router_bias && i < mb_safetensors_count(f->source_file); i++) {
        const char *name = mb_safetensors_name(f->source_file, i);
        if (mb_convert_folder_is_bias(name)) MB_TRY(plain_check_bias(f, source, name));
    }
done:
    return status;
}

mb_status mb_convert_plain(const char *source, const char *target)
{
    mb_status status = MB_OK;
    mb_convert_folder f = {0};
    int64_t added = 0;
    MB_TRY(mb_convert_folder_open(&f, source));
    const mb_arch arch = f.arch; /* borrows config */
    MB_TRY(plain_check(&arch, source, &added));
    MB_TRY(plain_check_biases(&f, source));
    MB_TRY(mb_convert_folder_begin(&f, target));
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < mb_safetensors_count(f.source_file); i++) {
            const char *name = mb_safetensors_name(f.source_file, i);
            mb_tensor view;
            if (arch.router_bias && mb_convert_folder_is_bias(name)) continue;
            MB_TRY(mb_safetensors_view(f.source_file, name, &view));
            if (mb_convert_folder_is_gate(name)) view = mb_tensor_rows(&view, 0, arch.experts + added);
            if (pass == 0)
                MB_TRY(mb_safetensors_writer_declare(f.writer, name, view.dtype, view.dims, view.shape));
            else
                MB_TRY(mb_safetensors_writer_write(f.writer, name, view.data, mb_tensor_bytes(&view)));
        }
        MB_TRY(plain_zero_experts(&f, &arch, added, pass));
    }
    f.arch.experts = arch.experts + added;
    f.arch.trash = 0;
    f.arch.trash_logit_bias = 0;
    f.arch.router_bias = false;
    MB_TRY(mb_convert_folder_commit(&f, source, target));
done:
    mb_convert_folder_reset(&f);
    return status;
}
