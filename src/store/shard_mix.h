/* shard_mix: which records of each input go into the shard, which are held back, and in what order they come.
 * Private to shard_build.
 *
 * Layer: store.  Uses: base, comm, h5, shard_build (options).
 *
 * Every record of an input has an order number, a keyed bijection of its index (seed, input's name): the
 * input's records in the order of these numbers are a random permutation that nobody has to hold. The first
 * `held` usable records of it are held back for validation, the next `asked` are drawn. Which records are
 * usable is known only when they were read, so the first held + asked are looked at, and as many more, round
 * by round, as were unusable. All that is kept is a threshold per input; it is found by counting order
 * numbers digit by digit, over all ranks. Nothing depends on the number of ranks, on other inputs or on their
 * order.
 */
#ifndef MB_SHARD_MIX_H
#define MB_SHARD_MIX_H

#include "comm/comm.h"
#include "store/shard_build.h"

typedef struct mb_shard_draw {
    uint64_t keys[4];
    bool is_drawn;     /* some records may be left out or held back: `available` is needed */
    int64_t available; /* records of the file, good and bad */
    double weight;     /* normalised; -1 none */
    int64_t asked;     /* for the shard; -1: all */
    int64_t held;      /* for validation, before the others */
    /* rounds: records [looked, candidates) of the order are looked at in this one */
    int64_t looked, candidates, good;
    uint64_t looked_last, last; /* order numbers of the last of each; looked_last counts when looked > 0 */
    /* settled: every usable record behind the held ones is written `copies` times, the first `extra` of them
     * once more */
    int64_t held_found, copies, extra;
    uint64_t held_last, extra_last; /* order numbers; count when held_found, extra > 0 */
} mb_shard_draw;

/* Do the options ask for anything but all records in the order of the inputs? */
bool mb_shard_mix_is_asked(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n);
/* draws: zeroed. Sets keys, and is_drawn by what the options ask for. */
void mb_shard_mix_start(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                        mb_shard_draw *draws);
/* From `available` of every drawn input: weight, asked, held, and the first round's candidates. Says what was
 * normalised or taken for granted. MB_EUSAGE: options that contradict each other. */
mb_status mb_shard_mix_plan(const mb_shard_build_options *options, const mb_shard_input *inputs, int64_t n,
                            mb_shard_draw *draws);
/* Collective. The threshold `last` of this round's candidates. */
mb_status mb_shard_mix_window(mb_comm *comm, mb_shard_draw *draws, int64_t n);
/* After a round, with `good` of all ranks so far: the candidates of the next. False: there is none. */
bool mb_shard_mix_grow(mb_shard_draw *draws, int64_t n);
/* Collective. Settle what is written, from the part files this rank has written. */
mb_status mb_shard_mix_settle(mb_comm *comm, const mb_shard_build_options *options,
                              const mb_shard_input *inputs, int64_t n, char *const *parts, int64_t part_count,
                              mb_shard_draw *draws);

/* Is a record to be looked at in this round? */
bool mb_shard_mix_is_candidate(const mb_shard_draw *draw, int64_t index);
/* How often a usable record is written; *out_is_held: once, into the validation shard. */
int64_t mb_shard_mix_copies(const mb_shard_draw *draw, int64_t index, bool *out_is_held);
/* Where a copy of a record stands among all of a shuffled shard: by rising numbers. */
uint64_t mb_shard_mix_place(const mb_shard_draw *draw, int64_t index, int64_t copy);

#endif
