/* The leaves of one step: gathered, looked at, and run.

   A leaf is a row of tensors, one of each column, and of each counter a tensor of one number. The
   first column holds the gradients: a leaf without one is left as it is. As in plan.h all is asked
   and described before anything is written. */

typedef struct {
    PyObject *capsule; /* of the program, owned */
    const Program *program;
    PyObject **x; /* columns and counters of each leaf, owned */
    Py_ssize_t count, width;
    Work *work; /* of the leaves that are stepped */
    Py_ssize_t rows;
    double *pool;            /* the uniforms that are spread, of each row that has others */
    double *before, *after;  /* of each row, the counters */
    char **counters;         /* and where they are */
    double *r;               /* uniforms, while they are computed */
    double numbers[MOST_UNIFORMS];
    PyObject *lists[MOST_UNIFORMS]; /* of numbers of each leaf, or NULL; borrowed */
    Ranges ranges;
    PyObject *written; /* a list, or NULL */
    int releases;
} Plan;

static double read_number(const char *at, int wide)
{
    return wide ? *(const double *)at : (double)*(const float *)at;
}

static void write_number(char *at, int wide, double x)
{
    if (wide)
        *(double *)at = x;
    else
        *(float *)at = (float)x;
}

/* Equality that tells zeros apart by their sign, and finds a NaN equal to itself. */
static int is_same(double x, double y)
{
    return memcmp(&x, &y, sizeof x) == 0;
}

static void end(Plan *plan)
{
    for (Py_ssize_t i = 0; plan->x != NULL && i < plan->count * plan->width; i++)
        Py_XDECREF(plan->x[i]);
    Py_XDECREF(plan->capsule);
    Py_XDECREF(plan->written);
    let_go(&plan->ranges);
    PyMem_Free(plan->x);
    PyMem_Free(plan->work);
    PyMem_Free(plan->pool);
    PyMem_Free(plan->before);
    PyMem_Free(plan->counters);
    PyMem_Free(plan->r);
}

/* Take the numbers of the uniforms; 0 with an exception. */
static int take_numbers(Plan *plan, PyObject *numbers)
{
    for (int k = 0; k < plan->program->numbers; k++) {
        PyObject *x = PyTuple_GetItem(numbers, k);
        if (x == NULL)
            return 0;
        plan->lists[k] = PyList_Check(x) ? x : NULL;
        if (!PyList_Check(x))
            plan->numbers[k] = PyFloat_AsDouble(x);
    }
    return !PyErr_Occurred();
}

/* Begin a plan of columns and counters, both tuples of lists; 0 with an exception. */
static int begin(Plan *plan, PyObject *capsule, PyObject *columns, PyObject *counters,
                 PyObject *numbers)
{
    *plan = (Plan){0};
    const Program *p = PyCapsule_GetPointer(capsule, NULL);
    if (p == NULL)
        return 0;
    plan->capsule = Py_NewRef(capsule);
    plan->program = p;
    plan->width = p->columns + p->counters;
    Py_ssize_t count = PyList_Size(PyTuple_GetItem(columns, 0));
    if (count < 0 || (plan->x = resized(NULL, (count * plan->width + 1) * sizeof *plan->x)) == NULL)
        return 0;
    memset(plan->x, 0, (count * plan->width + 1) * sizeof *plan->x);
    plan->count = count;
    for (int k = 0; k < plan->width; k++) {
        PyObject *list = k < p->columns ? PyTuple_GetItem(columns, k)
                                        : PyTuple_GetItem(counters, k - p->columns);
        for (Py_ssize_t i = 0; i < count; i++) {
            PyObject *x = list ? PyList_GetItem(list, i) : NULL;
            if (x == NULL)
                return 0;
            plan->x[i * plan->width + k] = Py_NewRef(x);
        }
    }
    Py_ssize_t numbered = count * p->counters + 1;
    return (plan->work = resized(NULL, (count + 1) * sizeof(Work))) != NULL &&
           (plan->pool = resized(NULL, (count * p->spread + 1) * sizeof(double))) != NULL &&
           (plan->before = resized(NULL, 2 * numbered * sizeof(double))) != NULL &&
           (plan->counters = resized(NULL, numbered * sizeof(char *))) != NULL &&
           (plan->r = resized(NULL, (p->uniforms + 1) * sizeof(double))) != NULL &&
           (plan->after = plan->before + numbered, 1) && take_numbers(plan, numbers);
}

