/* lm: open, create, destroy, and what a model says about itself.
 *
 * 1. folders: HF, delta chains
 * 2. what trains
 * 3. building the model around its parameters
 * 4. open, create, destroy
 * 5. accessors
 */
#include "model/lm.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "model/fuse_state.h"
#include "model/packed_io.h"
#include "store/contenthash.h"

#define LM_CHAIN_MAX 16

/* ---- 1. folders ---- */

typedef struct lm_chain { /* delta folders from the opened one down, then the base */
    char *deltas[LM_CHAIN_MAX];
    int count;
    char *base;
    char base_hash[MB_HASH_TEXT]; /* when a delta named it and it was checked */
    bool has_bias;                /* config.json says that routers have selection biases */
} lm_chain;

static void lm_chain_reset(lm_chain *chain)
{
    for (int i = 0; i < chain->count; i++) mb_free(chain->deltas[i]);
    mb_free(chain->base);
    *chain = (lm_chain){0};
}

/* The base a delta names; its hash must be what the delta was made on. */
static mb_status lm_delta_base(const char *folder, const char *delta, char **out_base,
                               char out_hash[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    json_t *json = NULL;
    char *base = NULL, hash[MB_HASH_TEXT];
    const char *path, *expected;
    MB_TRY(mb_json_read(delta, &json));
    MB_TRY(mb_json_get_string(json, "base", delta, &path));
    MB_TRY(mb_json_get_string(json, "base_hash", delta, &expected));
    base = path[0] == '/' ? mb_strdup(path) : mb_files_join(folder, path);
    if (base == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", delta);
    if (!mb_files_is_folder(base))
        MB_RAISE(MB_ENOTFOUND, "%s: base model folder %s not found; correct \"base\"", delta, base);
    MB_TRY(mb_contenthash_path(base, hash));
    if (strcmp(hash, expected) != 0)
        MB_RAISE(MB_EDATA,
                 "%s: base model %s has hash %s, but the delta was made on %s; it belongs to another model",
                 delta, base, hash, expected);
    *out_base = base;
    base = NULL;
    memcpy(out_hash, hash, sizeof hash);
done:
    mb_free(base);
    json_decref(json);
    return status;
}

static mb_status lm_chain_read(const char *path, lm_chain *chain)
{
    mb_status status = MB_OK;
    char *delta = NULL, *folder = mb_strdup(path), *next = NULL;
    if (folder == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    if (mb_files_is_file(path))
        MB_RAISE(MB_ENOTFOUND, "%s: is a file; give the folder that holds config.json and the weights", path);
    if (!mb_files_is_folder(path)) MB_RAISE(MB_ENOTFOUND, "%s: model folder not found", path);
    for (;;) {
        delta = mb_files_join(folder, "delta.json");
        if (delta == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
        if (!mb_files_is_file(delta)) break;
        if (chain->count == LM_CHAIN_MAX)
            MB_RAISE(MB_EDATA, "%s: more than %d deltas on one another; write a full model", path,
                     LM_CHAIN_MAX);
        MB_TRY(lm_delta_base(folder, delta, &next, chain->base_hash));
        chain->deltas[chain->count++] = folder;
        folder = next;
        next = NULL;
        MB_FREE(delta);
    }
    chain->base = folder;
    folder = NULL;
done:
    mb_free(next);
    mb_free(folder);
    mb_free(delta);
    return status;
}

static mb_status lm_read_arch(const lm_chain *chain, mb_arch *arch)
{
    for (int i = 0; i < chain->count; i++) {
        char *path = mb_files_join(chain->deltas[i], "config.json");
        if (path == NULL) return MB_ENOMEM;
        bool has = mb_files_is_file(path);
        mb_free(path);
        if (has) return mb_arch_read(chain->deltas[i], arch);
    }
    return mb_arch_read(chain->base, arch);
}

mb_status mb_lm_peek(const char *path, mb_arch *out_arch, char **out_base)
{
    mb_status status = MB_OK;
    lm_chain chain = {0};
    MB_TRY(lm_chain_read(path, &chain));
    MB_TRY(lm_read_arch(&chain, out_arch));
    *out_base = chain.base;
    chain.base = NULL;
done:
    lm_chain_reset(&chain);
    return status;
}

/* ---- 2. what trains ---- */

static const char *lm_gates(const mb_arch *arch)
{
    return arch->family == MB_FAMILY_MIXTRAL ? "*.block_sparse_moe.gate.weight" : "*.mlp.gate.weight";
}

/* With an adapter nothing but it trains, or less: "lora" (all, router), then what is frozen of it. */
static bool lm_is_about_adapter(const char *train)
{
    static const char *const words[] = {"lora", "all", "router"};
    const size_t n = strcspn(train, ", \t");
    bool is_known = false;
    for (int i = 0; i < 3; i++) is_known |= strlen(words[i]) == n && strncmp(train, words[i], n) == 0;
    for (const char *at = strchr(train, ','); at != NULL && is_known; at = strchr(at, ',')) {
        at += 1 + strspn(at + 1, " \t");
        is_known = at[0] == '!' || mb_str_is_prefix(at, "experts=");
    }
    return is_known;
}

mb_status mb_lm_patterns(const char *train, bool has_lora, const mb_arch *arch, const char **out_patterns)
{
    mb_status status = MB_OK;
    const bool none = strcmp(train, "none") == 0, router = strcmp(train, "router") == 0;
    if (router && arch->experts == 0)
        MB_RAISE(MB_EUSAGE, "train = router: the model is dense, it has no routers; upcycle it first "
                            "(moe-convert upcycle)");
    if (has_lora && !none && !lm_is_about_adapter(train))
        MB_RAISE(MB_EUSAGE,
                 "train = %s: with an adapter only the adapter trains; say all or none, or freeze "
                 "parts of it (lora,!*.q_proj.*)",
                 train);
    const char *rest = has_lora && !none ? strchr(train, ',') : NULL; /* the first word is about the base */
    *out_patterns = none           ? "none"
                    : rest != NULL ? rest + 1
                    : has_lora     ? "lora"
                    : router       ? lm_gates(arch)
                                   : train;
done:
    return status;
}

static mb_status lm_declare_trash(mb_arch *arch, double ratio)
{
    mb_status status = MB_OK;
    if (ratio == 0) goto done;
    if (!(ratio > 0 && ratio < 1)) MB_RAISE(MB_ERANGE, "trash_expert_ratio %g must be within (0, 1)", ratio);
    if (arch->experts == 0)
        MB_RAISE(MB_EUSAGE, "trash_expert_ratio: the model is dense, it has no experts; upcycle it first "
                            "(moe-convert upcycle)");
    if (arch->trash > 0)
        MB_RAISE(MB_EUSAGE, "trash_expert_ratio: the model has %lld trash experts of its own; leave it 0",
                 (long long)arch->trash);
    arch->declared_trash = llround(ratio * (double)arch->experts);
    if (arch->declared_trash < 1) arch->declared_trash = 1;
    if (arch->declared_trash >= arch->experts)
        MB_RAISE(MB_ERANGE, "trash_expert_ratio %g leaves no good expert of %lld", ratio,
                 (long long)arch->experts);
done:
    return status;
}

static mb_status lm_add_bias(mb_lm *lm, const mb_lm_options *options)
{
    mb_status status = MB_OK;
    const bool is_frozen = options->train == NULL || strcmp(options->train, "none") == 0;
    if (!options->router_bias) goto done;
    if (lm->arch.experts == 0)
        MB_RAISE(MB_EUSAGE,
                 "%s: is dense, it has no routers whose bias could move; upcycle it first "
                 "(moe-convert upcycle), or set training.router_bias_rate = 0",
                 options->path);
    if (options->opt_lora != NULL || (options->opt_adapter != NULL && !is_frozen))
        MB_RAISE(MB_EUSAGE,
                 "training.router_bias_rate: the routers' biases belong to the model, and an adapter "
                 "folder has no place for them; train without LoRA, or set it to 0");
    lm->arch.router_bias = true;
done:
    return status;
}

/* ---- 3. building ---- */

static mb_status lm_make_rope(mb_lm *lm)
{
    mb_status status = MB_OK;
    const int64_t positions = lm->arch.max_positions, d = lm->arch.head_width;
    const bool is_device = mb_ops_is_device(lm->ops);
    float *table = NULL;
    MB_TRY(
        mb_buffer_create(mb_ops_allocator(lm->ops), (size_t)(positions * d) * sizeof(float), &lm->rope_data));
    if (is_device) MB_NEW_ARRAY(table, positions * d);
    mb_rotary_table(&lm->arch.rotary, lm->arch.rope_theta, positions, d,
                    is_device ? table : lm->rope_data->data);
    if (is_device) {
        MB_TRY(mb_ops_upload(lm->ops, table, lm->rope_data->bytes, lm->rope_data->data));
        MB_TRY(mb_ops_wait(lm->ops));
    }
    lm->rope = mb_tensor_view2(MB_F32, lm->rope_data->data, positions, d);
done:
    mb_free(table);
    return status;
}

static mb_status lm_build(mb_lm *lm)
{
    mb_status status = MB_OK;
    lm->embedding = mb_params_find(lm->params, "model.embed_tokens.weight");
    lm->final_norm = mb_params_find(lm->params, "model.norm.weight");
    lm->head = lm->arch.tied_head ? lm->embedding : mb_params_find(lm->params, "lm_head.weight");
    MB_NEW_ARRAY(lm->blocks, lm->arch.layers);
    for (int64_t i = 0; i < lm->arch.layers; i++)
        MB_TRY(mb_block_find(&lm->blocks[i], &lm->arch, lm->params, i, lm->input_gradient));
    MB_TRY(lm_make_rope(lm));
done:
    return status;
}

/* ---- 4. open, create, destroy ---- */

static mb_status lm_attach(mb_lm *lm, const mb_lm_options *options)
{
    mb_status status = MB_OK;
    mb_lora_options lora = {0};
    if (options->opt_lora != NULL && options->opt_adapter != NULL)
        MB_RAISE(MB_EUSAGE, "a new adapter (lora) and a loaded one (%s) exclude each other",
                 options->opt_adapter);
    if (options->opt_lora != NULL)
        MB_TRY(mb_lora_attach(&lm->lora, options->opt_lora, &lm->arch, lm->params));
    if (options->opt_adapter != NULL) {
        MB_TRY(mb_lora_read_options(options->opt_adapter, &lora));
        MB_TRY(mb_lora_attach(&lm->lora, &lora, &lm->arch, lm->params));
        lm->adapter = mb_strdup(options->opt_adapter);
        if (lm->adapter == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", options->opt_adapter);
    }
done:
    mb_free((char *)lora.targets);
    return status;
}

/* Biases that config.json promises are in one of the folders. */
static mb_status lm_check_bias(mb_lm *lm, const char *path)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < mb_params_count(lm->params); i++) {
        const mb_param *param = mb_params_at(lm->params, i);
        if (param->is_carried && !param->was_read)
            MB_RAISE(MB_ENOTFOUND, "%s: tensor %s is missing, and config.json says router_bias", path,
                     param->name);
    }
done:
    return status;
}

static mb_status lm_fill(mb_lm *lm, const mb_lm_options *options, const lm_chain *chain)
{
    mb_status status = MB_OK;
    MB_TRY(mb_params_read(lm->params, chain->base));
    for (int i = chain->count - 1; i >= 0; i--) MB_TRY(mb_params_read_delta(lm->params, chain->deltas[i]));
    if (chain->has_bias) MB_TRY(lm_check_bias(lm, options->path));
    if (options->opt_adapter != NULL) MB_TRY(mb_lora_read(options->opt_adapter, &lm->arch, lm->params));
    if (options->opt_lora != NULL) MB_TRY(mb_lora_randomise(&lm->lora, lm->params));
    lm->path = mb_strdup(options->path);
    lm->base = mb_strdup(chain->base);
    memcpy(lm->base_hash, chain->base_hash, sizeof lm->base_hash);
    if (lm->path == NULL || lm->base == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", options->path);
done:
    return status;
}

static mb_status lm_store(mb_lm *lm, const mb_lm_options *options)
{
    mb_status status = MB_OK;
    const int64_t group = options->frozen_group > 0 ? options->frozen_group : MB_LM_GROUP;
    if (options->dtype != MB_F32 && options->dtype != MB_BF16)
        MB_RAISE(MB_EUSAGE, "model.dtype %s: f32 and bf16 are there", mb_dtype_name(options->dtype));
    if (options->frozen_bits != 0 && options->frozen_bits != 8 && options->frozen_bits != 4)
        MB_RAISE(MB_EUSAGE, "frozen weights of %d bits: 8 and 4 are there", options->frozen_bits);
    if (options->frozen_bits != 0 && lm->arch.packed_bits != 0)
        MB_RAISE(MB_EUSAGE,
                 "%s: is quantised already (%d bits in its folder); leave model.quantize out, or give the "
                 "model it was made from",
                 options->path, lm->arch.packed_bits);
    lm->dtype = options->dtype;
    lm->input_gradient = options->input_gradient;
    mb_params_store(lm->params, options->dtype, options->frozen_bits, group);
done:
    return status;
}

/* All or none of the ranks go on. */
static mb_status lm_agree(const mb_lm_options *options, mb_status status)
{
    return options->opt_comm != NULL ? mb_comm_agree(options->opt_comm, status) : status;
}

/* Everything before memory is taken. */
static mb_status lm_prepare(mb_lm *lm, const mb_lm_options *options, lm_chain *chain, const char **patterns)
{
    mb_status status = MB_OK;
    MB_TRY(lm_chain_read(options->path, chain));
    MB_TRY(lm_read_arch(chain, &lm->arch));
    MB_TRY(lm_declare_trash(&lm->arch, options->trash_expert_ratio));
    chain->has_bias = lm->arch.router_bias;
    MB_TRY(lm_add_bias(lm, options));
    MB_TRY(mb_params_create(&lm->arch, lm->ops, &lm->params));
    MB_TRY(lm_attach(lm, options));
    MB_TRY(mb_lm_patterns(options->train != NULL ? options->train : "none", lm->lora.is_on, &lm->arch,
                          patterns));
    MB_TRY(lm_store(lm, options));
    if (lm->arch.packed_bits != 0) MB_TRY(mb_packed_io_mark(lm->params, chain->base));
    mb_params_spread(lm->params, options->opt_comm, options->shard, options->share);
done:
    return status;
}

mb_status mb_lm_open(mb_ops *ops, const mb_lm_options *options, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    lm_chain chain = {0};
    const char *patterns = "none";
    if (mb_fuse_is_folder(options->path))
        return mb_fuse_open_folder(ops, options->path, options, NULL, out_lm);
    MB_NEW(lm);
    lm->ops = ops;
    MB_TRY(lm_agree(options, lm_prepare(lm, options, &chain, &patterns)));
    MB_TRY(mb_params_seal(lm->params, patterns));
    if (options->ahead) mb_params_set_ahead(lm->params);
    status = lm_fill(lm, options, &chain);
    if (status == MB_OK) status = lm_build(lm);
    MB_TRY(lm_agree(options, status));
    MB_TRY(mb_params_filled(lm->params));
    *out_lm = lm;
    lm = NULL;
done:
    lm_chain_reset(&chain);
    mb_lm_destroy(&lm);
    return status;
}

mb_status mb_lm_create(mb_ops *ops, const mb_arch *arch, const char *train, uint64_t seed, mb_lm **out_lm)
{
    mb_status status = MB_OK;
    mb_lm *lm = NULL;
    const char *patterns = "none";
    MB_NEW(lm);
    lm->ops = ops;
    MB_TRY(mb_arch_copy(arch, &lm->arch));
    MB_TRY(mb_params_create(&lm->arch, ops, &lm->params));
    MB_TRY(mb_lm_patterns(train, false, &lm->arch, &patterns));
    MB_TRY(mb_params_seal(lm->params, patterns));
    MB_TRY(mb_params_randomise(lm->params, seed, lm->arch.initializer_range));
    MB_TRY(lm_build(lm));
    *out_lm = lm;
    lm = NULL;
done:
    mb_lm_destroy(&lm);
    return status;
}

void mb_lm_destroy(mb_lm **lm)
{
    mb_lm *m = *lm;
    if (m == NULL) return;
    mb_fuse_destroy(&m->fuse);
    for (int64_t i = 0; m->blocks != NULL && i < m->arch.layers; i++) mb_block_reset(&m->blocks[i]);
    mb_free(m->blocks);
    mb_buffer_destroy(&m->rope_data);
    mb_lora_reset(&m->lora);
    mb_params_destroy(&m->params);
    mb_arch_reset(&m->arch);
    mb_free(m->path);
    mb_free(m->base);
    mb_free(m->adapter);
    mb_free(m);
    *lm = NULL;
}

/* ---- 5. accessors ---- */

const mb_arch *mb_lm_arch(const mb_lm *lm)
{
    return &lm->arch;
}
mb_params *mb_lm_params(mb_lm *lm)
{
    return lm->params;
}
mb_lora *mb_lm_lora(mb_lm *lm)
{
    return &lm->lora;
}
mb_ops *mb_lm_ops(mb_lm *lm)
{
    return lm->ops;
}
int64_t mb_lm_routers(const mb_lm *lm)
{
    return lm->fuse != NULL ? lm->fuse->stages : mb_arch_moe_layers(&lm->arch);
}
mb_dtype mb_lm_dtype(const mb_lm *lm)
{
    return lm->dtype;
}
void mb_lm_set_dtype(mb_lm *lm, mb_dtype dtype)
{
    assert(dtype == MB_F32 || dtype == MB_BF16);
    lm->dtype = dtype;
    if (lm->fuse != NULL) mb_fuse_set_dtype(lm, dtype);
}
void mb_lm_set_trash_bias(mb_lm *lm, double bias)
{
    lm->arch.trash_logit_bias = bias;
}
bool mb_lm_has_router_bias(const mb_lm *lm)
{
    return lm->arch.router_bias;
}

mb_status mb_lm_cache_create(mb_lm *lm, int64_t slots, int64_t rows, mb_kv_cache **out_cache)
{
    if (lm->fuse != NULL) return mb_fuse_cache_create(lm, slots, rows, out_cache);
    return mb_kv_cache_create(&lm->arch, lm->ops, lm->dtype, slots, rows, out_cache);
}

static mb_status lm_need_bias(const mb_lm *lm)
{
    assert(mb_params_carried_count(lm->params) ==
           (lm->arch.router_bias ? mb_lm_routers(lm) * mb_arch_gates(&lm->arch) : 0));
    if (lm->arch.router_bias) return MB_OK;
    return mb_fail(MB_EUSAGE, "the model's routers have no selection bias; open it with one (router_bias)");
}

mb_status mb_lm_router_bias_read(mb_lm *lm, float *out_bias)
{
    mb_status status = MB_OK;
    MB_TRY(lm_need_bias(lm));
    MB_TRY(mb_params_carried_get(lm->params, out_bias));
done:
    return status;
}

mb_status mb_lm_router_bias_write(mb_lm *lm, const float *bias)
{
    mb_status status = MB_OK;
    MB_TRY(lm_need_bias(lm));
    MB_TRY(mb_params_carried_set(lm->params, bias));
done:
    return status;
}

int64_t mb_lm_rope_bytes(const mb_lm *lm)
{
    return lm->fuse != NULL ? mb_fuse_rope_bytes(lm) : (int64_t)lm->rope_data->bytes;
}
const char *mb_lm_base(const mb_lm *lm)
{
    return lm->base;
}

const char *mb_lm_adapter(const mb_lm *lm)
{
    return lm->adapter;
}

/* Folders are hashed when first asked for: a big model takes a while. */
mb_status mb_lm_base_hash(mb_lm *lm, const char **out_hash)
{
    mb_status status = MB_OK;
    char hash[MB_HASH_TEXT];
    if (lm->base_hash[0] == 0) {
        MB_TRY(mb_contenthash_path(lm->base, hash));
        memcpy(lm->base_hash, hash, sizeof hash);
    }
    *out_hash = lm->base_hash;
done:
    return status;
}

mb_status mb_lm_hashes(mb_lm *lm, char out_model[MB_HASH_TEXT], char out_adapter[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    char model[MB_HASH_TEXT] = "", adapter[MB_HASH_TEXT] = "";
    const char *base;
    if (lm->fuse != NULL) {
        MB_TRY(mb_fuse_hashes(lm, model));
    } else if (lm->path != NULL && strcmp(lm->path, lm->base) == 0) {
        MB_TRY(mb_lm_base_hash(lm, &base));
        memcpy(model, base, sizeof model);
    } else if (lm->path != NULL) {
        MB_TRY(mb_contenthash_path(lm->path, model));
    }
    if (lm->adapter != NULL) MB_TRY(mb_contenthash_path(lm->adapter, adapter));
    memcpy(out_model, model, sizeof model);
    memcpy(out_adapter, adapter, sizeof adapter);
done:
    return status;
}

static mb_status lm_hash(mb_lm *lm, char out_hash[MB_HASH_TEXT])
{
    mb_status status = MB_OK;
    char model[MB_HASH_TEXT], adapter[MB_HASH_TEXT], both[2 * MB_HASH_TEXT];
    MB_TRY(mb_lm_hashes(lm, model, adapter));
    if (adapter[0] != 0) {
        snprintf(both, sizeof both, "%s%s", model, adapter);
        mb_hash_bytes(both, strlen(both), model);
    }
    memcpy(out_hash, model, sizeof model);
done:
    return status;
}

const char *mb_lm_hash(mb_lm *lm)
{
    if (lm->hash[0] == 0 && (lm->path != NULL || lm->fuse != NULL)) (void)lm_hash(lm, lm->hash);
    return lm->hash;
}
