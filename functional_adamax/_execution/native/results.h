/* Steps into new tensors: of leaves one by one, and of columns. */

/* Make the update or the new parameter, t, m and u of a leaf, each like what it follows. They go
   into the lists: the first at that place, and each of the others so many places further. What the
   step reads joins the ranges. 0, perhaps with an exception, where it was moved meanwhile. */
static int make_results(PyObject *const *x, const View *v, int add, PyObject *const *lists,
                        Py_ssize_t place, Py_ssize_t further, char **new, Ranges *ranges)
{
    Py_ssize_t first = ranges->count;
    for (int k = x[P] == Py_None ? G : P; k <= T; k++)
        if (!add_range(ranges, x[k], &v[k], 0))
            return 0;
    int widened = !add && type_sizes[v[M].type] == 2;
    new[0] = new_like(add ? x[P] : x[M], widened, lists[0], place);
    new[1] = new_like(x[T], 0, lists[1], place + further);
    new[2] = new_like(x[M], 0, lists[2], place + 2 * further);
    new[3] = new_like(x[U], 0, lists[3], place + 3 * further);
    return !PyErr_Occurred() && are_unmoved(ranges, first);
}

/* One leaf of step: fill in its row, and the list of results. 0, perhaps with an exception, where it
   is not ready. */
static int prepare(PyObject *leaf, int maximize, int decoupled, int add,
                   PyObject *result, Work *work, Ranges *ranges)
{
    PyObject *x[5];
    Rates rates;
    View v[5];
    PyObject *lists[] = {result, result, result, result};
    char *new[4];
    if (!take_leaf(leaf, maximize, decoupled, x, &rates, v, work) || (add && x[P] == Py_None) ||
        !make_results(x, v, add, lists, 0, 1, new, ranges))
        return 0;
    Step *row = &work->row;
    double t = next_t(work->t, work->wide_t);
    write_t(new[1], work->wide_t, t);
    rate_row(&rates, t, row);
    row->add = add;
    row->out = new[0];
    row->m_new = new[2];
    row->u_new = new[3];
    return !PyErr_Occurred();
}

static PyObject *native_step(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves;
    int maximize, decoupled, add;
    long threads;
    if (!PyArg_ParseTuple(arguments, "Opppl", &leaves, &maximize, &decoupled, &add,
                          &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    if (count < 0)
        return NULL;
    Ranges ranges = {0};
    PyObject *results = new_list(count);
    Work *work = results ? resized(NULL, (count + 1) * sizeof(Work)) : NULL;
    int fine = work != NULL;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *result = new_list(4);
        fine = result != NULL;
        if (fine) {
            PyList_SetItem(results, i, result);
            fine = prepare(PyList_GetItem(leaves, i), maximize, decoupled, add, result, &work[i],
                           &ranges);
        }
    }
    if (!(fine && run_pure(work, count, &ranges, threads))) {
        Py_CLEAR(results);
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "a leaf is not ready, or another thread changes it");
    }
    let_go(&ranges);
    PyMem_Free(work);
    return results;
}

/* Whether a leaf without gradient is what the kernels take, or has no state. */
static int is_in_order(PyObject *const *x, Rates *rates)
{
    View v[5];
    Work work;
    PyObject *as_if[] = {x[P], x[P] == Py_None ? x[M] : x[P], x[M], x[U], x[T]};
    return !is_tensor(x[M]) || take(as_if, rates, v, &work);
}

/* The results of a leaf without gradient are what there is. */
static void keep(PyObject *const *x, int add, PyObject *const *lists, Py_ssize_t place)
{
    PyObject *old[] = {add ? x[P] : Py_None, x[T], x[M], x[U]};
    for (int k = 0; k < 4; k++)
        PyList_SetItem(lists[k], place, Py_NewRef(old[k]));
}

/* One leaf of columns. 0, perhaps with an exception, where it cannot be taken. */
static int step_anew(PyObject *const *x, int add, int grad_mode, Rates *rates,
                     PyObject *const *lists, Py_ssize_t place, Work *work, Ranges *ranges)
{
    View v[5];
    char *new[4];
    int reads_p = add || rates->decay != NO_DECAY;
    for (int k = reads_p ? P : G; k <= T; k++)
        if (!is_free(x[k], grad_mode))
            return 0;
    if (!take(x, rates, v, work) || !active[work->kind][rates->decay] ||
        !make_results(x, v, add, lists, place, 0, new, ranges))
        return 0;
    Step *row = &work->row;
    double t = next_t(work->t, work->wide_t);
    write_t(new[1], work->wide_t, t);
    rate_row(rates, t, row);
    row->add = add;
    row->out = new[0];
    row->m_new = new[2];
    row->u_new = new[3];
    return 1;
}

static PyObject *native_stepped(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *columns, *group, *x[5], *lists[4];
    int add, grad_mode;
    long threads;
    Rates rates;
    if (!PyArg_ParseTuple(arguments, "OOppl", &columns, &group, &add, &grad_mode, &threads))
        return NULL;
    PyObject *params = PyTuple_GetItem(group, 0);
    int maximize = PyObject_IsTrue(PyTuple_GetItem(group, 6));
    int decoupled = PyObject_IsTrue(PyTuple_GetItem(group, 7));
    Py_ssize_t count = PyList_Size(PyTuple_GetItem(columns, T)), rows = 0;
    if (count < 0)
        return NULL;
    Ranges ranges = {0};
    PyObject *results = may_allocate() ? PyTuple_New(4) : NULL;
    for (int k = 0; k < 4 && results != NULL; k++)
        PyTuple_SetItem(results, k, lists[k] = new_list(count));
    Work *work = PyErr_Occurred() ? NULL : resized(NULL, (count + 1) * sizeof(Work));
    if (work == NULL) {
        Py_XDECREF(results);
        return NULL;
    }
    int fine = read_rates(group, 1, maximize, decoupled, &rates);
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        for (int k = P; k <= T; k++)
            x[k] = PyList_GetItem(PyTuple_GetItem(columns, k), i);
        fine = params == Py_None || x[P] != Py_None || !is_tensor(x[M]);
        if (fine && x[G] == Py_None && (fine = is_in_order(x, &rates)))
            keep(x, add, lists, i);
        else if (fine && (fine = step_anew(x, add, grad_mode, &rates, lists, i, &work[rows],
                                           &ranges)))
            rows++;
    }
    fine = fine && run_pure(work, rows, &ranges, threads);
    let_go(&ranges);
    PyMem_Free(work);
    if (!fine) {
        Py_DECREF(results);
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    return results;
}
