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

static inline uint32_t chosen(int condition, uint32_t x, uint32_t y)
{
    uint32_t mask = -(uint32_t)condition;
    return (x & mask) | (y & ~mask);
}

static inline float from_bf16(uint32_t x)
{
    return as_float(x << 16);
}

static inline uint32_t to_bf16(float x)
{
    uint32_t bits = as_bits(x), rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return chosen((bits & 0x7fffffff) > 0x7f800000, 0x7fc0, rounded);
}

static inline float from_f16(uint32_t x)
{
    uint32_t bits = (x & 0x7fff) << 13, sign = (x & 0x8000) << 16;
    uint32_t tiny = as_bits(as_float(bits + (113u << 23)) - 0x1p-14f);
    uint32_t finite = chosen(bits < 1u << 23, tiny, bits + (112u << 23));
    return as_float(sign | chosen(bits >= 31u << 23, bits | 0x7f800000, finite));
}

static inline uint32_t to_f16(float x)
{
    uint32_t bits = as_bits(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t power = size & 0x7f800000;
    power = power > 143u << 23 ? 143u << 23 : power;
    power = power < 113u << 23 ? 113u << 23 : power;
    /* the sum with 2^13 times the power of two below x has the spacing of halves: it rounds */
    uint32_t large = power + (13u << 23);
    uint32_t places = as_bits(as_float(size) + as_float(large)) - large;
    uint32_t half = ((power - (113u << 23)) >> 13) + places;
    half = half > 0x7c00 ? 0x7c00 : half;
    return sign | half | (size > 0x7f800000) << 9;
}
