/* The leaves of one step: gathered, and looked at.

   A leaf is a row of tensors, one of each column, and of each counter a tensor of one number. Leaves
   of one kind are a part, with a program. The first column holds the gradients: a leaf without one is
   left as it is. As in plan.h all is asked and described before anything is written.

   Of the members of a vmap the tensors are stacked, those of counters, too. Each member of a leaf is a
   row of its own. */

typedef struct {
    PyObject *capsule; /* of the program, owned */
    PyObject *numbers; /* that it is given, owned, or NULL where they come later */
    const Program *program;
    PyObject **x; /* columns and counters of each leaf, owned */
    Py_ssize_t *leaves; /* the position of each among the leaves of all parts */
    Py_ssize_t count, width;
    Py_ssize_t first, rows; /* in the work, of the leaves that are stepped */
    double *before, *after; /* of each row, the counters */
    char **counters;        /* and where they are */
    double *pool;           /* the uniforms that are spread, of each row that has others */
} Part;

typedef struct {
    Part *parts;
    Py_ssize_t count;
    Work *work; /* of the leaves that are stepped */
    Py_ssize_t *leaf; /* the position of each of those */
    Py_ssize_t members; /* of each leaf, or 0 where nothing is stacked */
    Py_ssize_t rows, leaves; /* all positions are less than leaves; each member has one */
    Ranges ranges;
    Special *specials; /* of the rows */
    PyObject *written; /* a list, or NULL */
    int in_order; /* whether the elements of each row lie in the order of its indices */
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

/* How many rows a leaf has. */
static Py_ssize_t rows_of(const Plan *plan)
{
    return plan->members ? plan->members : 1;
}

static void end(Plan *plan)
{
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        Part *part = &plan->parts[k];
        for (Py_ssize_t i = 0; part->x != NULL && i < part->count * part->width; i++)
            Py_XDECREF(part->x[i]);
        Py_XDECREF(part->capsule);
        Py_XDECREF(part->numbers);
        PyMem_Free(part->x);
        PyMem_Free(part->leaves);
        PyMem_Free(part->before);
        PyMem_Free(part->counters);
        PyMem_Free(part->pool);
    }
    end_specials(plan->specials);
    Py_XDECREF(plan->written);
    let_go(&plan->ranges);
    PyMem_Free(plan->parts);
    PyMem_Free(plan->work);
    PyMem_Free(plan->leaf);
}

/* Memory for so many things of a size, all of them zero; NULL with an exception. */
static void *zeroed(Py_ssize_t count, size_t size)
{
    void *memory = resized(NULL, (count + 1) * size);
    return memory ? memset(memory, 0, (count + 1) * size) : NULL;
}

/* The positions of the leaves of a part, all of them where there is no list; 0 with an exception. */
static int take_leaves(Part *part, PyObject *where, Py_ssize_t all)
{
    part->count = where == Py_None ? all : PyList_Size(where);
    if (part->count < 0 || (part->leaves = zeroed(part->count, sizeof(Py_ssize_t))) == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < part->count; i++) {
        part->leaves[i] = where == Py_None ? i : PyLong_AsSsize_t(PyList_GetItem(where, i));
        if (part->leaves[i] < 0 || part->leaves[i] >= all) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_IndexError, "there is no such leaf");
            return 0;
        }
    }
    return 1;
}

/* Take a part of a step: a program, its columns and counters, which are tuples of lists, and which
   leaves of them it is for; 0 with an exception. */
