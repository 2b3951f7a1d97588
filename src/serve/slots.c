/* slots: the sequences that are being answered, each with its run of cache rows. */
#include "serve/slots.h"

#include "base/memory.h"

mb_status mb_slots_create(int64_t count, int64_t rows, mb_slots *slots)
{
    mb_status status = MB_OK;
    MB_NEW_ARRAY(slots->list, count);
    slots->count = count;
    slots->rows = rows;
done:
    return status;
}

void mb_slots_reset(mb_slots *slots)
{
    for (int64_t i = 0; i < slots->count; i++) mb_ids_destroy(&slots->list[i].ids);
    mb_free(slots->list);
    *slots = (mb_slots){0};
}

/* The lowest row where `room` rows are free: 0 or the end of a run in use. -1: none. */
static int64_t slots_gap(const mb_slots *slots, int64_t room)
{
    int64_t best = -1;
    for (int64_t c = -1; c < slots->count; c++) {
        if (c >= 0 && !slots->list[c].is_used) continue;
        const int64_t first = c < 0 ? 0 : slots->list[c].first + slots->list[c].room;
        bool is_free = first + room <= slots->rows && (best < 0 || first < best);
        for (int64_t i = 0; is_free && i < slots->count; i++) {
            const mb_slot *s = &slots->list[i];
            if (s->is_used && s->first < first + room && first < s->first + s->room) is_free = false;
        }
        if (is_free) best = first;
    }
    return best;
}

int64_t mb_slots_take(mb_slots *slots, int64_t room)
{
    if (slots->used == slots->count) return -1;
    const int64_t first = slots_gap(slots, room);
    if (first < 0) return -1;
    int64_t slot = 0;
    while (slots->list[slot].is_used) slot++;
    mb_slot *s = &slots->list[slot];
    const mb_ids ids = s->ids;
    *s = (mb_slot){.is_used = true, .leader = -1, .first = first, .room = room, .ids = ids};
    mb_ids_reset(&s->ids);
    slots->used++;
    return slot;
}

void mb_slots_give(mb_slots *slots, int64_t slot)
{
    slots->list[slot].is_used = false;
    slots->used--;
}
