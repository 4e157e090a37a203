/* One step of Adamax, and its derivative, over raw memory: the executor behind _kernel.py.

   It links against nothing but Python's stable interface, so that one build serves every version
   of torch. Python hands over tuples of tensors and numbers; the loop over them runs without the
   GIL. */

#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdlib.h>

enum { NO_DECAY, COUPLED, DECOUPLED };

typedef struct {
    const void *p, *g, *m, *u;
    void *out, *m_new, *u_new;
    double weight, b2, eps, scale, factor, sign;
    int decay, add;
} Step;

typedef struct {
    const void *g, *u, *m_new, *u_new, *d_out, *d_m_new, *d_u_new;
    void *d_g, *d_m, *d_u;
    double weight, b2, eps, scale;
} Pull;

typedef void (*Kernel)(const void *row, ptrdiff_t start, ptrdiff_t end);

#define REAL float
#define FMA __builtin_fmaf
#define FABS __builtin_fabsf
#define NAME(name) name##_f32
#define TARGET
#include "kernel.h"

#define REAL double
#define FMA __builtin_fma
#define FABS __builtin_fabs
#define NAME(name) name##_f64
#define TARGET
#include "kernel.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1
#define AVX2 __attribute__((target("avx2,fma")))

#define REAL float
#define FMA __builtin_fmaf
#define FABS __builtin_fabsf
#define NAME(name) name##_f32_avx2
#define TARGET AVX2
#include "kernel.h"

#define REAL double
#define FMA __builtin_fma
#define FABS __builtin_fabs
#define NAME(name) name##_f64_avx2
#define TARGET AVX2
#include "kernel.h"
#else
#define HAS_AVX2 0
#endif

static Kernel step_kernels[2] = {step_f32, step_f64};
static Kernel pull_kernels[2] = {pull_f32, pull_f64};

typedef struct {
    Kernel kernel;
    ptrdiff_t n;
    void *t; /* of a step in place: its counter */
    int wide_t;
    union {
        Step step;
        Pull pull;
    } row;
} Work;

#include "run.h"
#include "tensors.h"

/* The fields of Leaf in _rule.py. */
enum { P, G, M, U, T, LR, B1, B2, EPS, WEIGHT_DECAY, FLOOR };

static int is_number(PyObject *x)
{
    return PyFloat_Check(x) || PyLong_Check(x);
}

static int is_scalar(PyObject *x)
{
    PyObject *answer = PyObject_GetAttr(x, ndim);
    int result = answer ? PyLong_AsLong(answer) == 0 : -1;
    Py_XDECREF(answer);
    return result;
}

static int has_shape(PyObject *x, PyObject *wanted)
{
    PyObject *answer = PyObject_GetAttr(x, shape);
    int result = answer ? PyObject_RichCompareBool(answer, wanted, Py_EQ) : -1;
    Py_XDECREF(answer);
    return result;
}

/* Whether the tensors of a leaf are plain and of one shape and dtype, and its rates numbers. */
static int is_ready(PyObject *leaf)
{
    PyObject *m = PyTuple_GetItem(leaf, M), *t = PyTuple_GetItem(leaf, T);
    if (m == NULL || t == NULL)
        return -1;
    if (PyTuple_GetItem(leaf, FLOOR) != Py_None)
        return 0;
    for (int i = LR; i <= WEIGHT_DECAY; i++)
        if (!is_number(PyTuple_GetItem(leaf, i)))
            return 0;
    int wide_m = is_tensor(m) ? is_double(m) : -1, wide_t = is_tensor(t) ? is_double(t) : -1;
    if (wide_m < 0 || wide_t < 0)
        return PyErr_Occurred() ? -1 : 0;
    int fine = is_plain(t, wide_t ? float64 : float32);
    if (fine == 1)
        fine = is_scalar(t);
    if (fine != 1)
        return fine;
    PyObject *size = PyObject_GetAttr(m, shape);
    for (int i = P; i <= U && fine == 1; i++) {
        PyObject *x = PyTuple_GetItem(leaf, i);
        if (i == P && x == Py_None && PyFloat_AsDouble(PyTuple_GetItem(leaf, WEIGHT_DECAY)) == 0)
            continue;
        fine = is_plain(x, wide_m ? float64 : float32);
        if (fine == 1 && i != M)
            fine = has_shape(x, size);
    }
    Py_XDECREF(size);
    return fine;
}