static int take_part(Plan *plan, Part *part, PyObject *given)
{
    PyObject *capsule, *columns, *counters, *where;
    if (!PyArg_ParseTuple(given, "OOOO", &capsule, &columns, &counters, &where))
        return 0;
    const Program *p = part->program = PyCapsule_GetPointer(capsule, NULL);
    if (p == NULL)
        return 0;
    part->capsule = Py_NewRef(capsule);
    part->width = p->columns + p->counters;
    Py_ssize_t all = PyList_Size(PyTuple_GetItem(columns, 0));
    if (all < 0 || !take_leaves(part, where, all) ||
        (part->x = zeroed(part->count * part->width, sizeof *part->x)) == NULL)
        return 0;
    for (int k = 0; k < part->width; k++) {
        PyObject *list = k < p->columns ? PyTuple_GetItem(columns, k)
                                        : PyTuple_GetItem(counters, k - p->columns);
        for (Py_ssize_t i = 0; i < part->count; i++) {
            PyObject *x = list ? PyList_GetItem(list, part->leaves[i]) : NULL;
            if (x == NULL)
                return 0;
            part->x[i * part->width + k] = Py_NewRef(x);
        }
    }
    Py_ssize_t rows = part->count * rows_of(plan), numbered = rows * p->counters;
    all *= rows_of(plan);
    plan->leaves = all > plan->leaves ? all : plan->leaves;
    return (part->before = zeroed(2 * numbered + 1, sizeof(double))) != NULL &&
           (part->counters = zeroed(numbered, sizeof(char *))) != NULL &&
           (part->pool = zeroed(rows * p->spread, sizeof(double))) != NULL &&
           (part->after = part->before + numbered + 1, 1);
}

/* Add a list of parts that are given the same numbers; 0 with an exception. */
static int add_parts(Plan *plan, PyObject *parts, PyObject *numbers)
{
    Py_ssize_t count = PyList_Size(parts);
    Part *all = count < 0 ? NULL : resized(plan->parts, (plan->count + count + 1) * sizeof *all);
    if (all == NULL)
        return 0;
    plan->parts = all;
    for (Py_ssize_t k = 0; k < count; k++) {
        Part *part = &plan->parts[plan->count++];
        *part = (Part){.numbers = Py_XNewRef(numbers)};
        if (!take_part(plan, part, PyList_GetItem(parts, k)))
            return 0;
    }
    return 1;
}

