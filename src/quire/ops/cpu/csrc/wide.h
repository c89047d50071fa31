// Sixteen float lanes, what products work with: one register of AVX-512, or two of vec.h's. Included after vec.h;
// QUIRE_AVX512 chooses.

#ifdef QUIRE_AVX512

typedef __m512 Wide;
typedef __m512i WideInts;  // 16 x int32

QUIRE_INLINE Wide wide(float x) { return _mm512_set1_ps(x); }
QUIRE_INLINE Wide load_wide(const float* p) { return _mm512_loadu_ps(p); }
QUIRE_INLINE Wide load_wide(const f16* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
QUIRE_INLINE Wide load_wide(const bf16* p) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
QUIRE_INLINE Wide pair(F8 low, F8 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
QUIRE_INLINE F8 low_half(Wide x) { return _mm512_castps512_ps256(x); }
QUIRE_INLINE F8 high_half(Wide x) { return _mm512_extractf32x8_ps(x, 1); }
QUIRE_INLINE void store(float* p, Wide x) { _mm512_storeu_ps(p, x); }
QUIRE_INLINE Wide add(Wide a, Wide b) { return _mm512_add_ps(a, b); }
QUIRE_INLINE Wide mul(Wide a, Wide b) { return _mm512_mul_ps(a, b); }
QUIRE_INLINE Wide fma(Wide a, Wide b, Wide c) { return _mm512_fmadd_ps(a, b, c); }
// acc += *a * b, with the number straight from memory.
QUIRE_INLINE void accumulate(Wide& acc, const float* a, Wide b) {
  __asm__("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
}

QUIRE_INLINE WideInts load_ints(const void* low, const void* high) {
  const __m256i first = _mm256_loadu_si256(static_cast<const __m256i*>(low));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), _mm256_loadu_si256(static_cast<const __m256i*>(high)), 1);
}
// As vec.h's functions of these names.
template <int Bits, int At>
QUIRE_INLINE Wide field(WideInts x) {
  constexpr bool kHighest = At + Bits == 32;
  return _mm512_cvtepi32_ps(kHighest ? _mm512_srli_epi32(x, At)
                                     : _mm512_and_si512(x, _mm512_set1_epi32(((1 << Bits) - 1) << (kHighest ? 0 : At))));
}
template <int Bits, int At>
QUIRE_INLINE WideInts bytes(WideInts x) {
  return _mm512_and_si512(_mm512_srli_epi16(x, At), _mm512_set1_epi8((1 << Bits) - 1));
}
template <int Bits, int Low, int High>
QUIRE_INLINE WideInts two_bytes(WideInts low, WideInts high) {
  const WideInts first = _mm512_srli_epi16(low, Low);
  const WideInts second = High > 8 ? _mm512_srli_epi16(high, High > 8 ? High - 8 : 0) : _mm512_slli_epi16(high, High > 8 ? 0 : 8 - High);
  const WideInts upper = _mm512_and_si512(second, _mm512_set1_epi16(((1 << Bits) - 1) << 8));
  return _mm512_ternarylogic_epi32(first, _mm512_set1_epi16((1 << Bits) - 1), upper, 0xEA);  // first & mask | upper
}
template <int Bits, int At>
QUIRE_INLINE WideInts add_highest(WideInts rest, WideInts x) {
  const WideInts moved = _mm512_srli_epi16(x, 16 - Bits - At);
  return At == 0 ? moved : _mm512_or_si512(rest, _mm512_and_si512(moved, _mm512_set1_epi16(((1 << Bits) - 1) << At)));
}
QUIRE_INLINE Wide to_float(WideInts x) { return _mm512_cvtepi32_ps(x); }
QUIRE_INLINE WideInts wide_ints(int32_t x) { return _mm512_set1_epi32(x); }
QUIRE_INLINE WideInts load_byte_quads(const uint8_t* low, const uint8_t* high) {
  const WideInts order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
  const WideInts across = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  const WideInts quads = _mm512_shuffle_epi8(_mm512_permutexvar_epi32(order, load_ints(low, high)), across);
  return _mm512_xor_si512(quads, _mm512_set1_epi8(-128));
}
QUIRE_INLINE WideInts byte_entries(WideInts table, WideInts x) { return _mm512_shuffle_epi8(table, x); }
template <bool Dot>
QUIRE_INLINE void accumulate_quads(WideInts& acc, WideInts w0, const int32_t* a0, WideInts w1, const int32_t* a1) {
  if constexpr (Dot) {
    __asm__("vpdpbusd %3%{1to16%}, %1, %0\n\tvpdpbusd %4%{1to16%}, %2, %0"
            : "+v"(acc)
            : "v"(w0), "v"(w1), "m"(*a0), "m"(*a1));
  } else {
    WideInts first, second;
    __asm__("vpbroadcastd %5, %1\n\tvpmaddubsw %1, %3, %1\n\tvpbroadcastd %6, %2\n\tvpmaddubsw %2, %4, %2\n\t"
            "vpaddw %2, %1, %1\n\tvpmaddwd %7, %1, %1\n\tvpaddd %1, %0, %0"
            : "+v"(acc), "=&v"(first), "=&v"(second)
            : "v"(w0), "v"(w1), "m"(*a0), "m"(*a1), "v"(_mm512_set1_epi16(1)));
  }
}
typedef Wide Table;
QUIRE_INLINE Table load_table(const float* entries) { return load_wide(entries); }
template <int At>
QUIRE_INLINE Wide lookup(WideInts x, Table table) {
  return _mm512_permutexvar_ps(_mm512_srli_epi32(x, At), table);  // which looks at the lowest 4 bits
}
QUIRE_INLINE Wide load_pair(const int8_t* low, const int8_t* high) {
  const __m128i first = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(low));
  const __m128i both = _mm_unpacklo_epi64(first, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(high)));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(both));
}

