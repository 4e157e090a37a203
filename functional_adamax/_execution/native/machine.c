/* A machine that runs programs over raw memory: the executor behind program/machine.py.

   As native.c it links against nothing but Python's stable interface. Python hands over a program
   once, and for each step columns of tensors and the numbers of its uniforms; all leaves are done in
   one call, block after block, each in the processor's first cache. */

#define _GNU_SOURCE
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
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

/* A large tensor is worked off in blocks of so many elements, which threads share out. */
enum { BLOCK = 1 << 16, AHEAD = 1024, LINE = 64 /* bytes */ };

#include "halves.h"
#include "program.h"

typedef void (*Kernel)(const void *row, ptrdiff_t start, ptrdiff_t end);

typedef struct {
    Kernel kernel;
    ptrdiff_t n;
    Row row;
} Work;

#pragma GCC diagnostic ignored "-Wunused-function" /* of what native.c alone needs */
#pragma GCC diagnostic ignored "-Wunused-variable"
#include "memory.h"
#include "run.h"
#include "tensors.h"
#include "ranges.h"
#include "sums.h"
#include "special.h"
#include "targets.h"
#include "leaves.h"
#include "numbers.h"
#include "phases.h"
#include "taken.h"
#include "entries.h"

static void end_program(PyObject *capsule)
{
    Program *p = PyCapsule_GetPointer(capsule, NULL);
    PyMem_Free(p->vector);
    PyMem_Free(p->uniform);
    PyMem_Free(p);
}

/* Copy a list of numbers, at most so many; their count, or -1 with an exception. */
static int take_ints(PyObject *list, int32_t *place, Py_ssize_t most)
{
    Py_ssize_t count = PyList_Size(list);
    if (count > most)
        PyErr_SetString(PyExc_ValueError, "the machine has not so many registers");
    for (Py_ssize_t i = 0; i < count && !PyErr_Occurred(); i++)
        place[i] = (int32_t)PyLong_AsLong(PyList_GetItem(list, i));
    return PyErr_Occurred() ? -1 : (int)count;
}

/* Instructions of so many numbers each, in memory of their own. */
static void *take_instructions(PyObject *list, int width, int *count)
{
    Py_ssize_t size = PyList_Size(list);
    int32_t *place = size < 0 ? NULL : resized(NULL, (size + 1) * sizeof(int32_t));
    if (place != NULL && take_ints(list, place, size) >= 0)
        *count = (int)(size / width);
    return place;
}

static PyObject *machine_program(PyObject *self, PyObject *arguments)
{
    (void)self;
    int32_t reads[MOST_COLUMNS];
    PyObject *columns, *types, *of, *sources, *counts, *wide, *constants, *uniform, *vector;
    Program *p = resized(NULL, sizeof *p);
    if (p == NULL)
        return NULL;
    *p = (Program){0};
    PyObject *capsule = PyCapsule_New(p, NULL, end_program);
    if (capsule == NULL) {
        PyMem_Free(p);
        return NULL;
    }
    if (PyArg_ParseTuple(arguments, "iiiiOOOOOOOOO", &p->type, &p->dims, &p->registers, &p->numbers,
                         &columns, &types, &of, &sources, &counts, &wide, &constants, &uniform, &vector)) {
        p->columns = take_ints(columns, reads, MOST_COLUMNS);
        p->outputs = take_ints(of, p->of, MOST_COLUMNS);
        int streams = take_ints(types, p->types, MOST_STREAMS);
        for (int k = 0; k < streams; k++)
            p->sizes[k] = (int32_t)type_sizes[p->types[k]];
        p->spread = take_ints(sources, p->sources, MOST_REGISTERS);
        p->counters = take_ints(counts, p->counts, MOST_COUNTERS);
        take_ints(wide, p->wide, MOST_COUNTERS);
        p->constants = (int)PyList_Size(constants);
        p->uniform = take_instructions(uniform, sizeof(UniformInstruction) / 4, &p->steps);
        p->vector = take_instructions(vector, sizeof(Instruction) / 4, &p->vectors);
        p->code = (Code){p->vector, p->vectors, 0};
        for (int k = 0; k < p->columns; k++)
            p->code.reads |= (uint32_t)(reads[k] != 0) << k;
        p->uniforms = p->constants + p->counters + p->numbers + p->steps;
        if (!PyErr_Occurred() && (p->registers > MOST_REGISTERS || p->uniforms > MOST_UNIFORMS))
            PyErr_SetString(PyExc_ValueError, "the machine has not so many registers");
        for (int k = 0; k < p->vectors && !PyErr_Occurred(); k++)
            if (p->vector[k].code < 0 || p->vector[k].code >= POWER) /* the first of uniforms alone */
                PyErr_SetString(PyExc_ValueError, "the machine has no such instruction of vectors");
        for (int k = 0; k < p->constants && !PyErr_Occurred(); k++)
            p->constant[k] = PyFloat_AsDouble(PyList_GetItem(constants, k));
    }
    if (PyErr_Occurred())
        Py_CLEAR(capsule);
    return capsule;
}

static void end_plan(PyObject *capsule)
{
    Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    end(plan);
    PyMem_Free(plan);
}

static PyObject *machine_plan(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *parts;
    int in_place, grad_mode;
    Py_ssize_t members;
    if (!PyArg_ParseTuple(arguments, "Oppn", &parts, &in_place, &grad_mode, &members))
        return NULL;
    Plan *plan = resized(NULL, sizeof *plan);
    if (plan == NULL)
        return NULL;
    *plan = (Plan){.in_order = 1, .members = members};
    int fine = add_parts(plan, parts, NULL) && make_room(plan) && settle(plan, in_place, grad_mode);
    PyObject *capsule = fine ? PyCapsule_New(plan, NULL, end_plan) : NULL;
    if (capsule == NULL) {
        end(plan);
        PyMem_Free(plan);
    }
    return capsule || PyErr_Occurred() ? capsule : Py_NewRef(Py_None);
}

