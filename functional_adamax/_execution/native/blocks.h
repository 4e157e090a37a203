/* A template: every instruction over a run of elements, and a program over a stretch of one leaf.
   Included once for each REAL and TARGET, with NAME(name), and EIGHTS of what has a faster form. */

#define DEFINE(name, operands, value)                                                              \
    TARGET static void NAME(name)(REAL * d_, const REAL *a_, const REAL *b_, const REAL *c_,       \
                                  const REAL *e_, ptrdiff_t n)                                     \
    {                                                                                              \
        /* the result may be an operand itself, never a part of one */                             \
        _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < n; i++)                                     \
        {                                                                                          \
            REAL a = a_[i], b = operands > 1 ? b_[i] : a, c = operands > 2 ? c_[i] : a;            \
            REAL e = operands > 3 ? e_[i] : a;                                                     \
            (void)b, (void)c, (void)e;                                                             \
            d_[i] = value;                                                                         \
        }                                                                                          \
    }
INSTRUCTIONS(DEFINE)
#undef DEFINE

#define DEFINE(name, type, value)                                                                  \
    TARGET static void NAME(name)(REAL * d, const REAL *a_, const REAL *b, const REAL *c,          \
                                  const REAL *e, ptrdiff_t n)                                      \
    {                                                                                              \
        const type *memory = (const void *)a_;                                                     \
        (void)b, (void)c, (void)e;                                                                 \
        _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < n; i++)                                     \
        {                                                                                          \
            type a = memory[i];                                                                    \
            d[i] = value;                                                                          \
        }                                                                                          \
    }
LOADS(DEFINE)
#undef DEFINE

#define DEFINE(name, type, value)                                                                  \
    TARGET static void NAME(name)(REAL * d, const REAL *a_, const REAL *b, const REAL *c,          \
                                  const REAL *e, ptrdiff_t n)                                      \
    {                                                                                              \
        type *memory = (void *)d;                                                                  \
        (void)b, (void)c, (void)e;                                                                 \
        _Pragma("GCC ivdep") for (ptrdiff_t i = 0; i < n; i++)                                     \
        {                                                                                          \
            float a = (float)a_[i];                                                                \
            memory[i] = (type)(value);                                                              \
        }                                                                                          \
    }
STORES(DEFINE)
#undef DEFINE

#define DEFINE(name, result, operand)                                                              \
    TARGET static void NAME(name##_by_eights)(REAL * d_, const REAL *a_, const REAL *b,            \
                                              const REAL *c, const REAL *e, ptrdiff_t n)           \
    {                                                                                              \
        result *d = (void *)d_;                                                                    \
        const operand *a = (const void *)a_;                                                       \
        ptrdiff_t i = 0;                                                                           \
        for (; i + 8 <= n; i += 8)                                                                 \
            name##_8(d + i, a + i);                                                                \
        NAME(name)((void *)(d + i), (const void *)(a + i), b, c, e, n - i);                        \
    }
EIGHTS(DEFINE)
#undef DEFINE

typedef void (*NAME(Operation))(REAL *, const REAL *, const REAL *, const REAL *, const REAL *,
                                ptrdiff_t);
#define PLACE(name, operands, value) NAME(name),
#define REPLACE(name, result, operand) [name] = NAME(name##_by_eights),
static const NAME(Operation) NAME(operations)[] = {INSTRUCTIONS(PLACE) LOADS(PLACE) STORES(PLACE)
                                                       EIGHTS(REPLACE)};
#undef PLACE
#undef REPLACE

/* Add rows of squares, which are as many as are added at once, or the last ones. */
static inline __attribute__((always_inline)) void NAME(add_squares)(Tree *tree, const REAL *x,
                                                                    ptrdiff_t rows)
{
    double row[ROW];
    for (ptrdiff_t k = 0; k < rows && rows < ROWS; k++) {
        for (int i = 0; i < ROW; i++)
            row[i] = (double)x[k * ROW + i] * (double)x[k * ROW + i];
        add_row(tree, row, 0);
    }
    if (rows < ROWS)
        return;
    for (int i = 0; i < ROW; i++) {
        double y[ROWS];
        for (int k = 0; k < ROWS; k++)
            y[k] = (double)x[k * ROW + i] * (double)x[k * ROW + i];
        row[i] = ((y[0] + y[1]) + (y[2] + y[3])) + ((y[4] + y[5]) + (y[6] + y[7]));
    }
    add_row(tree, row, LEVEL);
}

TARGET static void NAME(run)(const void *row_, ptrdiff_t start, ptrdiff_t end)
{
    const Row *row = row_;
    const Program *p = row->program;
    const Code *code = row->code;
    const ptrdiff_t block = BLOCK_BYTES / sizeof(REAL);
    REAL scratch[MOST_REGISTERS * BLOCK_BYTES / sizeof(REAL)] __attribute__((aligned(LINE)));
    REAL *x[MOST_STREAMS + MOST_REGISTERS];
    REAL values[ROWS * ROW] __attribute__((aligned(LINE))); /* to be added up */
    double largest = 0;
    ptrdiff_t filled = 0;
    Tree tree;
    tree.count = 0;
    const int streams = p->columns + p->outputs, far = end - start == BLOCK;
    for (int k = 0; k < p->registers; k++)
        x[streams + k] = scratch + k * block;
    const ptrdiff_t most = end - start < block ? end - start : block;
    for (int k = 0; k < p->spread; k++) {
        const REAL number = (REAL)row->numbers[k];
        for (ptrdiff_t i = 0; i < most; i++)
            x[streams + k][i] = number;
    }
    for (ptrdiff_t first = start; first < end; first += block) {
        ptrdiff_t n = end - first < block ? end - first : block;
        for (int k = 0; k < streams; k++)
            x[k] = row->at[k] ? (REAL *)(row->at[k] + first * p->sizes[k]) : values + filled;
        for (int k = 0; k < code->count || k < p->columns; k++) {
            if (far && k < p->columns && code->reads >> k & 1)
                fetch_ahead(x[k], block * p->sizes[k]);
            if (k >= code->count)
                continue;
            const Instruction *o = &code->instructions[k];
            NAME(operations)[o->code](x[o->d], x[o->a], x[o->b], x[o->c], x[o->e], n);
        }
        if (row->sums == NULL)
            continue;
        filled += n;
        if (filled < ROWS * ROW && first + block < end)
            continue;
        for (ptrdiff_t i = 0; row->largest && i < filled; i++)
            largest = larger(largest, (double)values[i]);
        for (; filled % ROW; filled++)
            values[filled] = 0;
        if (!row->largest)
            NAME(add_squares)(&tree, values, filled / ROW);
        filled = 0;
    }
    if (row->largest)
        row->sums[start / BLOCK * ROW] = largest;
    else if (row->sums != NULL)
        add_up(&tree, row->sums + start / BLOCK * ROW);
}

#undef NAME
