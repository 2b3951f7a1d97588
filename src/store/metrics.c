/* metrics.c: metrics.jsonl line by line, and metrics.h5 made from it.
 *
 * A resume keeps the lines up to the checkpoint's step and truncates the file there. Publishing reads the
 * whole file again, so metrics.h5 never knows more or less than it.
 *
 * 1. cutting back   2. writing   3. curves and tables   4. publishing   5. reading
 */
#include "store/metrics.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/files.h"
#include "base/json.h"
#include "store/h5.h"

struct mb_metrics {
    char *folder, *path;
    int fd;
    double started;
};

/* ---- 1. cutting back ---- */

/* Reads a line that ends with a newline into a libc buffer; false at the end or at a torn line. */
static bool next_line(FILE *stream, char **line, size_t *capacity, size_t *out_length)
{
    ssize_t n = getline(line, capacity, stream);
    if (n <= 0 || (*line)[n - 1] != '\n') return false;
    *out_length = (size_t)n;
    return true;
}

static mb_status parse_line(const char *path, int64_t number, const char *line, size_t n, json_t **out_json,
                            int64_t *out_step)
{
    mb_status status = MB_OK;
    char where[512];
    json_t *json = NULL;
    snprintf(where, sizeof where, "%s: line %lld", path, (long long)number);
    MB_TRY(mb_json_parse(line, n, where, &json));
    MB_TRY(mb_json_get_int(json, "step", where, out_step));
    *out_json = json;
    json = NULL;
done:
    json_decref(json);
    return status;
}

