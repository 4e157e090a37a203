/* The rule of _rule.py for a run of elements; included once for each kind of tensors.

   Needs REAL, the type of the arithmetic, FMA and FABS of it; VALUE, the type of parameters and
   gradients, and MOMENT, that of m and u, with LOAD and STORE between each and REAL; HALVES,
   whether moments are rounded to halves; NAME(name); TARGET, the instruction set. The order of the
   operations, which of them are fused, and where they round, are those of torch's kernels: they
   decide the last bit. Outputs may be the inputs themselves, never a part of them. */

#define ROUND(x) (HALVES ? LOAD_MOMENT(STORE_MOMENT(x)) : (x))

static inline __attribute__((always_inline)) void
NAME(step_body)(const Step *row, ptrdiff_t start, ptrdiff_t end, int decay, int add)
{
    const VALUE *p_ = row->p, *g_ = row->g;
    const MOMENT *m_ = row->m, *u_ = row->u;
    MOMENT *m_new = row->m_new, *u_new = row->u_new;
    const REAL weight = (REAL)row->weight, b2 = (REAL)row->b2, eps = ROUND((REAL)row->eps);
    const REAL scale = (REAL)row->scale, factor = (REAL)row->factor, sign = (REAL)row->sign;
    const int near = weight < (REAL)0.5;
    const REAL coefficient = near ? weight : weight - 1;

#pragma GCC ivdep
    for (ptrdiff_t i = start; i < end; i++) {
        REAL g = LOAD_VALUE(g_[i]) * sign, m = LOAD_MOMENT(m_[i]);
        if (decay == COUPLED)
            g = FMA(LOAD_VALUE(p_[i]), factor, g);
        m = ROUND(FMA(coefficient, g - m, near ? m : g));
        REAL old = ROUND(LOAD_MOMENT(u_[i]) * b2), now = ROUND(FABS(g) + eps);
        REAL u = old > now || old != old ? old : now;
        REAL update = m * scale / u;
        if (decay == DECOUPLED)
            update = FMA(LOAD_VALUE(p_[i]), factor, update);
        if (add)
            ((VALUE *)row->out)[i] = STORE_VALUE(LOAD_VALUE(p_[i]) + update);
        else
            ((REAL *)row->out)[i] = update;
        m_new[i] = STORE_MOMENT(m);
        u_new[i] = STORE_MOMENT(u);
    }
}

TARGET static void NAME(step)(const void *row_, ptrdiff_t start, ptrdiff_t end)
{
    const Step *row = row_;
    switch (2 * row->decay + row->add) {
    case 2 * NO_DECAY: NAME(step_body)(row, start, end, NO_DECAY, 0); break;
    case 2 * NO_DECAY + 1: NAME(step_body)(row, start, end, NO_DECAY, 1); break;
    case 2 * COUPLED: NAME(step_body)(row, start, end, COUPLED, 0); break;
    case 2 * COUPLED + 1: NAME(step_body)(row, start, end, COUPLED, 1); break;
    case 2 * DECOUPLED: NAME(step_body)(row, start, end, DECOUPLED, 0); break;
    case 2 * DECOUPLED + 1: NAME(step_body)(row, start, end, DECOUPLED, 1); break;
    }
}

#undef ROUND
#undef VALUE
#undef LOAD_VALUE
#undef STORE_VALUE
#undef MOMENT
#undef LOAD_MOMENT
#undef STORE_MOMENT
#undef HALVES
#undef NAME
