/* Steps in place of whole trees: the groups of an optimizer, and columns of leaves. */

/* The entry of a parameter in the state of an optimizer, where entries mostly lie in the order of
   the parameters; NULL if there is none. */
static PyObject *entry_of(PyObject *state, PyObject *p, Py_ssize_t *place)
{
    enum { NEAR = 8 };
    PyObject *key, *entry;
    Py_ssize_t next = *place;
    for (int i = 0; i < NEAR && PyDict_Next(state, &next, &key, &entry); i++)
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
        if (k != G && !(is_tensor(x[k]) && denies(x[k], &is_inference)))
            return 0;
    return 1;
}

/* Add one parameter with a gradient; 0 where it cannot be taken. All tensors are owned meanwhile,
   since to ask them lets other threads run. */
static int add_parameter(Plan *plan, PyObject **x, PyObject *state, Py_ssize_t *place,
                         Py_ssize_t rates)
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
    plan->differs |= !known;
    int fine = (known || are_ordinary(x)) && add(plan, x, rates);
    for (int k = M; k <= T; k++)
        Py_DECREF(x[k]);
    return fine;
}

/* Whether hyperparameters are in their ranges; of others it is warned elsewhere. */
static int are_in_range(const Rates *rates)
{
    double b1 = rates->b1.number, b2 = rates->b2.number;
    return rates->lr.number >= 0 && 0 <= b1 && b1 < 1 && 0 <= b2 && b2 < 1 &&
           rates->eps.number >= 0 && rates->weight_decay.number >= 0;
}

/* Let no write reach a hyperparameter that is a tensor. 0, perhaps with an exception, if it cannot
   be told where one lies. */
static int guard_rates(Plan *plan, PyObject *group)
{
    View v;
    for (int i = 1; i <= 5; i++) {
        PyObject *x = PyTuple_GetItem(group, i);
        if (is_tensor(x) && !(locate(x, &v) && add_range(&plan->ranges, x, &v, 0)))
            return 0;
    }
    return 1;
}

/* Add the parameters of a group that have a gradient; 0 where one cannot be taken. */
static int add_group(Plan *plan, PyObject *group, Py_ssize_t number, PyObject *state,
                     Py_ssize_t *place)
{
    Rates *rates = &plan->rates[number];
    PyObject *params = PyTuple_GetItem(group, 0), *x[5];
    int maximize = PyObject_IsTrue(PyTuple_GetItem(group, 6));
    int decoupled = PyObject_IsTrue(PyTuple_GetItem(group, 7));
    if (PyErr_Occurred() || !PyList_Check(params) || !PyDict_Check(state) ||
        !read_rates(group, 1, maximize, decoupled, rates) || !are_in_range(rates) ||
        !guard_rates(plan, group))
        return 0;
    int fine = 1;
    for (Py_ssize_t i = 0; i < PyList_Size(params) && fine; i++) {
        x[P] = PyList_GetItem(params, i);
        Py_INCREF(x[P]);
        x[G] = PyObject_GetAttr(x[P], grad);
        fine = x[G] == Py_None || (x[G] && add_parameter(plan, x, state, place, number));
        Py_XDECREF(x[G]);
        Py_DECREF(x[P]);
    }
    return fine;
}

static PyObject *native_overwrite(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *columns, *group, *increment, *x[5];
    int grad_mode;
    long threads;
    Plan plan;
    if (!PyArg_ParseTuple(arguments, "OOpOl", &columns, &group, &grad_mode, &increment,
                          &threads))
        return NULL;
    PyObject *params = PyTuple_GetItem(group, 0);
    int maximize = PyObject_IsTrue(PyTuple_GetItem(group, 6));
    int decoupled = PyObject_IsTrue(PyTuple_GetItem(group, 7));
    Py_ssize_t count = PyList_Size(params);
    int fine = begin(&plan, NULL, count < 0 ? count : 1) &&
               read_rates(group, 1, maximize, decoupled, plan.rates) && guard_rates(&plan, group);
    for (Py_ssize_t i = 0; i < count && fine; i++) {
        x[P] = PyList_GetItem(params, i);
        for (int k = G; k <= T; k++)
            x[k] = PyList_GetItem(PyTuple_GetItem(columns, k - G), i);
        if (PyErr_Occurred())
            break;
        if (x[G] == Py_None) {
            fine = (x[P] == Py_None ? !is_tensor(x[M]) : is_tensor(x[P])) &&
                   is_in_order(x, plan.rates) && append(&plan, x, BYSTANDER);
            continue;
        }
        for (int k = P; k <= T && fine; k++)
            fine = is_free(x[k], grad_mode);
        fine = fine && are_ordinary(x) && add(&plan, x, 0);
    }
    return finish(&plan, fine, increment, threads);
}

static PyObject *native_advance(PyObject *self, PyObject *arguments)
{
    (void)self;
    PyObject *groups, *state, *known, *increment;
    long threads;
    Plan plan;
    Py_ssize_t place = 0;
    if (!PyArg_ParseTuple(arguments, "OOOOl", &groups, &state, &known, &increment, &threads))
        return NULL;
    Py_ssize_t count = PyList_Size(groups);
    int fine = begin(&plan, known, count);
    for (Py_ssize_t i = 0; i < count && fine; i++)
        fine = add_group(&plan, PyList_GetItem(groups, i), i, state, &place);
    return finish(&plan, fine, increment, threads);
}
