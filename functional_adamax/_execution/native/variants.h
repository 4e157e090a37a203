/* The kernels for every instruction set, of which one is chosen when the module is loaded. */

enum { NO_DECAY, COUPLED, DECOUPLED };

typedef struct {
    const void *p, *g, *m, *u;
    void *out, *m_new, *u_new;
    double weight, b2, eps, scale, factor, sign;
    int decay, add;
} Step;

typedef void (*Kernel)(const void *row, ptrdiff_t start, ptrdiff_t end);

/* A large tensor is worked off in blocks, and a block in strips. Before each strip a kernel asks
   for the memory of one further on: its streams are more than the processor follows unasked, which
   would cost a tenth of the time. What is smaller than a block is often in a cache already. */
enum { BLOCK = 1 << 16, STRIP = 64 /* elements */, AHEAD = 1024, LINE = 64 /* bytes */ };

static inline __attribute__((always_inline)) void fetch_ahead(const void *strip, int size)
{
    for (int k = 0; k < STRIP * size; k += LINE)
        __builtin_prefetch((const void *)((uintptr_t)strip + AHEAD + k));
}

#include "halves.h"

#define TARGET
#define VARIANT(name) name##_baseline
#include "kinds.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define IS_X86 1
#define TARGET __attribute__((target("avx2,fma")))
#define VARIANT(name) name##_avx2
#include "kinds.h"
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl")))
#define VARIANT(name) name##_avx512
#include "kinds.h"
#else
#define IS_X86 0
#endif

static const Kernel *step_kernels = step_kernels_baseline;

static void choose_kernels(void)
{
#if IS_X86
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        step_kernels = step_kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        step_kernels = step_kernels_avx512;
#endif
}
