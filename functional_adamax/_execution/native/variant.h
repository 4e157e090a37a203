/* The machine for one instruction set; included once for each TARGET, with VARIANT(name). */

#define REAL float
#define EIGHTS BY_EIGHTS
#define NAME(name) VARIANT(name##_f32)
#include "blocks.h"
#undef REAL
#undef EIGHTS

#define REAL double
#define EIGHTS(X)
#define NAME(name) VARIANT(name##_f64)
#include "blocks.h"
#undef REAL

static const Kernel VARIANT(kernels)[] = {VARIANT(run_f32), VARIANT(run_f64)};

#undef EIGHTS
#undef TARGET
#undef VARIANT