static int is_written(const Program *p, int column)
{
    if (column >= p->columns)
        return p->counts[column - p->columns] >= 0;
    for (int j = 0; j < p->outputs; j++)
        if (p->of[j] == column)
            return 1;
    return 0;
}

/* Ask what only Python can answer, which may let other threads run: whether the tensors of a leaf
   can be read, and written, as they are. Tensors that autograd follows, and those made in inference
   mode, are not written. */
static int is_askable(const Plan *plan, PyObject *const *x, int in_place, int grad_mode)
{
    for (int k = 0; k < plan->width; k++)
        if (!is_free(x[k], grad_mode) || !denies(x[k], &is_neg) ||
            (in_place && is_written(plan->program, k) && !denies(x[k], &is_inference)))
            return 0;
    return 1;
}

/* Whether the columns of a leaf, from the first given on, are alike, and the counters numbers. */
static int are_alike(const Plan *plan, PyObject *const *x, int first, View *v)
{
    const Program *p = plan->program;
    if (!describe_all(x + first, v + first, plan->width - first))
        return 0;
    for (int k = first; k < p->columns; k++)
        if ((int)v[k].type != p->type || !same_layout(&v[k], &v[first]))
            return 0;
    if (first < p->columns && (!is_dense(&v[first]) ||
        (p->dims != 2 && (v[first].dl.ndim > 0) != p->dims)))
        return 0;
    for (int k = 0; k < p->counters; k++) {
        const View *c = &v[p->columns + k];
        if (c->dl.ndim != 0 || c->type != (p->wide[k] ? F64 : F32))
            return 0;
    }
    return 1;
}

/* A leaf without gradient: no write may reach it. 0, perhaps with an exception, where it is not what
   the program takes, unless it has no state. */
static int lay_bystander(Plan *plan, PyObject *const *x)
{
    View v[MOST_COLUMNS + MOST_COUNTERS];
    const Program *p = plan->program;
    if (p->counters > 0 && is_tensor(x[p->columns]) && !are_alike(plan, x, 1, v))
        return 0;
    for (int k = 1; k < plan->width; k++)
        if (is_tensor(x[k]) &&
            !(locate(x[k], &v[k]) && is_dense(&v[k]) && add_range(&plan->ranges, NULL, &v[k], 0)))
            return 0;
    return 1;
}

/* Compute what is one number for the leaf, unless all is as in the row before. */
static int number_row(Plan *plan, Py_ssize_t i, const View *v)
{
    const Program *p = plan->program;
    Row *row = &plan->work[plan->rows].row;
    double *before = plan->before + plan->rows * p->counters;
    double *after = plan->after + plan->rows * p->counters;
    int same = plan->rows > 0;
    for (int k = 0; k < p->counters; k++) {
        before[k] = read_number(v[p->columns + k].start, p->wide[k]);
        plan->counters[plan->rows * p->counters + k] = v[p->columns + k].start;
        same = same && is_same(before[k], before[k - p->counters]);
    }
    for (int k = 0; k < p->numbers; k++)
        if (plan->lists[k] != NULL) {
            double x = PyFloat_AsDouble(PyList_GetItem(plan->lists[k], i));
            same = same && is_same(x, plan->numbers[k]);
            plan->numbers[k] = x;
        }
    if (PyErr_Occurred())
        return 0;
    if (!same) {
        memcpy(plan->r, p->constant, p->constants * sizeof(double));
        memcpy(plan->r + p->constants, before, p->counters * sizeof(double));
        memcpy(plan->r + p->constants + p->counters, plan->numbers, p->numbers * sizeof(double));
        compute_uniforms(p, plan->r);
    }
    double *numbers = plan->pool + (same ? 0 : plan->rows * p->spread);
    row->numbers = same ? plan->work[plan->rows - 1].row.numbers : numbers;
    for (int k = 0; k < p->spread && !same; k++)
        numbers[k] = plan->r[p->sources[k]];
    for (int k = 0; k < p->counters; k++)
        after[k] = p->counts[k] >= 0 ? plan->r[p->counts[k]] : before[k];
    return 1;
}

