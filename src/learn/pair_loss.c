/* pair_loss.c: preference losses of one pair, in f64.
 *
 * Each loss is a function of the two sides' log-ratios (or mean log-probabilities) and gives its value and
 * both derivatives. ln S(x) is computed as min(x, 0) - log1p(exp(-|x|)), which neither overflows nor loses
 * the small end; ln(1 - e^x) by expm1 near 0 and log1p below.
 *
 * 1. safe functions   2. losses with a reference   3. losses without   4. the list   5. reading the list
 */
#include "learn/pair_loss.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- 1. safe functions ---- */

#define LEAST_LOG 1e-12 /* a mean ln p above -1e-12 has no odds */

static double log_sigmoid(double x)
{
    return (x < 0 ? x : 0) - log1p(exp(-fabs(x)));
}

static double sigmoid(double x)
{
    const double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

/* ln(1 - e^x), x < 0 */
static double log1m_exp(double x)
{
    return x > -0.6931471805599453 ? log(-expm1(x)) : log1p(-exp(x));
}

static double length_of(const mb_pair_side *side)
{
    return side->targets > 0 ? (double)side->targets : 1;
}

/* ---- 2. losses with a reference ---- */

typedef struct slope {
    double value, d_chosen, d_rejected;
} slope;

/* Of the margin alone: d_rejected = -d_chosen. */
static slope of_margin(double value, double d)
{
    return (slope){value, d, -d};
}

/* -(1-e) ln S(x) - e ln S(-x), and its derivative by x. */
static double smoothed(double x, double e, double *out_d)
{
    *out_d = -(1 - e) * sigmoid(-x) + e * sigmoid(x);
    return -(1 - e) * log_sigmoid(x) - e * log_sigmoid(-x);
}

static slope sigmoid_loss(double beta, double e, double chosen, double rejected)
{
    double d;
    const double value = smoothed(beta * (chosen - rejected), e, &d);
    return of_margin(value, beta * d);
}

static slope hinge_loss(double beta, double chosen, double rejected)
{
    const double value = 1 - beta * (chosen - rejected);
    return value > 0 ? of_margin(value, -beta) : of_margin(0, 0);
}

static slope robust_loss(double beta, double e, double chosen, double rejected)
{
    const double x = beta * (chosen - rejected), scale = 1 / (1 - 2 * e);
    const double value = -(1 - e) * log_sigmoid(x) + e * log_sigmoid(-x);
    const double d = -(1 - e) * sigmoid(-x) - e * sigmoid(x);
    return of_margin(scale * value, scale * beta * d);
}

/* Of means over the answers' tokens. */
static slope ipo_loss(double beta, double chosen, double rejected)
{
    const double x = chosen - rejected - 1 / (2 * beta);
    return of_margin(x * x, 2 * x);
}

static slope exo_loss(double beta, double e, double chosen, double rejected)
{
    const double x = beta * (chosen - rejected), q = sigmoid(x), other = sigmoid(-x);
    const double value = q * (log_sigmoid(x) - log1p(-e)) + other * (log_sigmoid(-x) - log(e));
    return of_margin(value, beta * q * other * (x - log1p(-e) + log(e)));
}

static slope nca_loss(double beta, double chosen, double rejected)
{
    const double c = beta * chosen, r = beta * rejected;
    return (slope){-log_sigmoid(c) - 0.5 * log_sigmoid(-c) - 0.5 * log_sigmoid(-r),
                   beta * (-sigmoid(-c) + 0.5 * sigmoid(c)), beta * 0.5 * sigmoid(r)};
}

static slope bco_loss(double beta, double chosen, double rejected)
{
    const double c = beta * chosen, r = beta * rejected;
    return (slope){-log_sigmoid(c) - log_sigmoid(-r), -beta * sigmoid(-c), beta * sigmoid(r)};
}

static slope sppo_loss(double beta, double chosen, double rejected)
{
    const double win = chosen - 0.5 / beta, lose = rejected + 0.5 / beta;
    return (slope){win * win + lose * lose, 2 * win, 2 * lose};
}

static slope apo_zero_loss(double beta, double chosen, double rejected)
{
    const double c = beta * chosen, r = beta * rejected;
    return (slope){sigmoid(-c) + sigmoid(r), -beta * sigmoid(c) * sigmoid(-c),
                   beta * sigmoid(r) * sigmoid(-r)};
}

static slope apo_down_loss(double beta, double chosen, double rejected)
{
    const double c = beta * chosen, x = beta * (chosen - rejected), bend = beta * sigmoid(x) * sigmoid(-x);
    return (slope){sigmoid(c) + sigmoid(-x), beta * sigmoid(c) * sigmoid(-c) - bend, bend};
}

/* ---- 3. losses without: of mean log-probabilities ---- */

static slope simpo_loss(double beta, double e, double gamma, double chosen, double rejected)
{
    double d;
    const double value = smoothed(beta * (chosen - rejected) - gamma, e, &d);
    return of_margin(value, beta * d);
}

static double below_zero(double x)
{
    return x < -LEAST_LOG ? x : -LEAST_LOG;
}

static double log_odds_of(double chosen, double rejected)
{
    const double c = below_zero(chosen), r = below_zero(rejected);
    return (c - r) - (log1m_exp(c) - log1m_exp(r));
}

/* d ln odds / dx = 1 / (1 - e^x) */
static slope orpo_loss(double beta, double chosen, double rejected)
{
    const double odds = log_odds_of(chosen, rejected), d = -beta * sigmoid(-odds);
    return (slope){-beta * log_sigmoid(odds), d / -expm1(below_zero(chosen)),
                   -d / -expm1(below_zero(rejected))};
}

/* ---- 4. the list ---- */

/* Does the loss take means over the answer's tokens, rather than sums? */
static bool is_mean(mb_pair_loss_kind kind)
{
    return kind == MB_PAIR_LOSS_IPO || kind == MB_PAIR_LOSS_SIGMOID_NORM || kind == MB_PAIR_LOSS_SIMPO ||
           kind == MB_PAIR_LOSS_ORPO;
}

static bool is_free(mb_pair_loss_kind kind)
{
    return kind == MB_PAIR_LOSS_SIMPO || kind == MB_PAIR_LOSS_ORPO;
}

/* c, r: log-ratios or log-probabilities, sums or means, as the kind takes them. */
static slope loss_of(const mb_pair_loss *loss, mb_pair_loss_kind kind, double c, double r)
{
    const double beta = loss->beta, e = loss->label_smoothing;
    switch (kind) {
    case MB_PAIR_LOSS_SIGMOID:
        return sigmoid_loss(beta, e, c, r);
    case MB_PAIR_LOSS_HINGE:
        return hinge_loss(beta, c, r);
    case MB_PAIR_LOSS_IPO:
        return ipo_loss(beta, c, r);
    case MB_PAIR_LOSS_ROBUST:
        return robust_loss(beta, e, c, r);
    case MB_PAIR_LOSS_SIGMOID_NORM:
        return sigmoid_loss(beta, 0, c, r);
    case MB_PAIR_LOSS_EXO_PAIR:
        return exo_loss(beta, e, c, r);
    case MB_PAIR_LOSS_NCA_PAIR:
        return nca_loss(beta, c, r);
    case MB_PAIR_LOSS_BCO_PAIR:
        return bco_loss(beta, c, r);
    case MB_PAIR_LOSS_SPPO_HARD:
        return sppo_loss(beta, c, r);
    case MB_PAIR_LOSS_APO_ZERO:
        return apo_zero_loss(beta, c, r);
    case MB_PAIR_LOSS_APO_DOWN:
        return apo_down_loss(beta, c, r);
    case MB_PAIR_LOSS_SIMPO:
        return simpo_loss(beta, e, loss->simpo_gamma, c, r);
    case MB_PAIR_LOSS_ORPO:
        return orpo_loss(beta, c, r);
    case MB_PAIR_LOSS_KINDS:
        break;
    }
    assert(false);
    return (slope){0};
}

mb_pair_value mb_pair_loss_get(const mb_pair_loss *loss, const mb_pair_side *chosen,
                               const mb_pair_side *rejected)
{
    const double n_chosen = length_of(chosen), n_rejected = length_of(rejected);
    mb_pair_value value = {0};
    for (int i = 0; i < loss->count; i++) {
        const mb_pair_loss_kind kind = loss->kind[i];
        const double share_chosen = is_mean(kind) ? 1 / n_chosen : 1,
                     share_rejected = is_mean(kind) ? 1 / n_rejected : 1,
                     c = chosen->logprob - (is_free(kind) ? 0 : chosen->reference),
                     r = rejected->logprob - (is_free(kind) ? 0 : rejected->reference);
        const slope one = loss_of(loss, kind, c * share_chosen, r * share_rejected);
        value.loss += loss->weight[i] * one.value;
        value.d_chosen += loss->weight[i] * one.d_chosen * share_chosen;
        value.d_rejected += loss->weight[i] * one.d_rejected * share_rejected;
    }
    const bool is_reference = mb_pair_loss_needs_reference(loss);
    value.logp_chosen = is_reference ? chosen->logprob : chosen->logprob / n_chosen;
    value.logp_rejected = is_reference ? rejected->logprob : rejected->logprob / n_rejected;
    value.reward_chosen = loss->beta * (value.logp_chosen - (is_reference ? chosen->reference : 0));
    value.reward_rejected = loss->beta * (value.logp_rejected - (is_reference ? rejected->reference : 0));
    value.log_odds = log_odds_of(chosen->logprob / n_chosen, rejected->logprob / n_rejected);
    value.log_odds_ratio = log_sigmoid(value.log_odds);
    return value;
}

bool mb_pair_loss_has(const mb_pair_loss *loss, mb_pair_loss_kind kind)
{
    for (int i = 0; i < loss->count; i++) {
        if (loss->kind[i] == kind) return true;
    }
    return false;
}

double mb_pair_loss_weight(const mb_pair_loss *loss, mb_pair_loss_kind kind)
{
    double sum = 0;
    for (int i = 0; i < loss->count; i++) sum += loss->kind[i] == kind ? loss->weight[i] : 0;
    return sum;
}

bool mb_pair_loss_needs_reference(const mb_pair_loss *loss)
{
    for (int i = 0; i < loss->count; i++) {
        if (!is_free(loss->kind[i])) return true;
    }
    return false;
}

bool mb_pair_loss_has_free(const mb_pair_loss *loss)
{
    return mb_pair_loss_has(loss, MB_PAIR_LOSS_SIMPO) || mb_pair_loss_has(loss, MB_PAIR_LOSS_ORPO);
}

/* ---- 5. reading the list ---- */

#define KINDS                                                                                                \
    "sigmoid, hinge, ipo, robust, simpo, orpo, sigmoid_norm, exo_pair, nca_pair, bco_pair, sppo_hard, "      \
    "apo_zero, apo_down"

static const char *const names[MB_PAIR_LOSS_KINDS] = {
    "sigmoid",  "hinge",     "ipo",      "robust",   "sigmoid_norm", "exo_pair", "nca_pair",
    "bco_pair", "sppo_hard", "apo_zero", "apo_down", "simpo",        "orpo"};

/* One "name" or "name:weight" of n characters. */
static mb_status add_part(const char *text, size_t n, mb_pair_loss *loss)
{
    size_t name = 0;
    char *end;
    double weight = 1;
    while (n > 0 && *text == ' ') text++, n--;
    while (n > 0 && text[n - 1] == ' ') n--;
    while (name < n && text[name] != ':') name++;
    if (name < n) {
        weight = strtod(text + name + 1, &end);
        if (end != text + n || end == text + name + 1 || !isfinite(weight) || weight <= 0)
            return mb_fail(MB_EUSAGE, "training.dpo.loss: '%.*s' has no weight above 0 after the colon",
                           (int)n, text);
    }
    for (int k = 0; k < MB_PAIR_LOSS_KINDS; k++) {
        if (strlen(names[k]) != name || memcmp(names[k], text, name) != 0) continue;
        if (loss->count == MB_PAIR_LOSS_MAX)
            return mb_fail(MB_EUSAGE, "training.dpo.loss: more than %d losses", MB_PAIR_LOSS_MAX);
        loss->weight[loss->count] = weight;
        loss->kind[loss->count++] = (mb_pair_loss_kind)k;
        return MB_OK;
    }
    return mb_fail(MB_EUSAGE,
                   "training.dpo.loss: '%.*s' is not one of " KINDS " (a list: sigmoid:0.8,ipo:0.2)",
                   (int)name, text);
}

static mb_status check_smoothing(const mb_pair_loss *loss)
{
    const double e = loss->label_smoothing;
    const bool is_used =
        mb_pair_loss_has(loss, MB_PAIR_LOSS_SIGMOID) || mb_pair_loss_has(loss, MB_PAIR_LOSS_ROBUST) ||
        mb_pair_loss_has(loss, MB_PAIR_LOSS_SIMPO) || mb_pair_loss_has(loss, MB_PAIR_LOSS_EXO_PAIR);
    if (e > 0 && !is_used)
        return mb_fail(MB_EUSAGE,
                       "training.dpo.label_smoothing = %g: of the losses only sigmoid, robust, simpo "
                       "and exo_pair take it; set it to 0",
                       e);
    if (e >= 0.5)
        return mb_fail(MB_EUSAGE,
                       "training.dpo.label_smoothing = %g is the share of wrong labels and must be "
                       "below 0.5",
                       e);
    if (e == 0 && mb_pair_loss_has(loss, MB_PAIR_LOSS_EXO_PAIR))
        return mb_fail(MB_EUSAGE, "training.dpo.loss: exo_pair needs training.dpo.label_smoothing above 0 "
                                  "(1e-3 is usual)");
    return MB_OK;
}

mb_status mb_pair_loss_parse(const char *list, double beta, double label_smoothing, double simpo_gamma,
                             mb_pair_loss *out_loss)
{
    mb_status status = MB_OK;
    mb_pair_loss loss = {.beta = beta, .label_smoothing = label_smoothing, .simpo_gamma = simpo_gamma};
    const char *at = list != NULL ? list : "";
    if (!(beta > 0)) return mb_fail(MB_EUSAGE, "training.dpo.beta = %g must be above 0", beta);
    for (;;) {
        const size_t n = strcspn(at, ",");
        status = add_part(at, n, &loss);
        if (status != MB_OK) return mb_status_trace(status, __func__, __FILE__, __LINE__);
        if (at[n] == 0) break;
        at += n + 1;
    }
    status = check_smoothing(&loss);
    if (status != MB_OK) return mb_status_trace(status, __func__, __FILE__, __LINE__);
    *out_loss = loss;
    return MB_OK;
}
