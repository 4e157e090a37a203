/* Running the rows: in blocks, by several threads where there is enough to do.
   They are torch's own where torch's OpenMP runtime is found in the process: after a backward pass
   its threads spin for a while, and others would have to share the cores with them. Else they live
   for one call; to start one takes some ten microseconds. */

enum { WORTH_A_THREAD = 1 << 15, WORTH_A_NEW_THREAD = 1 << 17 /* elements */ };

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

typedef void (*Parallel)(void (*function)(void *), void *data, unsigned threads, unsigned flags);

static Parallel parallel; /* GOMP_parallel of the runtime that torch loaded, or NULL */
static pid_t its_process; /* in a fork of which the runtime waits for threads that are not there */

#ifdef __linux__
static int find_parallel(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    (void)data;
    if (strstr(info->dlpi_name, "/torch/") == NULL || strstr(info->dlpi_name, "libgomp") == NULL)
        return 0;
    void *library = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    void *symbol = library ? dlsym(library, "GOMP_parallel") : NULL;
    memcpy(&parallel, &symbol, sizeof symbol);
    its_process = getpid();
    return parallel != NULL;
}
#endif

static void work_along(void *queue)
{
    work_off(queue);
}

static ptrdiff_t elements(const Work *work, Py_ssize_t count)
{
    ptrdiff_t total = 0;
    for (Py_ssize_t i = 0; i < count; i++)
        total += work[i].n;
    return total;
}

static void run(const Work *work, Py_ssize_t count, long threads, int with_gil)
{
    enum { MOST = 64 };
    Queue queue = {work, count, 0};
    pthread_t helpers[MOST];
    int pooled = parallel != NULL && getpid() == its_process;
    ptrdiff_t worth = elements(work, count) / (pooled ? WORTH_A_THREAD : WORTH_A_NEW_THREAD);
    ptrdiff_t wanted = worth < threads ? worth : threads;
    PyThreadState *state = with_gil ? NULL : PyEval_SaveThread();
    if (pooled && wanted > 1) {
        parallel(work_along, &queue, threads, 0); /* fewer would end the others */
    } else {
        long helping = 0;
        while (helping < MOST && helping + 1 < wanted &&
               pthread_create(&helpers[helping], NULL, work_off, &queue) == 0)
            helping++;
        work_off(&queue);
        while (helping > 0)
            pthread_join(helpers[--helping], NULL);
    }
    if (state != NULL)
        PyEval_RestoreThread(state);
}
