/* routing_information: how much the expert a token goes to says about the type of its text, from counts.
 *
 * Layer: measure.
 * Source: Cover and Thomas, Elements of Information Theory, chapter 2; Miller (1955), "Note on the bias of
 * information estimates" (the correction); natural logarithms throughout.
 *
 * With p(e | t) the share of expert e among the picks of type t, w(t) the weight of a type and q(e) the sum
 * over types of w(t) p(e | t): H(expert) is the entropy of q, I(expert; type) = sum of w(t) p(e | t) ln(p(e |
 * t) / q(e)) = H(expert) - sum of w(t) H(expert | t). Types without picks have no weight.
 */
#ifndef MB_ROUTING_INFORMATION_H
#define MB_ROUTING_INFORMATION_H

#include <stdbool.h>
#include <stdint.h>

typedef struct mb_routing_information {
    double mutual;         /* I(expert; type) of the shares as counted, nats, >= 0: too high by chance */
    double corrected;      /* less its expected excess were all picks independent (Miller and Madow); may be
                              below 0. Tokens of one record are not independent: the true excess is larger,
                              and is measured by permuting the types of records */
    double normalised;     /* mutual / min(expert_entropy, type_entropy), 0 to 1; NaN where that is 0 */
    double expert_entropy; /* H(expert) */
    double type_entropy;   /* of the weights */
} mb_routing_information;

/* counts: type t's [experts] are at counts + t * stride. is_equal: every type that has picks weighs the same;
 * else as many picks as it has. Nothing counted: all 0, normalised NaN. scratch: [types]. */
mb_routing_information mb_routing_information_get(const int64_t *counts, int64_t types, int64_t stride,
                                                  int64_t experts, bool is_equal, int64_t *scratch);
/* Several layers of the same tokens, taken together: I(expert; type) given the layer, which is the mean, and
 * so are the entropies; normalised by those means. */
mb_routing_information mb_routing_information_mean(const mb_routing_information *layers, int64_t n);
/* Entropy of the shares of n counts, nats; NaN where nothing was counted. */
double mb_routing_information_entropy(const int64_t *counts, int64_t n);

#endif
