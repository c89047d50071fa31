// Eight float lanes, by AVX2 or by the compiler's generic vectors. Included once for each instruction set, inside the
// namespace of that set; QUIRE_AVX2 chooses.

// min/max return the second operand where one is NaN, as SSE does; callers rely on it to let NaN through.

struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

#define QUIRE_INLINE static inline __attribute__((always_inline))
#define QUIRE_ALONE __attribute__((noinline))  // a tile's sums stay in registers only in a small function
#define QUIRE_UNROLL _Pragma("GCC unroll 32")

#ifdef QUIRE_AVX2

typedef __m256 F8;
typedef __m256i I8;   // 8 x int32

QUIRE_INLINE F8 zero() { return _mm256_setzero_ps(); }
QUIRE_INLINE F8 set1(float x) { return _mm256_set1_ps(x); }
QUIRE_INLINE F8 load(const float* p) { return _mm256_loadu_ps(p); }
QUIRE_INLINE F8 load(const f16* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
QUIRE_INLINE F8 load(const bf16* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
QUIRE_INLINE void store(float* p, F8 x) { _mm256_storeu_ps(p, x); }
QUIRE_INLINE void store(f16* p, F8 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
QUIRE_INLINE F8 add(F8 a, F8 b) { return _mm256_add_ps(a, b); }
QUIRE_INLINE F8 sub(F8 a, F8 b) { return _mm256_sub_ps(a, b); }
QUIRE_INLINE F8 mul(F8 a, F8 b) { return _mm256_mul_ps(a, b); }
QUIRE_INLINE F8 div(F8 a, F8 b) { return _mm256_div_ps(a, b); }
QUIRE_INLINE F8 fma(F8 a, F8 b, F8 c) { return _mm256_fmadd_ps(a, b, c); }
// acc += a * b, in assembly, because gcc would reorder a tile of them and spill the sums.
QUIRE_INLINE void accumulate(F8& acc, F8 a, F8 b) { __asm__("vfmadd231ps %2, %1, %0" : "+x"(acc) : "x"(a), "x"(b)); }
QUIRE_INLINE F8 vmin(F8 a, F8 b) { return _mm256_min_ps(a, b); }
QUIRE_INLINE F8 vmax(F8 a, F8 b) { return _mm256_max_ps(a, b); }
QUIRE_INLINE F8 vabs(F8 a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
QUIRE_INLINE F8 round_even(F8 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
QUIRE_INLINE F8 less(F8 a, F8 b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
QUIRE_INLINE F8 equal(F8 a, F8 b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
QUIRE_INLINE F8 unequal(F8 a, F8 b) { return _mm256_cmp_ps(a, b, _CMP_NEQ_UQ); }  // true for NaN
QUIRE_INLINE F8 either(F8 a, F8 b) { return _mm256_or_ps(a, b); }
QUIRE_INLINE F8 select(F8 mask, F8 yes, F8 no) { return _mm256_blendv_ps(no, yes, mask); }
QUIRE_INLINE int mask_bits(F8 mask) { return _mm256_movemask_ps(mask); }
QUIRE_INLINE F8 times_power_of_2(F8 x, F8 n) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x), _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23)));
}

QUIRE_INLINE I8 load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
// Lane by lane, bits ``At`` to ``At + Bits`` of a word as a number, where they are: 2^At times their own, unless they are
// the highest, which come as they are. One instruction and a conversion; the factor is made good elsewhere.
template <int Bits, int At>
QUIRE_INLINE F8 field(I8 x) {
  constexpr bool kHighest = Bits + At == 32;
  return _mm256_cvtepi32_ps(kHighest ? _mm256_srli_epi32(x, At % 32)
                                     : _mm256_and_si256(x, _mm256_set1_epi32(((1 << Bits) - 1) << (kHighest ? 0 : At))));
}
// Of each byte, bits ``At`` to ``At + Bits`` as a number.
template <int Bits, int At>
QUIRE_INLINE I8 bytes(I8 x) {
  return _mm256_and_si256(_mm256_srli_epi16(x, At), _mm256_set1_epi8((1 << Bits) - 1));
}
// Of each 16-bit half, the numbers of ``Bits`` bits at ``Low`` in ``low`` and at ``High`` in ``high``, a byte each.
template <int Bits, int Low, int High>
QUIRE_INLINE I8 two_bytes(I8 low, I8 high) {
  const I8 first = _mm256_srli_epi16(low, Low);
  const I8 second = High > 8 ? _mm256_srli_epi16(high, High > 8 ? High - 8 : 0) : _mm256_slli_epi16(high, High > 8 ? 0 : 8 - High);
  return _mm256_or_si256(_mm256_and_si256(first, _mm256_set1_epi16((1 << Bits) - 1)),
                         _mm256_and_si256(second, _mm256_set1_epi16(((1 << Bits) - 1) << 8)));
}
// rest + the highest ``Bits`` bits of each half, moved to bit ``At``.
template <int Bits, int At>
QUIRE_INLINE I8 add_highest(I8 rest, I8 x) {
  const I8 moved = _mm256_srli_epi16(x, 16 - Bits - At);
  return At == 0 ? moved : _mm256_or_si256(rest, _mm256_and_si256(moved, _mm256_set1_epi16(((1 << Bits) - 1) << At)));
}
QUIRE_INLINE F8 to_float(I8 x) { return _mm256_cvtepi32_ps(x); }
QUIRE_INLINE I8 ints(int32_t x) { return _mm256_set1_epi32(x); }
// 4 x 8 signed bytes as the quads of 8 lanes, 128 added to each.
QUIRE_INLINE I8 load_byte_quads(const uint8_t* p) {
  const I8 lanes = _mm256_permutevar8x32_epi32(load_ints(p), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  const I8 across = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  return _mm256_xor_si256(_mm256_shuffle_epi8(lanes, across), _mm256_set1_epi8(-128));
}
// The bytes of a table that bytes below 16 point to; ``table``: twice.
QUIRE_INLINE I8 byte_entries(I8 table, I8 x) { return _mm256_shuffle_epi8(table, x); }
// acc += the sums of the products of unsigned quads and one signed quad, twice. In assembly as ``accumulate``. By AVX-VNNI
// (``Dot``), or for numbers below 64, whose sums of four products fit 16 bits.
template <bool Dot>
QUIRE_INLINE void accumulate_quads(I8& acc, I8 w0, const int32_t* a0, I8 w1, const int32_t* a1) {
  I8 first, second;
  if constexpr (Dot) {
    __asm__("vpbroadcastd %5, %1\n\t%{vex%} vpdpbusd %1, %3, %0\n\tvpbroadcastd %6, %2\n\t%{vex%} vpdpbusd %2, %4, %0"
            : "+x"(acc), "=&x"(first), "=&x"(second)
            : "x"(w0), "x"(w1), "m"(*a0), "m"(*a1));
  } else {
    __asm__("vpbroadcastd %5, %1\n\tvpmaddubsw %1, %3, %1\n\tvpbroadcastd %6, %2\n\tvpmaddubsw %2, %4, %2\n\t"
            "vpaddw %2, %1, %1\n\tvpmaddwd %7, %1, %1\n\tvpaddd %1, %0, %0"
            : "+x"(acc), "=&x"(first), "=&x"(second)
            : "x"(w0), "x"(w1), "m"(*a0), "m"(*a1), "x"(_mm256_set1_epi16(1)));
  }
}
// Lane by lane, the entry of a table (low: entries 0 to 7, high: the others) that the 4 bits from ``At`` on point to.
template <int At>
QUIRE_INLINE F8 lookup(I8 x, F8 low, F8 high) {
  const I8 index = _mm256_srli_epi32(x, At);  // permutations look at its lowest 3 bits
  const F8 upper = _mm256_castsi256_ps(_mm256_slli_epi32(x, 28 - At));
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index), upper);
}
QUIRE_INLINE F8 load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
QUIRE_INLINE F8 load(const uint8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
QUIRE_INLINE F8 load_e8m0(const uint8_t* p) {
  const I8 bits = _mm256_slli_epi32(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))), 23);
  const I8 none = _mm256_cmpeq_epi32(bits, _mm256_setzero_si256());  // 2^-127 has no exponent of its own
  return _mm256_castsi256_ps(_mm256_or_si256(bits, _mm256_and_si256(none, _mm256_set1_epi32(0x00400000))));
}
// 2^-8 of e4m3 floats: the bits of a float16 with a smaller exponent.
QUIRE_INLINE F8 load_float8(const uint8_t* p) {
  const __m128i x = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i sign = _mm_slli_epi16(_mm_and_si128(x, _mm_set1_epi16(0x80)), 8);
  const __m128i rest = _mm_slli_epi16(_mm_and_si128(x, _mm_set1_epi16(0x7F)), 7);
  return _mm256_cvtph_ps(_mm_or_si128(sign, rest));
}

