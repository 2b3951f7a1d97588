/* gate_train.c: batches in a drawn order, AdamW, the best epoch kept, and the temperature.
 *
 * 1. options   2. start   3. losses   4. epochs   5. temperature   6. reliability   7. all
 */
#include <math.h>
#include <string.h>

#include "base/log.h"
#include "base/memory.h"
#include "base/rng.h"
#include "base/stop.h"
#include "learn/gate_net.h"

/* ---- 1. options ---- */

static const mb_option options_table[] = {
    MB_OPTION_INT(mb_gate_options, hidden, "gate.hidden", "256", 1, 65536, "columns",
                  "inner width of the gate's two-layer network", NULL),
    MB_OPTION_INT(mb_gate_options, epochs, "gate.epochs", "200", 1, 1e6, "epochs",
                  "passes over the training questions at most", NULL),
    MB_OPTION_INT(mb_gate_options, patience, "gate.patience", "20", 1, 1e6, "epochs",
                  "training stops after so many epochs without a smaller validation loss", NULL),
    MB_OPTION_INT(mb_gate_options, batch, "gate.batch", "256", 1, 1 << 20, "questions",
                  "questions of one update", NULL),
    MB_OPTION_REAL(mb_gate_options, learning_rate, "gate.learning_rate", "1e-3", 1e-9, 10, "",
                   "AdamW's learning rate, constant", NULL),
    MB_OPTION_REAL(mb_gate_options, weight_decay, "gate.weight_decay", "0.01", 0, 100, "",
                   "AdamW's weight decay; biases are spared", NULL),
    MB_OPTION_REAL(mb_gate_options, validation_share, "gate.validation_share", "0.1", 0, 0.9, "share",
                   "questions held back to stop early and to set the temperature", NULL),
    MB_OPTION_INT(mb_gate_options, seed, "gate.seed", "42", 0, 9e15, "",
                  "of the first weights, the order of questions and the questions held back", NULL),
};

const mb_option *mb_gate_option_table(int64_t *out_count)
{
    *out_count = (int64_t)(sizeof options_table / sizeof *options_table);
    return options_table;
}

void mb_gate_report_reset(mb_gate_report *report)
{
    mb_free(report->train_loss);
    mb_free(report->validation_loss);
    *report = (mb_gate_report){0};
}

/* ---- 2. start ---- */

typedef struct training {
    const mb_gate_data *data;
    const mb_gate_options *options;
    mb_gate *gate;
    mb_gate_net net, gradient, best;
    mb_gate_work work;
    float *moments;              /* [2, count] */
    int64_t *train, *validation; /* rows with a target */
    int64_t train_count, validation_count;
    int64_t *order;                               /* [train_count] */
    float *validation_logits, *validation_target; /* [validation, X] */
    int64_t step;
} training;

static int64_t keep_targets(const mb_gate_data *data, const int64_t *rows, int64_t count, int64_t *out)
{
    int64_t n = 0;
    for (int64_t i = 0; i < count; i++)
        if (mb_gate_has_target(data->target + rows[i] * data->experts, data->experts)) out[n++] = rows[i];
    return n;
}

/* Mean and standard deviation of every feature over the training rows; a feature that hardly varies against
 * the others keeps its small size. */
static mb_status set_scale(const training *t)
{
    mb_status status = MB_OK;
    const mb_gate_data *data = t->data;
    const int64_t D = data->width, n = t->train_count;
    double *mean = NULL, *square = NULL, all = 0;
    MB_NEW_ARRAY(mean, D);
    MB_NEW_ARRAY(square, D);
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++) {
            const double value = data->x[t->train[i] * D + d];
            if (!isfinite(value))
                MB_RAISE(MB_ENUMERIC, "the embedding of row %lld is not finite", (long long)t->train[i]);
            mean[d] += value;
        }
    for (int64_t d = 0; d < D; d++) mean[d] /= (double)n;
    for (int64_t i = 0; i < n; i++)
        for (int64_t d = 0; d < D; d++) {
            const double apart = data->x[t->train[i] * D + d] - mean[d];
            square[d] += apart * apart / (double)n;
        }
    for (int64_t d = 0; d < D; d++) all += square[d] / (double)D;
    for (int64_t d = 0; d < D; d++) {
        t->gate->mean[d] = (float)mean[d];
        t->gate->scale[d] = all > 0 ? (float)sqrt(square[d] + 1e-4 * all) : 1;
    }
