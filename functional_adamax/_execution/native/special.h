/* A program for the uniforms of one row: what they decide is left out.

   A WHERE with one condition for all elements is the operand that it chooses; a product with 1, or a
   quotient by 1, is the other operand; and what nothing reads any more is not computed, nor is its
   memory touched. The results have the same bits. */

typedef struct Special {
    struct Special *next;
    Code code;
    Instruction instructions[];
} Special;

/* Whether arithmetic leaves numbers too small to be normal as they are. */
static int keeps_denormals(void)
{
    volatile float tiny = 1e-40f;
    return tiny * 1.0f != 0;
}

/* The uniform in a register, in the type of the elements; 0 where there is none. */
static int is_uniform(const Program *p, const double *numbers, int register_, double *value)
{
    int place = register_ - p->columns - p->outputs;
    if (place < 0 || place >= p->spread)
        return 0;
    *value = p->type == F32 ? (float)numbers[place] : numbers[place];
    return 1;
}

/* The operand that an instruction is the same as, or -1. */
static int same_as(const Program *p, const double *numbers, const Instruction *o, int keeps)
{
    double x;
    if (o->code == MOVE)
        return o->a;
    if (o->code == WHERE && is_uniform(p, numbers, o->a, &x))
        return x != 0 ? o->b : o->c;
    if (!keeps || (o->code != MULTIPLY && o->code != DIVIDE))
        return -1;
    if (is_uniform(p, numbers, o->b, &x) && x == 1)
        return o->a;
    return o->code == MULTIPLY && is_uniform(p, numbers, o->a, &x) && x == 1 ? o->b : -1;
}

static int reads_register(const Instruction *o, int register_)
{
    return o->a == register_ || o->b == register_ || o->c == register_ || o->e == register_;
}

static int is_output(const Program *p, int register_)
{
    return register_ >= p->columns && register_ < p->columns + p->outputs;
}

/* Whether what a register holds after instruction i, as long as somebody reads it in the place of the
   target of i, stays what it is; an output may be the memory of the column that it replaces. */
static int stays(const Program *p, int i, int source)
{
    int target = p->vector[i].d, last = i;
    for (int k = i + 1; k < p->vectors; k++) {
        if (reads_register(&p->vector[k], target))
            last = k;
        if (p->vector[k].d == target)
            break;
    }
    for (int k = i + 1; k < last; k++) {
        int d = p->vector[k].d;
        if (d == source || (is_output(p, d) && p->of[d - p->columns] == source))
            return 0;
    }
    return 1;
}

/* Let readers of the targets of some instructions read what those are the same as; return how many
   instructions are left. */
static int forward(const Program *p, const double *numbers, int in_place, Instruction *code)
{
    int32_t at[MOST_STREAMS + MOST_REGISTERS], count = 0;
    const int keeps = keeps_denormals();
    for (int k = 0; k < MOST_STREAMS + MOST_REGISTERS; k++)
        at[k] = k;
    for (int i = 0; i < p->vectors; i++) {
        Instruction o = p->vector[i];
        o = (Instruction){o.code, o.d, at[o.a], at[o.b], at[o.c], at[o.e]};
        int source = same_as(p, numbers, &o, keeps);
        at[o.d] = o.d;
        if (source >= 0 && is_output(p, o.d)) {
            if (in_place && source == p->of[o.d - p->columns])
                continue; /* it is there */
            o = (Instruction){MOVE, o.d, source, source, source, source};
        } else if (source >= 0 && stays(p, i, source)) {
            at[o.d] = source;
            continue;
        }
        code[count++] = o;
    }
    return count;
}

/* Keep the instructions that outputs need; return which columns they read, a bit each. */
static uint32_t drop_unread(const Program *p, Instruction *code, int *count)
{
    int32_t read[MOST_STREAMS + MOST_REGISTERS] = {0};
    uint32_t columns = 0;
    int first = *count;
    for (int i = *count - 1; i >= 0; i--) {
        Instruction o = code[i];
        if (!is_output(p, o.d) && !read[o.d])
            continue;
        read[o.d] = 0;
        read[o.a] = read[o.b] = read[o.c] = read[o.e] = 1;
        code[--first] = o;
    }
    *count -= first;
    memmove(code, code + first, *count * sizeof *code);
    for (int k = 0; k < p->columns; k++)
        columns |= (uint32_t)(read[k] != 0) << k;
    return columns;
}

/* The code for rows with these uniforms, which is the program's own where they decide nothing;
   NULL with an exception. */
static const Code *specialized(const Program *p, const double *numbers, int in_place,
                               Special **made)
{
    const int keeps = keeps_denormals();
    int decided = 0;
    for (int i = 0; i < p->vectors && !decided; i++)
        decided = p->vector[i].code != MOVE && same_as(p, numbers, &p->vector[i], keeps) >= 0;
    if (!decided)
        return &p->code;
    Special *special = resized(NULL, sizeof *special + p->vectors * sizeof(Instruction));
    if (special == NULL)
        return NULL;
    int count = forward(p, numbers, in_place, special->instructions);
    uint32_t reads = drop_unread(p, special->instructions, &count);
    special->code = (Code){special->instructions, count, reads};
    special->next = *made;
    *made = special;
    return &special->code;
}

static void end_specials(Special *special)
{
    while (special != NULL) {
        Special *next = special->next;
        PyMem_Free(special);
        special = next;
    }
}
