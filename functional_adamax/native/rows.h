/* From the tensors and numbers of a leaf to a row of work. */

/* The fields of Leaf in _rule.py. */
enum { P, G, M, U, T, LR, B1, B2, EPS, WEIGHT_DECAY, FLOOR };

/* The kinds of _kernel.py: the types of parameters and of moments. */
enum { KINDS = 8, COMPLEX_KINDS = 6 };

static const struct { Type value, moment; } kinds[KINDS] = {
    {F32, F32}, {F64, F64}, {BF16, F32}, {F16, F32}, {BF16, BF16}, {F16, F16}, {C64, C64},
    {C128, C128},
};

static int active[KINDS][3]; /* for each decay: whether it has been held against the rule */

typedef struct {
    double lr, b1, b2, eps, weight_decay;
    Type lr_type; /* OTHER for a number */
    int maximize, decay;
    double t, bias; /* the last 1 - b1^t */
} Rates;

static int read_number(PyObject *x, double *value)
{
    if (x == NULL || !(PyFloat_Check(x) || PyLong_Check(x)))
        return 0;
    *value = PyFloat_AsDouble(x);
    if (*value == -1 && PyErr_Occurred()) {
        PyErr_Clear(); /* an integer beyond all floats */
        return 0;
    }
    return 1;
}

/* Read lr and the four numbers after it; 0 where one is anything else. */
static int read_rates(PyObject *tuple, Py_ssize_t first, int maximize, int decoupled, Rates *rates)
{
    View v;
    PyObject *lr = PyTuple_GetItem(tuple, first);
    rates->lr_type = OTHER;
    if (!read_number(lr, &rates->lr)) {
        if (!view(lr, &v) || v.n != 1 || v.type > F64)
            return 0;
        rates->lr_type = v.type;
        rates->lr = v.type == F32 ? *(float *)v.start : *(double *)v.start;
    }
    if (!read_number(PyTuple_GetItem(tuple, first + 1), &rates->b1) ||
        !read_number(PyTuple_GetItem(tuple, first + 2), &rates->b2) ||
        !read_number(PyTuple_GetItem(tuple, first + 3), &rates->eps) ||
        !read_number(PyTuple_GetItem(tuple, first + 4), &rates->weight_decay))
        return 0;
    rates->maximize = maximize;
    rates->decay = rates->weight_decay == 0 ? NO_DECAY : decoupled ? DECOUPLED : COUPLED;
    rates->t = -1;
    return 1;
}

/* -lr / (1 - b1^t), t counting from 1; a tensor lr divides in its own type. */
static double scale_at(Rates *rates, double t)
{
    if (t != rates->t) {
        rates->t = t;
        rates->bias = 1 - pow(rates->b1, t);
    }
    return rates->lr_type == F32 ? -((float)rates->lr / (float)rates->bias)
                                 : -(rates->lr / rates->bias);
}

static int kind_of(Type value, Type moment)
{
    int kind = 0;
    while (kind < KINDS && !(kinds[kind].value == value && kinds[kind].moment == moment))
        kind++;
    return kind;
}

static double read_t(const Work *work)
{
    return work->wide_t ? *(double *)work->t : *(float *)work->t;
}

/* Look at p, which may be None, g, m, u and t; 0 where the kernels cannot take them. The row lacks
   scale, and goes nowhere yet. Tensors but g that are known were taken before. */
static int take(PyObject *const *x, int known, const Rates *rates, View *v, Work *work)
{
    int has_p = x[P] != Py_None;
    int (*look)(PyObject *, View *) = known ? describe : view;
    if (!view(x[G], &v[G]) || !look(x[M], &v[M]) || !look(x[U], &v[U]) || !look(x[T], &v[T]) ||
        (has_p ? !look(x[P], &v[P]) : rates->decay != NO_DECAY))
        return 0;
    if (v[T].dl.ndim != 0 || v[T].type > F64 || v[U].type != v[M].type || !is_dense(&v[M]) ||
        !same_layout(&v[U], &v[M]) || !same_layout(&v[G], &v[M]))
        return 0;
    if (has_p && (v[P].type != v[G].type || !same_layout(&v[P], &v[M])))
        return 0;
    work->kind = kind_of(v[G].type, v[M].type);
    if (work->kind == KINDS)
        return 0;
    int complex = work->kind >= COMPLEX_KINDS;
    if (complex && rates->maximize) /* which zeros torch turns negative depends on their place */
        return 0;
    Step *row = &work->row.step;
    work->kernel = step_kernels[complex ? work->kind - COMPLEX_KINDS : work->kind];
    work->n = complex ? 2 * v[M].n : v[M].n;
    work->t = v[T].start;
    work->wide_t = v[T].type == F64;
    row->p = has_p ? v[P].start : NULL;
    row->g = v[G].start;
    row->m = v[M].start;
    row->u = v[U].start;
    row->weight = 1 - rates->b1;
    row->b2 = rates->b2;
    row->eps = rates->eps;
    row->sign = rates->maximize ? -1 : 1;
    row->decay = rates->decay;
    row->factor = rates->weight_decay;
    if (row->decay == DECOUPLED)
        row->factor = rates->lr_type == F32 ? -((float)rates->lr * (float)rates->weight_decay)
                                            : -(rates->lr * rates->weight_decay);
    return 1;
}

static int take_leaf(PyObject *leaf, int maximize, int decoupled, PyObject **x, Rates *rates,
                     View *v, Work *work)
{
    for (int i = P; i <= T; i++)
        if ((x[i] = PyTuple_GetItem(leaf, i)) == NULL)
            return 0;
    return PyTuple_GetItem(leaf, FLOOR) == Py_None &&
           read_rates(leaf, LR, maximize, decoupled, rates) && take(x, 0, rates, v, work);
}
