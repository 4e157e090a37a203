/* A step in place. First all leaves are gathered and asked what only Python can answer, which may
   let other threads run; then, in C alone, they are described, and nothing is written before all of
   them fit. */

enum { BYSTANDER = -1 };

typedef struct {
    PyObject *x[5]; /* p, g, m, u and t, owned */
    Py_ssize_t rates; /* which, or BYSTANDER of a leaf that is not stepped */
} Entry;

typedef struct {
    Entry *entries;
    Py_ssize_t count, room;
    Rates *rates;
    Work *work; /* of the entries that are stepped */
    Py_ssize_t rows;
    int complex; /* whether there are complex tensors, which may be lazily conjugated */
    Ranges ranges;
    PyObject *written; /* p, m, u and t of each row, a list */
    PyObject *known;   /* those written by an earlier step, or NULL */
    int differs;       /* whether other tensors are written now than then */
    int releases;      /* whether the write releases the GIL */
} Plan;

/* Room for so many sets of rates; 0 with an exception. */
static int begin(Plan *plan, PyObject *known, Py_ssize_t rates)
{
    *plan = (Plan){.known = known, .differs = known == NULL};
    if (rates >= 0)
        plan->rates = resized(NULL, (rates + 1) * sizeof(Rates));
    return plan->rates != NULL;
}

/* Whether the tensors of the next entry were written by the earlier step, as its row there. */
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

static int append(Plan *plan, PyObject *const *x, Py_ssize_t rates)
{
    if (plan->count == plan->room) {
        Py_ssize_t room = 2 * plan->room + 16;
        Entry *entries = resized(plan->entries, room * sizeof(Entry));
        if (entries == NULL)
            return 0;
        plan->entries = entries;
        plan->room = room;
    }
    Entry *entry = &plan->entries[plan->count++];
    entry->rates = rates;
    for (int i = P; i <= T; i++)
        entry->x[i] = Py_NewRef(x[i]);
    return 1;
}

/* Add a leaf that has a gradient. 0, perhaps with an exception, where it cannot be taken. */
static int add(Plan *plan, PyObject *const *x, Py_ssize_t rates)
{
    return all_deny(x, T + 1, &is_neg) && append(plan, x, rates);
}

/* A leaf without gradient: nothing is done to it, and no write may reach it. 0, perhaps with an
   exception, where it cannot be told where the leaf lies. */
static int lay_bystander(Plan *plan, PyObject *const *x)
{
    View v;
    for (int i = P; i <= T; i++)
        if (is_tensor(x[i]) &&
            !(locate(x[i], &v) && is_dense(&v) && add_range(&plan->ranges, NULL, &v, 0)))
            return 0;
    return 1;
}

static int lay_row(Plan *plan, PyObject *const *x, Rates *rates)
{
    View v[5];
    Work *work = &plan->work[plan->rows];
    if (!describe_all(x, v, T + 1) || !fill_row(1, rates, v, work) ||
        !active[work->kind][rates->decay])
        return 0;
    Step *row = &work->row;
    double t = next_t(work->t, work->wide_t);
    if (!(t >= 1)) /* torch divides numbers, and raises where Python does */
        return 0;
    work->next = t;
    rate_row(rates, t, row);
    row->add = 1;
    row->out = (void *)row->p;
    row->m_new = (void *)row->m;
    row->u_new = (void *)row->u;
    for (int i = P; i <= T; i++)
        if (!add_range(&plan->ranges, x[i], &v[i], i != G) ||
            (i != G && plan->written != plan->known &&
             (!may_allocate() || PyList_Append(plan->written, x[i]) != 0)))
            return 0;
    plan->complex |= work->kind >= COMPLEX_KINDS;
    plan->rows++;
    return 1;
}

/* Describe all leaves; 0, perhaps with an exception, where one does not fit. Other threads do not
   run from here on, as long as nothing is called that lets them. */
