/* Every kernel for one instruction set; included once for each TARGET, with VARIANT(name). */

#define SAME(x) (x)

#define REAL float
#define FMA __builtin_fmaf
#define FABS __builtin_fabsf

#define NAME(name) VARIANT(name##_f32)
#define VALUE float
#define LOAD_VALUE SAME
#define STORE_VALUE SAME
#define MOMENT float
#define LOAD_MOMENT SAME
#define STORE_MOMENT SAME
#include "kernel.h"

#define NAME(name) VARIANT(name##_bf16_f32)
#define VALUE uint16_t
#define LOAD_VALUE from_bf16
#define STORE_VALUE to_bf16
#define MOMENT float
#define LOAD_MOMENT SAME
#define STORE_MOMENT SAME
#include "kernel.h"

#define NAME(name) VARIANT(name##_f16_f32)
#define VALUE uint16_t
#define LOAD_VALUE from_f16
#define STORE_VALUE to_f16
#define MOMENT float
#define LOAD_MOMENT SAME
#define STORE_MOMENT SAME
#include "kernel.h"

#define NAME(name) VARIANT(name##_bf16)
#define VALUE uint16_t
#define LOAD_VALUE from_bf16
#define STORE_VALUE to_bf16
#define MOMENT uint16_t
#define LOAD_MOMENT from_bf16
#define STORE_MOMENT to_bf16
#include "kernel.h"

#define NAME(name) VARIANT(name##_f16)
#define VALUE uint16_t
#define LOAD_VALUE from_f16
#define STORE_VALUE to_f16
#define MOMENT uint16_t
#define LOAD_MOMENT from_f16
#define STORE_MOMENT to_f16
#include "kernel.h"

#undef REAL
#undef FMA
#undef FABS
#define REAL double
#define FMA __builtin_fma
#define FABS __builtin_fabs

#define NAME(name) VARIANT(name##_f64)
#define VALUE double
#define LOAD_VALUE SAME
#define STORE_VALUE SAME
#define MOMENT double
#define LOAD_MOMENT SAME
#define STORE_MOMENT SAME
#include "kernel.h"

#undef REAL
#undef FMA
#undef FABS
#undef SAME

static const Kernel VARIANT(step_kernels)[] = {
    VARIANT(step_f32), VARIANT(step_f64), VARIANT(step_bf16_f32), VARIANT(step_f16_f32),
    VARIANT(step_bf16), VARIANT(step_f16),
};

#undef TARGET
#undef VARIANT
