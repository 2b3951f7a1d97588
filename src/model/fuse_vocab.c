/* fuse_vocab: vocabularies side by side.
 *
 * 1. tokenizers of the members
 * 2. conflicts
 * 3. who has which token
 * 4. the whole
 */
#include "model/fuse_vocab.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/files.h"
#include "base/log.h"
#include "base/memory.h"
#include "text/tokenizer.h"

enum { VOCAB_NAMED = 8 }; /* tokens that the log names */

typedef struct vocab_work {
    const mb_fuse_vocab_source *source;
    mb_tokenizer *tokenizer[MB_FUSE_VOCAB_MEMBERS]; /* NULL: the folder has none */
    int64_t count;
} vocab_work;

/* ---- 1. tokenizers ---- */

static mb_status vocab_open(vocab_work *work)
{
    mb_status status = MB_OK;
    char *path = NULL;
    int64_t without = 0, last = 0;
    for (int64_t m = 0; m < work->count; m++) {
        MB_FREE(path);
        path = mb_files_join(work->source[m].folder, "tokenizer.json");
        if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", work->source[m].folder);
        if (mb_files_is_file(path)) {
            MB_TRY(mb_tokenizer_open(work->source[m].folder, &work->tokenizer[m]));
        } else {
            without++;
            last = m;
        }
    }
    if (without > 0)
        mb_warn("%s: no tokenizer.json (%lld of %lld members): its vocabulary is compared by size alone",
                work->source[last].folder, (long long)without, (long long)work->count);
done:
    mb_free(path);
    return status;
}

static const char *vocab_token(const vocab_work *work, int64_t member, int64_t id)
{
    const mb_tokenizer *tokenizer = work->tokenizer[member];
    if (tokenizer == NULL || id >= mb_tokenizer_count(tokenizer)) return NULL;
    return mb_tokenizer_token(tokenizer, (uint32_t)id);
}

/* ---- 2. conflicts ---- */

/* Does each token of member a mean the same in b? */
static mb_status vocab_compare(const vocab_work *work, int64_t a, int64_t b)
{
    mb_status status = MB_OK;
    const mb_fuse_vocab_source *x = &work->source[a], *y = &work->source[b];
    const mb_tokenizer *one = work->tokenizer[a], *two = work->tokenizer[b];
    if (one == NULL || two == NULL || strcmp(mb_tokenizer_hash(one), mb_tokenizer_hash(two)) == 0) goto done;
    for (int64_t id = 0; id < mb_tokenizer_count(one); id++) {
        const char *token = vocab_token(work, a, id), *other = vocab_token(work, b, id);
        uint32_t found;
        if (token == NULL) continue;
        const bool is_there = mb_tokenizer_find(two, token, &found);
        if (other != NULL && strcmp(token, other) != 0)
            MB_RAISE(MB_EDATA,
                     "vocabularies contradict each other: id %lld is '%s' in %s (%s) and '%s' in %s (%s); "
                     "fuse models that share a tokenizer",
                     (long long)id, token, x->name, x->folder, other, y->name, y->folder);
        if (is_there && (int64_t)found != id)
            MB_RAISE(MB_EDATA,
                     "vocabularies contradict each other: token '%s' has id %lld in %s (%s) and id %lld in "
                     "%s (%s), whose %lld is '%s'; fuse models that share a tokenizer",
                     token, (long long)id, x->name, x->folder, (long long)found, y->name, y->folder,
                     (long long)found, token);
    }
done:
    return status;
}

/* ---- 3. who has which token ---- */

static const char *vocab_any_token(const vocab_work *work, int64_t id)
{
    const char *token = NULL;
    for (int64_t m = 0; m < work->count && token == NULL; m++) token = vocab_token(work, m, id);
    return token;
}

static bool vocab_has(const vocab_work *work, int64_t member, int64_t id, const char *opt_token)
{
    if (id >= work->source[member].rows) return false;
    return opt_token == NULL || work->tokenizer[member] == NULL || vocab_token(work, member, id) != NULL;
}

static mb_status vocab_add_only(mb_fuse_vocab *vocab, int64_t id, const char *opt_token)
{
    mb_status status = MB_OK;
    const int64_t n = vocab->only_count;
    if ((n & (n - 1)) == 0) { /* full at powers of two */
        mb_fuse_vocab_only *list = mb_realloc(vocab->only, (size_t)(n > 0 ? 2 * n : 1), sizeof *vocab->only);
        if (list == NULL) MB_RAISE(MB_ENOMEM, "vocabularies: no memory");
        vocab->only = list;
    }
    vocab->only[n] = (mb_fuse_vocab_only){.id = id, .token = mb_strdup(opt_token)};
    vocab->only_count++;
    if (opt_token != NULL && vocab->only[n].token == NULL) MB_RAISE(MB_ENOMEM, "vocabularies: no memory");
done:
    return status;
}