done:
    mb_free(mean);
    mb_free(square);
    return status;
}

static void set_weights(const training *t)
{
    const int64_t D = t->data->width, X = t->data->experts;
    mb_gate *gate = t->gate;
    for (int64_t i = 0; i < gate->hidden * D; i++)
        gate->w1[i] =
            (float)(mb_rng_normal((uint64_t)t->options->seed, MB_RNG_INIT, 0, (uint64_t)i) / sqrt((double)D));
    for (int64_t e = 0; e < X; e++) {
        double sum = 1;
        for (int64_t i = 0; i < t->train_count; i++) sum += t->data->target[t->train[i] * X + e];
        gate->b2[e] = (float)log(sum / (double)(t->train_count + X));
    }
}

static mb_status start(training *t)
{
    mb_status status = MB_OK;
    const mb_gate_data *data = t->data;
    const int64_t X = data->experts;
    MB_NEW_ARRAY(t->train, data->train_count);
    MB_NEW_ARRAY(t->validation, data->validation_count);
    t->train_count = keep_targets(data, data->train, data->train_count, t->train);
    t->validation_count = keep_targets(data, data->validation, data->validation_count, t->validation);
    if (t->train_count == 0)
        MB_RAISE(MB_EDATA,
                 "no expert answers any of the %lld training questions right: there is nothing to "
                 "learn from",
                 (long long)data->train_count);
    MB_TRY(mb_gate_create(data->width, t->options->hidden, X, &t->gate));
    MB_TRY(set_scale(t));
    set_weights(t);
    MB_TRY(mb_gate_net_create(data->width, t->options->hidden, X, &t->net));
    MB_TRY(mb_gate_net_create(data->width, t->options->hidden, X, &t->gradient));
    MB_TRY(mb_gate_net_create(data->width, t->options->hidden, X, &t->best));
    mb_gate_net_load(&t->net, t->gate);
    MB_TRY(mb_gate_work_create(&t->net, t->options->batch, &t->work));
    MB_NEW_ARRAY(t->moments, 2 * t->net.count);
    MB_NEW_ARRAY(t->order, t->train_count);
    MB_NEW_ARRAY(t->validation_logits, t->validation_count * X);
    MB_NEW_ARRAY(t->validation_target, t->validation_count * X);
    for (int64_t i = 0; i < t->validation_count; i++)
        memcpy(t->validation_target + i * X, data->target + t->validation[i] * X,
               (size_t)X * sizeof *t->validation_target);
done:
    return status;
}

static void end(training *t)
{
    mb_gate_destroy(&t->gate);
    mb_gate_net_reset(&t->net);
    mb_gate_net_reset(&t->gradient);
    mb_gate_net_reset(&t->best);
    mb_gate_work_reset(&t->work);
    mb_free(t->moments);
    mb_free(t->train);
    mb_free(t->validation);
    mb_free(t->order);
    mb_free(t->validation_logits);
    mb_free(t->validation_target);
}

/* ---- 3. losses ---- */

static void fill_row(const training *t, int64_t row, int64_t at)
{
    const int64_t D = t->data->width, X = t->data->experts;
    for (int64_t d = 0; d < D; d++)
        t->work.x[at * D + d] = (t->data->x[row * D + d] - t->gate->mean[d]) / t->gate->scale[d];
    memcpy(t->work.target + at * X, t->data->target + row * X, (size_t)X * sizeof *t->work.target);
}

