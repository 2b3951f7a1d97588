/* merge_seen.c: a table with open addressing, at most half full. The keys are hashes already. */
#include "stage/merge_seen.h"

#include "base/memory.h"

typedef struct entry {
    uint64_t key;
    int64_t place; /* + 1; 0: free */
} entry;

struct mb_merge_seen {
    entry *entries; /* [capacity], a power of two */
    int64_t count, capacity;
};

mb_status mb_merge_seen_create(mb_merge_seen **out_seen)
{
    mb_status status = MB_OK;
    mb_merge_seen *seen = NULL;
    MB_NEW(seen);
    seen->capacity = 1024;
    MB_NEW_ARRAY(seen->entries, seen->capacity);
    *out_seen = seen;
    seen = NULL;
done:
    mb_merge_seen_destroy(&seen);
    return status;
}

void mb_merge_seen_destroy(mb_merge_seen **seen)
{
    if (*seen == NULL) return;
    mb_free((*seen)->entries);
    MB_FREE(*seen);
}

/* The entry of a key, or the free one where it belongs. */
static entry *find(entry *entries, int64_t capacity, uint64_t key)
{
    uint64_t i = key & (uint64_t)(capacity - 1);
    while (entries[i].place != 0 && entries[i].key != key) i = (i + 1) & (uint64_t)(capacity - 1);
    return &entries[i];
}

static mb_status grow(mb_merge_seen *seen)
{
    mb_status status = MB_OK;
    entry *more = NULL;
    if (2 * (seen->count + 1) <= seen->capacity) goto done;
    MB_NEW_ARRAY(more, 2 * seen->capacity);
    for (int64_t i = 0; i < seen->capacity; i++)
        if (seen->entries[i].place != 0)
            *find(more, 2 * seen->capacity, seen->entries[i].key) = seen->entries[i];
    mb_free(seen->entries);
    seen->entries = more;
    seen->capacity *= 2;
done:
    return status;
}

mb_status mb_merge_seen_add(mb_merge_seen *seen, uint64_t key, int64_t place, int64_t *out_first)
{
    mb_status status = MB_OK;
    MB_TRY(grow(seen));
    entry *found = find(seen->entries, seen->capacity, key);
    *out_first = found->place - 1;
    if (found->place != 0) goto done;
    *found = (entry){.key = key, .place = place + 1};
    seen->count++;
done:
    return status;
}

int64_t mb_merge_seen_get(const mb_merge_seen *seen, uint64_t key)
{
    return find(seen->entries, seen->capacity, key)->place - 1;
}