/* Member m lacks this id. */
static mb_status vocab_lacks(mb_fuse_vocab *vocab, int64_t member, int64_t id)
{
    mb_status status = MB_OK;
    if (vocab->has[member] == NULL) {
        MB_NEW_ARRAY(vocab->has[member], vocab->size);
        memset(vocab->has[member], 1, (size_t)vocab->size);
    }
    vocab->has[member][id] = 0;
done:
    return status;
}

static mb_status vocab_list(mb_fuse_vocab *vocab, const vocab_work *work)
{
    mb_status status = MB_OK;
    mb_hash *hash = NULL;
    MB_TRY(mb_hash_create(&hash));
    for (int64_t m = 0; m < vocab->members; m++) mb_hash_add_int(hash, vocab->rows[m]);
    for (int64_t id = 0; id < vocab->size; id++) {
        const char *token = vocab_any_token(work, id);
        int64_t lacking = 0;
        mb_hash_add_text(hash, token != NULL ? token : "");
        for (int64_t m = 0; m < vocab->members; m++) {
            if (vocab_has(work, m, id, token)) continue;
            MB_TRY(vocab_lacks(vocab, m, id));
            mb_hash_add_int(hash, m);
            lacking++;
        }
        if (lacking > 0) MB_TRY(vocab_add_only(vocab, id, token));
    }
    mb_hash_get(hash, vocab->hash);
done:
    mb_hash_destroy(&hash);
    return status;
}

/* ---- 4. the whole ---- */

mb_status mb_fuse_vocab_create(const mb_fuse_vocab_source *source, int64_t count, mb_fuse_vocab **out_vocab)
{
    mb_status status = MB_OK;
    mb_fuse_vocab *vocab = NULL;
    vocab_work work = {.source = source, .count = count};
    assert(count >= 1 && count <= MB_FUSE_VOCAB_MEMBERS);
    MB_NEW(vocab);
    vocab->members = count;
    for (int64_t m = 0; m < count; m++) {
        vocab->rows[m] = source[m].rows;
        if (source[m].rows > vocab->size) vocab->size = source[m].rows;
    }
    MB_TRY(vocab_open(&work));
    for (int64_t a = 0; a < count; a++)
        for (int64_t b = 0; b < count; b++)
            if (a != b) MB_TRY(vocab_compare(&work, a, b));
    MB_TRY(vocab_list(vocab, &work));
    *out_vocab = vocab;
    vocab = NULL;
done:
    for (int64_t m = 0; m < count; m++) mb_tokenizer_close(&work.tokenizer[m]);
    mb_fuse_vocab_destroy(&vocab);
    return status;
}

void mb_fuse_vocab_destroy(mb_fuse_vocab **vocab)
{
    mb_fuse_vocab *v = *vocab;
    if (v == NULL) return;
    for (int64_t m = 0; m < v->members; m++) mb_free(v->has[m]);
    for (int64_t i = 0; i < v->only_count; i++) mb_free(v->only[i].token);
    mb_free(v->only);
    mb_free(v);
    *vocab = NULL;
}

bool mb_fuse_vocab_is_equal(const mb_fuse_vocab *vocab)
{
    return vocab->only_count == 0;
}

const char *mb_fuse_vocab_token(const mb_fuse_vocab *vocab, int64_t id)
{
    for (int64_t i = 0; i < vocab->only_count; i++)
        if (vocab->only[i].id == id) return vocab->only[i].token != NULL ? vocab->only[i].token : "";
    return "";
}

void mb_fuse_vocab_report(const mb_fuse_vocab *vocab, const mb_fuse_vocab_source *source)
{
    mb_str text = MB_STR_EMPTY;
    int64_t tokens = 0, padding = 0;
    for (int64_t i = 0; i < vocab->only_count; i++) {
        const mb_fuse_vocab_only *only = &vocab->only[i];
        if (only->token == NULL) {
            padding++;
            continue;
        }
        if (tokens++ >= VOCAB_NAMED) continue;
        (void)mb_str_add_format(&text, "%s'%s' (%lld, not in", tokens > 1 ? ", " : "", only->token,
                                (long long)only->id);
        for (int64_t m = 0; m < vocab->members; m++)
            if (!mb_fuse_vocab_has(vocab, m, only->id)) (void)mb_str_add_format(&text, " %s", source[m].name);
        (void)mb_str_add(&text, ")");
    }
    if (tokens > 0)
        mb_warn("%lld tokens are not in all vocabularies and are not mixed: %s%s", (long long)tokens,
                mb_str_text(&text), tokens > VOCAB_NAMED ? ", ..." : "");
    if (padding > 0)
        mb_info("%lld rows of padding behind the vocabulary are not in all members and are not mixed",
                (long long)padding);
    mb_str_destroy(&text);
}
