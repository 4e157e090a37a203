/* The rule of _rule.py for a run of elements; included once for each kind of tensors.

   Needs REAL, the type of the arithmetic, FMA and FABS of it; VALUE, the type of parameters and
   gradients, and MOMENT, that of m and u, with LOAD and STORE between each and REAL; NAME(name);
   TARGET, the instruction set. The order of the operations, which of them are fused, and where they
   round, are those of torch's kernels: they decide the last bit. Outputs may be the inputs
   themselves, never a part of them. */

#define STORED __typeof__(STORE_MOMENT((REAL)0)) /* a moment as it is stored, rounded to halves */

static inline __attribute__((always_inline)) void
NAME(step_body)(const Step *row, ptrdiff_t start, ptrdiff_t end, int decay, int add)
{
    const VALUE *p_ = row->p, *g_ = row->g;
    const MOMENT *m_ = row->m, *u_ = row->u;
    MOMENT *m_new = row->m_new, *u_new = row->u_new;
    const REAL weight = (REAL)row->weight, b2 = (REAL)row->b2;
    const REAL eps = LOAD_MOMENT(STORE_MOMENT((REAL)row->eps));
    const REAL scale = (REAL)row->scale, factor = (REAL)row->factor, sign = (REAL)row->sign;
    const int near = weight < (REAL)0.5;
    const REAL coefficient = near ? weight : weight - 1;

    const int far = end - start == BLOCK;
    const ptrdiff_t strip = far ? STRIP : end - start;

    for (ptrdiff_t first = start; first < end; first += strip) {
        if (far) {
            if (decay != NO_DECAY || add)
                fetch_ahead(p_ + first, sizeof(VALUE));
            fetch_ahead(g_ + first, sizeof(VALUE));
            fetch_ahead(m_ + first, sizeof(MOMENT));
            fetch_ahead(u_ + first, sizeof(MOMENT));
        }
#pragma GCC ivdep
        for (ptrdiff_t i = first; i < first + strip; i++) {
            REAL g = LOAD_VALUE(g_[i]) * sign, m = LOAD_MOMENT(m_[i]);
            if (decay == COUPLED)
                g = FMA(LOAD_VALUE(p_[i]), factor, g);
            STORED m_stored = STORE_MOMENT(FMA(coefficient, g - m, near ? m : g));
            STORED old_stored = STORE_MOMENT(LOAD_MOMENT(u_[i]) * b2);
            STORED now_stored = STORE_MOMENT(FABS(g) + eps);
            REAL old = LOAD_MOMENT(old_stored), now = LOAD_MOMENT(now_stored);
            int keep = old > now || old != old;
            REAL update = LOAD_MOMENT(m_stored) * scale / (keep ? old : now);
            if (decay == DECOUPLED)
                update = FMA(LOAD_VALUE(p_[i]), factor, update);
            if (add)
                ((VALUE *)row->out)[i] = STORE_VALUE(LOAD_VALUE(p_[i]) + update);
            else
                ((REAL *)row->out)[i] = update;
            m_new[i] = m_stored;
            u_new[i] = keep ? old_stored : now_stored;
        }
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

#undef STORED
#undef VALUE
#undef LOAD_VALUE
#undef STORE_VALUE
#undef MOMENT
#undef LOAD_MOMENT
#undef STORE_MOMENT
#undef NAME