/* How many bytes of the file hold whole lines of steps <= keep_step. */
static mb_status find_end(const char *path, int64_t keep_step, off_t *out_end)
{
    mb_status status = MB_OK;
    FILE *stream = NULL;
    char *line = NULL;
    size_t capacity = 0, n = 0;
    off_t end = 0;
    json_t *json = NULL;
    int64_t step = 0;
    stream = fopen(path, "re");
    if (stream == NULL && errno != ENOENT)
        MB_RAISE(MB_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    for (int64_t number = 1; stream != NULL && next_line(stream, &line, &capacity, &n); number++) {
        MB_TRY(parse_line(path, number, line, n, &json, &step));
        json_decref(json);
        json = NULL;
        if (step > keep_step) break;
        end += (off_t)n;
    }
    *out_end = end;
done:
    json_decref(json);
    free(line);
    if (stream != NULL) fclose(stream);
    return status;
}

mb_status mb_metrics_open(const char *folder, int64_t keep_step, mb_metrics **out_metrics)
{
    mb_status status = MB_OK;
    mb_metrics *metrics = NULL;
    off_t end = 0;
    MB_NEW(metrics);
    metrics->fd = -1;
    metrics->started = mb_clock_seconds();
    metrics->folder = mb_strdup(folder);
    metrics->path = mb_files_join(folder, "metrics.jsonl");
    if (metrics->folder == NULL || metrics->path == NULL)
        MB_RAISE(MB_ENOMEM, "%s: not enough memory", folder);
    MB_TRY(mb_files_make_folders(folder));
    if (keep_step >= 0) MB_TRY(find_end(metrics->path, keep_step, &end));
    metrics->fd = open(metrics->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (metrics->fd < 0) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", metrics->path, strerror(errno));
    if (ftruncate(metrics->fd, end) != 0)
        MB_RAISE(MB_EIO, "%s: cannot be cut back: %s", metrics->path, strerror(errno));
    *out_metrics = metrics;
    metrics = NULL;
done:
    mb_metrics_close(&metrics);
    return status;
}

void mb_metrics_close(mb_metrics **metrics)
{
    if (*metrics == NULL) return;
    if ((*metrics)->fd >= 0) close((*metrics)->fd);
    mb_free((*metrics)->folder);
    mb_free((*metrics)->path);
    MB_FREE(*metrics);
}

/* ---- 2. writing ---- */

/* Letters, digits, _ . and /, no empty part, not one of our own names. */
static bool is_name(const char *name)
{
    if (strcmp(name, "step") == 0 || strcmp(name, "time") == 0 || name[0] == '/') return false;
    char before = '/';
    for (const char *c = name; *c != 0; before = *c++) {
        if (!isalnum((unsigned char)*c) && strchr("_./", *c) == NULL) return false;
        if (before == '/' && (*c == '/' || *c == '.')) return false;
    }
    return before != '/';
}

/* , "name": [[1,2],[3,4]] */
static mb_status add_table(const mb_metric_table *table, mb_str *line)
{
    mb_status status = MB_OK;
    assert(is_name(table->name));
    MB_TRY(mb_str_add_format(line, ", \"%s\": [", table->name));
    for (int64_t r = 0; r < table->rows; r++) {
        for (int64_t c = 0; c < table->columns; c++)
            MB_TRY(mb_str_add_format(line, "%s%lld",
                                     c > 0   ? ","
                                     : r > 0 ? ",["
                                             : "[",
                                     (long long)table->counts[r * table->columns + c]));
        MB_TRY(mb_str_add(line, "]"));
    }
    MB_TRY(mb_str_add(line, "]"));
done:
    return status;
}

mb_status mb_metrics_write(mb_metrics *metrics, int64_t step, const mb_metric *values, int64_t n)
{
    return mb_metrics_write_table(metrics, step, values, n, NULL);
}

mb_status mb_metrics_write_table(mb_metrics *metrics, int64_t step, const mb_metric *values, int64_t n,
                                 const mb_metric_table *opt_table)
{
    mb_status status = MB_OK;
    mb_str line = MB_STR_EMPTY;
    MB_TRY(mb_str_add_format(&line, "{\"step\": %lld", (long long)step));
    for (int64_t i = 0; i < n; i++) {
        assert(is_name(values[i].name));
        MB_TRY(mb_str_add_format(&line, ", \"%s\": ", values[i].name));
        if (isfinite(values[i].value))
            MB_TRY(mb_str_add_format(&line, "%.17g", values[i].value));
        else
            MB_TRY(mb_str_add(&line, "null"));
    }
    if (opt_table != NULL) MB_TRY(add_table(opt_table, &line));
    MB_TRY(mb_str_add_format(&line, ", \"time\": %.3f}\n", mb_clock_seconds() - metrics->started));
    ssize_t written = write(metrics->fd, line.data, line.length);
    if (written != (ssize_t)line.length)
        MB_RAISE(written >= 0 || errno == ENOSPC ? MB_ENOSPACE : MB_EIO, "%s: cannot be written: %s",
                 metrics->path, written >= 0 ? "the disk is full" : strerror(errno));
done:
    mb_str_destroy(&line);
    return status;
}

/* ---- 3. curves and tables ---- */

typedef struct curve {
    char *name;
    double *values;
} curve;

typedef struct table {
    char *name; /* NULL: no line had one */
    int64_t rows, columns, count;
    int64_t *steps;  /* [count] */
    int64_t *counts; /* [count, rows, columns] */
} table;

typedef struct curves {
    int64_t *steps;
    int64_t count, capacity; /* lines */
    curve *curves;
    int64_t curve_count;
    table table;
} curves;

static void free_curves(curves *all)
{
    for (int64_t i = 0; i < all->curve_count; i++) {
        mb_free(all->curves[i].name);
        mb_free(all->curves[i].values);
    }
    mb_free(all->curves);
    mb_free(all->steps);
    mb_free(all->table.name);
    mb_free(all->table.steps);
    mb_free(all->table.counts);
}

/* Room for one more line. */
static mb_status grow_lines(curves *all)
{
    mb_status status = MB_OK;
    if (all->count < all->capacity) return MB_OK;
    int64_t wanted = all->capacity == 0 ? 256 : 2 * all->capacity;
    int64_t *steps = mb_realloc(all->steps, (size_t)wanted, sizeof *steps);
    if (steps == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
    all->steps = steps;
    for (int64_t i = 0; i < all->curve_count; i++) {
        double *values = mb_realloc(all->curves[i].values, (size_t)wanted, sizeof *values);
        if (values == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
        all->curves[i].values = values;
    }
    all->capacity = wanted;
done:
    return status;
}

static mb_status find_curve(curves *all, const char *name, curve **out_curve)
{
    mb_status status = MB_OK;
    for (int64_t i = 0; i < all->curve_count; i++)
        if (strcmp(all->curves[i].name, name) == 0) {
            *out_curve = &all->curves[i];
            return MB_OK;
        }
    curve *grown = mb_realloc(all->curves, (size_t)all->curve_count + 1, sizeof *grown);
    if (grown == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
    all->curves = grown;
    curve *fresh = &grown[all->curve_count++];
    *fresh = (curve){.name = mb_strdup(name), .values = mb_calloc((size_t)all->capacity, sizeof(double))};
    if (fresh->name == NULL || fresh->values == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
    for (int64_t i = 0; i < all->count; i++) fresh->values[i] = NAN;
    *out_curve = fresh;
done:
    return status;
}

static bool is_shape(const json_t *value, int64_t rows, int64_t columns)
{
    bool same = (int64_t)json_array_size(value) == rows;
    for (int64_t r = 0; r < rows && same; r++)
        same = (int64_t)json_array_size(json_array_get(value, (size_t)r)) == columns;
    return same;
}

/* Room for one more line: doubled whenever the count is a power of two. */
static mb_status grow_table(table *t)
{
    mb_status status = MB_OK;
    if ((t->count & (t->count - 1)) != 0) return MB_OK;
    const size_t wanted = t->count == 0 ? 1 : 2 * (size_t)t->count;
    int64_t *steps = mb_realloc(t->steps, wanted, sizeof *steps);
    if (steps == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
    t->steps = steps;
    int64_t *counts = mb_realloc(t->counts, wanted * (size_t)(t->rows * t->columns), sizeof *counts);
    if (counts == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
    t->counts = counts;
done:
    return status;
}

/* One more line of the table. */
static mb_status add_counts(table *t, const char *name, const json_t *value, int64_t step)
{
    mb_status status = MB_OK;
    if (t->name == NULL) {
        t->name = mb_strdup(name);
        if (t->name == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for the curves");
        t->rows = (int64_t)json_array_size(value);
        t->columns = (int64_t)json_array_size(json_array_get(value, 0));
    }
    if (strcmp(t->name, name) != 0 || !is_shape(value, t->rows, t->columns))
        MB_RAISE(MB_EFORMAT, "metrics.jsonl: the table %s of step %lld has another shape than those before",
                 name, (long long)step);
    MB_TRY(grow_table(t));
    const int64_t each = t->rows * t->columns;
    for (int64_t i = 0; i < each; i++) {
        const json_t *row = json_array_get(value, (size_t)(i / t->columns));
        t->counts[t->count * each + i] = json_integer_value(json_array_get(row, (size_t)(i % t->columns)));
    }
    t->steps[t->count++] = step;
done:
    return status;
}

static mb_status add_line(curves *all, const json_t *line, int64_t step)
{
    mb_status status = MB_OK;
    const char *name = NULL;
    json_t *value = NULL;
    curve *found = NULL;
    MB_TRY(grow_lines(all));
    all->steps[all->count] = step;
    for (int64_t i = 0; i < all->curve_count; i++) all->curves[i].values[all->count] = NAN;
    json_object_foreach((json_t *)line, name, value)
    {
        if (strcmp(name, "step") == 0) continue;
        if (json_is_array(value)) {
            MB_TRY(add_counts(&all->table, name, value, step));
            continue;
        }
        MB_TRY(find_curve(all, name, &found));
        found->values[all->count] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    all->count++;
done:
    return status;
}

static mb_status read_curves(const char *path, curves *all)
{
    mb_status status = MB_OK;
    char *line = NULL;
    size_t capacity = 0, n = 0;
    json_t *json = NULL;
    int64_t step = 0;
    FILE *stream = fopen(path, "re");
    if (stream == NULL) MB_RAISE(MB_EIO, "%s: cannot be opened: %s", path, strerror(errno));
    for (int64_t number = 1; next_line(stream, &line, &capacity, &n); number++) {
        MB_TRY(parse_line(path, number, line, n, &json, &step));
        MB_TRY(add_line(all, json, step));
        json_decref(json);
        json = NULL;
    }
done:
    json_decref(json);
    free(line);
    if (stream != NULL) fclose(stream);
    return status;
}

/* ---- 4. publishing ---- */

static mb_status publish_table(mb_h5 *file, const table *t)
{
    mb_status status = MB_OK;
    char *name = NULL;
    if (t->name == NULL) return MB_OK;
    mb_tensor counts = mb_tensor_view3(MB_I64, t->counts, t->count, t->rows, t->columns),
              steps = mb_tensor_view1(MB_I64, t->steps, t->count);
    name = mb_str_format("/%s", t->name);
    if (name == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a name");
    MB_TRY(mb_h5_write(file, name, &counts));
    mb_free(name);
    name = mb_str_format("/%s_step", t->name);
    if (name == NULL) MB_RAISE(MB_ENOMEM, "not enough memory for a name");
    MB_TRY(mb_h5_write(file, name, &steps));
done:
    mb_free(name);
    return status;
}

mb_status mb_metrics_publish(mb_metrics *metrics)
{
    mb_status status = MB_OK;
    curves all = {0};
    mb_h5 *file = NULL;
    char *path = mb_files_join(metrics->folder, "metrics.h5"), *name = NULL;
    if (path == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", metrics->path);
    if (fsync(metrics->fd) != 0)
        MB_RAISE(MB_EIO, "%s: cannot be written: %s", metrics->path, strerror(errno));
    MB_TRY(read_curves(metrics->path, &all));
    MB_TRY(mb_h5_create(path, &file));
    MB_TRY(mb_h5_set_text(file, "/", "format", "moebatch-metrics"));
    MB_TRY(mb_h5_set_int(file, "/", "version", 1));
    mb_tensor steps = mb_tensor_view1(MB_I64, all.steps, all.count);
    MB_TRY(mb_h5_write(file, "/step", &steps));
    for (int64_t i = 0; i < all.curve_count; i++) {
        bool is_time = strcmp(all.curves[i].name, "time") == 0;
        mb_free(name);
        name = mb_str_format(is_time ? "/provenance/%s" : "/%s", all.curves[i].name);
        if (name == NULL) MB_RAISE(MB_ENOMEM, "%s: not enough memory", path);
        mb_tensor values = mb_tensor_view1(MB_F64, all.curves[i].values, all.count);
        MB_TRY(mb_h5_write(file, name, &values));
    }
    MB_TRY(publish_table(file, &all.table));
    MB_TRY(mb_h5_close(&file));
done:
    mb_h5_destroy(&file);
    free_curves(&all);
    mb_free(path);
    mb_free(name);
    return status;
}

/* ---- 5. reading ---- */

static const curve *curve_of(const curves *all, const char *name)
{
    for (int64_t i = 0; i < all->curve_count; i++)
        if (strcmp(all->curves[i].name, name) == 0) return &all->curves[i];
    return NULL;
}

mb_status mb_metrics_read(const mb_metrics *metrics, const char *const *names, int64_t n, int64_t *out_rows,
                          int64_t **out_steps, double **out_values)
{
    mb_status status = MB_OK;
    curves all = {0};
    int64_t rows = 0, *steps = NULL;
    double *values = NULL;
    MB_TRY(read_curves(metrics->path, &all));
    const curve *first = curve_of(&all, names[0]);
    for (int64_t i = 0; first != NULL && i < all.count; i++) rows += isfinite(first->values[i]);
    if (rows > 0) {
        MB_NEW_ARRAY(steps, rows);
        MB_NEW_ARRAY(values, rows * n);
    }
    for (int64_t i = 0, at = 0; rows > 0 && i < all.count; i++) {
        if (!isfinite(first->values[i])) continue;
        for (int64_t k = 0; k < n; k++) {
            const curve *one = curve_of(&all, names[k]);
            values[at * n + k] = one != NULL ? one->values[i] : NAN;
        }
        steps[at++] = all.steps[i];
    }
    *out_rows = rows;
    *out_steps = steps;
    *out_values = values;
    steps = NULL;
    values = NULL;
done:
    free_curves(&all);
    mb_free(steps);
    mb_free(values);
    return status;
}