#else

struct Wide {
  F8 low, high;
};
struct WideInts {
  I8 low, high;
};

QUIRE_INLINE Wide wide(float x) { return {set1(x), set1(x)}; }
template <typename T>
QUIRE_INLINE Wide load_wide(const T* p) {
  return {load(p), load(p + 8)};
}
QUIRE_INLINE Wide pair(F8 low, F8 high) { return {low, high}; }
QUIRE_INLINE F8 low_half(Wide x) { return x.low; }
QUIRE_INLINE F8 high_half(Wide x) { return x.high; }
QUIRE_INLINE void store(float* p, Wide x) {
  store(p, x.low);
  store(p + 8, x.high);
}
QUIRE_INLINE Wide add(Wide a, Wide b) { return {add(a.low, b.low), add(a.high, b.high)}; }
QUIRE_INLINE Wide mul(Wide a, Wide b) { return {mul(a.low, b.low), mul(a.high, b.high)}; }
QUIRE_INLINE Wide fma(Wide a, Wide b, Wide c) { return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)}; }
QUIRE_INLINE void accumulate(Wide& acc, const float* a, Wide b) {
  const F8 v = set1(*a);
  accumulate(acc.low, v, b.low);
  accumulate(acc.high, v, b.high);
}

QUIRE_INLINE WideInts load_ints(const void* low, const void* high) { return {load_ints(low), load_ints(high)}; }
template <int Bits, int At>
QUIRE_INLINE Wide field(WideInts x) {
  return {field<Bits, At>(x.low), field<Bits, At>(x.high)};
}
template <int Bits, int At>
QUIRE_INLINE WideInts add_highest(WideInts rest, WideInts x) {
  return {add_highest<Bits, At>(rest.low, x.low), add_highest<Bits, At>(rest.high, x.high)};
}
// Entries 0 to 7, and the others.
typedef Wide Table;
QUIRE_INLINE Table load_table(const float* entries) { return load_wide(entries); }
template <int At>
QUIRE_INLINE Wide lookup(WideInts x, Table table) {
  return {lookup<At>(x.low, table.low, table.high), lookup<At>(x.high, table.low, table.high)};
}
QUIRE_INLINE Wide load_pair(const int8_t* low, const int8_t* high) { return {load(low), load(high)}; }

#endif

template <typename V, typename T>
QUIRE_INLINE V load_as(const T* p) {
  if constexpr (sizeof(V) == sizeof(F8)) {
    return load(p);
  } else {
    return load_wide(p);
  }
}
QUIRE_INLINE void accumulate(F8& acc, const float* a, F8 b) { accumulate(acc, set1(*a), b); }