/* Describe a leaf that is stepped, in place or not; its outputs are not placed yet. */
static int lay_row(Plan *plan, Py_ssize_t i, int in_place)
{
    const Program *p = plan->program;
    PyObject *const *x = plan->x + i * plan->width;
    View v[MOST_COLUMNS + MOST_COUNTERS];
    Work *work = &plan->work[plan->rows];
    if (!are_alike(plan, x, 0, v) || !number_row(plan, i, v))
        return 0;
    work->kernel = kernels[p->type];
    work->n = v[0].n;
    work->row.program = p;
    work->row.sums = NULL;
    for (int k = 0; k < p->columns; k++)
        work->row.at[k] = v[k].start;
    for (int j = 0; j < p->outputs; j++)
        work->row.at[p->columns + j] = v[p->of[j]].start;
    for (int k = 0; k < plan->width; k++) {
        int written = in_place && is_written(p, k);
        if (!add_range(&plan->ranges, x[k], &v[k], written) ||
            (written && (!may_allocate() || PyList_Append(plan->written, x[k]) != 0)))
            return 0;
    }
    plan->rows++;
    return 1;
}

/* Ask and describe all leaves; 0, perhaps with an exception, where one does not fit. */
static int lay_out(Plan *plan, int in_place, int grad_mode)
{
    for (Py_ssize_t i = 0; i < plan->count; i++) {
        PyObject *const *x = plan->x + i * plan->width;
        if (x[0] != Py_None && !is_askable(plan, x, in_place, grad_mode))
            return 0;
    }
    if (in_place && (plan->written = new_list(0)) == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < plan->count; i++) {
        PyObject *const *x = plan->x + i * plan->width;
        if (!(x[0] == Py_None ? lay_bystander(plan, x) : lay_row(plan, i, in_place)))
            return 0;
    }
    return 1;
}

/* Whether all counters are what they were when their rows were laid out. */
static int are_counted_alike(const Plan *plan)
{
    const Program *p = plan->program;
    for (Py_ssize_t i = 0; i < plan->rows * p->counters; i++) {
        double now = read_number(plan->counters[i], p->wide[i % p->counters]);
        if (!is_same(now, plan->before[i]))
            return 0;
    }
    return 1;
}

/* Do everything that comes before the first write of a step in place; 0, perhaps with an exception,
   where it cannot be taken. */
static int settle(Plan *plan, int grad_mode)
{
    if (!lay_out(plan, 1, grad_mode) || !are_apart(&plan->ranges))
        return 0;
    plan->releases = is_long(plan->work, plan->rows, &plan->ranges);
    return !plan->releases || hold(&plan->ranges);
}

/* Write what is settled; 0, perhaps with an exception, and with nothing written, where memory was
   moved or counted on meanwhile; not where the caller knows that nothing ran. Autograd is told before the write, since after it an exception,
   Ctrl-C for one, would leave a write that it does not notice. */
static int commit(const Plan *plan, PyObject *increment, long threads, int alone)
{
    const Program *p = plan->program;
    if (plan->rows == 0)
        return 1;
    int collects = PyGC_Disable(); /* a collection runs Python, and with it other threads */
    PyObject *answer = PyObject_CallFunctionObjArgs(increment, plan->written, NULL);
    if (collects)
        PyGC_Enable();
    Py_XDECREF(answer);
    if (answer == NULL ||
        !(alone || (are_unmoved(&plan->ranges, 0) && are_counted_alike(plan))))
        return 0;
    for (Py_ssize_t i = 0; i < plan->rows * p->counters; i++)
        if (p->counts[i % p->counters] >= 0)
            write_number(plan->counters[i], p->wide[i % p->counters], plan->after[i]);
    run(plan->work, plan->rows, threads, !plan->releases);
    return 1;
}

