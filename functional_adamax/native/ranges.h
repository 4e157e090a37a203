/* Where the tensors of a step lie, and that they stay there while it runs. */

typedef struct {
    const char *start, *end;
    int written;
    PyObject *tensor; /* owned; NULL of one that the step does not touch */
} Range;

typedef struct {
    Range *all;
    Py_ssize_t count, room;
} Ranges;

static int add_range(Ranges *ranges, PyObject *x, const View *v, int written)
{
    if (ranges->count == ranges->room) {
        Py_ssize_t room = 2 * ranges->room + 64;
        Range *all = resized(ranges->all, room * sizeof(Range));
        if (all == NULL)
            return 0;
        ranges->all = all;
        ranges->room = room;
    }
    ranges->all[ranges->count++] = (Range){v->start, v->start + v->bytes, written, x};
    Py_XINCREF(x);
    return 1;
}

static void let_go(Ranges *ranges)
{
    for (Py_ssize_t i = 0; i < ranges->count; i++)
        Py_XDECREF(ranges->all[i].tensor);
    PyMem_Free(ranges->all);
}

/* Another thread may give a tensor other memory whenever it holds the GIL, and this memory is then
   free. So before a step that releases the GIL, put an alias that nobody else knows in the place of
   each tensor: it keeps its memory. 0 with an exception. */
static int hold(Ranges *ranges)
{
    for (Py_ssize_t i = 0; i < ranges->count; i++) {
        PyObject *x = ranges->all[i].tensor;
        if (x == NULL)
            continue;
        if (!may_allocate() || (ranges->all[i].tensor = PyObject_GetAttr(x, data)) == NULL) {
            ranges->all[i].tensor = x;
            return 0;
        }
        Py_DECREF(x);
    }
    return 1;
}

/* Whether all tensors, from the first on, still lie where they did. They may be read and written
   now, as long as the GIL is held, or they are aliases. */
static int are_unmoved(const Ranges *ranges, Py_ssize_t first)
{
    View v;
    for (Py_ssize_t i = first; i < ranges->count; i++) {
        const Range *range = &ranges->all[i];
        if (range->tensor != NULL &&
            !(locate(range->tensor, &v) && v.start == range->start &&
              v.start + v.bytes == range->end && is_dense(&v)))
            return 0;
    }
    return 1;
}

/* Sort by start, byte by byte of the distance to the first; spare has room for as many. Return
   where the result is. */
static Range *sorted(Range *ranges, Range *spare, Py_ssize_t count)
{
    uintptr_t first = UINTPTR_MAX, last = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        uintptr_t start = (uintptr_t)ranges[i].start;
        first = start < first ? start : first;
        last = start > last ? start : last;
    }
    const int bits = 8 * sizeof first;
    for (int shift = 0; shift < bits && (last - first) >> shift; shift += 8) {
        Py_ssize_t place[257] = {0};
        for (Py_ssize_t i = 0; i < count; i++)
            place[1 + (((uintptr_t)ranges[i].start - first) >> shift & 255)]++;
        for (int digit = 0; digit < 256; digit++)
            place[digit + 1] += place[digit];
        for (Py_ssize_t i = 0; i < count; i++)
            spare[place[((uintptr_t)ranges[i].start - first) >> shift & 255]++] = ranges[i];
        Range *result = spare;
        spare = ranges;
        ranges = result;
    }
    return ranges;
}

/* Whether no written range meets another, so that the order of writes does not matter; 0, perhaps
   with an exception, if not. */
static int are_apart(const Ranges *ranges)
{
    const char *end = NULL, *end_written = NULL;
    Py_ssize_t count = ranges->count;
    Range *copy = resized(NULL, (2 * count + 1) * sizeof(Range));
    if (copy == NULL)
        return 0;
    memcpy(copy, ranges->all, count * sizeof(Range));
    const Range *in_order = sorted(copy, copy + count, count);
    int apart = 1;
    for (Py_ssize_t i = 0; i < count && apart; i++) {
        const Range *range = &in_order[i];
        if (range->start == range->end)
            continue;
        apart = !(range->start < end_written || (range->written && range->start < end));
        if (range->end > end)
            end = range->end;
        if (range->written && range->end > end_written)
            end_written = range->end;
    }
    PyMem_Free(copy);
    return apart;
}

/* Whether a step releases the GIL: where it takes a millisecond, and much longer than to hold its
   tensors, each of which costs less than half a microsecond. */
static int is_long(const Work *work, Py_ssize_t count, const Ranges *ranges)
{
    enum { WORTH_RELEASING = 1 << 20, WORTH_HOLDING = 1 << 14 /* elements */ };
    ptrdiff_t total = elements(work, count);
    return total >= WORTH_RELEASING && total >= WORTH_HOLDING * ranges->count;
}

/* Run rows of a pure step; 0, perhaps with an exception, where a tensor lies elsewhere now. */
static int run_pure(const Work *work, Py_ssize_t count, Ranges *ranges, long threads)
{
    int releases = is_long(work, count, ranges);
    if ((releases && !hold(ranges)) || !are_unmoved(ranges, 0))
        return 0;
    run(work, count, threads, !releases);
    return 1;
}
