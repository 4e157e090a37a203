/* Half precision as float and back, rounding to the nearest even, in operations that vectorize. */

static inline float as_float(uint32_t bits)
{
    union { uint32_t bits; float value; } x = {bits};
    return x.value;
}

static inline uint32_t as_bits(float value)
{
    union { float value; uint32_t bits; } x = {value};
    return x.bits;
}

static inline float from_bf16(uint16_t x)
{
    return as_float((uint32_t)x << 16);
}

static inline uint16_t to_bf16(float x)
{
    uint32_t bits = as_bits(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return x != x ? 0x7fc0 : rounded;
}

static inline float from_f16(uint16_t x)
{
    uint32_t bits = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    uint32_t finite = as_bits(as_float(bits) * 0x1p112f);
    return as_float(sign | ((x & 0x7c00) == 0x7c00 ? bits | 0x7f800000 : finite));
}

static inline uint16_t to_f16(float x)
{
    uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t odd = size >> 13 & 1;
    uint32_t normal = (size - (112u << 23) + 0xfff + odd) >> 13;
    uint32_t tiny = as_bits(as_float(size) + 0.5f) - as_bits(0.5f); /* the addition rounds */
    uint32_t finite = size < 0x38800000 ? tiny : normal;
    uint32_t result = size >= 0x47800000 ? 0x7c00 : finite;
    return sign | (size > 0x7f800000 ? 0x7e00 : result);
}
