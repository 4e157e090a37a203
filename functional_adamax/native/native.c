/* One step of Adamax, and its derivative, over raw memory: the executor behind _kernel.py.

   It links against nothing but Python's stable interface, so that one build serves every version
   of torch. Python hands over tuples of tensors and numbers, or the groups and the state of an
   optimizer; the loop over the elements runs without the GIL. */

#define _GNU_SOURCE
#define Py_LIMITED_API 0x030A0000
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

#include "halves.h"

#define TARGET
#define VARIANT(name) name##_baseline
#include "kinds.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define HAS_AVX2 1
#define TARGET __attribute__((target("avx2,fma")))
#define VARIANT(name) name##_avx2
#include "kinds.h"
#else
#define HAS_AVX2 0
#endif

typedef struct {
    Kernel kernel;
    ptrdiff_t n;
    void *t;
    int wide_t, kind;
    union {
        Step step;
        Pull pull;
    } row;
} Work;

static const Kernel *step_kernels = step_kernels_baseline;
static const Kernel *pull_kernels = pull_kernels_baseline;

#include "run.h"
#include "tensors.h"
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
    Py_ssize_t members;
    int maximize, decoupled;
    Rates rates;
    View v[5];
    Work work;
    if (!PyArg_ParseTuple(arguments, "Onpp", &leaves, &members, &maximize, &decoupled))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!take_leaf(PyList_GetItem(leaves, i), members, maximize, decoupled, x, &rates, v,
                       &work) ||
            !active[work.kind][rates.decay])
            return PyErr_Occurred() ? NULL : PyBool_FromLong(0);
    return count < 0 ? NULL : PyBool_FromLong(1);
}

static PyObject *native_are_apart(PyObject *self, PyObject *leaves)
{
    (void)self;
    PyObject *x[5];
    Rates rates;
    View v[5];
    Work work;
    Py_ssize_t count = PyList_Size(leaves);
    Range *ranges = PyMem_Malloc((10 * count + 1) * sizeof(Range));
    if (ranges == NULL)
        return PyErr_NoMemory();
    int fine = 1;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        fine = take_leaf(PyList_GetItem(leaves, i), 0, 0, 0, x, &rates, v, &work) && x[P] != Py_None;
        for (int k = P; k <= T && fine; k++)
            add_range(&ranges[5 * i + k], &v[k], k != G);
    }
    fine = fine && !collide(ranges, 5 * count);
    PyMem_Free(ranges);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(fine);
}

/* One leaf of step: fill in its rows, one for each member, and the list of results. */
static int prepare(PyObject *leaf, PyObject *scale, ptrdiff_t members, int maximize, int decoupled,
                   int add, PyObject *result, Work *work)
{
    PyObject *x[5];
    Rates rates;
    View v[5];
    if (!take_leaf(leaf, members, maximize, decoupled, x, &rates, v, work) ||
        (add && x[P] == Py_None)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a leaf is not ready");
        return 0;
    }
    char *out = new_like(add ? x[P] : x[M], !add && type_sizes[v[M].type] == 2, result, 0);
    char *t_new = new_like(x[T], 0, result, 1);
    char *m_new = new_like(x[M], 0, result, 2), *u_new = new_like(x[U], 0, result, 3);
    if (PyErr_Occurred())
        return 0;
    const Work whole = *work;
    const Step *all = &whole.row.step;
    ptrdiff_t rows = members ? members : 1, size = v[M].bytes / rows;
    ptrdiff_t stride_t = v[T].bytes / rows;
    ptrdiff_t size_g = v[G].bytes / rows;
    ptrdiff_t size_out = add || type_sizes[v[M].type] != 2 ? (add ? size_g : size) : 2 * size;
    for (ptrdiff_t i = 0; i < rows; i++) {
        Step *row = &work[i].row.step;
        work[i] = whole;
        work[i].n = whole.n / rows;
        double t = read_t((char *)whole.t + i * stride_t, whole.wide_t) + 1;
        write_t(t_new + i * stride_t, whole.wide_t, t);
        rate_row(&rates, i, t, row);
        row->add = add;
        row->p = all->p ? (const char *)all->p + i * size_g : NULL;
        row->g = (const char *)all->g + i * size_g;
        row->m = (const char *)all->m + i * size;
        row->u = (const char *)all->u + i * size;
        row->out = out + i * size_out;
        row->m_new = m_new + i * size;
        row->u_new = u_new + i * size;
    }
    if (scale != Py_None)
        work->row.step.scale = PyFloat_AsDouble(scale);
    PyList_SetItem(result, 4, PyFloat_FromDouble(work->row.step.scale));
    return !PyErr_Occurred();
}

