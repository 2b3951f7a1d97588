/* bpe_train: words of texts -> counts -> merges -> tokenizer.json.
 *
 * 1. create and destroy  2. counting words  3. alphabet and merges  4. the files  5. write
 */
#include "text/bpe_train.h"

#include <string.h>

#include "base/files.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/option.h"
#include "text/bpe.h"
#include "text/bpe_train_merge.h"
#include "text/bpe_vocab.h"
#include "text/pretokenize.h"

#define BYTES 256

struct mb_bpe_train {
    int64_t vocab_size;
    int64_t min_frequency;
    char **specials;
    int64_t special_count;
    mb_pretokenizer *pretokenizer;
    mb_pretokenize_work work;
    mb_tokenizer_matcher *matcher;
    mb_str bytes;    /* all distinct words one behind the other */
    int64_t *starts; /* word_count + 1 */
    int64_t *counts;
    int64_t word_count;
    int64_t word_capacity;
    uint32_t *slots; /* hash table: word + 1 */
    size_t slot_count;
};

/* What training makes: tokens by id, and the merges in order. */
typedef struct learned {
    mb_bpe_vocab vocab;
    uint32_t *merges; /* 2 ids each */
    int64_t merge_count;
    int64_t merge_capacity;
} learned;

/* 1. create and destroy */

static json_t *byte_level(void)
{
    return json_pack("{s:s,s:b,s:b,s:b}", "type", "ByteLevel", "add_prefix_space", 0, "trim_offsets", 0,
                     "use_regex", 1);
}

mb_status mb_bpe_train_create(int64_t vocab_size, int64_t min_frequency, const char *opt_specials,
                              mb_bpe_train **out_train)
{
    mb_status status = MB_OK;
    mb_bpe_train *train = NULL;
    json_t *json = byte_level();
    MB_NEW(train);
    MB_TRY(mb_option_list_split(opt_specials != NULL ? opt_specials : "<|endoftext|>,<|pad|>",
                                &train->specials, &train->special_count));
    if (vocab_size < BYTES + train->special_count || vocab_size > MB_BPE_VOCAB_MAX_ID)
        MB_RAISE(MB_EUSAGE,
                 "a vocabulary of %lld tokens cannot be trained; it must have the 256 bytes and %lld special "
                 "tokens, and at most %u",
                 (long long)vocab_size, (long long)train->special_count, MB_BPE_VOCAB_MAX_ID);
    train->vocab_size = vocab_size;
    train->min_frequency = min_frequency > 1 ? min_frequency : 1;
    MB_TRY(mb_pretokenizer_read(json, "tokenizer training", &train->pretokenizer));
    MB_TRY(mb_tokenizer_matcher_create(&train->matcher));
    *out_train = train;
    train = NULL;
done:
    json_decref(json);
    mb_bpe_train_destroy(&train);
    return status;
}

void mb_bpe_train_destroy(mb_bpe_train **train)
{
    mb_bpe_train *t = *train;
    if (t == NULL) return;
    mb_option_list_free(&t->specials, t->special_count);
    mb_pretokenizer_destroy(&t->pretokenizer);
    mb_pretokenize_work_destroy(&t->work);
    mb_tokenizer_matcher_destroy(&t->matcher);
    mb_str_destroy(&t->bytes);
    mb_free(t->starts);
    mb_free(t->counts);
    mb_free(t->slots);
    MB_FREE(*train);
}

/* 2. counting words */

static const char *word_bytes(const mb_bpe_train *train, int64_t word, size_t *out_n)
{
    *out_n = (size_t)(train->starts[word + 1] - train->starts[word]);
    return train->bytes.data + train->starts[word];
}

