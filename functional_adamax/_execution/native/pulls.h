/* The derivative of steps: from cotangents to rows of work. */

/* The fields of Pull in _rule.py. */
enum {
    PULL_G, PULL_U, M_NEW, U_NEW, D_OUT, D_M_NEW, D_U_NEW, SCALE, PULL_B1, PULL_B2, PULL_EPS, WANTS
};

/* Look at the tensors of a pull, of which the last two may both be missing; return how many there
   are, or 0 where they are not plain memory in one layout. */
static int take_pull(PyObject *pull, PyObject **x, View *v)
{
    for (int i = PULL_G; i <= D_U_NEW; i++)
        x[i] = PyTuple_GetItem(pull, i);
    v[D_M_NEW].start = v[D_U_NEW].start = NULL;
    if (PyErr_Occurred() || (x[D_M_NEW] == Py_None) != (x[D_U_NEW] == Py_None))
        return 0;
    int count = x[D_M_NEW] == Py_None ? D_M_NEW : D_U_NEW + 1;
    if (!view_all(x, v, count) || v[PULL_G].type > F64 || !is_dense(&v[PULL_G]))
        return 0;
    for (int i = PULL_U; i < count; i++)
        if (v[i].type != v[PULL_G].type || !same_layout(&v[i], &v[PULL_G]))
            return 0;
    return count;
}

/* Make the results and a row of work; 0 where the tensors cannot be taken, or with an error. */
static int prepare_pull(PyObject *pull, PyObject *result, Work *work, Ranges *ranges)
{
    PyObject *x[D_U_NEW + 1];
    View v[D_U_NEW + 1];
    int count = take_pull(pull, x, v);
    for (int i = 0; i < count; i++)
        if (!add_range(ranges, x[i], &v[i], 0))
            return 0;
    if (count == 0)
        return 0;
    PyObject *g = x[PULL_G];
    int wanted = PyObject_IsTrue(PyTuple_GetItem(pull, WANTS));
    Pull *row = &work->row.pull;
    work->kernel = pull_kernels[v[PULL_G].type];
    work->n = v[PULL_G].n;
    row->g = v[PULL_G].start;
    row->u = v[PULL_U].start;
    row->m_new = v[M_NEW].start;
    row->u_new = v[U_NEW].start;
    row->d_out = v[D_OUT].start;
    row->d_m_new = v[D_M_NEW].start;
    row->d_u_new = v[D_U_NEW].start;
    row->scale = PyFloat_AsDouble(PyTuple_GetItem(pull, SCALE));
    row->b1 = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B1));
    row->b2 = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B2));
    row->eps = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_EPS));
    row->d_g = new_like(g, 0, result, 0);
    row->d_m = row->d_u = NULL;
    if (wanted) {
        row->d_m = new_like(g, 0, result, 1);
        row->d_u = new_like(g, 0, result, 2);
    } else {
        for (int i = 1; i < 3; i++)
            PyList_SetItem(result, i, Py_NewRef(Py_None));
    }
    return !PyErr_Occurred();
}

static PyObject *native_pull(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *pulls;
    long threads;
    if (!PyArg_ParseTuple(arguments, "Ol", &pulls, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(pulls);
    if (count < 0)
        return NULL;
    Ranges ranges = {0};
    PyObject *results = new_list(count);
    Work *work = results ? resized(NULL, (count + 1) * sizeof(Work)) : NULL;
    int fine = work != NULL;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *result = new_list(3);
        fine = result != NULL;
        if (fine) {
            PyList_SetItem(results, i, result);
            fine = prepare_pull(PyList_GetItem(pulls, i), result, &work[i], &ranges);
        }
    }
    if (!(fine && run_pure(work, count, &ranges, threads)))
        Py_CLEAR(results);
    let_go(&ranges);
    PyMem_Free(work);
    return results != NULL || PyErr_Occurred() ? results : Py_NewRef(Py_None);
}