static PyObject *native_step(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *scales;
    int maximize, decoupled, add;
    Py_ssize_t members;
    long threads;
    if (!PyArg_ParseTuple(arguments, "OOnpppl", &leaves, &scales, &members, &maximize, &decoupled,
                          &add, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves), rows = members ? members : 1;
    if (count < 0)
        return NULL;
    PyObject *results = PyList_New(count);
    Work *work = PyMem_Malloc((count * rows + 1) * sizeof(Work));
    int fine = results != NULL && work != NULL;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *result = PyList_New(5);
        fine = result != NULL;
        if (fine) {
            PyList_SetItem(results, i, result);
            fine = prepare(PyList_GetItem(leaves, i), PyList_GetItem(scales, i), members, maximize,
                           decoupled, add, result, &work[i * rows]);
        }
    }
    if (fine)
        run(work, count * rows, threads);
    else
        Py_CLEAR(results);
    PyMem_Free(work);
    return results != NULL || PyErr_Occurred() ? results : PyErr_NoMemory();
}

static PyObject *native_write(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *leaves, *x[5];
    int maximize, decoupled;
    long threads;
    Plan plan;
    if (!PyArg_ParseTuple(arguments, "Oppl", &leaves, &maximize, &decoupled, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(leaves);
    int fine = begin(&plan, NULL) && count >= 0;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        Rates rates;
        PyObject *leaf = PyList_GetItem(leaves, i);
        for (int k = P; k <= T; k++)
            x[k] = PyTuple_GetItem(leaf, k);
        fine = PyTuple_GetItem(leaf, FLOOR) == Py_None &&
               read_rates(leaf, LR, 0, maximize, decoupled, &rates) && add(&plan, x, 0, &rates);
    }
    return finish(&plan, fine, threads);
}

/* The entry of a parameter in the state of an optimizer, where entries mostly lie in the order of
   the parameters; NULL if there is none. */
static PyObject *entry_of(PyObject *state, PyObject *p, Py_ssize_t *place)
{
    enum { AHEAD = 8 };
    PyObject *key, *entry;
    Py_ssize_t next = *place;
    for (int i = 0; i < AHEAD && PyDict_Next(state, &next, &key, &entry); i++)
        if (key == p) {
            *place = next;
            return entry;
        }
    return PyDict_GetItemWithError(state, p);
}

static PyObject *names[3]; /* exp_avg, exp_inf and step */

/* Whether tensors were made outside of inference mode. */
static int are_ordinary(PyObject *const *x)
{
    for (int k = P; k <= T; k++)
        if (k != G && !(is_tensor(x[k]) && denies(x[k], is_inference)))
            return 0;
    return 1;
}

/* Add one parameter with a gradient; 0 where it cannot be taken. All tensors are owned meanwhile,
   since to ask them lets other threads run. */
static int add_parameter(Plan *plan, PyObject **x, PyObject *state, Py_ssize_t *place, Rates *rates)
{
    PyObject *entry = entry_of(state, x[P], place);
    if (entry == NULL || !PyDict_Check(entry))
        return 0;
    for (int k = 0; k < 3; k++)
        if ((x[M + k] = PyDict_GetItemWithError(entry, names[k])) == NULL)
            return 0;
    for (int k = M; k <= T; k++)
        Py_INCREF(x[k]);
    int known = is_known(plan, x);
    int fine = (known || are_ordinary(x)) && add(plan, x, known, rates);
    for (int k = M; k <= T; k++)
        Py_DECREF(x[k]);
    return fine;
}

/* Add the parameters of a group that have a gradient; 0 where one cannot be taken. */
static int add_group(Plan *plan, PyObject *group, PyObject *state, Py_ssize_t *place)
{
    Rates rates;
    PyObject *params = PyTuple_GetItem(group, 0), *x[5];
    int maximize = PyObject_IsTrue(PyTuple_GetItem(group, 6));
    int decoupled = PyObject_IsTrue(PyTuple_GetItem(group, 7));
    if (PyErr_Occurred() || !PyList_Check(params) || !PyDict_Check(state) ||
        !read_rates(group, 1, 0, maximize, decoupled, &rates))
        return 0;
    int fine = 1;
    for (Py_ssize_t i = 0; i < PyList_Size(params) && fine; i++) {
        x[P] = PyList_GetItem(params, i);
        Py_INCREF(x[P]);
        x[G] = PyObject_GetAttr(x[P], grad);
        fine = x[G] == Py_None || (x[G] && add_parameter(plan, x, state, place, &rates));
        Py_XDECREF(x[G]);
        Py_DECREF(x[P]);
    }
    return fine;
}

/* Whether a tensor may be written, as far as autograd goes. */
static int is_free(PyObject *x, int grad_mode)
{
    if (!is_tensor(x))
        return 0;
    PyObject *answer = grad_mode ? PyObject_GetAttr(x, requires_grad) : NULL;
    Py_XDECREF(answer);
    return !grad_mode || answer == Py_False;
}

static PyObject *native_overwrite(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *columns, *group, *x[5];
    int grad_mode;
    long threads;
    Plan plan;
    Rates rates;
    if (!PyArg_ParseTuple(arguments, "OOpl", &columns, &group, &grad_mode, &threads))
        return NULL;
    PyObject *params = PyTuple_GetItem(group, 0);
    int maximize = PyObject_IsTrue(PyTuple_GetItem(group, 6));
    int decoupled = PyObject_IsTrue(PyTuple_GetItem(group, 7));
    Py_ssize_t count = PyList_Size(params);
    int fine = begin(&plan, NULL) && count >= 0 &&
               read_rates(group, 1, 0, maximize, decoupled, &rates);
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        x[P] = PyList_GetItem(params, i);
        for (int k = G; k <= T; k++)
            x[k] = PyList_GetItem(PyTuple_GetItem(columns, k - G), i);
        if (PyErr_Occurred() || x[G] == Py_None)
            continue;
        for (int k = P; k <= T && fine; k++)
            fine = is_free(x[k], grad_mode);
        fine = fine && are_ordinary(x) && add(&plan, x, 0, &rates);
    }
    return finish(&plan, fine && !PyErr_Occurred(), threads);
}

