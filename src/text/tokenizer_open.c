/* tokenizer_open: tokenizer.json -> mb_tokenizer.
 *
 * 1. added tokens  2. post-processor  3. hash  4. open and close
 */
#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/tokenizer_model.h"

/* 1. added tokens */

static mb_status read_added_token(const json_t *json, const char *where, size_t index, mb_added_token *token,
                                  int64_t *out_id)
{
    mb_status status = MB_OK;
    const char *content = NULL;
    if (!json_is_object(json))
        MB_RAISE(MB_EFORMAT, "%s: added_tokens entry %zu must be an object", where, index);
    MB_TRY(mb_json_get_int(json, "id", where, out_id));
    MB_TRY(mb_json_get_string(json, "content", where, &content));
    MB_TRY(mb_json_opt_bool(json, "single_word", where, &token->single_word));
    MB_TRY(mb_json_opt_bool(json, "lstrip", where, &token->lstrip));
    MB_TRY(mb_json_opt_bool(json, "rstrip", where, &token->rstrip));
    MB_TRY(mb_json_opt_bool(json, "special", where, &token->special));
    token->normalized = !token->special;
    MB_TRY(mb_json_opt_bool(json, "normalized", where, &token->normalized));
    token->content = mb_strdup(content);
    if (token->content == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", where);
done:
    return status;
}

/* The id that HF gives the token must be the one the file says. */
static mb_status place_added_token(mb_tokenizer *tokenizer, mb_added_token *token, int64_t id,
                                   int64_t *max_added, const char *where)
{
    mb_status status = MB_OK;
    int64_t size = mb_word_model_size(tokenizer->words);
    uint32_t known = mb_word_model_find(tokenizer->words, token->content, strlen(token->content));
    int64_t expected = known != MB_WORD_MODEL_NONE ? (int64_t)known
                       : *max_added >= size        ? *max_added + 1
                                                   : size;
    if (expected != id)
        MB_RAISE(MB_EFORMAT, "%s: added token \"%s\" says id %lld, but its place in the vocabulary is %lld",
                 where, token->content, (long long)id, (long long)expected);
    token->id = (uint32_t)id;
    if (id > *max_added) *max_added = id;
    if (known == MB_WORD_MODEL_NONE) {
        status = mb_word_model_add(tokenizer->words, token->content, token->id);
        if (status == MB_EEXIST)
            MB_RAISE(MB_EFORMAT, "%s: added token \"%s\" has the id %lld of another token", where,
                     token->content, (long long)id);
        MB_TRY(status);
    }
done:
    return status;
}

/* What a token is looked for as: its content, normalised when the token says so. */
static mb_status add_pattern(mb_tokenizer *tokenizer, mb_tokenizer_matcher *matcher,
                             const mb_added_token *token, const char *where)
{
    mb_status status = MB_OK;
    mb_text_edit edits[2] = {{.tracked = false}, {.tracked = false}};
    mb_text_view view = {.bytes = token->content, .n = strlen(token->content)};
    if (token->normalized)
        MB_TRY(mb_normalizer_run(tokenizer->normalizer, matcher, &view, false, edits, &view));
    if (view.n == 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: added token \"%s\" is empty once normalised", where, token->content);
    MB_TRY(mb_added_tokens_add(token->normalized ? tokenizer->normalized : tokenizer->raw, view.bytes, view.n,
                               token));
done:
    mb_normalize_edit_destroy(&edits[0]);
    mb_normalize_edit_destroy(&edits[1]);
    return status;
}

static mb_status read_added_tokens(mb_tokenizer *tokenizer, const json_t *list, const char *where)
{
    mb_status status = MB_OK;
    mb_tokenizer_matcher *matcher = NULL;
    int64_t id = 0, max_added = -1;
    MB_TRY(mb_added_tokens_create(&tokenizer->raw));
    MB_TRY(mb_added_tokens_create(&tokenizer->normalized));
    if (list != NULL && !json_is_null(list) && !json_is_array(list))
        MB_RAISE(MB_EFORMAT, "%s: \"added_tokens\" must be an array", where);
    MB_NEW_ARRAY(tokenizer->added, json_array_size(list));
    MB_TRY(mb_tokenizer_matcher_create(&matcher));
    for (size_t i = 0; i < json_array_size(list); i++) {
        mb_added_token *token = &tokenizer->added[tokenizer->added_count++];
        MB_TRY(read_added_token(json_array_get(list, i), where, i, token, &id));
        if (token->content[0] == '\0') continue; /* as HF */
        MB_TRY(place_added_token(tokenizer, token, id, &max_added, where));
    }
    MB_NEW_ARRAY(tokenizer->is_special, mb_word_model_count(tokenizer->words));
    for (int pass = 0; pass < 2; pass++) /* special tokens first: of two equal patterns the first counts */
        for (int64_t i = 0; i < tokenizer->added_count; i++) {
            const mb_added_token *token = &tokenizer->added[i];
            if (token->content[0] == '\0' || token->special != (pass == 0)) continue;
            if (token->special) tokenizer->is_special[token->id] = true;
            MB_TRY(add_pattern(tokenizer, matcher, token, where));
        }
done:
    mb_tokenizer_matcher_destroy(&matcher);
    return status;
}

/* 2. post-processor */

static mb_status read_template_token(mb_tokenizer *tokenizer, const json_t *processor, const json_t *part,
                                     mb_ids *ids, const char *where)
{
    mb_status status = MB_OK;
    const char *name = NULL;
    json_t *list = NULL;
    MB_TRY(mb_json_get_string(part, "id", where, &name));
    const json_t *entry = json_object_get(json_object_get(processor, "special_tokens"), name);
    if (entry == NULL)
        MB_RAISE(MB_EFORMAT,
                 "%s: the post-processor's template uses \"%s\", which its special_tokens do not have", where,
                 name);
    MB_TRY(mb_json_get_array(entry, "ids", where, &list));
    for (size_t i = 0; i < json_array_size(list); i++) {
        json_int_t id =
            json_is_integer(json_array_get(list, i)) ? json_integer_value(json_array_get(list, i)) : -1;
        if (id < 0 || id >= mb_word_model_count(tokenizer->words))
            MB_RAISE(MB_EFORMAT,
                     "%s: the post-processor's token \"%s\" has the id %lld, outside the vocabulary", where,
                     name, (long long)id);
        MB_TRY(mb_ids_append(ids, (uint32_t)id));
    }
done:
    return status;
}

static mb_status read_template(mb_tokenizer *tokenizer, const json_t *processor, const char *where)
{
    mb_status status = MB_OK;
    json_t *single = NULL;
    int texts = 0;
    MB_TRY(mb_json_get_array(processor, "single", where, &single));
    for (size_t i = 0; i < json_array_size(single); i++) {
        const json_t *part = json_array_get(single, i);
        const json_t *special = json_object_get(part, "SpecialToken"),
                     *sequence = json_object_get(part, "Sequence");
        const char *id = json_string_value(json_object_get(sequence, "id"));
        if (special != NULL)
            MB_TRY(read_template_token(tokenizer, processor, special,
                                       texts ? &tokenizer->after : &tokenizer->before, where));
        else if (id != NULL && strcmp(id, "A") == 0)
            texts++;
        else
            MB_RAISE(
                MB_EUNSUPPORTED,
                "%s: part %zu of the post-processor's single template is neither SpecialToken nor Sequence A",
                where, i);
    }
    if (texts != 1)
        MB_RAISE(MB_EUNSUPPORTED, "%s: the post-processor's single template must have Sequence A once",
                 where);
done:
    return status;
}

/* BertProcessing, RobertaProcessing: one token ["text", id] in front, one behind. */
static mb_status read_pair(mb_tokenizer *tokenizer, const json_t *processor, const char *key, mb_ids *ids,
                           const char *where)
{
    mb_status status = MB_OK;
    json_t *pair = NULL;
    MB_TRY(mb_json_get_array(processor, key, where, &pair));
    const json_t *id = json_array_get(pair, 1);
    if (json_array_size(pair) != 2 || !json_is_string(json_array_get(pair, 0)) || !json_is_integer(id) ||
        json_integer_value(id) < 0 || json_integer_value(id) >= mb_word_model_count(tokenizer->words))
        MB_RAISE(MB_EFORMAT, "%s: the post-processor's \"%s\" must be [token, id], the id of the vocabulary",
                 where, key);
    MB_TRY(mb_ids_append(ids, (uint32_t)json_integer_value(id)));
done:
    return status;
}

/* ByteLevel only trims HF's offsets. A second template would go around the first; nobody ships that. */
static mb_status read_processor(mb_tokenizer *tokenizer, const json_t *json, const char *where, int depth,
                                int *templates)
{
    mb_status status = MB_OK;
    const char *type = NULL;
    json_t *list = NULL;
    if (json == NULL || json_is_null(json)) return MB_OK;
    if (depth > 16)
        MB_RAISE(MB_EUNSUPPORTED, "%s: post-processor Sequences are nested more than 16 deep", where);
    MB_TRY(mb_json_get_string(json, "type", where, &type));
    if (strcmp(type, "ByteLevel") == 0) return MB_OK;
    if (strcmp(type, "Sequence") == 0) {
        MB_TRY(mb_json_get_array(json, "processors", where, &list));
        for (size_t i = 0; i < json_array_size(list); i++)
            MB_TRY(read_processor(tokenizer, json_array_get(list, i), where, depth + 1, templates));
        return MB_OK;
    }
    bool has_pairs = strcmp(type, "BertProcessing") == 0 || strcmp(type, "RobertaProcessing") == 0;
    if (!has_pairs && strcmp(type, "TemplateProcessing") != 0)
        MB_RAISE(MB_EUNSUPPORTED,
                 "%s: post-processor \"%s\" is not done here (TemplateProcessing, BertProcessing, "
                 "RobertaProcessing, ByteLevel and Sequence are)",
                 where, type);
    if ((*templates)++ > 0)
        MB_RAISE(MB_EUNSUPPORTED, "%s: more than one %s in the post-processor", where, type);
    if (!has_pairs) return read_template(tokenizer, json, where);
    MB_TRY(read_pair(tokenizer, json, "cls", &tokenizer->before, where));
    MB_TRY(read_pair(tokenizer, json, "sep", &tokenizer->after, where));
done:
    return status;
}

/* 3. hash */

static void hash_ids(const mb_ids *ids, mb_hash *hash)
{
    mb_hash_add_int(hash, ids->count);
    for (int64_t i = 0; i < ids->count; i++) mb_hash_add_int(hash, ids->data[i]);
}

static mb_status compute_hash(mb_tokenizer *tokenizer)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    MB_TRY(mb_hash_create(&hash));
    int64_t count = mb_word_model_count(tokenizer->words);
    mb_hash_add_int(hash, count);
    for (uint32_t id = 0; id < count; id++) {
        const char *text = mb_word_model_token(tokenizer->words, id, NULL);
        mb_hash_add_text(hash, text != NULL ? text : "");
        mb_hash_add_int(hash, (text != NULL) + 2 * tokenizer->is_special[id]);
    }
    mb_word_model_hash(tokenizer->words, hash);
    for (int64_t i = 0; i < tokenizer->added_count; i++) {
        const mb_added_token *token = &tokenizer->added[i];
        mb_hash_add_text(hash, token->content);
        mb_hash_add_int(hash, token->single_word + 2 * token->lstrip + 4 * token->rstrip +
                                  8 * token->normalized + 16 * token->special);
    }
    mb_normalizer_hash(tokenizer->normalizer, hash);
    mb_pretokenizer_hash(tokenizer->pretokenizer, hash);
    mb_tokenizer_decoder_hash(tokenizer->decoder, hash);
    hash_ids(&tokenizer->before, hash);
    hash_ids(&tokenizer->after, hash);
    mb_hash_get(hash, tokenizer->hash);
done:
    mb_hash_destroy(&hash);
    return status;
}