#else

typedef float F8 __attribute__((vector_size(32)));
typedef int32_t I8 __attribute__((vector_size(32)));

QUIRE_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, rest = h & 0x7FFF;
  uint32_t bits = (rest << 13) + 0x38000000u;
  if (rest >= 0x7C00) {
    bits = (rest << 13) | 0x7F800000u;
  } else if (rest < 0x0400) {
    const float tiny = static_cast<float>(rest) * 0x1p-24f;
    memcpy(&bits, &tiny, 4);
  }
  bits |= sign;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
QUIRE_INLINE uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  bits &= 0x7FFFFFFF;
  if (bits > 0x7F800000) return sign | 0x7E00;
  if (bits >= 0x477FF000) return sign | 0x7C00;
  if (bits < 0x38800000) {  // subnormal half: let float addition round
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3F000000));
  }
  return static_cast<uint16_t>(sign | (bits - 0x38000000 + 0xFFF + (bits >> 13 & 1)) >> 13);
}

QUIRE_INLINE F8 zero() { return F8{}; }
QUIRE_INLINE F8 set1(float x) { return F8{x, x, x, x, x, x, x, x}; }
QUIRE_INLINE F8 load(const float* p) {
  F8 x;
  memcpy(&x, p, 32);
  return x;
}
QUIRE_INLINE F8 load(const f16* p) {
  F8 x;
  for (int i = 0; i < 8; ++i) x[i] = half_to_float(p[i].bits);
  return x;
}
QUIRE_INLINE F8 load(const bf16* p) {
  I8 wide;
  for (int i = 0; i < 8; ++i) wide[i] = static_cast<int32_t>(static_cast<uint32_t>(p[i].bits) << 16);
  return (F8)wide;
}
QUIRE_INLINE void store(float* p, F8 x) { memcpy(p, &x, 32); }
QUIRE_INLINE void store(f16* p, F8 x) {
  for (int i = 0; i < 8; ++i) p[i].bits = float_to_half(x[i]);
}
QUIRE_INLINE F8 add(F8 a, F8 b) { return a + b; }
QUIRE_INLINE F8 sub(F8 a, F8 b) { return a - b; }
QUIRE_INLINE F8 mul(F8 a, F8 b) { return a * b; }
QUIRE_INLINE F8 div(F8 a, F8 b) { return a / b; }
QUIRE_INLINE F8 fma(F8 a, F8 b, F8 c) { return a * b + c; }
QUIRE_INLINE void accumulate(F8& acc, F8 a, F8 b) { acc += a * b; }
QUIRE_INLINE F8 vmin(F8 a, F8 b) { return a < b ? a : b; }
QUIRE_INLINE F8 vmax(F8 a, F8 b) { return a > b ? a : b; }
QUIRE_INLINE F8 vabs(F8 a) { return (F8)((I8)a & 0x7FFFFFFF); }
QUIRE_INLINE F8 round_even(F8 a) {
  const F8 magic = set1(12582912.0f);  // 1.5 * 2^23: for |a| < 2^22, which its callers keep to
  return (a + magic) - magic;
}
QUIRE_INLINE F8 less(F8 a, F8 b) { return (F8)(a < b); }
QUIRE_INLINE F8 equal(F8 a, F8 b) { return (F8)(a == b); }
QUIRE_INLINE F8 unequal(F8 a, F8 b) { return (F8)(a != b); }
QUIRE_INLINE F8 either(F8 a, F8 b) { return (F8)((I8)a | (I8)b); }
QUIRE_INLINE F8 select(F8 mask, F8 yes, F8 no) { return (I8)mask != 0 ? yes : no; }
QUIRE_INLINE int mask_bits(F8 mask) {
  const I8 bits = (I8)mask;
  int out = 0;
  for (int i = 0; i < 8; ++i) out |= (bits[i] < 0) << i;
  return out;
}
QUIRE_INLINE F8 times_power_of_2(F8 x, F8 n) { return (F8)((I8)x + (__builtin_convertvector(n, I8) << 23)); }

