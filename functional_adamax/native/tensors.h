/* What is asked of tensors. Names and constants are looked up once; calls go through Python, since
   nothing here knows how a tensor is laid out. */

static PyObject *types[3], *strided, *float32, *float64, *empty_like;
static PyObject *data_ptr, *numel, *is_contiguous, *is_neg, *is_cpu, *dtype, *layout, *shape, *ndim;

static int is_true(PyObject *answer)
{
    int result = answer ? PyObject_IsTrue(answer) : -1;
    Py_XDECREF(answer);
    return result;
}

static int is_same(PyObject *attribute, PyObject *wanted)
{
    int result = attribute ? attribute == wanted : -1;
    Py_XDECREF(attribute);
    return result;
}

static int is_tensor(PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    return type == types[0] || type == types[1] || type == types[2];
}

/* 1 if x is a plain contiguous tensor of a dtype on the CPU, 0 if not, -1 with an exception. */
static int is_plain(PyObject *x, PyObject *wanted)
{
    if (!is_tensor(x))
        return 0;
    int result;
    if ((result = is_same(PyObject_GetAttr(x, dtype), wanted)) != 1 ||
        (result = is_same(PyObject_GetAttr(x, layout), strided)) != 1 ||
        (result = is_true(PyObject_GetAttr(x, is_cpu))) != 1 ||
        (result = is_true(PyObject_CallMethodObjArgs(x, is_contiguous, NULL))) != 1)
        return result;
    result = is_true(PyObject_CallMethodObjArgs(x, is_neg, NULL));
    return result < 0 ? result : !result;
}

/* The address of a tensor, NULL for None; NULL with an exception too. */
static void *address_of(PyObject *x)
{
    if (x == NULL || x == Py_None || PyErr_Occurred())
        return NULL;
    PyObject *answer = PyObject_CallMethodObjArgs(x, data_ptr, NULL);
    void *result = answer ? PyLong_AsVoidPtr(answer) : NULL;
    Py_XDECREF(answer);
    return result;
}

static Py_ssize_t size_of(PyObject *x)
{
    PyObject *answer = PyObject_CallMethodObjArgs(x, numel, NULL);
    Py_ssize_t result = answer ? PyLong_AsSsize_t(answer) : -1;
    Py_XDECREF(answer);
    return result;
}

/* 1 for float64, 0 for float32, -1 for another dtype or an exception. */
static int is_double(PyObject *x)
{
    PyObject *kind = PyObject_GetAttr(x, dtype);
    Py_XDECREF(kind);
    return kind == float64 ? 1 : kind == float32 ? 0 : -1;
}

static double product_of(PyObject *a, PyObject *b)
{
    PyObject *product = PyErr_Occurred() ? NULL : PyNumber_Multiply(a, b);
    double result = product ? PyFloat_AsDouble(product) : 0;
    Py_XDECREF(product);
    return result;
}

/* Put a new tensor like x into a list; return its address. */
static void *new_like(PyObject *x, PyObject *list, Py_ssize_t index)
{
    if (PyErr_Occurred())
        return NULL;
    PyObject *result = PyObject_CallFunctionObjArgs(empty_like, x, NULL);
    if (result == NULL)
        return NULL;
    void *address = address_of(result);
    PyList_SetItem(list, index, result);
    return address;
}

/* Tensors in memory. Where one that is written meets another, the order of writes matters. */

typedef struct {
    const char *start, *end;
    int written;
} Range;

static int by_start(const void *a, const void *b)
{
    const char *x = ((const Range *)a)->start, *y = ((const Range *)b)->start;
    return (x > y) - (x < y);
}

static int collide(Range *ranges, Py_ssize_t count)
{
    const char *end = NULL, *end_written = NULL;
    qsort(ranges, count, sizeof(Range), by_start);
    for (Py_ssize_t i = 0; i < count; i++) {
        const Range *range = &ranges[i];
        if (range->start == range->end)
            continue;
        if (range->start < end_written || (range->written && range->start < end))
            return 1;
        if (range->end > end)
            end = range->end;
        if (range->written && range->end > end_written)
            end_written = range->end;
    }
    return 0;
}

static void add_range(Range *range, const void *start, ptrdiff_t bytes, int written)
{
    range->start = start;
    range->end = range->start + bytes;
    range->written = written;
}
