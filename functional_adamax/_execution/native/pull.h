/* The derivative of a step, `pull` of _rule.py: the cotangents of g, m and u from those of out,
   m_new and u_new; included once for each REAL, with FABS, NAME(name) and TARGET. */

static inline __attribute__((always_inline)) void
NAME(pull_body)(const Pull *row, ptrdiff_t start, ptrdiff_t end, int state_in, int state_out)
{
    const REAL *g_ = row->g, *u_ = row->u, *m_new = row->m_new, *u_new = row->u_new;
    const REAL *d_out = row->d_out, *d_m_new = row->d_m_new, *d_u_new = row->d_u_new;
    REAL *d_g = row->d_g, *d_m = row->d_m, *d_u = row->d_u;
    const REAL weight = (REAL)(1 - row->b1), b1 = (REAL)row->b1, b2 = (REAL)row->b2;
    const REAL eps = (REAL)row->eps, scale = (REAL)row->scale;

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
        d_g[i] = dm * weight + (now < old ? (REAL)0 : half) * sign;
        if (state_out) {
            d_m[i] = dm * b1;
            d_u[i] = (old < now ? (REAL)0 : half) * b2;
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

#undef NAME
