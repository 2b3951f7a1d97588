/* gate: which experts will answer a question right? A two-layer network on the question's embedding, one
 * logit per expert.
 *
 * Layer: learn.  Uses: base, store (h5).
 * Source: soft labels in cross-entropy: Hinton et al. (2015), section 2; AdamW: Loshchilov and Hutter (2019),
 * algorithm 2; temperature scaling and the expected calibration error: Guo et al. (2017) "On Calibration of
 * Modern Neural Networks", sections 2, 4.2.
 *
 *   z = W2 gelu(W1 ((x - mean) / scale) + b1) + b2      gelu by the error function, all in f32
 *   loss = - sum_e t_e ln softmax(z)_e                   mean over the rows of a batch; f64
 * mean and scale are those of every feature over the training rows. W1 starts normal with variance 1 / D, W2
 * at 0 and b2 at the log of the targets' mean, so an untrained gate prefers whoever is right most often. The
 * weights of the epoch with the smallest validation loss are kept (epoch 0: untrained).
 * Every number is a sum in a fixed order: the same bits for any number of threads.
 *
 * File, format "moebatch-gate" version 1 (D features, H hidden, X experts):
 *   /w1 f32 [H, D], /b1 f32 [H], /w2 f32 [X, H], /b2 f32 [X], /mean f32 [D], /scale f32 [D]
 *   /expert_names [X]
 *   attributes: format, version, activation ("gelu"), temperature, embedder (hash of the model that made the
 *   embeddings), questions (hash of the set it learned from), targets, seed
 */
#ifndef MB_GATE_H
#define MB_GATE_H

#include "base/option.h"
#include "base/status.h"

typedef struct mb_gate {
    int64_t width, hidden, experts; /* D, H, X */
    float *w1, *b1;                 /* [H, D], [H] */
    float *w2, *b2;                 /* [X, H], [X] */
    float *mean, *scale;            /* [D]; scale > 0 */
    double temperature;             /* 1 before it is calibrated */
    char **expert_names;            /* [X] */
    char *embedder, *questions, *targets;
    int64_t seed;
} mb_gate;

/* Weights 0, mean 0, scale 1, temperature 1, texts NULL. */
mb_status mb_gate_create(int64_t width, int64_t hidden, int64_t experts, mb_gate **out_gate);
void mb_gate_destroy(mb_gate **gate);
/* MB_EFORMAT: not a gate, or its sizes or numbers make no sense. */
mb_status mb_gate_open(const char *path, mb_gate **out_gate);
/* Beside, and renamed. */
mb_status mb_gate_write(const mb_gate *gate, const char *path);

/* Logits [rows, X] of embeddings x [rows, D], divided by the temperature: softmax gives calibrated weights.
 * Uses all threads. A row's bits do not depend on the rows beside it. MB_ENUMERIC: an embedding is not
 * finite. */
mb_status mb_gate_forward(const mb_gate *gate, const float *x, int64_t rows, float *out_logits);

/* Mean loss of a batch and its gradient by w1, b1, w2, b2 (arrays as in mb_gate; temperature is not used).
 * Rows whose targets are all 0 carry no loss and are not counted in the mean (NaN without any other). */
typedef struct mb_gate_gradient {
    double loss;
    float *w1, *b1, *w2, *b2;
} mb_gate_gradient;
mb_status mb_gate_gradient_run(const mb_gate *gate, const float *x, const float *target, int64_t rows,
                               mb_gate_gradient *out);

/* ---- training ---- */

typedef struct mb_gate_options {
    int64_t hidden;          /* gate.hidden 256 */
    int64_t epochs;          /* gate.epochs 200 */
    int64_t patience;        /* gate.patience 20 */
    int64_t batch;           /* gate.batch 256 */
    double learning_rate;    /* gate.learning_rate 1e-3 */
    double weight_decay;     /* gate.weight_decay 0.01, not of biases */
    double validation_share; /* gate.validation_share 0.1: for the caller, who splits */
    int64_t seed;            /* gate.seed 42 */
} mb_gate_options;
const mb_option *mb_gate_option_table(int64_t *out_count);

/* Rows to learn from, borrowed. Targets are at least 0 and add to 1, or are all 0: no loss, left out. */
typedef struct mb_gate_data {
    const float *x;      /* [rows, D] */
    const float *target; /* [rows, X] */
    int64_t rows, width, experts;
    const int64_t *train, *validation; /* row numbers */
    int64_t train_count, validation_count;
} mb_gate_data;

typedef struct mb_gate_report {
    int64_t train_rows, validation_rows; /* with a target */
    int64_t epochs, best_epoch;          /* done; kept, 0: untrained */
    double *train_loss;      /* [epochs + 1] of the epoch's batches as they were learned; [0] NaN */
    double *validation_loss; /* [epochs + 1] after it */
    double temperature;
    double nll_before, nll_after; /* validation loss without and with the temperature */
    double ece_before, ece_after; /* over 15 bins; see mb_gate_reliability */
} mb_gate_report;
void mb_gate_report_reset(mb_gate_report *report);

/* Train a new gate. Without validation rows: all epochs, temperature 1. MB_EDATA: no row has a target;
 * MB_ENUMERIC: a loss is no number. MB_ESTOPPED when the stop flag is set (nothing is kept: it takes
 * seconds to minutes). */
mb_status mb_gate_train(const mb_gate_data *data, const mb_gate_options *options, mb_gate **out_gate,
                        mb_gate_report *out_report);

/* ---- calibration ---- */

/* The temperature with the smallest loss of softmax(logits / T) against the targets, in [0.2, 20]; rows
 * without target are left out; 1 when none has one. */
double mb_gate_temperature(const float *logits, const float *target, int64_t rows, int64_t experts);
/* Mean loss; NaN when no row has a target. */
double mb_gate_loss(const float *logits, const float *target, int64_t rows, int64_t experts,
                    double temperature);

enum { MB_GATE_BINS = 15 };
/* Rows by confidence c = the largest softmax(logits / T) (first of the largest), in bins (i/15, (i+1)/15]:
 * the mean c, and the mean of what the targets give that expert. */
typedef struct mb_gate_bin {
    int64_t rows;
    double confidence, target; /* means; NaN when empty */
} mb_gate_bin;
/* Returns the expected calibration error: mean over rows of |confidence - target| of their bins; NaN when no
 * row has a target. */
double mb_gate_reliability(const float *logits, const float *target, int64_t rows, int64_t experts,
                           double temperature, mb_gate_bin out_bins[MB_GATE_BINS]);

#endif
