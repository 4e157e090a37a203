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
static const ptrdiff_t alignments[] = {4, 8, 2, 2, 4, 8, 1};

typedef struct {
    DLTensor dl;
    char *start;
    Type type;
    ptrdiff_t n, bytes;
} View;

/* A method without arguments, and the function in C that it is, if it is one. */
typedef struct {
    PyObject *name;
    PyCFunction function;
} Question;

static const DLPackExchange *exchange;
static PyObject *types[2], *empty_like, *as_float32;
static PyObject *as_type[4]; /* keywords that ask for one of the first types */
static PyObject *data, *grad, *requires_grad;
static Question is_neg, is_conj, is_inference;

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

/* Whether a tensor answers False. To ask may let other threads run. */
static int denies(PyObject *x, const Question *question)
{
    PyObject *answer = question->function ? question->function(x, NULL)
                                          : PyObject_CallMethodObjArgs(x, question->name, NULL);
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

/* Describe a tensor of one of our types, whose elements lie where the processor wants them. */
static int describe(PyObject *x, View *v)
{
    return locate(x, v) && v->type != OTHER && (uintptr_t)v->start % alignments[v->type] == 0;
}

static int describe_all(PyObject *const *x, View *v, int count)
{
    for (int i = 0; i < count; i++)
        if (!describe(x[i], &v[i]))
            return 0;
    return 1;
}

static int all_deny(PyObject *const *x, int count, const Question *question)
{
    for (int i = 0; i < count; i++)
        if (!is_tensor(x[i]) || !denies(x[i], question))
            return 0;
    return 1;
}

/* Describe tensors whose memory holds their values, as they are after all questions. */
static int view_all(PyObject *const *x, View *v, int count)
{
    int complex = 0;
    if (!all_deny(x, count, &is_neg) || !describe_all(x, v, count))
        return 0;
    for (int i = 0; i < count; i++)
        complex |= v[i].type >= C64;
    return !complex || (all_deny(x, count, &is_conj) && describe_all(x, v, count));
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

/* Put a new tensor like x into a list, with these keywords of empty_like or NULL; return its address,
   or NULL with an exception. */
static void *new_by(PyObject *x, PyObject *keywords, PyObject *list, Py_ssize_t index)
{
    View v;
    if (PyErr_Occurred() || !may_allocate())
        return NULL;
    PyObject *arguments = PyTuple_Pack(1, x);
    PyObject *result = arguments ? PyObject_Call(empty_like, arguments, keywords) : NULL;
    Py_XDECREF(arguments);
    if (result == NULL)
        return NULL;
    if (!describe(result, &v)) {
        Py_DECREF(result);
        PyErr_SetString(PyExc_RuntimeError, "a new tensor is not plain memory");
        return NULL;
    }
    expect_writes(&v);
    PyList_SetItem(list, index, result);
    return v.start;
}

/* The same, in float32 if x may be a half. */
static void *new_like(PyObject *x, int widened, PyObject *list, Py_ssize_t index)
{
    return new_by(x, widened ? as_float32 : NULL, list, index);
}
