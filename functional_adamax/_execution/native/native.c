/* One step of Adamax over raw memory: the executor behind kernel.py.

   It links against nothing but Python's stable interface, so that one build serves every version
   of torch. Python hands over tuples of tensors and numbers, or the groups and the state of an
   optimizer; the loop over the elements runs without the GIL. */

#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#ifdef __linux__
#include <dlfcn.h>
#include <link.h>
#endif

#include "variants.h"

typedef struct {
    Kernel kernel;
    ptrdiff_t n;
    void *t;
    double next; /* the t that a step in place leaves */
    int wide_t, kind;
    Step row;
} Work;

#pragma GCC diagnostic ignored "-Wunused-variable" /* of what machine.c alone needs */
#include "memory.h"
#include "run.h"
#include "tensors.h"
#include "ranges.h"
#include "rows.h"
#include "plan.h"

static PyObject *native_activate(PyObject *self, PyObject *arguments)
{
    (void)self;
    int kind, decay;
    if (!PyArg_ParseTuple(arguments, "ii", &kind, &decay))
        return NULL;
    active[kind][decay] = 1;
    Py_RETURN_NONE;
}

static PyObject *native_are_ready(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *x[5];
    int maximize, decoupled;
    Rates rates;
    View v[5];
    Work work;
    if (!PyArg_ParseTuple(arguments, "Opp", &leaves, &maximize, &decoupled))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!take_leaf(PyList_GetItem(leaves, i), maximize, decoupled, x, &rates, v, &work) ||
            !active[work.kind][rates.decay])
            return PyErr_Occurred() ? NULL : PyBool_FromLong(0);
    return count < 0 ? NULL : PyBool_FromLong(1);
}

static void end_capsule(PyObject *capsule)
{
    Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    end(plan);
    PyMem_Free(plan);
}

static PyObject *native_plan(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *x[5];
    int maximize, decoupled;
    if (!PyArg_ParseTuple(arguments, "Opp", &leaves, &maximize, &decoupled))
        return NULL;
    Plan *plan = resized(NULL, sizeof *plan);
    if (plan == NULL)
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    int fine = begin(plan, NULL, count);
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *leaf = PyList_GetItem(leaves, i);
        for (int k = P; k <= T; k++)
            x[k] = PyTuple_GetItem(leaf, k);
        fine = !PyErr_Occurred() && PyTuple_GetItem(leaf, FLOOR) == Py_None &&
               read_rates(leaf, LR, maximize, decoupled, &plan->rates[i]) && add(plan, x, i);
    }
    fine = fine && !PyErr_Occurred() && settle(plan);
    PyObject *capsule = fine ? PyCapsule_New(plan, NULL, end_capsule) : NULL;
    if (capsule == NULL) {
        end(plan);
        PyMem_Free(plan);
    }
    return capsule || PyErr_Occurred() ? capsule : Py_NewRef(Py_None);
}

static PyObject *native_run(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *capsule, *increment;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOl", &capsule, &increment, &threads))
        return NULL;
    const Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    int fine = plan != NULL && commit(plan, increment, threads, 0);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

#include "results.h"
#include "groups.h"

static PyObject *native_expect_writes(PyObject *self, PyObject *tensor)
{
    (void)self;
    View v;
    if (describe(tensor, &v))
        expect_writes(&v);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef methods[] = {
    {"activate", native_activate, METH_VARARGS, "Let a kind of leaves be taken, with a decay."},
    {"are_ready", native_are_ready, METH_VARARGS, "Whether leaves can be taken as they are."},
    {"step", native_step, METH_VARARGS, "Step leaves into new tensors."},
    {"plan", native_plan, METH_VARARGS,
     "Do all of a step in place but the writes; a capsule, or None."},
    {"run", native_run, METH_VARARGS,
     "Write a planned step; False with nothing written where memory was changed meanwhile."},
    {"advance", native_advance, METH_VARARGS,
     "Step the groups of an optimizer; the tensors written, or None with nothing written."},
    {"overwrite", native_overwrite, METH_VARARGS,
     "Step columns of leaves in place; the tensors written, or None with nothing written."},
    {"stepped", native_stepped, METH_VARARGS,
     "Step columns of leaves into new tensors; their columns, or None."},
    {"expect_writes", native_expect_writes, METH_O, "Ask for large pages for a new tensor."},
    {"fail_allocation", native_fail_allocation, METH_O,
     "Let the k-th allocation from now on fail, or none for 0; what was left of the k before."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

/* Look up the functions behind questions, which cost half as much without the look-up. */
static int find_functions(void)
{
    Question *questions[] = {&is_neg, &is_conj, &is_inference};
    PyObject *tensor = PyObject_CallNoArgs(types[0]);
    for (int i = 0; i < 3 && tensor != NULL; i++) {
        PyObject *method = PyObject_GetAttr(tensor, questions[i]->name);
        if (method == NULL)
            break;
        if (PyCFunction_Check(method) && PyCFunction_GetFlags(method) == METH_NOARGS)
            questions[i]->function = PyCFunction_GetFunction(method);
        Py_DECREF(method);
    }
    Py_XDECREF(tensor);
    return !PyErr_Occurred();
}

/* Look up, once, what is needed of torch. */
static int find_torch(void)
{
    struct { PyObject **place; const char *word; } words[] = {
        {&is_neg.name, "is_neg"}, {&is_conj.name, "is_conj"}, {&is_inference.name, "is_inference"},
        {&data, "data"}, {&grad, "grad"}, {&requires_grad, "requires_grad"},
        {&names[0], "exp_avg"}, {&names[1], "exp_inf"}, {&names[2], "step"},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if ((*words[i].place = PyUnicode_InternFromString(words[i].word)) == NULL)
            return 0;
    PyObject *torch = PyImport_ImportModule("torch"), *nn = PyImport_ImportModule("torch.nn");
    if (torch == NULL || nn == NULL ||
        (types[0] = PyObject_GetAttrString(torch, "Tensor")) == NULL ||
        (types[1] = PyObject_GetAttrString(nn, "Parameter")) == NULL ||
        (empty_like = PyObject_GetAttrString(torch, "empty_like")) == NULL)
        return 0;
    PyObject *float32 = PyObject_GetAttrString(torch, "float32");
    as_float32 = float32 ? Py_BuildValue("{s:N}", "dtype", float32) : NULL;
    PyObject *capsule = PyObject_GetAttrString(types[0], "__dlpack_c_exchange_api__");
    exchange = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    Py_XDECREF(capsule);
    Py_DECREF(torch);
    Py_DECREF(nn);
    return as_float32 != NULL && exchange != NULL && find_functions();
}

PyMODINIT_FUNC PyInit__native(void)
{
    choose_kernels();
    if (!find_torch() || exchange->version.major != 1 || exchange->describe == NULL) {
        PyErr_SetString(PyExc_ImportError, "this torch has no DLPack exchange interface; torch 2.11 has");
        return NULL;
    }
#ifdef __linux__
    dl_iterate_phdr(find_parallel, NULL);
#endif
    return PyModule_Create(&module);
}