static mb_status grow_words(mb_bpe_train *train)
{
    mb_status status = MB_OK;
    if (train->word_count + 1 >= INT32_MAX)
        MB_RAISE(MB_ERANGE, "more than 2^31 distinct words; train on a sample");
    if (train->word_count + 1 >= train->word_capacity) {
        int64_t capacity = 2 * train->word_capacity + 1024;
        int64_t *starts = mb_realloc(train->starts, (size_t)capacity, sizeof *starts);
        if (starts == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld words", (long long)capacity);
        train->starts = starts;
        int64_t *counts = mb_realloc(train->counts, (size_t)capacity, sizeof *counts);
        if (counts == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld words", (long long)capacity);
        train->counts = counts;
        train->word_capacity = capacity;
        train->starts[0] = 0;
    }
    if ((size_t)(train->word_count + 1) * 2 > train->slot_count) {
        size_t count = train->slot_count == 0 ? 4096 : 2 * train->slot_count, n;
        uint32_t *slots = NULL;
        MB_NEW_ARRAY(slots, count);
        for (int64_t w = 0; w < train->word_count; w++) {
            const char *bytes = word_bytes(train, w, &n);
            size_t i = (size_t)mb_hash_u64(bytes, n, 0) & (count - 1);
            while (slots[i] != 0) i = (i + 1) & (count - 1);
            slots[i] = (uint32_t)w + 1;
        }
        mb_free(train->slots);
        train->slots = slots;
        train->slot_count = count;
    }
done:
    return status;
}

static mb_status count_word(mb_bpe_train *train, const char *word, size_t n)
{
    mb_status status = MB_OK;
    size_t length = 0;
    MB_TRY(grow_words(train));
    size_t i = (size_t)mb_hash_u64(word, n, 0) & (train->slot_count - 1);
    for (; train->slots[i] != 0; i = (i + 1) & (train->slot_count - 1)) {
        int64_t w = train->slots[i] - 1;
        const char *bytes = word_bytes(train, w, &length);
        if (length == n && memcmp(bytes, word, n) == 0) {
            train->counts[w]++;
            return MB_OK;
        }
    }
    MB_TRY(mb_str_append(&train->bytes, word, n));
    train->slots[i] = (uint32_t)train->word_count + 1;
    train->counts[train->word_count++] = 1;
    train->starts[train->word_count] = (int64_t)train->bytes.length;
done:
    return status;
}

mb_status mb_bpe_train_add(mb_bpe_train *train, const char *text, size_t n)
{
    mb_status status = MB_OK;
    size_t bad = 0;
    mb_text_view view = {.bytes = text, .n = n}, cut;
    const mb_range *words = NULL;
    int64_t count = 0;
    if (!mb_str_is_utf8(text, n, &bad)) MB_RAISE(MB_EDATA, "the text is not valid UTF-8 at byte %zu", bad);
    if (n == 0) return MB_OK;
    MB_TRY(mb_pretokenizer_run(train->pretokenizer, &train->work, train->matcher, &view, false, &cut, &words,
                               &count));
    for (int64_t i = 0; i < count; i++)
        MB_TRY(count_word(train, cut.bytes + words[i].first, (size_t)(words[i].end - words[i].first)));
done:
    return status;
}

/* 3. alphabet and merges */

static mb_status add_token(learned *l, const char *text, size_t n, const char *what)
{
    mb_status status = mb_bpe_vocab_add(&l->vocab, text, n, (uint32_t)l->vocab.count);
    if (status == MB_EEXIST)
        return mb_fail(MB_EUSAGE, "the special token \"%.*s\" is there twice or is %s", (int)n, text, what);
    return status;
}

/* The special tokens, then the characters of the bytes in order of their code points. */
static mb_status add_alphabet(const mb_bpe_train *train, learned *l, uint32_t byte_ids[BYTES])
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < train->special_count; i++)
        MB_TRY(add_token(l, train->specials[i], strlen(train->specials[i]), "empty"));
    for (uint32_t c = 0; c < 2 * BYTES; c++) {
        char text[4];
        int byte = mb_bpe_character_byte(c);
        if (byte < 0) continue;
        byte_ids[byte] = (uint32_t)l->vocab.count;
        MB_TRY(add_token(l, text, mb_normalize_encode(c, text), "the character of a byte"));
    }
done:
    return status;
}

/* Note the merge, and give the id of what it makes (a new one unless another merge makes the same token). */
static mb_status add_merge(learned *l, uint32_t left, uint32_t right, uint32_t *out_id)
{
    mb_status status = MB_OK;
    mb_str text = MB_STR_EMPTY;
    MB_TRY(mb_str_add(&text, mb_bpe_vocab_text(&l->vocab, left, NULL)));
    MB_TRY(mb_str_add(&text, mb_bpe_vocab_text(&l->vocab, right, NULL)));
    *out_id = mb_bpe_vocab_find(&l->vocab, mb_str_text(&text), text.length);
    if (*out_id == UINT32_MAX) {
        *out_id = (uint32_t)l->vocab.count;
        MB_TRY(mb_bpe_vocab_add(&l->vocab, mb_str_text(&text), text.length, *out_id));
    }
    if (l->merge_count == l->merge_capacity) {
        int64_t capacity = 2 * l->merge_capacity + 1024;
        uint32_t *merges = mb_realloc(l->merges, (size_t)capacity, 2 * sizeof *merges);
        if (merges == NULL) MB_RAISE(MB_ENOMEM, "no memory for %lld merges", (long long)capacity);
        l->merges = merges;
        l->merge_capacity = capacity;
    }
    l->merges[2 * l->merge_count] = left;
    l->merges[2 * l->merge_count + 1] = right;
    l->merge_count++;
done:
    mb_str_destroy(&text);
    return status;
}

