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

/* A hyperparameter: a number, or a tensor of one. */
typedef struct {
    double number;
    Type type; /* OTHER for a number of Python */
} Rate;

typedef struct {
    Rate lr, b1, b2, eps, weight_decay;
    int maximize, decay;
    double b1_before, t_before, bias; /* the last 1 - b1^t */
} Rates;

static int read_tensor(PyObject *x, Rate *rate)
{
    View v;
    if (!describe(x, &v) || v.type > F64 || v.dl.ndim > 1 || v.n != 1)
        return 0;
    *rate = (Rate){v.type == F32 ? *(const float *)v.start : *(const double *)v.start, v.type};
    return 1;
}

static int read_rate(PyObject *x, Rate *rate)
{
    *rate = (Rate){0, OTHER};
    if (!PyFloat_Check(x) && !PyLong_Check(x))
        return read_tensor(x, rate);
    rate->number = PyFloat_AsDouble(x);
    if (rate->number != -1 || !PyErr_Occurred())
        return 1;
    PyErr_Clear(); /* an integer beyond all floats */
    return 0;
}

/* Read lr and the four hyperparameters after it; 0 where one is anything else, or b1 none for the
   kernels: from 1 on, or so small that 1 - b1 is 1, where torch's signs of zeros depend on their
   place. */
static int read_rates(PyObject *tuple, Py_ssize_t first, int maximize, int decoupled, Rates *rates)
{
    Rate *fields[] = {&rates->lr, &rates->b1, &rates->b2, &rates->eps, &rates->weight_decay};
    PyObject *x[5];
    for (int i = 0; i < 5; i++)
        if ((x[i] = PyTuple_GetItem(tuple, first + i)) == NULL ||
            (is_tensor(x[i]) && !denies(x[i], &is_neg)))
            return 0;
    for (int i = 0; i < 5; i++)
        if (!read_rate(x[i], fields[i]))
            return 0;
    double weight = 1 - rates->b1.number;
    if (!(weight > 0) || (float)weight == 1)
        return 0;
    int decays = rates->weight_decay.type != OTHER || rates->weight_decay.number != 0;
    rates->maximize = maximize;
    rates->decay = !decays ? NO_DECAY : decoupled ? DECOUPLED : COUPLED;
    rates->t_before = -1;
    return 1;
}

/* -lr / (1 - b1^t), t counting from 1; a tensor lr divides in its own type. */
static double scale_at(Rates *rates, double t)
{
    double lr = rates->lr.number, b1 = rates->b1.number;
    if (t != rates->t_before || b1 != rates->b1_before) {
        rates->t_before = t;
        rates->b1_before = b1;
        rates->bias = 1 - pow(b1, t);
    }
    return rates->lr.type == F32 ? -((float)lr / (float)rates->bias) : -(lr / rates->bias);
}

/* What the decay is multiplied by; a product with tensors is taken in their type. */
static double factor_of(const Rates *rates)
{
    const Rate *lr = &rates->lr, *weight_decay = &rates->weight_decay;
    double a = lr->number, b = weight_decay->number;
    if (rates->decay != DECOUPLED)
        return b;
    int narrow = (lr->type == F32 || weight_decay->type == F32) && lr->type != F64 &&
                 weight_decay->type != F64;
    return narrow ? -((float)a * (float)b) : -(a * b);
}

/* Whether torch takes a number, for float32 or what is computed in it: infinities and NaN it does. */
static int fits(double x)
{
    return !(fabs(x) > FLT_MAX) || isinf(x);
}

/* Whether torch takes the numbers, at whatever t from 1 on. */
static int all_fit(const Rates *rates)
{
    double weight = 1 - rates->b1.number;
    return fits(weight) && fits(rates->lr.number / weight) && fits(factor_of(rates));
}

/* The numbers of a row; t counts from 1. */
static void rate_row(Rates *rates, double t, Step *row)
{
    row->weight = 1 - rates->b1.number;
    row->b2 = rates->b2.number;
    row->eps = rates->eps.number;
    row->scale = scale_at(rates, t);
    row->factor = factor_of(rates);
    row->sign = rates->maximize ? -1 : 1;
    row->decay = rates->decay;
}

static int kind_of(Type value, Type moment)
{
    int kind = 0;
    while (kind < KINDS && !(kinds[kind].value == value && kinds[kind].moment == moment))
        kind++;
    return kind;
}

static double read_t(const void *t, int wide)
{
    return wide ? *(const double *)t : *(const float *)t;
}

/* The t after this one, in its own type: of float32 16777216 is the last. */
static double next_t(const void *t, int wide)
{
    double next = read_t(t, wide) + 1;
    return wide ? next : (float)next;
}

static void write_t(void *t, int wide, double value)
{
    if (wide)
        *(double *)t = value;
    else
        *(float *)t = value;
}

/* A row for p, which may be None, g, m, u and t as they are described; 0 where the kernels cannot
   take them. It has no numbers yet, and goes nowhere. */
static int fill_row(int has_p, const Rates *rates, const View *v, Work *work)
{
    if (v[T].type > F64 || v[T].dl.ndim != 0 || v[U].type != v[M].type ||
        !is_dense(&v[M]) || !same_layout(&v[U], &v[M]) || !same_layout(&v[G], &v[M]))
        return 0;
    if (has_p && (v[P].type != v[G].type || !same_layout(&v[P], &v[M])))
        return 0;
    work->kind = kind_of(v[G].type, v[M].type);
    if (work->kind == KINDS)
        return 0;
    if (v[M].type != F64 && v[M].type != C128 && !all_fit(rates))
        return 0;
    int complex = work->kind >= COMPLEX_KINDS;
    if (complex && rates->maximize) /* which zeros torch turns negative depends on their place */
        return 0;
    work->kernel = step_kernels[complex ? work->kind - COMPLEX_KINDS : work->kind];
    work->n = complex ? 2 * v[M].n : v[M].n;
    work->t = v[T].start;
    work->wide_t = v[T].type == F64;
    Step *row = &work->row;
    row->p = has_p ? v[P].start : NULL;
    row->g = v[G].start;
    row->m = v[M].start;
    row->u = v[U].start;
    return 1;
}

/* Look at p, which may be None, g, m, u and t, and fill in their row; 0 where they cannot be taken. */
static int take(PyObject *const *x, Rates *rates, View *v, Work *work)
{
    int has_p = x[P] != Py_None, first = has_p ? P : G;
    return (has_p || rates->decay == NO_DECAY) && view_all(x + first, v + first, T + 1 - first) &&
           fill_row(has_p, rates, v, work);
}

static int take_leaf(PyObject *leaf, int maximize, int decoupled, PyObject **x,
                     Rates *rates, View *v, Work *work)
{
    for (int i = P; i <= T; i++)
        if ((x[i] = PyTuple_GetItem(leaf, i)) == NULL)
            return 0;
    return PyTuple_GetItem(leaf, FLOOR) == Py_None &&
           read_rates(leaf, LR, maximize, decoupled, rates) &&
           take(x, rates, v, work);
}
