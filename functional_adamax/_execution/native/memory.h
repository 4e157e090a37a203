/* The module's own allocations, of which a test can let any one fail. */

static long failing; /* which of the next allocations fails; 0 for none */

/* 0 with an exception where an allocation is to fail. */
static int may_allocate(void)
{
    if (failing == 0 || --failing > 0)
        return 1;
    PyErr_NoMemory();
    return 0;
}

/* Memory of a new size, with what the old one holds; NULL with an exception. */
static void *resized(void *old, size_t size)
{
    void *memory = may_allocate() ? PyMem_Realloc(old, size) : NULL;
    if (memory == NULL && !PyErr_Occurred())
        PyErr_NoMemory();
    return memory;
}

static PyObject *new_list(Py_ssize_t size)
{
    return may_allocate() ? PyList_New(size) : NULL;
}

static PyObject *native_fail_allocation(PyObject *self, PyObject *which)
{
    (void)self;
    long before = failing, next = PyLong_AsLong(which);
    if (PyErr_Occurred())
        return NULL;
    failing = next;
    return PyLong_FromLong(before);
}
