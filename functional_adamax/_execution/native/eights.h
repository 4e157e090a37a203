/* Conversions of eight numbers at once, where the processor has instructions for halves, and for what
   compilers make too much of. A NaN stays one. Each has a name, what it makes, and of what. */

#include <cpuid.h>
#include <immintrin.h>

#define BY_EIGHTS(X) \
    X(ROUND_BF16, float, float) \
    X(ROUND_F16, float, float) \
    X(LOAD_F16, float, uint16_t) \
    X(STORE_BF16, uint16_t, float) \
    X(STORE_F16, uint16_t, float)

#define EIGHT static inline __attribute__((always_inline, target("avx2,f16c")))

EIGHT void ROUND_BF16_8(float *d, const float *a)
{
    __m256 x = _mm256_loadu_ps(a);
    __m256i bits = _mm256_castps_si256(x), last = _mm256_slli_epi32(bits, 15);
    bits = _mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff));
    bits = _mm256_add_epi32(bits, _mm256_srli_epi32(last, 31));
    bits = _mm256_and_si256(bits, _mm256_set1_epi32((int)0xffff0000));
    __m256 nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    __m256 is_nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);
    _mm256_storeu_ps(d, _mm256_blendv_ps(_mm256_castsi256_ps(bits), nan, is_nan));
}

EIGHT void STORE_BF16_8(uint16_t *d, const float *a)
{
    __m256i x = _mm256_srli_epi32(_mm256_loadu_si256((const void *)a), 16);
    x = _mm256_permute4x64_epi64(_mm256_packus_epi32(x, x), 8);
    _mm_storeu_si128((void *)d, _mm256_castsi256_si128(x));
}

EIGHT __m128i to_f16_8(const float *a)
{
    return _mm256_cvtps_ph(_mm256_loadu_ps(a), _MM_FROUND_TO_NEAREST_INT);
}

EIGHT void ROUND_F16_8(float *d, const float *a)
{
    _mm256_storeu_ps(d, _mm256_cvtph_ps(to_f16_8(a)));
}

EIGHT void LOAD_F16_8(float *d, const uint16_t *a)
{
    _mm256_storeu_ps(d, _mm256_cvtph_ps(_mm_loadu_si128((const void *)a)));
}

EIGHT void STORE_F16_8(uint16_t *d, const float *a)
{
    _mm_storeu_si128((void *)d, to_f16_8(a));
}

static int converts_halves(void)
{
    unsigned a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