/* Logits of the validation rows, and their loss; NaN without any. */
static double validate(training *t)
{
    const int64_t X = t->data->experts;
    for (int64_t first = 0; first < t->validation_count; first += t->options->batch) {
        int64_t n = t->validation_count - first;
        if (n > t->options->batch) n = t->options->batch;
        for (int64_t i = 0; i < n; i++) fill_row(t, t->validation[first + i], i);
        mb_gate_net_forward(&t->net, n, &t->work);
        for (int64_t i = 0; i < n; i++)
            memcpy(t->validation_logits + (first + i) * X, t->work.logits + i * t->net.experts_padded,
                   (size_t)X * sizeof *t->validation_logits);
    }
    return mb_gate_loss(t->validation_logits, t->validation_target, t->validation_count, X, 1);
}

/* ---- 4. epochs ---- */

static mb_status run_epoch(training *t, int64_t epoch, double *out_loss)
{
    mb_status status = MB_OK;
    const mb_gate_options *o = t->options;
    double sum = 0;
    mb_rng_permutation((uint64_t)o->seed, MB_RNG_SHUFFLE, (uint32_t)epoch, t->train_count, t->order);
    for (int64_t first = 0; first < t->train_count; first += o->batch) {
        const int64_t n = t->train_count - first < o->batch ? t->train_count - first : o->batch;
        for (int64_t i = 0; i < n; i++) fill_row(t, t->train[t->order[first + i]], i);
        mb_gate_net_forward(&t->net, n, &t->work);
        const double loss = mb_gate_net_backward(&t->net, n, &t->work, &t->gradient);
        if (!isfinite(loss))
            MB_RAISE(MB_ENUMERIC, "the gate's loss is no number in epoch %lld; lower gate.learning_rate",
                     (long long)epoch);
        mb_gate_net_adamw(&t->net, &t->gradient, t->moments, ++t->step, o->learning_rate, o->weight_decay);
        sum += loss * (double)n;
    }
    *out_loss = sum / (double)t->train_count;
done:
    return status;
}

static void keep_best(training *t, int64_t epoch, mb_gate_report *report)
{
    memcpy(t->best.data, t->net.data, (size_t)t->net.count * sizeof *t->net.data);
    report->best_epoch = epoch;
}

static mb_status run_epochs(training *t, mb_gate_report *report)
{
    mb_status status = MB_OK;
    const mb_gate_options *o = t->options;
    const bool has_validation = t->validation_count > 0;
    MB_NEW_ARRAY(report->train_loss, o->epochs + 1);
    MB_NEW_ARRAY(report->validation_loss, o->epochs + 1);
    report->train_loss[0] = NAN;
    report->validation_loss[0] = validate(t);
    keep_best(t, 0, report);
    for (int64_t epoch = 1; epoch <= o->epochs; epoch++) {
        if (mb_stop_is_set()) MB_RAISE(MB_ESTOPPED, "stopped while the gate was trained; run again");
        MB_TRY(run_epoch(t, epoch, &report->train_loss[epoch]));
        const double loss = validate(t);
        report->epochs = epoch;
        report->validation_loss[epoch] = loss;
        if (!has_validation || loss < report->validation_loss[report->best_epoch])
            keep_best(t, epoch, report);
        if (has_validation && epoch - report->best_epoch >= o->patience) break;
    }
    memcpy(t->net.data, t->best.data, (size_t)t->net.count * sizeof *t->net.data);
    mb_gate_net_store(&t->net, t->gate);
done:
    return status;
}

/* ---- 5. temperature ---- */

double mb_gate_loss(const float *logits, const float *target, int64_t rows, int64_t experts,
                    double temperature)
{
    double sum = 0;
    int64_t counted = 0;
    for (int64_t r = 0; r < rows; r++) {
        const float *z = logits + r * experts, *t = target + r * experts;
        double top = -INFINITY, all = 0;
        if (!mb_gate_has_target(t, experts)) continue;
        for (int64_t e = 0; e < experts; e++)
            if (z[e] > top) top = z[e];
        for (int64_t e = 0; e < experts; e++) all += exp(((double)z[e] - top) / temperature);
        for (int64_t e = 0; e < experts; e++) sum -= t[e] * (((double)z[e] - top) / temperature - log(all));
        counted++;
    }
    return counted > 0 ? sum / (double)counted : NAN;
}