/* 4. open and close */

mb_status mb_tokenizer_open_json(mb_tokenizer *tokenizer, const json_t *json, const char *where)
{
    mb_status status = MB_OK;
    json_t *model = NULL;
    int templates = 0;
    if (!json_is_object(json))
        MB_RAISE(MB_EFORMAT, "%s: must be a JSON object, as Hugging Face writes tokenizer.json", where);
    MB_TRY(mb_json_get_object(json, "model", where, &model));
    MB_TRY(mb_normalizer_read(json_object_get(json, "normalizer"), where, &tokenizer->normalizer));
    MB_TRY(mb_pretokenizer_read(json_object_get(json, "pre_tokenizer"), where, &tokenizer->pretokenizer));
    tokenizer->keeps_ranges =
        mb_pretokenizer_asks_start(tokenizer->pretokenizer, !mb_normalizer_is_empty(tokenizer->normalizer));
    MB_TRY(mb_word_model_read(model, where, mb_pretokenizer_is_byte_level(tokenizer->pretokenizer),
                              &tokenizer->words));
    MB_TRY(mb_tokenizer_decoder_read(json_object_get(json, "decoder"), where, &tokenizer->decoder));
    MB_TRY(read_added_tokens(tokenizer, json_object_get(json, "added_tokens"), where));
    MB_TRY(read_processor(tokenizer, json_object_get(json, "post_processor"), where, 0, &templates));
done:
    return status;
}

