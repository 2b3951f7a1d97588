/* roofline_experts: the cases of a mixture of experts: routing, travels of rows, products of all experts.
 *
 * "even": picks are drawn evenly; "skewed": expert e by weight 1 / (e + 1), so that nearly every token picks
 * the first and few the last.
 *
 * 1. one call each   2. products   3. routing   4. travels   5. all of them
 */
#include "base/memory.h"
#include "roofline.h"

/* ---- 1. one call each ---- */

static mb_status run_grouped(roof_case *c)
{
    return mb_ops_grouped_linear(c->ops, &c->t[0], c->dispatch->offsets, c->groups, c->pointers, &c->t[1]);
}
static mb_status run_grouped_dx(roof_case *c)
{
    return mb_ops_grouped_linear_dx(c->ops, &c->t[0], c->dispatch->offsets, c->groups, c->pointers, false,
                                    &c->t[1]);
}
static mb_status run_grouped_dw(roof_case *c)
{
    mb_tensor dw[ROOF_EXPERTS];
    const mb_tensor *all = &c->t[2];
    for (int64_t e = 0; e < c->groups; e++)
        dw[e] = mb_tensor_view2(MB_F32, mb_tensor_f32(all) + e * all->shape[1] * all->shape[2], all->shape[1],
                                all->shape[2]);
    return mb_ops_grouped_linear_dw(c->ops, &c->t[0], &c->t[1], c->dispatch->offsets, c->groups, dw);
}
static mb_status run_route(roof_case *c)
{
    return mb_ops_route(c->ops, &c->t[0], NULL, c->picks, false, &c->t[1], c->t[3].data, &c->t[2]);
}
static mb_status run_route_backward(roof_case *c)
{
    return mb_ops_route_backward(c->ops, &c->t[0], c->ids, &c->t[1], false, &c->t[2], &c->t[3]);
}
static mb_status run_shift_columns(roof_case *c)
{
    return mb_ops_shift_columns(c->ops, c->t[0].shape[1] - c->picks, 0.01F, &c->t[0]);
}
static mb_status run_dispatch(roof_case *c)
{
    mb_dispatch made = {.row_token = c->t[0].data, .slot_row = c->t[1].data, .offsets = c->t[2].data};
    return mb_ops_dispatch(c->ops, c->ids, c->tokens, c->picks, c->groups, &made);
}
static mb_status run_expand_rows(roof_case *c)
{
    return mb_ops_expand_rows(c->ops, c->dispatch, c->row_index, c->tokens, c->picks, c->t[0].data);
}
static mb_status run_gather(roof_case *c)
{
    return mb_ops_gather(c->ops, &c->t[0], c->dispatch, &c->t[1]);
}
static mb_status run_gather_backward(roof_case *c)
{
    return mb_ops_gather_backward(c->ops, &c->t[0], c->dispatch, c->picks, &c->t[1]);
}
static mb_status run_combine(roof_case *c)
{
    return mb_ops_combine(c->ops, &c->t[0], c->dispatch, &c->t[1], &c->t[2]);
}
static mb_status run_combine_backward(roof_case *c)
{
    return mb_ops_combine_backward(c->ops, &c->t[0], &c->t[1], c->dispatch, &c->t[2], &c->t[3],
                                   c->args > 4 ? &c->t[4] : NULL);
}

/* ---- 2. products ---- */

static mb_status grouped(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                         const char *what, mb_dispatch *dispatch, int64_t n, int64_t k)
{
    mb_status status = MB_OK;
    static const char *const names[] = {"grouped_linear", "grouped_linear_dx", "grouped_linear_dw"};
    const roof_run runs[] = {run_grouped, run_grouped_dx, run_grouped_dw};
    const int64_t rows = t * m->picks;
    const double flops = 2.0 * (double)rows * (double)n * (double)k;
    for (int part = 0; part < 3; part++) {
        roof_begin(r, c, names[part], runs[part], dtype, t);
        SHAPE(c, "%lld x (%lld <- %lld), %s", LL(m->experts), LL(n), LL(k), what);
        c->dispatch = dispatch;
        c->groups = m->experts;
        roof_arg(c, ROOF_IN, dtype, rows, part == 0 ? k : n, 0);
        if (part == 2) {
            roof_arg(c, ROOF_IN, dtype, rows, k, 0);
            roof_arg(c, ROOF_BOTH, MB_F32, m->experts, n, k);
        } else {
            roof_arg(c, ROOF_OUT, dtype, rows, part == 0 ? n : k, 0);
            MB_TRY(roof_weights(r, c, (int)m->experts, dtype, n, k));
            if (c->weight_count < m->experts)
                MB_RAISE(MB_ENOMEM, "the weights of all experts need a larger block");
            c->bytes += (double)(m->experts - 1) * (double)(n * k) * (double)mb_dtype_bytes(dtype);
        }
        MB_TRY(roof_measure(r, c, flops));
    }
done:
    return status;
}

/* ---- 3. routing ---- */

