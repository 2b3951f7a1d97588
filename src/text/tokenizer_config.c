/* tokenizer_config: what the files beside tokenizer.json say: bos, eos, pad, add_bos_token, the chat
 * template.
 *
 * 1. special tokens  2. add_bos_token  3. chat template  4. reading
 */
#include <string.h>

#include "base/files.h"
#include "base/memory.h"
#include "text/tokenizer_model.h"

/* The files of a folder that are there. */
typedef struct config_files {
    json_t *config;     /* tokenizer_config.json */
    json_t *map;        /* special_tokens_map.json */
    json_t *generation; /* generation_config.json */
} config_files;

/* 1. special tokens */

/* A token is written as its text or as an object with `content`. */
static const char *token_text(const json_t *value)
{
    return json_is_object(value) ? json_string_value(json_object_get(value, "content"))
                                 : json_string_value(value);
}

static mb_status find_named(const mb_tokenizer *tokenizer, const json_t *value, const char *file,
                            const char *key, int64_t *out_id)
{
    const char *text = token_text(value);
    uint32_t id;
    if (text == NULL)
        return mb_fail(MB_EFORMAT, "%s: \"%s\" must be a token's text or an object with \"content\"", file,
                       key);
    if (!mb_tokenizer_find(tokenizer, text, &id))
        return mb_fail(MB_EFORMAT, "%s: \"%s\" is \"%s\", which the tokenizer does not have", file, key,
                       text);
    *out_id = id;
    return MB_OK;
}

/* kind: "bos", "eos" or "pad". A file that names the token as null says that there is none. */
static mb_status find_special(const mb_tokenizer *tokenizer, const config_files *files, const char *kind,
                              const char *const *known, int64_t *out_id)
{
    mb_status status = MB_OK;
    char *key = mb_str_format("%s_token", kind), *id_key = mb_str_format("%s_token_id", kind);
    if (key == NULL || id_key == NULL) MB_RAISE(MB_ENOMEM, "no memory");
    const json_t *in_config = json_object_get(files->config, key), *in_map = json_object_get(files->map, key);
    const json_t *in_generation = json_object_get(files->generation, id_key);
    if (json_is_array(in_generation)) in_generation = json_array_get(in_generation, 0);
    json_int_t id = json_is_integer(in_generation) ? json_integer_value(in_generation) : -1;
    uint32_t found;
    if (in_config != NULL) {
        if (!json_is_null(in_config))
            MB_TRY(find_named(tokenizer, in_config, "tokenizer_config.json", key, out_id));
    } else if (in_map != NULL && !json_is_null(in_map)) {
        MB_TRY(find_named(tokenizer, in_map, "special_tokens_map.json", key, out_id));
    } else if (id >= 0 && id < mb_tokenizer_count(tokenizer)) {
        *out_id = id;
    } else {
        for (; *known != NULL && *out_id < 0; known++)
            if (mb_tokenizer_find(tokenizer, *known, &found) && tokenizer->is_special[found]) *out_id = found;
    }
done:
    mb_free(key);
    mb_free(id_key);
    return status;
}

static mb_status find_specials(mb_tokenizer *tokenizer, const config_files *files)
{
    static const char *const bos[] = {"<s>", "<|begin_of_text|>", "<bos>", NULL};
    static const char *const eos[] = {"</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>", NULL};
    static const char *const pad[] = {"<pad>", "<|pad|>", "<|padding|>", "[PAD]", NULL};
    mb_status status = MB_OK;
    MB_TRY(find_special(tokenizer, files, "bos", bos, &tokenizer->bos));
    MB_TRY(find_special(tokenizer, files, "eos", eos, &tokenizer->eos));
    MB_TRY(find_special(tokenizer, files, "pad", pad, &tokenizer->pad));
done:
    return status;
}

/* 2. add_bos_token */

/* The Llama and Gemma classes of transformers replace the post-processor by add_bos_token and add_eos_token;
 * others ignore them. */
static mb_status apply_add_tokens(mb_tokenizer *tokenizer, const json_t *config)
{
    mb_status status = MB_OK;
    const char *name = json_string_value(json_object_get(config, "tokenizer_class"));
    const json_t *add_bos = json_object_get(config, "add_bos_token"),
                 *add_eos = json_object_get(config, "add_eos_token");
    if (name == NULL || (strstr(name, "Llama") == NULL && strstr(name, "Gemma") == NULL)) return MB_OK;
    if (json_is_boolean(add_bos)) {
        mb_ids_reset(&tokenizer->before);
        if (json_is_true(add_bos) && tokenizer->bos >= 0)
            MB_TRY(mb_ids_append(&tokenizer->before, (uint32_t)tokenizer->bos));
    }
    if (json_is_boolean(add_eos)) {
        mb_ids_reset(&tokenizer->after);
        if (json_is_true(add_eos) && tokenizer->eos >= 0)
            MB_TRY(mb_ids_append(&tokenizer->after, (uint32_t)tokenizer->eos));
    }
done:
    return status;
}

/* 3. chat template */

static const char *template_text(const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template");
    size_t i;
    const json_t *entry;
    json_array_foreach(value, i, entry)
    { /* the older form: a list of {name, template} */
        const char *name = json_string_value(json_object_get(entry, "name"));
        if (name != NULL && strcmp(name, "default") == 0)
            return json_string_value(json_object_get(entry, "template"));
    }
    return json_string_value(value);
}

static mb_status read_chat_template(mb_tokenizer *tokenizer, const json_t *config, const char *folder)
{
    mb_status status = MB_OK;
    mb_str s = MB_STR_EMPTY;
    char *path = mb_files_join(folder, "chat_template.jinja");
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    const char *text = template_text(config);
    if (mb_files_is_file(path)) {
        MB_TRY(mb_files_read(path, 0, &s));
        text = mb_str_text(&s);
    }
    if (text != NULL && (tokenizer->chat_template = mb_strdup(text)) == NULL)
        MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
done:
    mb_str_destroy(&s);
    mb_free(path);
    return status;
}

/* 4. reading */

static mb_status read_file(const char *folder, const char *name, json_t **out_json)
{
    mb_status status = MB_OK;
    char *path = mb_files_join(folder, name);
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    if (mb_files_is_file(path)) MB_TRY(mb_json_read(path, out_json));
done:
    mb_free(path);
    return status;
}

mb_status mb_tokenizer_config_read(mb_tokenizer *tokenizer, const char *opt_folder)
{
    mb_status status = MB_OK;
    config_files files = {NULL, NULL, NULL};
    if (opt_folder != NULL) {
        MB_TRY(read_file(opt_folder, "tokenizer_config.json", &files.config));
        MB_TRY(read_file(opt_folder, "special_tokens_map.json", &files.map));
        MB_TRY(read_file(opt_folder, "generation_config.json", &files.generation));
        MB_TRY(read_chat_template(tokenizer, files.config, opt_folder));
    }
    status = find_specials(tokenizer, &files);
    if (status != MB_OK && opt_folder != NULL) mb_status_prefix("%s/", opt_folder);
    MB_TRY(status);
    MB_TRY(apply_add_tokens(tokenizer, files.config));
done:
    json_decref(files.config);
    json_decref(files.map);
    json_decref(files.generation);
    return status;
}
