/* word_model: one of the three models behind one face.
 *
 * 1. reading  2. vocabulary  3. encode
 */
#include "text/word_model.h"

#include <string.h>

#include "base/memory.h"
#include "text/bpe.h"
#include "text/unigram.h"
#include "text/wordpiece.h"

/* One of the three is there. */
struct mb_word_model {
    mb_bpe *bpe;
    mb_wordpiece *wordpiece;
    mb_unigram *unigram;
    const mb_bpe_vocab *vocab; /* of that one */
    mb_bpe_vocab extra;        /* added tokens that the model does not have */
};

struct mb_word_model_work {
    mb_bpe_work *bpe;
    mb_wordpiece_work *wordpiece;
    mb_unigram_work *unigram;
};

/* 1. reading */

/* Old files have no type: HF then takes the first kind that the members fit. */
static const char *guess_type(const json_t *model)
{
    if (json_is_array(json_object_get(model, "vocab"))) return "Unigram";
    return json_object_get(model, "merges") == NULL &&
                   json_object_get(model, "max_input_chars_per_word") != NULL
               ? "WordPiece"
               : "BPE";
}

mb_status mb_word_model_read(const json_t *json, const char *where, bool is_byte_level,
                             mb_word_model **out_model)
{
    mb_status status = MB_OK;
    mb_word_model *model = NULL;
    const char *type = guess_type(json);
    MB_NEW(model);
    MB_TRY(mb_json_opt_string(json, "type", where, &type));
    if (strcmp(type, "BPE") == 0) {
        MB_TRY(mb_bpe_read(json, where, is_byte_level, &model->bpe));
        model->vocab = mb_bpe_words(model->bpe);
    } else if (is_byte_level && (strcmp(type, "WordPiece") == 0 || strcmp(type, "Unigram") == 0)) {
        MB_RAISE(MB_EUNSUPPORTED, "%s: model type \"%s\" behind a ByteLevel pre-tokenizer is not done here",
                 where, type);
    } else if (strcmp(type, "WordPiece") == 0) {
        MB_TRY(mb_wordpiece_read(json, where, &model->wordpiece));
        model->vocab = mb_wordpiece_vocab(model->wordpiece);
    } else if (strcmp(type, "Unigram") == 0) {
        MB_TRY(mb_unigram_read(json, where, &model->unigram));
        model->vocab = mb_unigram_vocab(model->unigram);
    } else {
        MB_RAISE(MB_EUNSUPPORTED, "%s: model type \"%s\" is not done here (BPE, WordPiece and Unigram are)",
                 where, type);
    }
    *out_model = model;
    model = NULL;
done:
    mb_word_model_destroy(&model);
    return status;
}

void mb_word_model_destroy(mb_word_model **model)
{
    if (*model == NULL) return;
    mb_bpe_destroy(&(*model)->bpe);
    mb_wordpiece_destroy(&(*model)->wordpiece);
    mb_unigram_destroy(&(*model)->unigram);
    mb_bpe_vocab_destroy(&(*model)->extra);
    MB_FREE(*model);
}

void mb_word_model_hash(const mb_word_model *model, mb_hash *hash)
{
    if (model->bpe != NULL) {
        mb_bpe_hash(model->bpe, hash);
    } else if (model->wordpiece != NULL) {
        mb_hash_add_text(hash, "WordPiece");
        mb_wordpiece_hash(model->wordpiece, hash);
    } else {
        mb_hash_add_text(hash, "Unigram");
        mb_unigram_hash(model->unigram, hash);
    }
}

/* 2. vocabulary */

int64_t mb_word_model_size(const mb_word_model *model)
{
    return model->vocab->used;
}

int64_t mb_word_model_count(const mb_word_model *model)
{
    return model->extra.count > model->vocab->count ? model->extra.count : model->vocab->count;
}

uint32_t mb_word_model_find(const mb_word_model *model, const char *token, size_t n)
{
    uint32_t id = mb_bpe_vocab_find(&model->extra, token, n);
    return id != MB_WORD_MODEL_NONE ? id : mb_bpe_vocab_find(model->vocab, token, n);
}

const char *mb_word_model_token(const mb_word_model *model, uint32_t id, size_t *opt_length)
{
    const char *text = mb_bpe_vocab_text(model->vocab, id, opt_length);
    return text != NULL ? text : mb_bpe_vocab_text(&model->extra, id, opt_length);
}

mb_status mb_word_model_add(mb_word_model *model, const char *token, uint32_t id)
{
    if (mb_bpe_vocab_text(model->vocab, id, NULL) != NULL) return MB_EEXIST;
    return mb_bpe_vocab_add(&model->extra, token, strlen(token), id);
}

/* 3. encode */

mb_status mb_word_model_work_create(const mb_word_model *model, mb_word_model_work **out_work)
{
    mb_status status = MB_OK;
    mb_word_model_work *work = NULL;
    MB_NEW(work);
    if (model->bpe != NULL)
        MB_TRY(mb_bpe_work_create(&work->bpe));
    else if (model->wordpiece != NULL)
        MB_TRY(mb_wordpiece_work_create(&work->wordpiece));
    else
        MB_TRY(mb_unigram_work_create(&work->unigram));
    *out_work = work;
    work = NULL;
done:
    mb_word_model_work_destroy(&work);
    return status;
}

void mb_word_model_work_destroy(mb_word_model_work **work)
{
    if (*work == NULL) return;
    mb_bpe_work_destroy(&(*work)->bpe);
    mb_wordpiece_work_destroy(&(*work)->wordpiece);
    mb_unigram_work_destroy(&(*work)->unigram);
    MB_FREE(*work);
}

mb_status mb_word_model_encode(const mb_word_model *model, mb_word_model_work *work, const char *word,
                               size_t n, mb_ids *ids, mb_ids *opt_lengths)
{
    if (model->bpe != NULL) return mb_bpe_encode(model->bpe, work->bpe, word, n, ids, opt_lengths);
    if (model->wordpiece != NULL)
        return mb_wordpiece_encode(model->wordpiece, work->wordpiece, word, n, ids, opt_lengths);
    return mb_unigram_encode(model->unigram, work->unigram, word, n, ids, opt_lengths);
}