static mb_status routing(roof *r, roof_case *c, const roof_model *m, int64_t t, const roof_given *g)
{
    mb_status status = MB_OK;
    roof_begin(r, c, "route", run_route, MB_F32, t);
    SHAPE(c, "%lld of %lld", LL(m->picks), LL(m->experts));
    c->picks = m->picks;
    roof_arg(c, ROOF_IN, MB_F32, t, m->experts, 0);
    roof_arg(c, ROOF_OUT, MB_F32, t, m->experts, 0);
    roof_arg(c, ROOF_OUT, MB_F32, t, m->picks, 0);
    roof_arg(c, ROOF_OUT, MB_I32, t, m->picks, 0);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "route_backward", run_route_backward, MB_F32, t);
    SHAPE(c, "%lld of %lld", LL(m->picks), LL(m->experts));
    roof_arg(c, ROOF_IN, MB_F32, t, m->experts, 0);
    roof_arg(c, ROOF_IN, MB_F32, t, m->picks, 0);
    roof_arg(c, ROOF_IN, MB_F32, t, m->picks, 0);
    roof_arg(c, ROOF_BOTH, MB_F32, t, m->experts, 0);
    c->ids = g->even_ids;
    c->bytes += 4.0 * (double)(t * m->picks);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "shift_columns", run_shift_columns, MB_F32, t);
    SHAPE(c, "the last %lld of %lld", LL(m->picks), LL(m->experts));
    c->picks = m->picks;
    roof_arg(c, ROOF_BOTH, MB_F32, t, m->experts, 0);
    c->bytes = 8.0 * (double)(t * m->picks);
    MB_TRY(roof_measure(r, c, 0));
    roof_begin(r, c, "dispatch", run_dispatch, MB_F32, t);
    SHAPE(c, "%lld picks of %lld", LL(m->picks), LL(m->experts));
    c->ids = g->even_ids;
    c->picks = m->picks;
    c->groups = m->experts;
    roof_arg(c, ROOF_OUT, MB_I32, t, m->picks, 0);
    roof_arg(c, ROOF_OUT, MB_I32, t, m->picks, 0);
    roof_arg(c, ROOF_OUT, MB_I32, m->experts + 1, 0, 0);
    c->bytes += 4.0 * (double)(t * m->picks);
    MB_TRY(roof_measure(r, c, 0));
done:
    return status;
}

/* ---- 4. travels ---- */

static void travel_begin(roof *r, roof_case *c, const char *op, roof_run run, const roof_model *m,
                         mb_dtype dtype, int64_t t, mb_dispatch *dispatch)
{
    roof_begin(r, c, op, run, dtype, t);
    SHAPE(c, "%lld x %lld picks x %lld", LL(t), LL(m->picks), LL(m->d));
    c->dispatch = dispatch;
    c->picks = m->picks;
    c->bytes = 4.0 * (double)(t * m->picks); /* where rows go */
}

static mb_status travel(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t, roof_given *g)
{
    mb_status status = MB_OK;
    const int64_t rows = t * m->picks;
    travel_begin(r, c, "expand_rows", run_expand_rows, m, dtype, t, &g->even);
    roof_arg(c, ROOF_OUT, MB_I64, t, m->picks, 0);
    c->row_index = g->row_index;
    c->bytes += 8.0 * (double)t;
    MB_TRY(roof_measure(r, c, 0));
    travel_begin(r, c, "gather", run_gather, m, dtype, t, &g->even);
    roof_arg(c, ROOF_IN, dtype, t, m->d, 0);
    roof_arg(c, ROOF_OUT, dtype, rows, m->d, 0);
    MB_TRY(roof_measure(r, c, 0));
    travel_begin(r, c, "gather_backward", run_gather_backward, m, dtype, t, &g->even);
    roof_arg(c, ROOF_IN, dtype, rows, m->d, 0);
    roof_arg(c, ROOF_BOTH, MB_F32, t, m->d, 0);
    MB_TRY(roof_measure(r, c, 0));
    travel_begin(r, c, "combine", run_combine, m, dtype, t, &g->even);
    roof_arg(c, ROOF_IN, dtype, rows, m->d, 0);
    roof_arg(c, ROOF_IN, MB_F32, t, m->picks, 0);
    roof_arg(c, ROOF_BOTH, MB_F32, t, m->d, 0);
    MB_TRY(roof_measure(r, c, 0));
    for (int with = 0; with < 2; with++) {
        travel_begin(r, c, with ? "combine_backward dweights" : "combine_backward", run_combine_backward, m,
                     dtype, t, &g->even);
        roof_arg(c, ROOF_IN, MB_F32, t, m->d, 0);
        roof_arg(c, ROOF_IN, dtype, rows, m->d, 0);
        roof_arg(c, ROOF_IN, MB_F32, t, m->picks, 0);
        roof_arg(c, ROOF_OUT, dtype, rows, m->d, 0);
        if (with) roof_arg(c, ROOF_OUT, MB_F32, t, m->picks, 0);
        if (!with)
            c->bytes -=
                (double)rows * (double)m->d * (double)mb_dtype_bytes(dtype); /* x is only for dweights */
        MB_TRY(roof_measure(r, c, 0));
    }
done:
    return status;
}

/* ---- 5. all of them ---- */

mb_status roof_experts_run(roof *r, roof_case *c, const roof_model *m, mb_dtype dtype, int64_t t,
                           roof_given *g)
{
    mb_status status = MB_OK;
    if (dtype == MB_F32) MB_TRY(routing(r, c, m, t, g));
    MB_TRY(travel(r, c, m, dtype, t, g));
    MB_TRY(grouped(r, c, m, dtype, t, "even", &g->even, m->f, m->d));
    MB_TRY(grouped(r, c, m, dtype, t, "even", &g->even, m->d, m->f));
    MB_TRY(grouped(r, c, m, dtype, t, "skewed", &g->skewed, m->f, m->d));
done:
    return status;
}
