/* Running the rows, without the GIL: in blocks, by several threads where there is enough to do.
   They live for one call; to start one takes some ten microseconds. */

enum { BLOCK = 1 << 14, WORTH_A_THREAD = 1 << 17 };

typedef struct {
    const Work *work;
    Py_ssize_t count;
    ptrdiff_t next; /* the number of the next block, counted over all rows */
} Queue;

static void *work_off(void *argument)
{
    Queue *queue = argument;
    Py_ssize_t i = 0;
    ptrdiff_t before = 0; /* blocks of the rows before i */
    for (;;) {
        ptrdiff_t block = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED);
        for (; i < queue->count; i++) {
            ptrdiff_t blocks = (queue->work[i].n + BLOCK - 1) / BLOCK;
            if (block < before + blocks)
                break;
            before += blocks;
        }
        if (i == queue->count)
            return NULL;
        ptrdiff_t start = (block - before) * BLOCK, end = start + BLOCK;
        const Work *work = &queue->work[i];
        work->kernel(&work->row, start, end < work->n ? end : work->n);
    }
}

static void run(const Work *work, Py_ssize_t count, long threads)
{
    Queue queue = {work, count, 0};
    ptrdiff_t total = 0;
    pthread_t helpers[64];
    long helping = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        total += work[i].n;
    Py_BEGIN_ALLOW_THREADS
    while (helping < 64 && helping + 1 < threads && total / WORTH_A_THREAD > helping + 1 &&
           pthread_create(&helpers[helping], NULL, work_off, &queue) == 0)
        helping++;
    work_off(&queue);
    while (helping > 0)
        pthread_join(helpers[--helping], NULL);
    Py_END_ALLOW_THREADS
}
