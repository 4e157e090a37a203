/* A step is taken, over its leaves or into new tensors. */

/* Write what is settled; 0, perhaps with an exception, and with nothing written, where memory was
   moved or counted on meanwhile; not where the caller knows that nothing ran. Autograd is told
   before the write, since after it an exception, Ctrl-C for one, would leave a write that it does
   not notice. */
static int commit(Plan *plan, PyObject *numbers, PyObject *increment, long threads, int alone)
{
    if (plan->rows == 0)
        return 1;
    if (!number_all(plan, numbers))
        return 0;
    int collects = PyGC_Disable(); /* a collection runs Python, and with it other threads */
    PyObject *answer = PyObject_CallFunctionObjArgs(increment, plan->written, NULL);
    if (collects)
        PyGC_Enable();
    Py_XDECREF(answer);
    if (answer == NULL ||
        !(alone || (are_unmoved(&plan->ranges, 0) && are_counted_alike(plan))))
        return 0;
    count_steps(plan);
    run(plan->work, plan->rows, threads, !plan->releases);
    return 1;
}

/* Make the outputs of a leaf, and its counters, in lists that have a place for each leaf, like the
   tensors from this range on: another thread may have given a leaf other memory. The leaf has its
   rows from this one on. */
static int make_results(const Plan *plan, const Part *part, Py_ssize_t i, Py_ssize_t row,
                        const Range *like, PyObject *lists)
{
    View v;
    const Program *p = part->program;
    const Py_ssize_t leaf = part->leaves[i], rows = rows_of(plan);
    Work *work = &plan->work[part->first + row];
    for (int j = 0; j < p->outputs; j++) {
        PyObject *list = PyTuple_GetItem(lists, j);
        int type = p->types[p->columns + j], same = type == p->types[p->of[j]];
        PyObject *x = like[p->of[j]].tensor;
        char *new = list ? new_by(x, same ? NULL : as_type[type], list, leaf) : NULL;
        for (Py_ssize_t m = 0; m < rows && new != NULL; m++)
            work[m].row.at[p->columns + j] = new + m * work[m].n * type_sizes[type];
    }
    for (int k = 0; k < p->counters && !PyErr_Occurred(); k++) {
        PyObject *list = PyTuple_GetItem(lists, p->outputs + k);
        char *new = list ? new_like(like[p->columns + k].tensor, 0, list, leaf) : NULL;
        if (new != NULL && describe(PyList_GetItem(list, leaf), &v) && v.n == rows &&
            v.type == (p->wide[k] ? F64 : F32))
            for (Py_ssize_t m = 0; m < rows; m++)
                write_number(new + m * type_sizes[v.type], p->wide[k],
                             part->after[(row + m) * p->counters + k]);
    }
    return !PyErr_Occurred();
}

/* Whether a row goes on where another one ends, with the same numbers. */
static int goes_on(const Work *work, const Work *before)
{
    const Program *p = work->row.program;
    if (p != before->row.program || work->row.code != before->row.code ||
        work->row.numbers != before->row.numbers)
        return 0;
    for (int k = 0; k < p->columns + p->outputs; k++)
        if (work->row.at[k] != before->row.at[k] + before->n * type_sizes[p->types[k]])
            return 0;
    return 1;
}

/* Run the rows of a plan apart, those of members that have the same numbers as one; 0, perhaps with
   an exception, where they cannot be. */
static int run_merged(const Plan *plan, long threads)
{
    Py_ssize_t rows = 0, alike = 0;
    for (Py_ssize_t i = 1; i < plan->rows; i++)
        alike += goes_on(&plan->work[i], &plan->work[i - 1]);
    if (alike == 0)
        return run_apart(plan, plan->work, plan->rows, threads, 0);
    Work *work = resized(NULL, (plan->rows - alike) * sizeof *work);
    for (Py_ssize_t i = 0; i < plan->rows && work != NULL; i++)
        if (i > 0 && goes_on(&plan->work[i], &plan->work[i - 1]))
            work[rows - 1].n += plan->work[i].n;
        else
            work[rows++] = plan->work[i];
    int done = work != NULL && run_apart(plan, work, rows, threads, 0);
    PyMem_Free(work);
    return done;
}

/* Step all leaves into new tensors, which come into the lists of their parts; 0, perhaps with an
   exception, where they cannot be. */
static int stepped(Plan *plan, PyObject *numbers, PyObject *lists, long threads)
{
    const Range *like = plan->ranges.all;
    if (!number_all(plan, numbers))
        return 0;
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        const Part *part = &plan->parts[k];
        Py_ssize_t row = 0;
        for (Py_ssize_t i = 0; i < part->count; i++) {
            if (part->x[i * part->width] == Py_None)
                continue;
            while (like->tensor == NULL) /* of leaves without gradient */
                like++;
            if (!make_results(plan, part, i, row, like, PyList_GetItem(lists, k)))
                return 0;
            row += rows_of(plan);
            like += part->width;
        }
    }
    return plan->members ? run_merged(plan, threads)
                         : run_apart(plan, plan->work, plan->rows, threads, 0);
}
