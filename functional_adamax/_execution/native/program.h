/* A program: what one step does to a leaf, as lower.py makes it.

   Its registers are, in this order: the columns, which are tensors that are read; the outputs, each
   the new value of a column; those in scratch, of which the first hold a uniform each, the same
   number in every element. Uniforms are computed once for each leaf, in double precision or rounded
   to float.

   All arithmetic is in one type. Columns and outputs may be of a narrower one in memory,
   from which they are loaded, and where they are stored. */

#include "instructions.h"

enum { MOST_COLUMNS = 16, MOST_STREAMS = 2 * MOST_COLUMNS, MOST_REGISTERS = 48, MOST_COUNTERS = 12 };
enum { MOST_UNIFORMS = 256, BLOCK_BYTES = 1024 };

typedef struct {
    int32_t code, d, a, b, c, e;
} Instruction;

typedef struct {
    int32_t code, single, d, a, b, c, e; /* single: the result is a float, and so is the arithmetic */
} UniformInstruction;

/* What is run over the elements. */
typedef struct {
    const Instruction *instructions;
    int32_t count;
    uint32_t reads; /* a bit for each column that is read */
} Code;

typedef struct {
    int type;     /* of the registers, F32 or F64 */
    int dims;     /* of the leaves: none for 0, some for 1, any for 2 */
    int columns, outputs, registers, spread, vectors;
    int counters, numbers, constants, uniforms, steps;
    int32_t of[MOST_COLUMNS];          /* the column of each output */
    int32_t types[MOST_STREAMS];       /* of columns and outputs in memory */
    int32_t sizes[MOST_STREAMS];       /* and of their elements */
    int32_t sources[MOST_REGISTERS];   /* the uniform in each register of one */
    int32_t counts[MOST_COUNTERS];     /* the uniform that each counter becomes, or -1 */
    int32_t wide[MOST_COUNTERS];       /* whether a counter is float64 */
    double constant[MOST_UNIFORMS];
    Instruction *vector;
    Code code; /* the same */
    UniformInstruction *uniform;
} Program;

/* A leaf as a program is run on it. */
typedef struct {
    const Program *program;
    const Code *code;
    char *at[MOST_STREAMS]; /* columns and outputs */
    const double *numbers;  /* the uniforms that are spread */
    double *sums;           /* where the sum of squares of each block of the output goes, or NULL */
    int largest;            /* whether the largest absolute value is wanted instead */
} Row;

#define NAME_OF(name, operands, value) name,
enum { INSTRUCTIONS(NAME_OF) LOADS(NAME_OF) STORES(NAME_OF) UNIFORM_INSTRUCTIONS(NAME_OF) };
#undef NAME_OF

#define CASE(name, operands, value) case name: return value;
#define REAL double
static double computed_double(int code, double a, double b, double c, double e)
{
    switch (code) {
        INSTRUCTIONS(CASE)
        UNIFORM_INSTRUCTIONS(CASE)
    }
    return NAN;
}
#undef REAL
#define REAL float
static float computed_float(int code, float a, float b, float c, float e)
{
    switch (code) {
        INSTRUCTIONS(CASE)
        UNIFORM_INSTRUCTIONS(CASE)
    }
    return NAN;
}
#undef REAL
#undef CASE

/* Compute the uniforms of a leaf from its counters and numbers, which are in r after the constants. */
static void compute_uniforms(const Program *p, double *r)
{
    for (int k = 0; k < p->steps; k++) {
        const UniformInstruction *o = &p->uniform[k];
        double a = r[o->a], b = r[o->b], c = r[o->c], e = r[o->e];
        r[o->d] = o->single ? computed_float(o->code, a, b, c, e)
                            : computed_double(o->code, a, b, c, e);
    }
}
