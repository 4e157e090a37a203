/* What is asked of tensors. Memory is described through DLPack's exchange interface, by which torch
   fills in a struct of fixed layout; the rest goes through Python. */

typedef struct {
    void *data;
    struct { int32_t type, id; } device;
    int32_t ndim;
    struct { uint8_t code, bits; uint16_t lanes; } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct {
    struct { uint32_t major, minor; } version;
    void *previous;
    void *allocate, *export_tensor, *import_tensor;
    int (*describe)(void *tensor, DLTensor *description);
    void *stream;
} DLPackExchange;

enum { DLPACK_CPU = 1, DLPACK_FLOAT = 2, DLPACK_BFLOAT = 4, DLPACK_COMPLEX = 5 };

typedef enum { F32, F64, BF16, F16, C64, C128, OTHER } Type;

static const ptrdiff_t type_sizes[] = {4, 8, 2, 2, 8, 16, 0};

typedef struct {
    DLTensor dl;
    char *start;
    Type type;
    ptrdiff_t n, bytes;
} View;

static const DLPackExchange *exchange;
static PyObject *types[2], *empty_like, *as_float32;
static PyObject *is_neg, *is_conj, *is_inference, *grad, *requires_grad;

static Type type_of(const DLTensor *dl)
{
    if (dl->dtype.lanes != 1)
        return OTHER;
    switch (256 * dl->dtype.code + dl->dtype.bits) {
    case 256 * DLPACK_FLOAT + 32: return F32;
    case 256 * DLPACK_FLOAT + 64: return F64;
    case 256 * DLPACK_FLOAT + 16: return F16;
    case 256 * DLPACK_BFLOAT + 16: return BF16;
    case 256 * DLPACK_COMPLEX + 64: return C64;
    case 256 * DLPACK_COMPLEX + 128: return C128;
    }
    return OTHER;
}

static int is_tensor(PyObject *x)
{
    PyObject *type = (PyObject *)Py_TYPE(x);
    return type == types[0] || type == types[1];
}

/* Whether a method without arguments answers False. */
static int denies(PyObject *x, PyObject *method)
{
    PyObject *answer = PyObject_CallMethodObjArgs(x, method, NULL);
    Py_XDECREF(answer);
    return answer == Py_False;
}

/* Describe a tensor on the CPU, of any type; 0 for anything else. */
static int locate(PyObject *x, View *v)
{
    if (x == NULL || !is_tensor(x))
        return 0;
    if (exchange->describe(x, &v->dl) != 0) {
        PyErr_Clear(); /* no memory to be described */
        return 0;
    }
    if (v->dl.device.type != DLPACK_CPU)
        return 0;
    v->type = type_of(&v->dl);
    v->n = 1;
    for (int i = 0; i < v->dl.ndim; i++)
        v->n *= v->dl.shape[i];
    v->start = (char *)v->dl.data + v->dl.byte_offset;
    v->bytes = v->n * v->dl.dtype.bits * v->dl.dtype.lanes / 8;
    return v->n == 0 || v->dl.data != NULL;
}

/* Describe a tensor of one of our types. */
static int describe(PyObject *x, View *v)
{
    return locate(x, v) && v->type != OTHER;
}

/* Describe a tensor whose memory holds its values. To ask for that is slow: it releases the GIL. */
static int view(PyObject *x, View *v)
{
    return describe(x, v) && denies(x, is_neg) && (v->type < C64 || denies(x, is_conj));
}

/* Whether the elements lie side by side, in whatever order of the dimensions. */
static int is_dense(const View *v)
{
    ptrdiff_t covered = 1;
    while (covered < v->n) {
        int i = v->dl.ndim - 1;
        while (i >= 0 && (v->dl.shape[i] == 1 || v->dl.strides[i] != covered))
            i--;
        if (i < 0)
            return 0;
        covered *= v->dl.shape[i];
    }
    return 1;
}

static int same_layout(const View *a, const View *b)
{
    if (a->dl.ndim != b->dl.ndim)
        return 0;
    for (int i = 0; i < a->dl.ndim; i++) {
        if (a->dl.shape[i] != b->dl.shape[i])
            return 0;
        if (a->dl.strides[i] != b->dl.strides[i] && a->dl.shape[i] != 1 && a->n != 0)
            return 0;
    }
    return 1;
}

/* Whether it is a tensor that autograd does not follow. */
static int is_free(PyObject *x, int grad_mode)
{
    if (!is_tensor(x))
        return 0;
    PyObject *answer = grad_mode ? PyObject_GetAttr(x, requires_grad) : NULL;
    Py_XDECREF(answer);
    return !grad_mode || answer == Py_False;
}

/* Large new memory comes in large pages where the system has them: its first writes are the
   greater part of a pure step. */
static void expect_writes(const View *v)
{
#ifdef MADV_HUGEPAGE
    enum { PAGE = 1 << 21 };
    uintptr_t start = ((uintptr_t)v->start + PAGE - 1) & -(uintptr_t)PAGE;
    uintptr_t end = ((uintptr_t)v->start + v->bytes) & -(uintptr_t)PAGE;
    if (start < end)
        madvise((void *)start, end - start, MADV_HUGEPAGE);
#else
    (void)v;
#endif
}

/* Put a new tensor like x into a list, in float32 if x may be a half; return its address, or NULL
   with an exception. */
static void *new_like(PyObject *x, int widened, PyObject *list, Py_ssize_t index)
{
    View v;
    if (PyErr_Occurred())
        return NULL;
    PyObject *arguments = PyTuple_Pack(1, x);
    PyObject *result =
        arguments ? PyObject_Call(empty_like, arguments, widened ? as_float32 : NULL) : NULL;
    Py_XDECREF(arguments);
    if (result == NULL)
        return NULL;
    if (!view(result, &v)) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "a new tensor is not plain memory");
        return NULL;
    }
    expect_writes(&v);
    PyList_SetItem(list, index, result);
    return v.start;
}

/* Tensors in memory. Where one that is written meets another, the order of writes matters. */

typedef struct {
    const char *start, *end;
    int written;
} Range;

/* Sort by start, byte by byte of the distance to the first; spare has room for as many. Return
   where the result is. */
static Range *sorted(Range *ranges, Range *spare, Py_ssize_t count)
{
    uintptr_t first = UINTPTR_MAX, last = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uintptr_t start = (uintptr_t)ranges[i].start;
        first = start < first ? start : first;
        last = start > last ? start : last;
    }
    const int bits = 8 * sizeof first;
    for (int shift = 0; shift < bits && (last - first) >> shift; shift += 8) {
        Py_ssize_t place[257] = {0};
        for (Py_ssize_t i = 0; i < count; i++)
            place[1 + (((uintptr_t)ranges[i].start - first) >> shift & 255)]++;
        for (int digit = 0; digit < 256; digit++)
            place[digit + 1] += place[digit];
        for (Py_ssize_t i = 0; i < count; i++)
            spare[place[((uintptr_t)ranges[i].start - first) >> shift & 255]++] = ranges[i];
        Range *result = spare;
        spare = ranges;
        ranges = result;
    }
    return ranges;
}

/* Whether a written range meets another; the second half of the array is spare. */
static int collide(Range *ranges, Py_ssize_t count)
{
    const char *end = NULL, *end_written = NULL;
    ranges = sorted(ranges, ranges + count, count);
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

static void add_range(Range *range, const View *v, int written)
{
    range->start = v->start;
    range->end = v->start + v->bytes;
    range->written = written;
}
