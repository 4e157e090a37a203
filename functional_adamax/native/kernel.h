/* The rule of _rule.py for a run of elements, and its derivative; included once for each type.

   Needs REAL, FMA, FABS, NAME(name), and TARGET, the instruction set. The order of the operations
   of a step, and which of them are fused, are those of torch's kernels: they decide the last bit.
   Outputs may be the inputs themselves, never a part of them. */

static inline __attribute__((always_inline)) void
NAME(step_body)(const Step *row, ptrdiff_t start, ptrdiff_t end, int decay, int add)
{
    const REAL *p_ = row->p, *g_ = row->g, *m_ = row->m, *u_ = row->u;
    REAL *out = row->out, *m_new = row->m_new, *u_new = row->u_new;
    const REAL weight = (REAL)row->weight, b2 = (REAL)row->b2, eps = (REAL)row->eps;
    const REAL scale = (REAL)row->scale, factor = (REAL)row->factor, sign = (REAL)row->sign;
    const int near = weight < (REAL)0.5;
    const REAL coefficient = near ? weight : weight - 1;

#pragma GCC ivdep
    for (ptrdiff_t i = start; i < end; i++) {
        REAL g = g_[i] * sign, m = m_[i];
        if (decay == COUPLED)
            g = FMA(p_[i], factor, g);
        m = FMA(coefficient, g - m, near ? m : g);
        REAL old = u_[i] * b2, now = FABS(g) + eps;
        REAL u = old > now || old != old ? old : now;
        REAL update = m * scale / u;
        if (decay == DECOUPLED)
            update = FMA(p_[i], factor, update);
        out[i] = add ? p_[i] + update : update;
        m_new[i] = m;
        u_new[i] = u;
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

/* The cotangents of g, m and u from those of out, m_new and u_new. As torch's maximum does, a tie
   shares a cotangent in halves, and a NaN hands it to both sides. */

static inline __attribute__((always_inline)) void
NAME(pull_body)(const Pull *row, ptrdiff_t start, ptrdiff_t end, int state_in, int state_out)
{
    const REAL *g_ = row->g, *u_ = row->u, *m_new = row->m_new, *u_new = row->u_new;
    const REAL *d_out = row->d_out, *d_m_new = row->d_m_new, *d_u_new = row->d_u_new;
    REAL *d_g = row->d_g, *d_m = row->d_m, *d_u = row->d_u;
    const REAL weight = (REAL)row->weight, b2 = (REAL)row->b2, eps = (REAL)row->eps;
    const REAL scale = (REAL)row->scale;

#pragma GCC ivdep
    for (ptrdiff_t i = start; i < end; i++) {
        REAL g = g_[i];
        REAL dm = d_out[i] * scale / u_new[i];
        REAL du = -(dm * m_new[i] / u_new[i]);
        if (state_in) {
            dm += d_m_new[i];
            du += d_u_new[i];
        }
        REAL old = u_[i] * b2, now = FABS(g) + eps;
        REAL half = old == now ? (REAL)0.5 * du : du;
        REAL sign = g > 0 ? (REAL)1 : g < 0 ? (REAL)-1 : (REAL)0;
        d_g[i] = weight * dm + (now < old ? (REAL)0 : half * sign);
        if (state_out) {
            d_m[i] = dm * (1 - weight);
            d_u[i] = old < now ? (REAL)0 : half * b2;
        }
    }
}

TARGET static void NAME(pull)(const void *row_, ptrdiff_t start, ptrdiff_t end)
{
    const Pull *row = row_;
    int state_in = row->d_m_new != NULL, state_out = row->d_m != NULL;
    switch (2 * state_in + state_out) {
    case 0: NAME(pull_body)(row, start, end, 0, 0); break;
    case 1: NAME(pull_body)(row, start, end, 0, 1); break;
    case 2: NAME(pull_body)(row, start, end, 1, 0); break;
    case 3: NAME(pull_body)(row, start, end, 1, 1); break;
    }
}

#undef REAL
#undef FMA
#undef FABS
#undef NAME
#undef TARGET