static PyObject *native_advance(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *groups, *state, *known;
    long threads;
    Plan plan;
    Py_ssize_t place = 0;
    if (!PyArg_ParseTuple(arguments, "OOOl", &groups, &state, &known, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(groups);
    int fine = begin(&plan, known) && count >= 0;
    for (Py_ssize_t i = 0; i < count && fine; i++)
        fine = add_group(&plan, PyList_GetItem(groups, i), state, &place);
    return finish(&plan, fine, threads);
}

/* The fields of Pull in _kernel.py. */
enum {
    PULL_G, PULL_U, M_NEW, U_NEW, D_OUT, D_M_NEW, D_U_NEW, SCALE, PULL_B1, PULL_B2, PULL_EPS, WANTS
};

/* Look at the tensors of a pull; 0 where they are not plain memory in one layout. */
static int take_pull(PyObject *pull, View *v)
{
    for (int i = PULL_G; i <= D_U_NEW; i++) {
        PyObject *x = PyTuple_GetItem(pull, i);
        v[i].start = NULL;
        if (x != Py_None && !(view(x, &v[i]) && v[i].type == v[PULL_G].type &&
                              same_layout(&v[i], &v[PULL_G])))
            return 0;
    }
    return v[PULL_G].type <= F64 && is_dense(&v[PULL_G]);
}

static int prepare_pull(PyObject *pull, PyObject *result, Work *work)
{
    View v[D_U_NEW + 1];
    if (!take_pull(pull, v)) {
        PyErr_SetString(PyExc_ValueError, "a pull is not ready");
        return 0;
    }
    PyObject *g = PyTuple_GetItem(pull, PULL_G);
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
    row->weight = 1 - PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B1));
    row->b2 = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_B2));
    row->eps = PyFloat_AsDouble(PyTuple_GetItem(pull, PULL_EPS));
    row->d_g = new_like(g, 0, result, 0);
    row->d_m = row->d_u = NULL;
    if (wanted) {
        row->d_m = new_like(g, 0, result, 1);
        row->d_u = new_like(g, 0, result, 2);
    } else {
        for (int i = 1; i < 3; i++) {
            Py_INCREF(Py_None);
            PyList_SetItem(result, i, Py_None);
        }
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
    PyObject *results = PyList_New(count);
    Work *work = PyMem_Malloc((count + 1) * sizeof(Work));
    int fine = results != NULL && work != NULL;
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        PyObject *result = PyList_New(3);
        fine = result != NULL;
        if (fine) {
            PyList_SetItem(results, i, result);
            fine = prepare_pull(PyList_GetItem(pulls, i), result, &work[i]);
        }
    }
    if (fine)
        run(work, count, threads);
    else
        Py_CLEAR(results);
    PyMem_Free(work);
    return results != NULL || PyErr_Occurred() ? results : PyErr_NoMemory();
}

