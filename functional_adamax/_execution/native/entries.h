/* The state of an optimizer, a dict for each parameter, as the flat state of a transform. */

/* The entry of a parameter, where entries mostly lie in the order of the parameters; NULL if there
   is none, or it is empty. */
static PyObject *entry_of(PyObject *state, PyObject *p, Py_ssize_t *place)
{
    enum { NEAR = 8 };
    PyObject *key, *entry = NULL;
    Py_ssize_t next = *place;
    for (int i = 0; i < NEAR && PyDict_Next(state, &next, &key, &entry); i++)
        if (key == p) {
            *place = next;
            break;
        }
    if (entry == NULL || key != p)
        entry = PyDict_GetItemWithError(state, p);
    return entry != NULL && PyDict_Check(entry) && PyDict_Size(entry) > 0 ? entry : NULL;
}

/* Put what an entry holds under the names into a flat state, at the place of a parameter: a column
   for each name that has a value for each parameter, one value for the others, which is the same in
   all entries. 0, perhaps with an exception, where it is not. */
static int scatter(PyObject *entry, PyObject *names, PyObject *single, Py_ssize_t count,
                   Py_ssize_t at, PyObject *empty, PyObject *flat)
{
    Py_ssize_t start = 0;
    for (Py_ssize_t k = 0; k < PyTuple_Size(names); k++) {
        PyObject *name = PyTuple_GetItem(names, k);
        PyObject *x = entry ? PyDict_GetItemWithError(entry, name) : NULL;
        int alone = PyTuple_GetItem(single, k) == Py_True;
        Py_ssize_t place = alone ? start : start + at;
        start += alone ? 1 : count;
        if (PyErr_Occurred())
            return 0;
        PyObject *before = PyList_GetItem(flat, place);
        if (x != NULL && before != empty && x != before)
            return 0;
        if (x != NULL)
            PyList_SetItem(flat, place, Py_NewRef(x));
    }
    return 1;
}

/* The parameters that have state, their gradients, and the flat state; None where one has a gradient
   and no state. */
static PyObject *machine_gather(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *params, *state, *names, *single, *empty;
    Py_ssize_t place = 0, size = 0;
    if (!PyArg_ParseTuple(arguments, "OOOOO", &params, &state, &names, &single, &empty))
        return NULL;
    Py_ssize_t count = PyList_Size(params);
    if (count < 0 || !PyDict_Check(state))
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    for (Py_ssize_t k = 0; k < PyTuple_Size(names); k++)
        size += PyTuple_GetItem(single, k) == Py_True ? 1 : count;
    PyObject *g = new_list(count), *p = new_list(count), *flat = new_list(size), *result = NULL;
    int fine = g != NULL && p != NULL && flat != NULL;
    for (Py_ssize_t i = 0; i < size && fine; i++)
        PyList_SetItem(flat, i, Py_NewRef(empty));
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *x = PyList_GetItem(params, i), *entry = Py_XNewRef(entry_of(state, x, &place));
        PyObject *gradient = PyErr_Occurred() ? NULL : PyObject_GetAttr(x, grad);
        fine = gradient != NULL && (entry != NULL || gradient == Py_None) &&
               scatter(entry, names, single, count, i, empty, flat);
        PyList_SetItem(p, i, Py_NewRef(entry ? x : Py_None));
        PyList_SetItem(g, i, gradient ? gradient : Py_NewRef(Py_None));
        Py_XDECREF(entry); /* owned, since to ask for a gradient may run Python */
    }
    if (fine && !PyErr_Occurred())
        result = PyTuple_Pack(3, g, p, flat);
    Py_XDECREF(g);
    Py_XDECREF(p);
    Py_XDECREF(flat);
    return result || PyErr_Occurred() ? result : Py_NewRef(Py_None);
}

/* What all entries of parameters hold under a name, if it is one object; else None. */
static PyObject *machine_shared(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *params, *state, *name, *found = NULL;
    Py_ssize_t place = 0;
    if (!PyArg_ParseTuple(arguments, "OOO", &params, &state, &name))
        return NULL;
    Py_ssize_t count = PyList_Size(params);
    int same = count >= 0 && PyDict_Check(state);
    for (Py_ssize_t i = 0; i < count && same; i++) {
        PyObject *entry = entry_of(state, PyList_GetItem(params, i), &place);
        PyObject *x = entry ? PyDict_GetItemWithError(entry, name) : NULL;
        same = !PyErr_Occurred() && (entry == NULL || (x != NULL && (found == NULL || x == found)));
        found = found ? found : x;
    }
    return PyErr_Occurred() ? NULL : Py_NewRef(same && found ? found : Py_None);
}

/* Whether tensors are known to lie apart. */
static PyObject *machine_are_apart(PyObject *self, PyObject *tensors)
{
    (void)self;
    View v;
    Ranges ranges = {0};
    Py_ssize_t count = PyList_Size(tensors);
    int fine = count >= 0;
    for (Py_ssize_t i = 0; i < count && fine; i++)
        fine = locate(PyList_GetItem(tensors, i), &v) && is_dense(&v) &&
               add_range(&ranges, NULL, &v, 1);
    fine = fine && are_apart(&ranges);
    let_go(&ranges);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}
