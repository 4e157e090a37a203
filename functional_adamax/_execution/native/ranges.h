/* Where the tensors of a step lie, and that they stay there while it runs. */

typedef struct {
    const char *start, *end;
    int written;
    PyObject *tensor; /* which others own; NULL of one that the step does not touch */
} Range;

typedef struct {
    Range *all;
    Py_ssize_t count, room;
    PyObject *aliases; /* a list, or NULL */
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
    return 1;
}

static void let_go(Ranges *ranges)
{
    Py_XDECREF(ranges->aliases);
    PyMem_Free(ranges->all);
}

/* Another thread may give a tensor other memory whenever it holds the GIL, and this memory is then
   free. So before a step that releases the GIL, put an alias that nobody else knows in the place of
   each tensor: it keeps its memory. 0 with an exception. */
static int hold(Ranges *ranges)
{
    int fine = (ranges->aliases = new_list(0)) != NULL;
    for (Py_ssize_t i = 0; i < ranges->count && fine; i++) {
        PyObject *x = ranges->all[i].tensor;
        if (x == NULL)
            continue;
        PyObject *alias = may_allocate() ? PyObject_GetAttr(x, data) : NULL;
        fine = alias != NULL && PyList_Append(ranges->aliases, alias) == 0;
        Py_XDECREF(alias);
        ranges->all[i].tensor = alias;
    }
    return fine;
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

/* A range as it is sorted, in as little memory as possible. */
typedef struct {
    uintptr_t start, size; /* twice the size, and 1 more where it is written */
} Span;

/* Sort by start, eight of the bits that vary at a time; spare has room for as many. Return where the
   result is. */
static Span *sorted(Span *spans, Span *spare, Py_ssize_t count)
{
    uintptr_t varying = 0;
    for (Py_ssize_t i = 1; i < count; i++)
        varying |= spans[i].start ^ spans[0].start;
    int shift = 0;
    while (varying != 0 && !(varying >> shift & 1))
        shift++;
    const int bits = 8 * sizeof varying;
    for (; shift < bits && varying >> shift; shift += 8) {
        Py_ssize_t place[257] = {0};
        if (!(varying >> shift & 255))
            continue;
        for (Py_ssize_t i = 0; i < count; i++)
            place[1 + (spans[i].start >> shift & 255)]++;
        for (int digit = 0; digit < 256; digit++)
            place[digit + 1] += place[digit];
        for (Py_ssize_t i = 0; i < count; i++)
            spare[place[spans[i].start >> shift & 255]++] = spans[i];
        Span *result = spare;
        spare = spans;
        spans = result;
    }
    return spans;
}

/* Whether no written range meets another, so that the order of writes does not matter; 0, perhaps
   with an exception, if not. */
static int are_apart(const Ranges *ranges)
{
    uintptr_t end = 0, end_written = 0;
    Py_ssize_t count = 0;
    Span *memory = resized(NULL, (2 * ranges->count + 1) * sizeof(Span));
    if (memory == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < ranges->count; i++) {
        const Range *range = &ranges->all[i];
        uintptr_t size = range->end - range->start;
        if (size > 0)
            memory[count++] = (Span){(uintptr_t)range->start, 2 * size + range->written};
    }
    const Span *spans = sorted(memory, memory + count, count);
    int apart = 1;
    for (Py_ssize_t i = 0; i < count && apart; i++) {
        int written = spans[i].size & 1;
        uintptr_t start = spans[i].start, stop = start + spans[i].size / 2;
        apart = !(start < end_written || (written && start < end));
        end = stop > end ? stop : end;
        end_written = written && stop > end_written ? stop : end_written;
    }
    PyMem_Free(memory);
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
