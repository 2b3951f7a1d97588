/* tile_stream: tiles in a ring, one being read, the others in use; a thread, a lock and a condition.
 *
 * 1. the reader   2. creation   3. use
 */
#include "measure/tile_stream.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

enum { MOST_HELD = 2 };
typedef enum stream_state { STREAM_IDLE, STREAM_ASKED, STREAM_READY, STREAM_END } stream_state;

struct mb_tile_stream {
    mb_shard *shard;
    const mb_tile_plan *plan;
    int64_t limit;
    mb_tile_targets targets;
    mb_tile tile[MOST_HELD + 1];
    int held, back; /* back: the one the reader fills, of held + 1 */
    pthread_t thread;
    bool has_thread, has_lock;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    stream_state state;
    int64_t asked;
    mb_status status; /* of the read that is ready */
    char message[1024];
    double waited;
};

/* ---- 1. the reader ---- */

static void read_asked(mb_tile_stream *s)
{
    s->status = mb_tile_read(&s->tile[s->back], s->shard, s->plan, s->asked, s->limit, s->targets);
    s->message[0] = '\0';
    if (s->status != MB_OK) snprintf(s->message, sizeof s->message, "%s", mb_status_message());
}

static void *reader(void *opaque)
{
    mb_tile_stream *s = opaque;
    pthread_mutex_lock(&s->lock);
    while (s->state != STREAM_END) {
        if (s->state == STREAM_ASKED) {
            pthread_mutex_unlock(&s->lock);
            read_asked(s);
            pthread_mutex_lock(&s->lock);
            if (s->state == STREAM_ASKED) s->state = STREAM_READY;
            pthread_cond_broadcast(&s->changed);
        } else {
            pthread_cond_wait(&s->changed, &s->lock);
        }
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

/* ---- 2. creation ---- */

mb_status mb_tile_stream_create(mb_shard *shard, const mb_tile_plan *plan, int64_t limit,
                                mb_tile_targets targets, int held, mb_tile_stream **out_stream)
{
    mb_status status = MB_OK;
    mb_tile_stream *s = NULL;
    assert(held >= 1 && held <= MOST_HELD);
    MB_NEW(s);
    s->held = held;
    s->shard = shard;
    s->plan = plan;
    s->limit = limit;
    s->targets = targets;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    s->has_lock = true;
    if (pthread_create(&s->thread, NULL, reader, s) != 0)
        MB_RAISE(MB_ENOMEM, "no thread to read records ahead; the system's limit of processes is reached");
    s->has_thread = true;
    *out_stream = s;
    s = NULL;
done:
    mb_tile_stream_destroy(&s);
    return status;
}

void mb_tile_stream_destroy(mb_tile_stream **stream)
{
    mb_tile_stream *s = *stream;
    if (s == NULL) return;
    if (s->has_thread) {
        pthread_mutex_lock(&s->lock);
        s->state = STREAM_END;
        pthread_cond_broadcast(&s->changed);
        pthread_mutex_unlock(&s->lock);
        pthread_join(s->thread, NULL);
    }
    if (s->has_lock) {
        pthread_cond_destroy(&s->changed);
        pthread_mutex_destroy(&s->lock);
    }
    for (int i = 0; i <= MOST_HELD; i++) mb_tile_destroy(&s->tile[i]);
    MB_FREE(*stream);
}

/* ---- 3. use ---- */

void mb_tile_stream_start(mb_tile_stream *stream, int64_t tile)
{
    assert(tile >= 0 && tile < stream->plan->count);
    pthread_mutex_lock(&stream->lock);
    assert(stream->state == STREAM_IDLE);
    stream->asked = tile;
    stream->state = STREAM_ASKED;
    pthread_cond_broadcast(&stream->changed);
    pthread_mutex_unlock(&stream->lock);
}

/* Until no read is under way; the lock is held on return. */
static void wait_locked(mb_tile_stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    const double began = mb_clock_seconds();
    while (stream->state == STREAM_ASKED) pthread_cond_wait(&stream->changed, &stream->lock);
    stream->waited += mb_clock_seconds() - began;
}

void mb_tile_stream_wait(mb_tile_stream *stream)
{
    wait_locked(stream);
    pthread_mutex_unlock(&stream->lock);
}

mb_status mb_tile_stream_take(mb_tile_stream *stream, const mb_tile **out_tile)
{
    wait_locked(stream);
    assert(stream->state == STREAM_READY);
    stream->state = STREAM_IDLE;
    const mb_status status = stream->status;
    const mb_tile *tile = &stream->tile[stream->back];
    stream->back = (stream->back + 1) % (stream->held + 1);
    pthread_mutex_unlock(&stream->lock);
    if (status != MB_OK) return mb_fail(status, "%s", stream->message);
    *out_tile = tile;
    return MB_OK;
}

double mb_tile_stream_waited(const mb_tile_stream *stream)
{
    return stream->waited;
}
