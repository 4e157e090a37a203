/* The instructions for every instruction set, of which one is chosen when the module is loaded. */

/* Ask for the memory of a block further on: a program has more streams than the processor follows
   unasked. */
static inline __attribute__((always_inline)) void fetch_ahead(const void *block, ptrdiff_t bytes)
{
    for (ptrdiff_t k = 0; k < bytes; k += LINE)
        __builtin_prefetch((const void *)((uintptr_t)block + AHEAD + k));
}

#define TARGET
#define VARIANT(name) name##_baseline
#define BY_EIGHTS(X)
#include "variant.h"
#undef BY_EIGHTS

#if defined(__x86_64__) && defined(__GNUC__)
#define IS_X86 1
#include "eights.h"
#define TARGET __attribute__((target("avx2,fma,f16c")))
#define VARIANT(name) name##_avx2
#include "variant.h"
#define TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,f16c")))
#define VARIANT(name) name##_avx512
#include "variant.h"
#else
#define IS_X86 0
#endif

static const Kernel *kernels = kernels_baseline;

static void choose_kernels(void)
{
#if IS_X86
    if (!converts_halves())
        return;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        kernels = kernels_avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        kernels = kernels_avx512;
#endif
}
