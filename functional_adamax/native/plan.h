/* A step in place: rows are added one by one, and nothing is written before all of them fit. */

typedef struct {
    Work *work;
    Range *ranges; /* five for each row, and as much to spare */
    Py_ssize_t count, room; /* of rows; that of a bystander has no elements */
    PyObject *written, *read; /* the tensors, which must live until the step has run */
    PyObject *known;          /* those written by an earlier step, or NULL */
} Plan;

static int begin(Plan *plan, PyObject *known)
{
    *plan = (Plan){NULL, NULL, 0, 0, PyList_New(0), PyList_New(0), known};
    return plan->written != NULL && plan->read != NULL;
}

/* Whether the tensors of the next row were written by the earlier step, as its row there. */
static int is_known(const Plan *plan, PyObject *const *x)
{
    static const int fields[] = {P, M, U, T};
    if (plan->known == NULL || PyList_Size(plan->known) < 4 * plan->count + 4)
        return 0;
    for (int i = 0; i < 4; i++)
        if (PyList_GetItem(plan->known, 4 * plan->count + i) != x[fields[i]])
            return 0;
    return 1;
}

static int grow(Plan *plan)
{
    Py_ssize_t room = 2 * plan->room + 16;
    Work *work = PyMem_Realloc(plan->work, room * sizeof(Work));
    if (work != NULL)
        plan->work = work;
    Range *ranges = PyMem_Realloc(plan->ranges, 10 * room * sizeof(Range));
    if (ranges != NULL)
        plan->ranges = ranges;
    if (work == NULL || ranges == NULL) {
        PyErr_NoMemory();
        return 0;
    }
    plan->room = room;
    return 1;
}

/* 0, perhaps with an exception, where the tensors do not fit. */
static int add(Plan *plan, PyObject *const *x, int known, Rates *rates)
{
    View v[5];
    if (plan->count == plan->room && !grow(plan))
        return 0;
    Work *work = &plan->work[plan->count];
    if (x[P] == Py_None || !take(x, known, 0, rates, v, work) || !active[work->kind][rates->decay])
        return 0;
    Step *row = &work->row.step;
    rate_row(rates, 0, read_t(work->t, work->wide_t) + 1, row);
    row->add = 1;
    row->out = (void *)row->p;
    row->m_new = (void *)row->m;
    row->u_new = (void *)row->u;
    for (int i = P; i <= T; i++) {
        add_range(&plan->ranges[5 * plan->count + i], &v[i], i != G);
        if (PyList_Append(i == G ? plan->read : plan->written, x[i]) != 0)
            return 0;
    }
    plan->count++;
    return 1;
}

/* Add a leaf without gradient: nothing is done to it, and no write may reach it. 0, perhaps with an
   exception, where it cannot be told where the leaf lies. */
static int add_bystander(Plan *plan, PyObject *const *x)
{
    View v;
    if ((x[P] != Py_None && !is_tensor(x[P])) || (plan->count == plan->room && !grow(plan)))
        return 0;
    plan->work[plan->count] = (Work){0};
    for (int i = P; i <= T; i++) {
        Range *range = &plan->ranges[5 * plan->count + i];
        *range = (Range){0};
        if (!is_tensor(x[i]))
            continue;
        if (!locate(x[i], &v) || !is_dense(&v) || PyList_Append(plan->read, x[i]) != 0)
            return 0;
        add_range(range, &v, 0);
    }
    plan->count++;
    return 1;
}

static void count_steps(const Plan *plan)
{
    for (Py_ssize_t i = 0; i < plan->count; i++) {
        const Work *work = &plan->work[i];
        if (work->t != NULL)
            write_t(work->t, work->wide_t, read_t(work->t, work->wide_t) + 1);
    }
}

/* Run the plan if it is complete, and answer with the tensors written; else None. */
static PyObject *finish(Plan *plan, int complete, long threads)
{
    PyObject *answer = Py_None;
    if (complete && !collide(plan->ranges, 5 * plan->count)) {
        count_steps(plan);
        run(plan->work, plan->count, threads);
        answer = plan->written;
    }
    Py_INCREF(answer);
    Py_XDECREF(plan->written);
    Py_XDECREF(plan->read);
    PyMem_Free(plan->work);
    PyMem_Free(plan->ranges);
    if (PyErr_Occurred())
        Py_CLEAR(answer);
    return answer;
}