static int lay_out(Plan *plan)
{
    int same = !plan->differs && PyList_Size(plan->known) == 4 * plan->count;
    plan->written = same ? Py_NewRef(plan->known) : new_list(0); /* which is full already, or empty */
    plan->work = resized(NULL, (plan->count + 1) * sizeof(Work));
    int fine = plan->written != NULL && plan->work != NULL;
    for (Py_ssize_t i = 0; i < plan->count && fine; i++) {
        const Entry *entry = &plan->entries[i];
        fine = entry->rates == BYSTANDER ? lay_bystander(plan, entry->x)
                                         : lay_row(plan, entry->x, &plan->rates[entry->rates]);
    }
    return fine && are_apart(&plan->ranges);
}

static int are_unconjugated(const Plan *plan)
{
    for (Py_ssize_t i = 0; i < plan->ranges.count; i++) {
        PyObject *x = plan->ranges.all[i].tensor;
        if (x != NULL && !denies(x, &is_conj))
            return 0;
    }
    return 1;
}

/* Whether all counters are what they were when their rows were laid out. */
static int are_counted_alike(const Plan *plan)
{
    for (Py_ssize_t i = 0; i < plan->rows; i++)
        if (next_t(plan->work[i].t, plan->work[i].wide_t) != plan->work[i].next)
            return 0;
    return 1;
}

static void count_steps(const Plan *plan)
{
    for (Py_ssize_t i = 0; i < plan->rows; i++)
        write_t(plan->work[i].t, plan->work[i].wide_t, plan->work[i].next);
}

/* Tell autograd what will be written; 0 with an exception. Before the write, since after it an
   exception, Ctrl-C for one, would leave a write that autograd does not notice. */
static int announce(const Plan *plan, PyObject *increment)
{
    if (plan->rows == 0)
        return 1;
    int collects = PyGC_Disable(); /* a collection runs Python, and with it other threads */
    PyObject *answer = PyObject_CallFunctionObjArgs(increment, plan->written, NULL);
    if (collects)
        PyGC_Enable();
    Py_XDECREF(answer);
    return answer != NULL;
}

static void end(Plan *plan)
{
    for (Py_ssize_t i = 0; i < plan->count; i++)
        for (int k = P; k <= T; k++)
            Py_DECREF(plan->entries[i].x[k]);
    Py_XDECREF(plan->written);
    let_go(&plan->ranges);
    PyMem_Free(plan->entries);
    PyMem_Free(plan->rates);
    PyMem_Free(plan->work);
}

/* Do everything that comes before the first write, once all leaves are gathered; 0, perhaps with an
   exception, where they cannot be stepped. */
static int settle(Plan *plan)
{
    if (!lay_out(plan) || (plan->complex && !are_unconjugated(plan)))
        return 0;
    plan->releases = is_long(plan->work, plan->rows, &plan->ranges);
    return !plan->releases || hold(&plan->ranges);
}

/* Write what is settled; 0, perhaps with an exception, and with nothing written, where memory was
   moved or counted on meanwhile. Not where the caller knows that nothing ran. */
static int commit(const Plan *plan, PyObject *increment, long threads, int alone)
{
    if (!announce(plan, increment) ||
        !(alone || (are_unmoved(&plan->ranges, 0) && are_counted_alike(plan))))
        return 0;
    count_steps(plan);
    run(plan->work, plan->rows, threads, !plan->releases);
    return 1;
}

/* Run a plan if all leaves could be gathered, and answer with the tensors written; None, with
   nothing written, where they cannot be stepped, or were moved meanwhile. */
static PyObject *finish(Plan *plan, int complete, PyObject *increment, long threads)
{
    int fine = complete && !PyErr_Occurred() && settle(plan);
    int alone = !plan->complex && !plan->releases && PyCFunction_Check(increment);
    fine = fine && commit(plan, increment, threads, alone);
    PyObject *answer = PyErr_Occurred() ? NULL : Py_NewRef(fine ? plan->written : Py_None);
    end(plan);
    return answer;
}