static PyObject *native_are_pullable(PyObject *self, PyObject *pulls)
{
    (void)self;
    View v[D_U_NEW + 1];
    Py_ssize_t count = PyList_Size(pulls);
    for (Py_ssize_t i = 0; i < count; i++)
        if (!take_pull(PyList_GetItem(pulls, i), v))
            return PyErr_Occurred() ? NULL : PyBool_FromLong(0);
    return count < 0 ? NULL : PyBool_FromLong(1);
}

static PyMethodDef methods[] = {
    {"activate", native_activate, METH_VARARGS, "Let a kind of leaves be taken, with a decay."},
    {"are_ready", native_are_ready, METH_VARARGS, "Whether leaves can be taken as they are."},
    {"are_apart", native_are_apart, METH_O, "Whether a step in place may write in any order."},
    {"are_pullable", native_are_pullable, METH_O, "Whether pulls are plain memory."},
    {"step", native_step, METH_VARARGS, "Step leaves into new tensors."},
    {"write", native_write, METH_VARARGS,
     "Step in place; the tensors written, or None with nothing written."},
    {"advance", native_advance, METH_VARARGS,
     "Step the groups of an optimizer; the tensors written, or None with nothing written."},
    {"overwrite", native_overwrite, METH_VARARGS,
     "Step columns of leaves in place; the tensors written, or None with nothing written."},
    {"pull", native_pull, METH_VARARGS, "Differentiate steps, in reverse."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_native", NULL, -1, methods, NULL, NULL, NULL, NULL,
};

/* Look up, once, what is needed of torch. */
static int find_torch(void)
{
    struct { PyObject **place; const char *word; } words[] = {
        {&is_neg, "is_neg"}, {&is_conj, "is_conj"}, {&is_inference, "is_inference"},
        {&grad, "grad"}, {&requires_grad, "requires_grad"}, {&names[0], "exp_avg"}, {&names[1], "exp_inf"}, {&names[2], "step"},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if ((*words[i].place = PyUnicode_InternFromString(words[i].word)) == NULL)
            return 0;
    PyObject *torch = PyImport_ImportModule("torch"), *nn = PyImport_ImportModule("torch.nn");
    if (torch == NULL || nn == NULL ||
        (types[0] = PyObject_GetAttrString(torch, "Tensor")) == NULL ||
        (types[1] = PyObject_GetAttrString(nn, "Parameter")) == NULL ||
        (types[2] = PyObject_GetAttrString(nn, "Buffer")) == NULL ||
        (empty_like = PyObject_GetAttrString(torch, "empty_like")) == NULL)
        return 0;
    PyObject *float32 = PyObject_GetAttrString(torch, "float32");
    as_float32 = float32 ? Py_BuildValue("{s:N}", "dtype", float32) : NULL;
    PyObject *capsule = PyObject_GetAttrString(types[0], "__dlpack_c_exchange_api__");
    exchange = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    Py_XDECREF(capsule);
    Py_DECREF(torch);
    Py_DECREF(nn);
    return as_float32 != NULL && exchange != NULL;
}

PyMODINIT_FUNC PyInit__native(void)
{
#if HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        step_kernels = step_kernels_avx2;
        pull_kernels = pull_kernels_avx2;
    }
#endif
    if (!find_torch() || exchange->version.major != 1 || exchange->describe == NULL) {
        PyErr_SetString(PyExc_ImportError, "torch offers no DLPack exchange that is known here");
        return NULL;
    }
#ifdef __linux__
    dl_iterate_phdr(find_parallel, NULL);
#endif
    return PyModule_Create(&module);
}