static double read_t(const Work *work)
{
    return work->wide_t ? *(double *)work->t : *(float *)work->t;
}

/* Put t + 1 into a list, as a new tensor like t; return it as a number. */
static double advance(PyObject *t, PyObject *list, Py_ssize_t index)
{
    void *old = address_of(t), *new = new_like(t, list, index);
    if (old == NULL || new == NULL)
        return 0;
    if (is_double(t))
        return *(double *)new = *(double *)old + 1;
    return *(float *)new = *(float *)old + 1;
}

/* Everything of a step but where its results go; t counts from 1. */
static void read_step(PyObject *leaf, PyObject *scale, double t, int maximize, int decoupled,
                      int add, Step *row)
{
    PyObject *lr = PyTuple_GetItem(leaf, LR), *weight_decay = PyTuple_GetItem(leaf, WEIGHT_DECAY);
    double b1 = PyFloat_AsDouble(PyTuple_GetItem(leaf, B1));
    row->p = address_of(PyTuple_GetItem(leaf, P));
    row->g = address_of(PyTuple_GetItem(leaf, G));
    row->m = address_of(PyTuple_GetItem(leaf, M));
    row->u = address_of(PyTuple_GetItem(leaf, U));
    row->weight = 1 - b1;
    row->b2 = PyFloat_AsDouble(PyTuple_GetItem(leaf, B2));
    row->eps = PyFloat_AsDouble(PyTuple_GetItem(leaf, EPS));
    row->scale =
        scale != Py_None ? PyFloat_AsDouble(scale) : -PyFloat_AsDouble(lr) / (1 - pow(b1, t));
    row->sign = maximize ? -1 : 1;
    row->add = add;
    row->decay = NO_DECAY;
    row->factor = PyFloat_AsDouble(weight_decay);
    if (row->factor != 0) {
        row->decay = decoupled ? DECOUPLED : COUPLED;
        if (decoupled)
            row->factor = -product_of(lr, weight_decay);
    }
}

static PyObject *native_step(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *scales;
    int maximize, decoupled, add;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOpppl", &leaves, &scales, &maximize, &decoupled, &add,
                          &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    if (count < 0)
        return NULL;
    PyObject *results = PyList_New(count);
    Work *work = PyMem_Malloc((count + 1) * sizeof(Work));
    if (results == NULL || work == NULL) {
        Py_XDECREF(results);
        PyMem_Free(work);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        PyObject *leaf = PyList_GetItem(leaves, i), *result = PyList_New(5);
        if (result == NULL)
            break;
        PyList_SetItem(results, i, result);
        PyObject *m = PyTuple_GetItem(leaf, M);
        Step *row = &work[i].row.step;
        work[i].kernel = step_kernels[is_double(m) == 1];
        work[i].n = size_of(m);
        row->out = new_like(m, result, 0);
        double t = advance(PyTuple_GetItem(leaf, T), result, 1);
        row->m_new = new_like(m, result, 2);
        row->u_new = new_like(m, result, 3);
        read_step(leaf, PyList_GetItem(scales, i), t, maximize, decoupled, add, row);
        PyList_SetItem(result, 4, PyFloat_FromDouble(row->scale));
    }
    if (PyErr_Occurred())
        Py_CLEAR(results);
    else
        run(work, count, threads);
    PyMem_Free(work);
    return results;
}

static void add_ranges(Range *ranges, PyObject *leaf, const void *const *starts, ptrdiff_t n)
{
    ptrdiff_t bytes = n * (is_double(PyTuple_GetItem(leaf, M)) == 1 ? 8 : 4);
    for (int i = P; i <= U; i++)
        add_range(&ranges[i], starts[i], bytes, i != G);
    add_range(&ranges[T], starts[T], is_double(PyTuple_GetItem(leaf, T)) == 1 ? 8 : 4, 1);
}

