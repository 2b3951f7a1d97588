/* added_tokens: leftmost-longest matching of added tokens with a byte trie.
 *
 * 1. the trie  2. stripping and single words  3. the walk
 */
#include "text/added_tokens.h"

#include <string.h>

#include "base/memory.h"

typedef struct node {
    int32_t child;   /* first child, 0 none (the root, node 0, is nobody's child) */
    int32_t sibling; /* next child of the same parent, 0 none */
    unsigned char byte;
    const mb_added_token *token; /* a pattern ends here */
} node;

struct mb_added_tokens {
    node *nodes;
    int32_t count;
    int32_t capacity;
    int32_t first[256]; /* the root's child by byte, 0 none */
};

/* 1. the trie */

static mb_status add_node(mb_added_tokens *tokens, unsigned char byte, int32_t *out_node)
{
    if (tokens->count == tokens->capacity) {
        int32_t capacity = 2 * tokens->capacity + 64;
        node *nodes = mb_realloc(tokens->nodes, (size_t)capacity, sizeof *nodes);
        if (nodes == NULL) return MB_ENOMEM;
        tokens->nodes = nodes;
        tokens->capacity = capacity;
    }
    tokens->nodes[tokens->count] = (node){.byte = byte};
    *out_node = tokens->count++;
    return MB_OK;
}

mb_status mb_added_tokens_create(mb_added_tokens **out_tokens)
{
    mb_status status = MB_OK;
    mb_added_tokens *tokens = NULL;
    int32_t root;
    MB_NEW(tokens);
    MB_TRY(add_node(tokens, 0, &root));
    *out_tokens = tokens;
    tokens = NULL;
done:
    mb_added_tokens_destroy(&tokens);
    return status;
}

void mb_added_tokens_destroy(mb_added_tokens **tokens)
{
    if (*tokens == NULL) return;
    mb_free((*tokens)->nodes);
    MB_FREE(*tokens);
}

static int32_t find_child(const mb_added_tokens *tokens, int32_t parent, unsigned char byte)
{
    if (parent == 0) return tokens->first[byte];
    int32_t child = tokens->nodes[parent].child;
    while (child != 0 && tokens->nodes[child].byte != byte) child = tokens->nodes[child].sibling;
    return child;
}

mb_status mb_added_tokens_add(mb_added_tokens *tokens, const char *pattern, size_t n,
                              const mb_added_token *token)
{
    mb_status status = MB_OK;
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)pattern[i];
        int32_t child = find_child(tokens, at, byte);
        if (child == 0) {
            MB_TRY(add_node(tokens, byte, &child));
            if (at == 0) {
                tokens->first[byte] = child;
            } else {
                tokens->nodes[child].sibling = tokens->nodes[at].child;
                tokens->nodes[at].child = child;
            }
        }
        at = child;
    }
    if (tokens->nodes[at].token == NULL) tokens->nodes[at].token = token;
done:
    return status;
}

/* The longest pattern at the leftmost place at or after `from`; NULL if there is none. */
static const mb_added_token *find(const mb_added_tokens *tokens, const char *text, size_t n, size_t from,
                                  size_t *out_first, size_t *out_end)
{
    if (tokens->count == 1) return NULL;
    for (size_t i = from; i < n; i++) {
        const mb_added_token *best = NULL;
        int32_t at = tokens->first[(unsigned char)text[i]];
        for (size_t j = i + 1; at != 0; j++) {
            if (tokens->nodes[at].token != NULL) {
                best = tokens->nodes[at].token;
                *out_end = j;
            }
            at = j < n ? find_child(tokens, at, (unsigned char)text[j]) : 0;
        }
        if (best != NULL) {
            *out_first = i;
            return best;
        }
    }
    return NULL;
}

/* 2. stripping and single words */

static size_t character_before(const char *text, size_t at, uint32_t *out_character)
{
    size_t i = at - 1;
    while (i > 0 && ((unsigned char)text[i] & 0xC0) == 0x80) i--;
    mb_normalize_decode(text + i, out_character);
    return i;
}

static bool is_single_word(const char *text, size_t n, size_t first, size_t end)
{
    uint32_t c;
    if (first > 0) {
        character_before(text, first, &c);
        if (mb_normalize_is_word(c)) return false;
    }
    if (end < n) {
        mb_normalize_decode(text + end, &c);
        if (mb_normalize_is_word(c)) return false;
    }
    return true;
}

static size_t strip_left(const char *text, size_t first)
{
    uint32_t c;
    while (first > 0) {
        size_t before = character_before(text, first, &c);
        if (!mb_normalize_is_white(c)) break;
        first = before;
    }
    return first;
}

static size_t strip_right(const char *text, size_t n, size_t end)
{
    uint32_t c;
    while (end < n) {
        size_t length = mb_normalize_decode(text + end, &c);
        if (!mb_normalize_is_white(c)) break;
        end += length;
    }
    return end;
}

/* 3. the walk */

bool mb_added_tokens_next(const mb_added_tokens *tokens, mb_added_walk *walk, const char *text, size_t n,
                          mb_added_part *out_part)
{
    if (walk->pending.token != NULL) {
        *out_part = walk->pending;
        walk->pending.token = NULL;
        return true;
    }
    const mb_added_token *token;
    size_t first = 0, end = 0;
    while ((token = find(tokens, text, n, walk->search, &first, &end)) != NULL) {
        walk->search =
            end; /* the next match may lie in white space that this one strips; HF reports it all the same */
        if (token->single_word && !is_single_word(text, n, first, end)) continue;
        if (token->lstrip) {
            first = strip_left(text, first);
            if (first < walk->start) first = walk->start;
        }
        if (token->rstrip) end = strip_right(text, n, end);
        if (first >= end) continue; /* nothing is left of it */
        mb_added_part part = {.token = token, .first = first, .end = end};
        size_t start = walk->start;
        walk->start = end;
        if (start < first) {
            walk->pending = part;
            *out_part = (mb_added_part){.first = start, .end = first};
        } else {
            *out_part = part;
        }
        return true;
    }
    walk->search = n;
    if (walk->start >= n) return false;
    *out_part = (mb_added_part){.first = walk->start, .end = n};
    walk->start = n;
    return true;
}