QUIRE_INLINE I8 load_ints(const void* p) {
  I8 x;
  memcpy(&x, p, 32);
  return x;
}
template <int Bits, int At>
QUIRE_INLINE F8 field(I8 x) {
  constexpr int kMask = (1 << Bits) - 1;
  constexpr bool kHighest = Bits + At == 32;
  return __builtin_convertvector(kHighest ? x >> At & kMask : x & kMask << (kHighest ? 0 : At), F8);
}
template <int Bits, int At>
QUIRE_INLINE I8 add_highest(I8 rest, I8 x) {
  const I8 moved = x >> (16 - Bits - At) & (((1 << Bits) - 1) << At) * 0x10001;
  return At == 0 ? moved : rest | moved;
}
template <int At>
QUIRE_INLINE F8 lookup(I8 x, F8 low, F8 high) {
  F8 out;
  for (int i = 0; i < 8; ++i) {
    const int index = x[i] >> At & 15;
    out[i] = index < 8 ? low[index] : high[index - 8];
  }
  return out;
}
template <typename T>
QUIRE_INLINE F8 load_bytes(const T* p) {
  F8 x;
  for (int i = 0; i < 8; ++i) x[i] = p[i];
  return x;
}
QUIRE_INLINE F8 load(const int8_t* p) { return load_bytes(p); }
QUIRE_INLINE F8 load(const uint8_t* p) { return load_bytes(p); }
QUIRE_INLINE F8 load_e8m0(const uint8_t* p) {
  I8 bits;
  for (int i = 0; i < 8; ++i) bits[i] = p[i] ? p[i] << 23 : 0x00400000;
  return (F8)bits;
}
QUIRE_INLINE F8 load_float8(const uint8_t* p) {
  F8 x;
  for (int i = 0; i < 8; ++i) x[i] = half_to_float(static_cast<uint16_t>((p[i] & 0x80) << 8 | (p[i] & 0x7F) << 7));
  return x;
}