static mb_status learn(const mb_bpe_train *train, learned *l)
{
    mb_status status = MB_OK;
    mb_bpe_train_merge *merge = NULL;
    uint32_t *symbols = NULL, byte_ids[BYTES] = {0}, left = 0, right = 0, id = 0;
    int64_t count = 0, no_words = 0;
    bool found = false;
    MB_TRY(add_alphabet(train, l, byte_ids));
    MB_NEW_ARRAY(symbols, train->bytes.length);
    for (size_t i = 0; i < train->bytes.length; i++)
        symbols[i] = byte_ids[(unsigned char)train->bytes.data[i]];
    MB_TRY(mb_bpe_train_merge_create(symbols, train->word_count > 0 ? train->starts : &no_words,
                                     train->counts, train->word_count, &merge));
    while (l->vocab.count < train->vocab_size) {
        MB_TRY(mb_bpe_train_merge_best(merge, &found, &left, &right, &count));
        if (!found || count < train->min_frequency) break;
        MB_TRY(add_merge(l, left, right, &id));
        MB_TRY(mb_bpe_train_merge_apply(merge, id));
    }
done:
    mb_bpe_train_merge_destroy(&merge);
    mb_free(symbols);
    return status;
}

/* 4. the files */

static mb_status append(json_t *array, json_t *value)
{
    return json_array_append_new(array, value) == 0 ? MB_OK
                                                    : mb_fail(MB_ENOMEM, "no memory for a tokenizer.json");
}

static mb_status make_model(const learned *l, json_t *model)
{
    mb_status status = MB_OK;
    json_t *vocab = json_object(), *merges = json_array();
    mb_str text = MB_STR_EMPTY;
    for (uint32_t id = 0; id < l->vocab.count; id++)
        MB_TRY(mb_json_set(vocab, mb_bpe_vocab_text(&l->vocab, id, NULL), json_integer(id)));
    for (int64_t i = 0; i < l->merge_count; i++) {
        mb_str_reset(&text);
        MB_TRY(mb_str_add_format(&text, "%s %s", mb_bpe_vocab_text(&l->vocab, l->merges[2 * i], NULL),
                                 mb_bpe_vocab_text(&l->vocab, l->merges[2 * i + 1], NULL)));
        MB_TRY(append(merges, json_string(mb_str_text(&text))));
    }
    MB_TRY(mb_json_set(model, "vocab", vocab));
    vocab = NULL;
    MB_TRY(mb_json_set(model, "merges", merges));
    merges = NULL;
done:
    json_decref(vocab);
    json_decref(merges);
    mb_str_destroy(&text);
    return status;
}

static mb_status write_tokenizer(const mb_bpe_train *train, const learned *l, const char *path)
{
    mb_status status = MB_OK;
    json_t *added = json_array();
    json_t *model = json_pack("{s:s,s:n,s:n,s:n,s:n,s:b,s:b,s:b}", "type", "BPE", "dropout", "unk_token",
                              "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 0,
                              "byte_fallback", 0, "ignore_merges", 0);
    json_t *json = json_pack("{s:s,s:n,s:n,s:O,s:n,s:o,s:o,s:o,s:O}", "version", "1.0", "truncation",
                             "padding", "added_tokens", added, "normalizer", "pre_tokenizer", byte_level(),
                             "post_processor", byte_level(), "decoder", byte_level(), "model", model);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    for (int64_t i = 0; i < train->special_count; i++)
        MB_TRY(append(added,
                      json_pack("{s:i,s:s,s:b,s:b,s:b,s:b,s:b}", "id", (int)i, "content", train->specials[i],
                                "single_word", 0, "lstrip", 0, "rstrip", 0, "normalized", 0, "special", 1)));
    MB_TRY(make_model(l, model));
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(added);
    json_decref(model);
    json_decref(json);
    return status;
}

/* The first special token ends texts, the second (else the first) pads. */
static mb_status write_config(const mb_bpe_train *train, const char *path)
{
    mb_status status = MB_OK;
    json_t *json = json_pack("{s:s,s:b,s:b}", "tokenizer_class", "PreTrainedTokenizerFast",
                             "add_prefix_space", 0, "clean_up_tokenization_spaces", 0);
    if (json == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", path);
    if (train->special_count > 0) {
        MB_TRY(mb_json_set(json, "eos_token", json_string(train->specials[0])));
        MB_TRY(mb_json_set(json, "pad_token", json_string(train->specials[train->special_count > 1])));
    }
    MB_TRY(mb_json_write(path, json, 2, false));
done:
    json_decref(json);
    return status;
}

/* 5. write */

mb_status mb_bpe_train_write(mb_bpe_train *train, const char *folder)
{
    mb_status status = MB_OK;
    learned l = {.merges = NULL};
    char *tokenizer = mb_files_join(folder, "tokenizer.json"),
         *config = mb_files_join(folder, "tokenizer_config.json");
    if (tokenizer == NULL || config == NULL) MB_RAISE(MB_ENOMEM, "%s: no memory", folder);
    MB_TRY(learn(train, &l));
    MB_TRY(mb_files_make_folders(folder));
    MB_TRY(write_tokenizer(train, &l, tokenizer));
    MB_TRY(write_config(train, config));
done:
    mb_free(tokenizer);
    mb_free(config);
    mb_free(l.merges);
    mb_bpe_vocab_destroy(&l.vocab);
    return status;
}