static PyObject *native_are_apart(PyObject *self, PyObject *leaves)
{
    (void)self;
    Py_ssize_t count = PyList_Size(leaves);
    if (count < 0)
        return NULL;
    Range *ranges = PyMem_Malloc((5 * count + 1) * sizeof(Range));
    if (ranges == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        PyObject *leaf = PyList_GetItem(leaves, i);
        const void *starts[5];
        for (int k = P; k <= T; k++)
            starts[k] = address_of(PyTuple_GetItem(leaf, k));
        add_ranges(&ranges[5 * i], leaf, starts, size_of(PyTuple_GetItem(leaf, M)));
    }
    int apart = !PyErr_Occurred() && !collide(ranges, 5 * count);
    PyMem_Free(ranges);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(apart);
}

static PyObject *native_write(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *scales;
    int maximize, decoupled;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOppl", &leaves, &scales, &maximize, &decoupled, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    if (count < 0)
        return NULL;
    Work *work = PyMem_Malloc((count + 1) * sizeof(Work));
    Range *ranges = PyMem_Malloc((5 * count + 1) * sizeof(Range));
    if (work == NULL || ranges == NULL) {
        PyMem_Free(work);
        PyMem_Free(ranges);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        PyObject *leaf = PyList_GetItem(leaves, i), *t = PyTuple_GetItem(leaf, T);
        Step *row = &work[i].row.step;
        int wide = is_double(PyTuple_GetItem(leaf, M)) == 1;
        work[i].kernel = step_kernels[wide];
        work[i].n = size_of(PyTuple_GetItem(leaf, M));
        work[i].t = address_of(t);
        work[i].wide_t = is_double(t) == 1;
        double next = work[i].t ? read_t(&work[i]) + 1 : 0;
        read_step(leaf, PyList_GetItem(scales, i), next, maximize, decoupled, 1, row);
        row->out = (void *)row->p;
        row->m_new = (void *)row->m;
        row->u_new = (void *)row->u;
        const void *starts[] = {row->p, row->g, row->m, row->u, work[i].t};
        add_ranges(&ranges[5 * i], leaf, starts, work[i].n);
    }
    int fine = !PyErr_Occurred() && !collide(ranges, 5 * count);
    if (fine) {
        for (Py_ssize_t i = 0; i < count; i++)
            if (work[i].wide_t)
                *(double *)work[i].t += 1;
            else
                *(float *)work[i].t += 1;
        run(work, count, threads);
    }
    PyMem_Free(work);
    PyMem_Free(ranges);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

/* The fields of Pull in _kernel.py. */
enum {
    PULL_G, PULL_U, M_NEW, U_NEW, D_OUT, D_M_NEW, D_U_NEW, SCALE, PULL_B1, PULL_B2, PULL_EPS, WANTS
};

static void read_pull(PyObject *pull, PyObject *result, Pull *row)
{
    PyObject *g = PyTuple_GetItem(pull, PULL_G);
    row->g = address_of(g);
    row->u = address_of(PyTuple_GetItem(pull, PULL_U));
    row->m_new = address_of(PyTuple_GetItem(pull, M_NEW));
    row->u_new = address_of(PyTuple_GetItem(pull, U_NEW));
    row->d_out = address_of(PyTuple_GetItem(pull, D_OUT));
    row->d_m_new = address_of(PyTuple_GetItem(pull, D_M_NEW));
    row->d_u_new = address_of(PyTuple_GetItem(pull, D_U_NEW));
    row->scale = PyFloat_AsDouble(PyTuple_GetItem(pull, SCALE));
    row->weight = 1 - PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B1));
    row->b2 = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B2));
    row->eps = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_EPS));
    row->d_g = new_like(g, result, 0);
    if (PyObject_IsTrue(PyTuple_GetItem(pull, WANTS))) {
        row->d_m = new_like(g, result, 1);
        row->d_u = new_like(g, result, 2);
    } else {
        row->d_m = row->d_u = NULL;
        for (int i = 1; i < 3; i++) {
            Py_INCREF(Py_None);
            PyList_SetItem(result, i, Py_None);
        }
    }
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
    PyObject *results = PyList_New(count);
    Work *work = PyMem_Malloc((count + 1) * sizeof(Work));
    if (results == NULL || work == NULL) {
        Py_XDECREF(results);
        PyMem_Free(work);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++) {
        PyObject *pull = PyList_GetItem(pulls, i), *result = PyList_New(3);
        if (result == NULL)
            break;
        PyList_SetItem(results, i, result);
        PyObject *g = PyTuple_GetItem(pull, PULL_G);
        work[i].kernel = pull_kernels[is_double(g) == 1];
        work[i].n = size_of(g);
        read_pull(pull, result, &work[i].row.pull);
    }
    if (PyErr_Occurred())
        Py_CLEAR(results);
    else
        run(work, count, threads);
    PyMem_Free(work);
    return results;
}