#endif

QUIRE_INLINE void store(bf16* p, F8 x) {
  uint32_t bits[8];
  memcpy(bits, &x, 32);
  for (int i = 0; i < 8; ++i) {
    const bool nan = (bits[i] & 0x7FFFFFFF) > 0x7F800000;
    p[i].bits = static_cast<uint16_t>(nan ? 0x7FC0 : (bits[i] + 0x7FFF + (bits[i] >> 16 & 1)) >> 16);
  }
}
QUIRE_INLINE float sum_lanes(F8 x) {
  float lane[8];
  store(lane, x);
  return ((lane[0] + lane[4]) + (lane[1] + lane[5])) + ((lane[2] + lane[6]) + (lane[3] + lane[7]));
}
QUIRE_INLINE float max_lanes(F8 x) {
  float lane[8];
  store(lane, x);
  float best = lane[0];
  for (int i = 1; i < 8; ++i) best = lane[i] > best ? lane[i] : best;
  return best;
}

QUIRE_INLINE F8 horner(F8, F8 acc) { return acc; }
template <typename... Rest>
QUIRE_INLINE F8 horner(F8 x, F8 acc, float next, Rest... rest) {
  return horner(x, fma(acc, x, set1(next)), rest...);
}

// Relative error below 2e-7; 0 below -87.3 (so of -inf), NaN of NaN.
QUIRE_INLINE F8 vexp(F8 x) {
  const F8 underflow = less(x, set1(-87.33f));
  x = vmax(set1(-87.33f), vmin(set1(88.37f), x));
  const F8 n = round_even(mul(x, set1(1.44269504088896341f)));
  F8 r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  const F8 p = horner(r, set1(1.9875691500e-4f), 1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                      5.0000001201e-1f);
  const F8 y = add(fma(mul(r, r), p, r), set1(1.0f));
  return select(underflow, zero(), times_power_of_2(y, n));
}

QUIRE_INLINE F8 vtanh(F8 x) {
  const F8 size = vabs(x);
  const F8 square = mul(x, x);
  const F8 p = horner(square, set1(-5.70498872745e-3f), 2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f,
                      -3.33332819422e-1f);
  const F8 small = fma(mul(p, square), x, x);
  const F8 big = sub(set1(1.0f), div(set1(2.0f), add(vexp(add(size, size)), set1(1.0f))));
  const F8 signed_big = select(less(x, zero()), sub(zero(), big), big);
  return select(less(size, set1(0.625f)), small, signed_big);
}

// erf(x) + 1, which is erfc(-x): exact in the tails too.
QUIRE_INLINE F8 erf_plus_1(F8 x) {
  const F8 size = vabs(x);
  const F8 square = mul(x, x);
  const F8 near = horner(square, set1(7.853861353153693e-5f), -8.010193625184903e-4f, 5.188327685732524e-3f,
                         -2.685381193529856e-2f, 1.128358514861418e-1f, -3.761262582423300e-1f, 1.128379165726710e+0f);
  const F8 inverse = div(set1(1.0f), vmax(set1(1.0f), size));
  const F8 q = mul(inverse, inverse);
  const F8 middle = horner(q, set1(2.326819970068386e-2f), -1.387039388740657e-1f, 3.687424674597105e-1f,
                           -5.824733027278666e-1f, 6.210004621745983e-1f, -4.944515323274145e-1f, 3.404879937665872e-1f,
                           -2.741127028184656e-1f, 5.638259427386472e-1f);
  const F8 far = horner(q, set1(-1.047766399936249e+1f), 1.297719955372516e+1f, -7.495518717768503e+0f,
                        2.921019019210786e+0f, -1.015265279202700e+0f, 4.218463358204948e-1f, -2.820767439740514e-1f,
                        5.641895067754075e-1f);
  const F8 tail = mul(mul(vexp(sub(zero(), square)), inverse), select(less(size, set1(2.0f)), middle, far));
  const F8 outer = select(less(x, zero()), tail, sub(set1(2.0f), tail));
  return select(less(size, set1(1.0f)), fma(near, x, set1(1.0f)), outer);
}