/* The loss is convex in 1 / T: one valley, which the golden section finds on a scale of ln T. */
double mb_gate_temperature(const float *logits, const float *target, int64_t rows, int64_t experts)
{
    const double golden = (sqrt(5) - 1) / 2;
    double low = log(0.2), high = log(20), a = high - golden * (high - low), b = low + golden * (high - low);
    double at_a = mb_gate_loss(logits, target, rows, experts, exp(a)),
           at_b = mb_gate_loss(logits, target, rows, experts, exp(b));
    if (isnan(at_a)) return 1;
    for (int i = 0; i < 60; i++) {
        if (at_a <= at_b) {
            high = b;
            b = a;
            at_b = at_a;
            a = high - golden * (high - low);
            at_a = mb_gate_loss(logits, target, rows, experts, exp(a));
        } else {
            low = a;
            a = b;
            at_a = at_b;
            b = low + golden * (high - low);
            at_b = mb_gate_loss(logits, target, rows, experts, exp(b));
        }
    }
    return exp((low + high) / 2);
}

/* ---- 6. reliability ---- */

double mb_gate_reliability(const float *logits, const float *target, int64_t rows, int64_t experts,
                           double temperature, mb_gate_bin out_bins[MB_GATE_BINS])
{
    double error = 0;
    int64_t counted = 0;
    memset(out_bins, 0, MB_GATE_BINS * sizeof *out_bins);
    for (int64_t r = 0; r < rows; r++) {
        const float *z = logits + r * experts, *t = target + r * experts;
        double sum = 0;
        int64_t top = 0;
        if (!mb_gate_has_target(t, experts)) continue;
        for (int64_t e = 1; e < experts; e++)
            if (z[e] > z[top]) top = e;
        for (int64_t e = 0; e < experts; e++) sum += exp(((double)z[e] - z[top]) / temperature);
        int64_t bin = (int64_t)ceil(MB_GATE_BINS / sum) - 1;
        if (bin < 0) bin = 0;
        out_bins[bin].rows++;
        out_bins[bin].confidence += 1 / sum;
        out_bins[bin].target += t[top];
        counted++;
    }
    for (int i = 0; i < MB_GATE_BINS; i++) {
        mb_gate_bin *bin = &out_bins[i];
        error += fabs(bin->confidence - bin->target);
        bin->confidence = bin->rows > 0 ? bin->confidence / (double)bin->rows : NAN;
        bin->target = bin->rows > 0 ? bin->target / (double)bin->rows : NAN;
    }
    return counted > 0 ? error / (double)counted : NAN;
}

/* ---- 7. all ---- */

static void calibrate(training *t, mb_gate_report *report)
{
    const int64_t X = t->data->experts, n = t->validation_count;
    mb_gate_bin bins[MB_GATE_BINS];
    validate(t); /* of the weights kept */
    const float *z = t->validation_logits, *target = t->validation_target;
    const double T = mb_gate_temperature(z, target, n, X);
    t->gate->temperature = report->temperature = T;
    report->nll_before = mb_gate_loss(z, target, n, X, 1);
    report->nll_after = mb_gate_loss(z, target, n, X, T);
    report->ece_before = mb_gate_reliability(z, target, n, X, 1, bins);
    report->ece_after = mb_gate_reliability(z, target, n, X, T, bins);
}

mb_status mb_gate_train(const mb_gate_data *data, const mb_gate_options *options, mb_gate **out_gate,
                        mb_gate_report *out_report)
{
    mb_status status = MB_OK;
    training t = {.data = data, .options = options};
    mb_gate_report report = {0};
    MB_TRY(start(&t));
    report.train_rows = t.train_count;
    report.validation_rows = t.validation_count;
    MB_TRY(run_epochs(&t, &report));
    calibrate(&t, &report);
    t.gate->seed = options->seed;
    *out_gate = t.gate;
    *out_report = report;
    t.gate = NULL;
    report = (mb_gate_report){0};
done:
    mb_gate_report_reset(&report);
    end(&t);
    return status;
}
