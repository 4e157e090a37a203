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

/* Make the outputs of a row, and its counters, in lists that have a place for each leaf, like the
   tensors from this range on: another thread may have given a leaf other memory. */
static int make_results(const Plan *plan, const Part *part, Py_ssize_t i, Py_ssize_t row,
                        const Range *like, PyObject *lists)
{
    View v;
    const Program *p = part->program;
    Py_ssize_t leaf = part->leaves[i];
    for (int j = 0; j < p->outputs; j++) {
        PyObject *list = PyTuple_GetItem(lists, j);
        int type = p->types[p->columns + j], same = type == p->types[p->of[j]];
        PyObject *x = like[p->of[j]].tensor;
        char *new = list ? new_by(x, same ? NULL : as_type[type], list, leaf) : NULL;
        plan->work[part->first + row].row.at[p->columns + j] = new;
    }
    for (int k = 0; k < p->counters && !PyErr_Occurred(); k++) {
        PyObject *list = PyTuple_GetItem(lists, p->outputs + k);
        char *new = list ? new_like(like[p->columns + k].tensor, 0, list, leaf) : NULL;
        if (new != NULL && describe(PyList_GetItem(list, leaf), &v) &&
            v.type == (p->wide[k] ? F64 : F32))
            write_number(new, p->wide[k], part->after[row * p->counters + k]);
    }
    return !PyErr_Occurred();
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
            if (!make_results(plan, part, i, row++, like, PyList_GetItem(lists, k)))
                return 0;
            like += part->width;
        }
    }
    return run_apart(plan, plan->work, plan->rows, threads, 0);
}
