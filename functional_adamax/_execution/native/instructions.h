/* Every instruction of the machine: its name, the number of its operands, and its value for one
   element. REAL is the type of the elements. The expressions are torch's, to the last bit: what is
   written FMA here torch rounds once, and a product beside a sum twice. */

#define ABSOLUTE(x) _Generic((x), float: __builtin_fabsf, double: __builtin_fabs)(x)
#define SQUARE_ROOT(x) _Generic((x), float: __builtin_sqrtf, double: __builtin_sqrt)(x)
#define FUSED(x, y, z) _Generic((x), float: __builtin_fmaf, double: __builtin_fma)(x, y, z)
#define LARGER(x, y) ((x) > (y) || (x) != (x) ? (x) : (y))
#define SMALLER(x, y) ((x) < (y) || (x) != (x) ? (x) : (y))
#define SIGN_OF(x) ((REAL)((x) > 0) - (REAL)((x) < 0))
#define IS_NEAR(w) (ABSOLUTE(w) < (REAL)0.5)

#define INSTRUCTIONS(X) \
    X(MOVE, 1, a) \
    X(NEGATE, 1, -a) \
    X(ABS, 1, ABSOLUTE(a)) \
    X(SQRT, 1, SQUARE_ROOT(a)) \
    X(SIGN, 1, SIGN_OF(a)) \
    X(IS_NAN, 1, (REAL)(a != a)) \
    X(NOT, 1, (REAL)(a == 0)) \
    X(ADD, 2, a + b) \
    X(SUBTRACT, 2, a - b) \
    X(MULTIPLY, 2, a * b) \
    X(DIVIDE, 2, a / b) \
    X(MAXIMUM, 2, LARGER(a, b)) \
    X(MINIMUM, 2, SMALLER(a, b)) \
    X(AT_LEAST, 2, a < b ? b : a) \
    X(AT_MOST, 2, a > b ? b : a) \
    X(EQUAL, 2, (REAL)(a == b)) \
    X(UNEQUAL, 2, (REAL)(a != b)) \
    X(LESS, 2, (REAL)(a < b)) \
    X(LESS_EQUAL, 2, (REAL)(a <= b)) \
    X(AND, 2, (REAL)(a != 0 && b != 0)) \
    X(OR, 2, (REAL)(a != 0 || b != 0)) \
    X(WHERE, 3, a != 0 ? b : c) \
    X(ADD_PRODUCT, 3, FUSED(b, c, a)) \
    X(LERP, 3, FUSED(IS_NEAR(c) ? c : c - 1, b - a, IS_NEAR(c) ? a : b)) \
    /* several in one, with the same roundings */ \
    X(ROOT, 1, a == 0 ? 0 : SQUARE_ROOT(a)) \
    X(SIGN_OR_NAN, 1, a != a ? a : SIGN_OF(a)) \
    X(ABS_ADD, 2, ABSOLUTE(a) + b) \
    X(MULTIPLY_ADD, 3, a * b + c) \
    X(DIVIDE_ADD, 3, a / b + c) \
    X(MULTIPLY_DIVIDE, 3, a * b / c) \
    X(MULTIPLY_MAXIMUM, 3, LARGER(a * b, c)) \
    X(MULTIPLY_DIVIDE_ADD, 4, a * b / c + e) \
    X(ADD_PRODUCT_ADD, 4, FUSED(b, c, a) + e) \
    X(AVERAGE_SQUARE, 4, FUSED(b * e, b, a * c)) \
    X(SUM_OF_PRODUCTS, 4, a * b + c * e) \
    X(OVER_TWICE_ROOT, 2, (REAL)((double)a / (2 * __builtin_sqrt((double)b)))) \
    /* numbers of a narrower type */ \
    X(ROUND_F32, 1, (REAL)(float)a) \
    X(ROUND_BF16, 1, (REAL)from_bf16(to_bf16((float)a))) \
    X(ROUND_F16, 1, (REAL)from_f16(to_f16((float)a)))

/* What reads and writes memory of a narrower type: its name, that type, and the conversion. What is
   stored as a BF16 is one, but for its type; the others round. */
#define LOADS(X) \
    X(LOAD_F32, float, a) \
    X(LOAD_BF16, uint16_t, from_bf16(a)) \
    X(LOAD_F16, uint16_t, from_f16(a))

#define STORES(X) \
    X(STORE_F32, float, a) \
    X(STORE_BF16, uint16_t, as_bits(a) >> 16) \
    X(STORE_F16, uint16_t, to_f16(a))

/* What only uniforms are computed by: casts, and functions whose bits torch has for single elements
   alone. */
#define UNIFORM_INSTRUCTIONS(X) \
    X(POWER, 2, pow(a, b)) \
    X(EXACT_ROOT, 1, SQUARE_ROOT(a)) \
    X(TO_FLOAT, 1, (float)a)