/* Whether the cotangents of a step are plain memory, in the layout of its other tensors. */
static int is_pullable(PyObject *pull)
{
    PyObject *g = PyTuple_GetItem(pull, PULL_G);
    int fine = g ? is_true(PyObject_CallMethodObjArgs(g, is_contiguous, NULL)) : -1;
    int wide = g ? is_double(g) : -1;
    for (int i = D_OUT; i <= D_U_NEW && fine == 1; i++) {
        PyObject *x = PyTuple_GetItem(pull, i);
        fine = x == Py_None ? 1 : is_plain(x, wide == 1 ? float64 : float32);
    }
    return fine;
}

/* Whether all items of a list fulfil a condition that answers 1, 0, or -1 with an exception. */
static PyObject *all_of(PyObject *list, int (*condition)(PyObject *))
{
    Py_ssize_t count = PyList_Size(list);
    int result = count < 0 ? -1 : 1;
    for (Py_ssize_t i = 0; i < count && result == 1; i++)
        result = condition(PyList_GetItem(list, i));
    return result < 0 ? NULL : PyBool_FromLong(result);
}

static PyObject *native_are_ready(PyObject *self, PyObject *leaves)
{
    (void)self;
    return all_of(leaves, is_ready);
}

static PyObject *native_are_pullable(PyObject *self, PyObject *pulls)
{
    (void)self;
    return all_of(pulls, is_pullable);
}

static PyMethodDef methods[] = {
    {"are_ready", native_are_ready, METH_O, "Whether leaves are plain memory, their rates numbers."},
    {"are_apart", native_are_apart, METH_O, "Whether a step in place may write in any order."},
    {"are_pullable", native_are_pullable, METH_O, "Whether cotangents are plain memory."},
    {"step", native_step, METH_VARARGS, "Step leaves into new tensors."},
    {"write", native_write, METH_VARARGS,
     "Step in place; False, with nothing written, where tensors share memory."},
    {"pull", native_pull, METH_VARARGS, "Differentiate steps, in reverse."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__native(void)
{
#if HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        step_kernels[0] = step_f32_avx2;
        step_kernels[1] = step_f64_avx2;
        pull_kernels[0] = pull_f32_avx2;
        pull_kernels[1] = pull_f64_avx2;
    }
#endif
    struct { PyObject **place; const char *word; } names[] = {
        {&data_ptr, "data_ptr"}, {&numel, "numel"}, {&is_contiguous, "is_contiguous"},
        {&is_neg, "is_neg"}, {&is_cpu, "is_cpu"}, {&dtype, "dtype"},
        {&layout, "layout"}, {&shape, "shape"}, {&ndim, "ndim"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if ((*names[i].place = PyUnicode_InternFromString(names[i].word)) == NULL)
            return NULL;
    PyObject *torch = PyImport_ImportModule("torch"), *nn = PyImport_ImportModule("torch.nn");
    if (torch == NULL || nn == NULL ||
        (types[0] = PyObject_GetAttrString(torch, "Tensor")) == NULL ||
        (types[1] = PyObject_GetAttrString(nn, "Parameter")) == NULL ||
        (types[2] = PyObject_GetAttrString(nn, "Buffer")) == NULL ||
        (strided = PyObject_GetAttrString(torch, "strided")) == NULL ||
        (float32 = PyObject_GetAttrString(torch, "float32")) == NULL ||
        (float64 = PyObject_GetAttrString(torch, "float64")) == NULL ||
        (empty_like = PyObject_GetAttrString(torch, "empty_like")) == NULL)
        return NULL;
    Py_DECREF(torch);
    Py_DECREF(nn);
    return PyModule_Create(&module);
}
