/* The numbers of each row: what a program computes once for a leaf, and the code for it. */

/* Equality that tells zeros apart by their sign, and finds a NaN equal to itself. */
static int is_same(double x, double y)
{
    return memcmp(&x, &y, sizeof x) == 0;
}

/* A float in a list; 0 where there is none, with an exception. */
static double number_in(PyObject *list, Py_ssize_t place)
{
    PyObject *x = PyList_GetItem(list, place);
    return x ? PyFloat_AsDouble(x) : 0;
}

/* Compute what is one number for each row of a part, by its program or by another of the same
   columns, counters and numbers; the last are floats, or lists with one for each leaf. And choose
   the code for the numbers. 0 with an exception. */
static int number_rows(const Plan *plan, const Part *part, const Program *p, PyObject *numbers,
                       Work *work, double *pool, double *after, Special **made)
{
    PyObject *lists[MOST_UNIFORMS];
    double r[MOST_UNIFORMS], given[MOST_UNIFORMS];
    const Py_ssize_t *leaf = plan->leaf + part->first, rows = rows_of(plan);
    for (int k = 0; k < p->numbers; k++) {
        PyObject *x = PyList_GetItem(numbers, k);
        if (x == NULL)
            return 0;
        lists[k] = PyList_Check(x) ? x : NULL;
        given[k] = lists[k] ? 0 : PyFloat_AsDouble(x);
    }
    for (Py_ssize_t row = 0; row < part->rows; row++) {
        const double *before = part->before + row * p->counters;
        Py_ssize_t like = row - (row < rows ? 1 : rows); /* the same member of the leaf before */
        int same = like >= 0;
        for (int k = 0; k < p->counters && same; k++)
            same = is_same(before[k], part->before[like * p->counters + k]);
        for (int k = 0; k < p->numbers; k++)
            if (lists[k] != NULL) {
                given[k] = number_in(lists[k], leaf[row]);
                same = same && is_same(given[k], number_in(lists[k], leaf[like]));
            }
        if (PyErr_Occurred())
            return 0;
        double *spread = pool + row * p->spread;
        if (same) {
            work[row].row.numbers = work[like].row.numbers;
            work[row].row.code = work[like].row.code;
        } else {
            memcpy(r, p->constant, p->constants * sizeof *r);
            memcpy(r + p->constants, before, p->counters * sizeof *r);
            memcpy(r + p->constants + p->counters, given, p->numbers * sizeof *r);
            compute_uniforms(p, r);
            for (int k = 0; k < p->spread; k++)
                spread[k] = r[p->sources[k]];
            work[row].row.numbers = spread;
            work[row].row.code = specialized(p, spread, after != NULL && plan->written != NULL, made);
            if (work[row].row.code == NULL)
                return 0;
        }
        for (int k = 0; k < p->counters && after != NULL; k++)
            after[row * p->counters + k] = same ? after[like * p->counters + k]
                                           : p->counts[k] >= 0 ? r[p->counts[k]] : before[k];
    }
    return 1;
}

/* Compute what is one number for each row; numbers are for parts that have none yet. 0 with an
   exception. */
static int number_all(Plan *plan, PyObject *numbers)
{
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        const Part *part = &plan->parts[k];
        PyObject *given = part->numbers ? part->numbers : numbers;
        if (!number_rows(plan, part, part->program, given, plan->work + part->first, part->pool,
                         part->after, &plan->specials))
            return 0;
    }
    return 1;
}

/* Whether all counters are what they were when their rows were laid out. */
static int are_counted_alike(const Plan *plan)
{
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        const Part *part = &plan->parts[k];
        const Program *p = part->program;
        for (Py_ssize_t i = 0; i < part->rows * p->counters; i++) {
            double now = read_number(part->counters[i], p->wide[i % p->counters]);
            if (!is_same(now, part->before[i]))
                return 0;
        }
    }
    return 1;
}

static void count_steps(const Plan *plan)
{
    for (Py_ssize_t k = 0; k < plan->count; k++) {
        const Part *part = &plan->parts[k];
        const Program *p = part->program;
        for (Py_ssize_t i = 0; i < part->rows * p->counters; i++)
            if (p->counts[i % p->counters] >= 0)
                write_number(part->counters[i], p->wide[i % p->counters], part->after[i]);
    }
}

/* Run rows into memory that is no leaf's; 0 where a leaf lies elsewhere now, or was counted on; not
   where the caller knows that nothing ran. */
static int run_apart(const Plan *plan, const Work *work, Py_ssize_t count, long threads, int alone)
{
    if (!alone && !(are_unmoved(&plan->ranges, 0) && are_counted_alike(plan)))
        return 0;
    run(work, count, threads, !plan->releases);
    return 1;
}