/* Make the outputs of a row, and its counters, in lists that have a place for each leaf. */
static int make_results(Plan *plan, Py_ssize_t i, Py_ssize_t row, PyObject *const *lists)
{
    const Program *p = plan->program;
    PyObject *const *x = plan->x + i * plan->width;
    for (int j = 0; j < p->outputs; j++) {
        char *new = new_like(x[p->of[j]], 0, lists[j], i);
        plan->work[row].row.at[p->columns + j] = new;
    }
    for (int k = 0; k < p->counters && !PyErr_Occurred(); k++) {
        char *new = new_like(x[p->columns + k], 0, lists[p->outputs + k], i);
        if (new != NULL)
            write_number(new, p->wide[k], plan->after[row * p->counters + k]);
    }
    return !PyErr_Occurred();
}

/* The sum of the squares of the first output over all leaves, as a float; or NULL, perhaps with an
   exception. Its memory is no leaf's. */
static PyObject *summed(Plan *plan, int grad_mode, long threads)
{
    ptrdiff_t blocks = 0;
    double row[ROW];
    if (!lay_out(plan, 0, grad_mode))
        return NULL;
    for (Py_ssize_t i = 0; i < plan->rows; i++)
        blocks += (plan->work[i].n + BLOCK - 1) / BLOCK;
    double *sums = resized(NULL, (blocks * ROW + 1) * sizeof *sums), *next = sums;
    if (sums == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < plan->rows; i++) {
        plan->work[i].row.at[plan->program->columns] = NULL;
        plan->work[i].row.sums = next;
        next += (plan->work[i].n + BLOCK - 1) / BLOCK * ROW;
    }
    PyObject *result = NULL;
    if (are_counted_alike(plan) && run_pure(plan->work, plan->rows, &plan->ranges, threads))
        result = PyFloat_FromDouble(total(sums, blocks, row));
    PyMem_Free(sums);
    return result;
}

static void keep(const Plan *plan, Py_ssize_t i, PyObject *const *lists)
{
    const Program *p = plan->program;
    PyObject *const *x = plan->x + i * plan->width;
    for (int j = 0; j < p->outputs; j++)
        PyList_SetItem(lists[j], i, Py_NewRef(x[p->of[j]]));
    for (int k = 0; k < p->counters; k++)
        PyList_SetItem(lists[p->outputs + k], i, Py_NewRef(x[p->columns + k]));
}

/* Step all leaves into new tensors; their columns, or NULL, perhaps with an exception. */
static PyObject *stepped(Plan *plan, int grad_mode, long threads)
{
    const Program *p = plan->program;
    PyObject *lists[MOST_COLUMNS + MOST_COUNTERS];
    Py_ssize_t row = 0;
    if (!lay_out(plan, 0, grad_mode))
        return NULL;
    PyObject *results = may_allocate() ? PyTuple_New(p->outputs + p->counters) : NULL;
    for (int k = 0; k < p->outputs + p->counters && results != NULL; k++)
        PyTuple_SetItem(results, k, lists[k] = new_list(plan->count));
    int fine = !PyErr_Occurred();
    for (Py_ssize_t i = 0; i < plan->count && fine; i++) {
        if (plan->x[i * plan->width] == Py_None)
            keep(plan, i, lists);
        else
            fine = make_results(plan, i, row++, lists);
    }
    fine = fine && are_counted_alike(plan) &&
           run_pure(plan->work, plan->rows, &plan->ranges, threads);
    if (!fine)
        Py_CLEAR(results);
    return results;
}
