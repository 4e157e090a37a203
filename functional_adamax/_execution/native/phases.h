/* Sums over the leaves of a step, and over each of them, before the step is taken. Each member of a
   vmap has its own. */

static ptrdiff_t blocks_of(const Work *work)
{
    return (work->n + BLOCK - 1) / BLOCK;
}

/* Give each row that adds to a sum its place, member after member, in the order of the leaves; return
   where the blocks of each member end, or NULL with an exception. */
static ptrdiff_t *place_sums(const Plan *plan, Work *work, const Py_ssize_t *leaf, Py_ssize_t count,
                             double **sums)
{
    const Py_ssize_t members = rows_of(plan);
    ptrdiff_t *start = zeroed(plan->leaves, sizeof *start), blocks = 0;
    ptrdiff_t *ends = start ? zeroed(members, sizeof *ends) : NULL;
    if (ends != NULL) {
        for (Py_ssize_t i = 0; i < count; i++)
            start[leaf[i]] = blocks_of(&work[i]);
        for (Py_ssize_t member = 0; member < members; member++) {
            for (Py_ssize_t i = member; i < plan->leaves; i += members) {
                ptrdiff_t size = start[i];
                start[i] = blocks;
                blocks += size;
            }
            ends[member] = blocks;
        }
        *sums = resized(NULL, (blocks * ROW + 1) * sizeof **sums);
        for (Py_ssize_t i = 0; i < count && *sums != NULL; i++)
            work[i].row.sums = *sums + start[leaf[i]] * ROW;
    }
    PyMem_Free(start);
    return ends;
}

/* The largest of what rows found in their blocks. */
static double largest_of(const double *found, ptrdiff_t blocks)
{
    double largest = 0;
    for (ptrdiff_t k = 0; k < blocks; k++)
        largest = larger(largest, found[k * ROW]);
    return largest;
}

enum { SUM, LARGEST, EACH }; /* as in machine.py; EACH is a bit beside one of the others */

/* The sum of what blocks found, or the largest. */
static double found_in(const double *found, ptrdiff_t blocks, int mode)
{
    double last[ROW];
    return mode & LARGEST ? largest_of(found, blocks) : total(found, blocks, last);
}

/* What all rows found, a float; with members a list of what those of each found. NULL with an
   exception. */
static PyObject *found_in_all(const Plan *plan, const double *found, const ptrdiff_t *ends, int mode)
{
    if (plan->members == 0)
        return PyFloat_FromDouble(found_in(found, ends[0], mode));
    PyObject *list = new_list(plan->members);
    for (Py_ssize_t i = 0; i < plan->members && list != NULL; i++) {
        ptrdiff_t first = i > 0 ? ends[i - 1] : 0;
        double x = found_in(found + first * ROW, ends[i] - first, mode);
        PyList_SetItem(list, i, PyFloat_FromDouble(x));
    }
    return list;
}

/* What single rows found, in a list with a place for each; NULL with an exception. */
static PyObject *found_in_each(const Plan *plan, const Work *work, const Py_ssize_t *leaf,
                               Py_ssize_t count, int mode)
{
    PyObject *list = new_list(plan->leaves);
    for (Py_ssize_t i = 0; i < plan->leaves && list != NULL; i++)
        PyList_SetItem(list, i, PyFloat_FromDouble(0));
    for (Py_ssize_t i = 0; i < count && list != NULL; i++) {
        double found = found_in(work[i].row.sums, blocks_of(&work[i]), mode);
        PyList_SetItem(list, leaf[i], PyFloat_FromDouble(found));
    }
    return list;
}

/* The sum of the squares of the first output over the leaves of the parts, from one on, that have a
   program for it, or the largest absolute value, as a float; or that of each leaf, or of each member,
   as a list. NULL, perhaps with an exception, where there is none. */
static PyObject *summed(const Plan *plan, Py_ssize_t first, PyObject *programs, PyObject *numbers,
                        int mode, long threads, int alone)
{
    double *sums = NULL, *pool = NULL;
    Special *specials = NULL;
    PyObject *result = NULL;
    Work *work = zeroed(plan->rows, sizeof *work);
    Py_ssize_t *leaf = zeroed(plan->rows, sizeof *leaf), rows = 0, spread = 0;
    pool = zeroed(plan->rows * MOST_REGISTERS, sizeof *pool);
    int fine = plan->in_order && work != NULL && leaf != NULL && pool != NULL;
    Py_ssize_t parts = PyList_Size(programs);
    fine = fine && parts >= 0 && first + parts <= plan->count;
    for (Py_ssize_t k = 0; k < parts && fine; k++) {
        const Part *part = &plan->parts[first + k];
        PyObject *capsule = PyList_GetItem(programs, k);
        if (capsule == Py_None)
            continue;
        const Program *p = PyCapsule_GetPointer(capsule, NULL);
        fine = p != NULL && p->columns == part->program->columns &&
               p->counters == part->program->counters &&
               number_rows(plan, part, p, numbers, work + rows, pool + spread, NULL,
                           &specials);
        for (Py_ssize_t i = 0; i < part->rows && fine; i++, rows++) {
            const Work *like = &plan->work[part->first + i];
            work[rows].kernel = kernels[p->type];
            work[rows].n = like->n;
            work[rows].row.program = p;
            work[rows].row.largest = mode & LARGEST;
            memcpy(work[rows].row.at, like->row.at, p->columns * sizeof *like->row.at);
            leaf[rows] = plan->leaf[part->first + i];
            spread += p->spread;
        }
    }
    if (fine) {
        ptrdiff_t *ends = place_sums(plan, work, leaf, rows, &sums);
        if (sums != NULL && run_apart(plan, work, rows, threads, alone))
            result = mode & EACH ? found_in_each(plan, work, leaf, rows, mode)
                                 : found_in_all(plan, sums, ends, mode);
        PyMem_Free(ends);
    }
    end_specials(specials);
    PyMem_Free(sums);
    PyMem_Free(pool);
    PyMem_Free(leaf);
    PyMem_Free(work);
    return result;
}

/* Compute sums over parts, from one on, each of which is one of the numbers: its place, the programs,
   and the mode. 0, perhaps with an exception, where one cannot be. */
static int fill_sums(const Plan *plan, Py_ssize_t first, PyObject *sums, PyObject *numbers,
                     long threads, int alone)
{
    for (Py_ssize_t i = 0; i < PyList_Size(sums); i++) {
        PyObject *programs;
        Py_ssize_t place;
        int mode;
        if (!PyArg_ParseTuple(PyList_GetItem(sums, i), "nOi", &place, &programs, &mode))
            return 0;
        PyObject *sum = summed(plan, first, programs, numbers, mode, threads, alone);
        if (sum == NULL || PyList_SetItem(numbers, place, sum) != 0)
            return 0;
    }
    return 1;
}