/* Make room for what is known of the leaves of all parts; 0 with an exception. */
static int make_room(Plan *plan)
{
    Py_ssize_t rows = 0;
    for (Py_ssize_t k = 0; k < plan->count; k++)
        rows += plan->parts[k].count * rows_of(plan);
    return (plan->work = resized(NULL, (rows + 1) * sizeof(Work))) != NULL &&
           (plan->leaf = zeroed(rows, sizeof(Py_ssize_t))) != NULL;
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
static int is_askable(const Part *part, PyObject *const *x, int in_place, int grad_mode)
{
    for (int k = 0; k < part->width; k++)
        if (!is_free(x[k], grad_mode) || !denies(x[k], &is_neg) ||
            (in_place && is_written(part->program, k) && !denies(x[k], &is_inference)))
            return 0;
    return 1;
}

/* Whether the members lie one after the other, as the first dimension. */
static int is_stacked(const View *v, ptrdiff_t members)
{
    return v->dl.ndim > 0 && v->dl.shape[0] == members &&
           (members == 1 || v->n == 0 || v->dl.strides[0] == v->n / members);
}

/* Whether the columns of a leaf, from the first given on, are alike, and the counters numbers. */
static int are_alike(const Plan *plan, const Part *part, PyObject *const *x, int first, View *v)
{
    const Program *p = part->program;
    const int stacked = plan->members > 0;
    if (!describe_all(x + first, v + first, part->width - first))
        return 0;
    for (int k = first; k < p->columns; k++)
        if ((int)v[k].type != p->types[k] || !same_layout(&v[k], &v[first]))
            return 0;
    if (first < p->columns && (!is_dense(&v[first]) ||
        (stacked && !is_stacked(&v[first], plan->members)) ||
        (p->dims != 2 && (v[first].dl.ndim > stacked) != p->dims)))
        return 0;
    for (int k = 0; k < p->counters; k++) {
        const View *c = &v[p->columns + k];
        if (c->dl.ndim != stacked || c->type != (p->wide[k] ? F64 : F32) ||
            (stacked && !is_stacked(c, plan->members)))
            return 0;
    }
    return 1;
}

/* A leaf without gradient: no write may reach it. 0, perhaps with an exception, where it is not what
   the program takes, unless it has no state. */
static int lay_bystander(Plan *plan, const Part *part, PyObject *const *x)
{
    View v[MOST_COLUMNS + MOST_COUNTERS];
    const Program *p = part->program;
    if (p->counters > 0 && is_tensor(x[p->columns]) && !are_alike(plan, part, x, 1, v))
        return 0;
    for (int k = 1; k < part->width; k++)
        if (is_tensor(x[k]) &&
            !(locate(x[k], &v[k]) && is_dense(&v[k]) && add_range(&plan->ranges, NULL, &v[k], 0)))
            return 0;
    return 1;
}

/* Whether the elements lie side by side in the order of their indices. */
static int is_contiguous(const View *v)
{
    ptrdiff_t covered = 1;
    for (int i = v->dl.ndim - 1; i >= 0; i--) {
        if (v->dl.shape[i] != 1 && v->dl.strides[i] != covered && v->n != 0)
            return 0;
        covered *= v->dl.shape[i];
    }
    return 1;
}

/* Describe the row of one member of a leaf. */
static void lay_row(Plan *plan, Part *part, Py_ssize_t i, const View *v, Py_ssize_t member)
{
    const Program *p = part->program;
    Work *work = &plan->work[plan->rows];
    plan->leaf[plan->rows++] = part->leaves[i] * rows_of(plan) + member;
    work->kernel = kernels[p->type];
    work->n = v[0].n / rows_of(plan);
    work->row = (Row){.program = p};
    for (int k = 0; k < p->columns; k++)
        work->row.at[k] = v[k].start + member * work->n * type_sizes[p->types[k]];
    for (int j = 0; j < p->outputs; j++)
        work->row.at[p->columns + j] = work->row.at[p->of[j]];
    const Py_ssize_t first = part->rows++ * p->counters;
    for (int k = 0; k < p->counters; k++) {
        const View *c = &v[p->columns + k];
        char *at = c->start + member * type_sizes[c->type];
        part->counters[first + k] = at;
        part->before[first + k] = read_number(at, p->wide[k]);
    }
}

/* Describe a leaf that is stepped, in place or not; its outputs are not placed yet. */
static int lay_rows(Plan *plan, Part *part, Py_ssize_t i, int in_place)
{
    const Program *p = part->program;
    PyObject *const *x = part->x + i * part->width;
    View v[MOST_COLUMNS + MOST_COUNTERS];
    if (!are_alike(plan, part, x, 0, v))
        return 0;
    plan->in_order &= is_contiguous(&v[0]);
    for (int j = 0; j < p->outputs; j++)
        if (in_place && p->types[p->columns + j] != p->types[p->of[j]])
            return 0;
    for (Py_ssize_t member = 0; member < rows_of(plan); member++)
        lay_row(plan, part, i, v, member);
    for (int k = 0; k < part->width; k++) {
        int written = in_place && is_written(p, k);
        if (!add_range(&plan->ranges, x[k], &v[k], written) ||
            (written && (!may_allocate() || PyList_Append(plan->written, x[k]) != 0)))
            return 0;
    }
    return 1;
}

/* Ask and describe all leaves; 0, perhaps with an exception, where one does not fit. */
static int lay_out(Plan *plan, int in_place, int grad_mode)
{
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        const Part *part = &plan->parts[k];
        for (Py_ssize_t i = 0; i < part->count; i++) {
            PyObject *const *x = part->x + i * part->width;
            if (x[0] != Py_None && !is_askable(part, x, in_place, grad_mode))
                return 0;
        }
    }
    if (in_place && (plan->written = new_list(0)) == NULL)
        return 0;
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        Part *part = &plan->parts[k];
        part->first = plan->rows;
        for (Py_ssize_t i = 0; i < part->count; i++) {
            PyObject *const *x = part->x + i * part->width;
            if (!(x[0] == Py_None ? lay_bystander(plan, part, x)
                                  : lay_rows(plan, part, i, in_place)))
                return 0;
        }
    }
    return 1;
}

/* Do everything that comes before the numbers of a step are known; 0, perhaps with an exception,
   where it cannot be taken. */
static int settle(Plan *plan, int in_place, int grad_mode)
{
    if (!lay_out(plan, in_place, grad_mode) || (in_place && !are_apart(&plan->ranges)))
        return 0;
    plan->releases = is_long(plan->work, plan->rows, &plan->ranges);
    return !plan->releases || hold(&plan->ranges);
}