static PyObject *machine_summed(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *capsule, *programs, *numbers, *sum = NULL;
    int mode;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOOil", &capsule, &programs, &numbers, &mode, &threads))
        return NULL;
    const Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    if (plan != NULL)
        sum = summed(plan, 0, programs, numbers, mode, threads, 0);
    return sum || PyErr_Occurred() ? sum : Py_NewRef(Py_None);
}

static PyObject *machine_stepped(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *capsule, *numbers, *lists;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOOl", &capsule, &numbers, &lists, &threads))
        return NULL;
    Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    int fine = plan != NULL && stepped(plan, numbers, lists, threads);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

static PyObject *machine_write(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *capsule, *numbers, *increment;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOOl", &capsule, &numbers, &increment, &threads))
        return NULL;
    Plan *plan = PyCapsule_GetPointer(capsule, NULL);
    int fine = plan != NULL && commit(plan, numbers, increment, threads, 0);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

static PyObject *machine_overwrite(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *steps, *increment, *parts, *sums, *numbers;
    int grad_mode, fine = 1;
    long threads;
    Plan plan = {.in_order = 1};
    if (!PyArg_ParseTuple(arguments, "OpOl", &steps, &grad_mode, &increment, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(steps), first = 0;
    for (Py_ssize_t k = 0; k < count && fine; k++)
        fine = PyArg_ParseTuple(PyList_GetItem(steps, k), "OOO", &parts, &sums, &numbers) &&
               add_parts(&plan, parts, numbers);
    fine = fine && count >= 0 && make_room(&plan) && settle(&plan, 1, grad_mode);
    int alone = !plan.releases && PyCFunction_Check(increment);
    for (Py_ssize_t k = 0; k < count && fine; k++) {
        fine = PyArg_ParseTuple(PyList_GetItem(steps, k), "OOO", &parts, &sums, &numbers) &&
               fill_sums(&plan, first, sums, numbers, threads, alone);
        first += fine ? PyList_Size(parts) : 0;
    }
    fine = fine && commit(&plan, NULL, increment, threads, alone);
    end(&plan);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

static PyMethodDef methods[] = {
    {"program", machine_program, METH_VARARGS, "A program, as a capsule."},
    {"plan", machine_plan, METH_VARARGS,
     "Look at the leaves of a step, in place or not, perhaps of members; a capsule, or None."},
    {"summed", machine_summed, METH_VARARGS,
     "The sum of the squares of what programs make of the leaves of a plan, or None."},
    {"stepped", machine_stepped, METH_VARARGS,
     "Take a step into new tensors; False where the leaves are not what they were."},
    {"write", machine_write, METH_VARARGS,
     "Take a step in place; False with nothing written where memory was changed meanwhile."},
    {"overwrite", machine_overwrite, METH_VARARGS,
     "Plan and take a step in place; False with nothing written."},
    {"gather", machine_gather, METH_VARARGS,
     "The gradients, the parameters and the flat state of an optimizer, or None."},
    {"shared", machine_shared, METH_VARARGS, "What all entries hold under a name, or None."},
    {"are_apart", machine_are_apart, METH_O, "Whether tensors are known to lie apart."},
    {"fail_allocation", native_fail_allocation, METH_O,
     "Let the k-th allocation from now on fail, or none for 0; what was left of the k before."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_machine", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

/* Look up the functions behind questions, which cost half as much without the look-up. */
static int find_functions(void)
{
    Question *questions[] = {&is_neg, &is_inference};
    PyObject *tensor = PyObject_CallNoArgs(types[0]);
    for (int i = 0; i < 2 && tensor != NULL; i++) {
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
        {&is_neg.name, "is_neg"}, {&is_inference.name, "is_inference"}, {&data, "data"},
        {&requires_grad, "requires_grad"}, {&grad, "grad"},
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
    const char *names[] = {"float32", "float64", "bfloat16", "float16"};
    for (int k = F32; k <= F16; k++) {
        PyObject *dtype = PyObject_GetAttrString(torch, names[k]);
        as_type[k] = dtype ? Py_BuildValue("{s:N}", "dtype", dtype) : NULL;
        if (as_type[k] == NULL)
            return 0;
    }
    PyObject *capsule = PyObject_GetAttrString(types[0], "__dlpack_c_exchange_api__");
    exchange = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    Py_XDECREF(capsule);
    Py_DECREF(torch);
    Py_DECREF(nn);
    return exchange != NULL && find_functions();
}

PyMODINIT_FUNC PyInit__machine(void)
{
    choose_kernels();
    if (!find_torch() || exchange->version.major != 1 || exchange->describe == NULL) {
        PyErr_SetString(PyExc_ImportError, "this torch has no DLPack exchange interface; torch 2.11 has");
        return NULL;
    }
#ifdef __linux__
    dl_iterate_phdr(find_parallel, NULL);
#endif
    PyObject *result = PyModule_Create(&module);
#define ADD_CODE(name, operands, value) \
    if (result != NULL && PyModule_AddIntConstant(result, #name, name) < 0) \
        Py_CLEAR(result);
    INSTRUCTIONS(ADD_CODE)
    LOADS(ADD_CODE)
    STORES(ADD_CODE)
    UNIFORM_INSTRUCTIONS(ADD_CODE)
#undef ADD_CODE
    return result;
}
