/* A template: every instruction over a run of elements, and a program over a stretch of one leaf.
   Included once for each REAL and TARGET, with NAME(name). */

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

typedef void (*NAME(Operation))(REAL *, const REAL *, const REAL *, const REAL *, const REAL *,
                                ptrdiff_t);
#define PLACE(name, operands, value) NAME(name),
static const NAME(Operation) NAME(operations)[] = {INSTRUCTIONS(PLACE)};
#undef PLACE

TARGET static void NAME(run)(const void *row_, ptrdiff_t start, ptrdiff_t end)
{
    const Row *row = row_;
    const Program *p = row->program;
    const ptrdiff_t block = BLOCK_BYTES / sizeof(REAL);
    REAL scratch[MOST_REGISTERS * BLOCK_BYTES / sizeof(REAL)] __attribute__((aligned(LINE)));
    REAL *x[MOST_STREAMS + MOST_REGISTERS];
    REAL value[BLOCK_BYTES / sizeof(REAL)];
    double squares[ROW], largest = 0;
    Tree tree;
    tree.count = 0;
    const int streams = p->columns + p->outputs, far = end - start == BLOCK;
    for (int k = 0; k < p->registers; k++)
        x[streams + k] = scratch + k * block;
    for (int k = 0; k < p->spread; k++)
        for (ptrdiff_t i = 0; i < block && i < end - start; i++)
            x[streams + k][i] = (REAL)row->numbers[k];
    for (ptrdiff_t first = start; first < end; first += block) {
        ptrdiff_t n = end - first < block ? end - first : block;
        for (int k = 0; k < streams; k++)
            x[k] = row->at[k] ? (REAL *)row->at[k] + first : value;
        for (int k = 0; k < p->vectors; k++) {
            const Instruction *o = &p->vector[k];
            if (far && k < p->columns && p->reads[k])
                fetch_ahead(x[k]);
            NAME(operations)[o->code](x[o->d], x[o->a], x[o->b], x[o->c], x[o->e], n);
        }
        for (ptrdiff_t i = 0; row->largest && i < n; i++)
            largest = larger(largest, (double)value[i]);
        if (row->sums != NULL && !row->largest) {
            ptrdiff_t filled = (first - start) % ROW;
            for (ptrdiff_t i = 0; i < n; i++)
                squares[filled + i] = (double)value[i] * (double)value[i];
            for (ptrdiff_t i = filled + n; i < ROW; i++)
                squares[i] = 0;
            if (filled + block >= ROW || first + block >= end)
                add_row(&tree, squares);
        }
    }
    if (row->largest)
        row->sums[start / BLOCK * ROW] = largest;
    else if (row->sums != NULL)
        add_up(&tree, row->sums + start / BLOCK * ROW);
}

#undef NAME
