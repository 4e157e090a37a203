/* Sums of squares in the order of sums.py: rows of 128 elements, neighbours added first. */

enum { ROW = 128, LEVELS = 40, LEVEL = 3, ROWS = 1 << LEVEL /* that are added at once */ };

/* The sum of the rows so far: at each level of the tree, one that waits for its neighbour. */
typedef struct {
    double waiting[LEVELS][ROW];
    ptrdiff_t count;
} Tree;

/* Add the sum of 1 << level more rows, which is written over; before it come a multiple of as many. */
static inline __attribute__((always_inline)) void add_row(Tree *tree, double *row, int level)
{
    ptrdiff_t before = tree->count >> level;
    tree->count += (ptrdiff_t)1 << level;
    for (ptrdiff_t k = before; k & 1; k >>= 1, level++)
        for (int i = 0; i < ROW; i++)
            row[i] = tree->waiting[level][i] + row[i];
    for (int i = 0; i < ROW; i++)
        tree->waiting[level][i] = row[i];
}

/* The sum of the rows, where each that waits is added as if rows of zeros came after it. */
static inline __attribute__((always_inline)) void add_up(const Tree *tree, double *sum)
{
    int found = 0, level = 0;
    for (int i = 0; i < ROW; i++)
        sum[i] = 0;
    for (ptrdiff_t k = tree->count; k > 0; k >>= 1, level++) {
        if (!(k & 1))
            continue;
        for (int i = 0; i < ROW; i++)
            sum[i] = found ? tree->waiting[level][i] + sum[i] : tree->waiting[level][i];
        found = 1;
    }
}

/* The sum of rows in memory, and in it of its elements; the row is written over. */
static double total(const double *rows, ptrdiff_t count, double *row)
{
    static __thread Tree tree;
    tree.count = 0;
    for (ptrdiff_t k = 0; k < count; k++) {
        memcpy(row, rows + k * ROW, ROW * sizeof *row);
        add_row(&tree, row, 0);
    }
    add_up(&tree, row);
    for (int n = ROW; n > 1; n /= 2)
        for (int i = 0; i < n / 2; i++)
            row[i] = row[2 * i] + row[2 * i + 1];
    return row[0];
}

/* The larger of two absolute values, or the one that is not a number. */
static inline __attribute__((always_inline)) double larger(double largest, double x)
{
    double size = __builtin_fabs(x);
    return size > largest || size != size ? size : largest;
}