mb_status mb_tokenizer_open(const char *path, mb_tokenizer **out_tokenizer)
{
    mb_status status = MB_OK;
    mb_tokenizer *tokenizer = NULL;
    json_t *json = NULL;
    bool is_folder = mb_files_is_folder(path);
    char *file = is_folder ? mb_files_join(path, "tokenizer.json") : mb_strdup(path);
    if (file == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    if (!mb_files_is_file(file))
        MB_RAISE(MB_ENOTFOUND, "%s: no such file; give a tokenizer.json or a folder that has one", file);
    MB_NEW(tokenizer);
    tokenizer->bos = tokenizer->eos = tokenizer->pad = -1;
    MB_TRY(mb_json_read(file, &json));
    MB_TRY(mb_tokenizer_open_json(tokenizer, json, file));
    MB_TRY(mb_tokenizer_config_read(tokenizer, is_folder ? path : NULL));
    MB_TRY(compute_hash(tokenizer));
    *out_tokenizer = tokenizer;
    tokenizer = NULL;
done:
    json_decref(json);
    mb_free(file);
    mb_tokenizer_close(&tokenizer);
    return status;
}

void mb_tokenizer_close(mb_tokenizer **tokenizer)
{
    mb_tokenizer *t = *tokenizer;
    if (t == NULL) return;
    mb_normalizer_destroy(&t->normalizer);
    mb_pretokenizer_destroy(&t->pretokenizer);
    mb_word_model_destroy(&t->words);
    mb_tokenizer_decoder_destroy(&t->decoder);
    mb_added_tokens_destroy(&t->raw);
    mb_added_tokens_destroy(&t->normalized);
    for (int64_t i = 0; i < t->added_count; i++) mb_free(t->added[i].content);
    mb_free(t->added);
    mb_free(t->is_special);
    mb_ids_destroy(&t->before);
    mb_ids_destroy(&t->after);
    mb_free(t->chat_template);
    MB_FREE(*tokenizer);
}
