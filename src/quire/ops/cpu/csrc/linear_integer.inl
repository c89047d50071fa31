// Products with grouped integers, in integer arithmetic: inputs are rounded to 16 bits, with a scale for each group, so a
// group's sum is exact and its rounding error below 2^-16 of its largest input. One instruction multiplies and adds pairs:
// twice the speed of float32. A row's result does not depend on the other rows.

// Inputs of a tile of rows: those of a pair side by side.
struct IntegerInputs {
  const int32_t* pairs;  // [K / 2][rows]
  const float* scales;   // [groups][rows]
  const float* sums;     // [groups][rows]
};

// What is multiplied at once: one panel or, in one register of AVX-512, a pair of them.
#ifdef QUIRE_AVX512
typedef Wide Lanes;
typedef WideInts Ints;
typedef WideAffine LaneAffine;
constexpr int kLanePanels = 2;
QUIRE_INLINE Ints load_words(const uint8_t* data, int64_t apart) { return load_ints(data, data + apart); }
QUIRE_INLINE Ints load_byte_pairs(const uint8_t* data, int64_t apart) { return load_pairs(data, data + apart); }
QUIRE_INLINE Lanes lanes(float x) { return wide(x); }
QUIRE_INLINE Lanes load_some(const float* p, int64_t count) { return load_wide_lanes(p, count); }
QUIRE_INLINE LaneAffine lane_affine(const Weight& w, const uint8_t* block, const uint8_t* super, int64_t apart) {
  return affine(w, block, super, apart);
}
#else
typedef F8 Lanes;
typedef I8 Ints;
typedef Affine LaneAffine;
constexpr int kLanePanels = 1;
QUIRE_INLINE Ints load_words(const uint8_t* data, int64_t) { return load_ints(data); }
QUIRE_INLINE Ints load_byte_pairs(const uint8_t* data, int64_t) { return load_pairs(data); }
QUIRE_INLINE Lanes lanes(float x) { return set1(x); }
QUIRE_INLINE Lanes load_some(const float* p, int64_t count) { return load_lanes(p, count); }
QUIRE_INLINE LaneAffine lane_affine(const Weight& w, const uint8_t* block, const uint8_t* super, int64_t) {
  return affine(w, block, super);
}
#endif
constexpr int kIntegerHeight = 8;

template <int Rows>
QUIRE_INLINE void multiply_pairs(Ints w, const int32_t* a, Ints (&acc)[Rows]) {
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) accumulate_pairs(acc[m], w, a + m);
}

// Pairs K and on of a run of words; ``rest`` collects what lies in their halves' highest bits.
template <int Bits, int K, int Rows>
QUIRE_INLINE void multiply_fields(const uint8_t* data, int64_t apart, const int32_t* a, Ints word, Ints rest,
                                  Ints (&acc)[Rows]) {
  using F = Fields<Bits>;
  if constexpr (K < F::kPairs) {
    if constexpr (K < F::kWhole && K % F::kPerWord == 0) {
      word = load_words(data + F::word(K) * 32, apart);
      if constexpr (F::kSpare > 0) rest = add_highest<F::kSpare, F::kSpare * F::word(K)>(rest, word);
    }
    multiply_pairs(halves<Bits, F::at(K)>(K < F::kWhole ? word : rest), a + K * Rows, acc);
    multiply_fields<Bits, K + 1>(data, apart, a, word, rest, acc);
  }
}

// acc += the inputs of one group x its elements, which begin at ``data``.
template <int Bits, int Rows>
QUIRE_INLINE void multiply_integers(const uint8_t* data, int64_t apart, int group, const int32_t* a, Ints (&acc)[Rows]) {
  if constexpr (Bits == 8) {
    for (int k = 0; k < group; k += 8, data += 64, a += 4 * Rows) {
      QUIRE_UNROLL
      for (int i = 0; i < 4; ++i) multiply_pairs(load_byte_pairs(data + 16 * i, apart), a + i * Rows, acc);
    }
  } else {
    using F = Fields<Bits>;
    for (int k = 0; k < group; k += F::kInputs, data += F::kWords * 32, a += F::kPairs * Rows) {
      multiply_fields<Bits, 0>(data, apart, a, Ints{}, Ints{}, acc);
    }
  }
}

// The outputs of ``kLanePanels`` panels.
template <int Bits, int Rows>
QUIRE_ALONE void integer_panels(const Weight& w, int64_t panel, const IntegerInputs& x, const float* bias, float* out,
                                int64_t stride) {
  const PanelPair first(w, panel);
  const uint8_t* block = first.data;
  const uint8_t* super = block;
  const int64_t apart = first.apart, block_bytes = w.block_bytes(), head = w.head_bytes(), groups = w.groups();
  const int64_t column = panel * 8, left = w.n - column, ahead = w.panel_bytes() * kLanePanels;
  const bool offset = w.has_offset();
  const int32_t* a = x.pairs;
  const float *scales = x.scales, *sums = x.sums;
  Lanes sum[Rows];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) sum[m] = bias ? load_some(bias + column, left) : lanes(0.0f);
  for (int64_t g = 0; g < groups; ++g, block += block_bytes, a += w.group / 2 * Rows, scales += Rows, sums += Rows) {
    if (w.super && g % w.super == 0) {
      super = block;
      block += w.super_bytes();
    }
    // Panels are short streams, which the processor's own prefetching misses: fetch what the next call reads.
    for (int64_t i = 0; i < block_bytes; i += 64) {
      QUIRE_UNROLL
      for (int p = 0; p < kLanePanels; ++p) __builtin_prefetch(block + p * apart + ahead + i);
    }
    Ints acc[Rows] = {};
    multiply_integers<Bits>(block + head, apart, w.group, a, acc);
    const LaneAffine to = lane_affine(w, block, super, apart);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      sum[m] = fma(to_float(acc[m]), mul(to.scale, lanes(scales[m])), sum[m]);
      if (offset) sum[m] = fma(to.minimum, lanes(sums[m]), sum[m]);
    }
  }
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) store_lanes(out + m * stride + column, sum[m], left);
}

// Rounds ``count`` inputs of a row to 16 bits; returns their scale, and the sum of what they are then: an offset of the weights
// must see the same inputs. What is no number makes the scale none.
float round_to_16_bits(const float* x, int64_t count, int16_t* out, float* sum) {
  uint32_t most = 0;  // of the sizes' bits, among which NaN is the highest
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  float largest;
  memcpy(&largest, &most, 4);
  const float inverse = largest > 1e-30f && largest < INFINITY ? 32767.0f / largest : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
    const float shifted = x[i] * inverse + magic;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    out[i] = static_cast<int16_t>(bits);
    total += out[i];
  }
  const float scale = largest / 32767.0f;
  *sum = static_cast<float>(total) * scale;
  return scale;
}

// Fills the inputs of a tile of ``rows`` rows from ``x`` on.
template <int Bits>
void integer_inputs(const Weight& w, const float* x, int64_t rows, int32_t* pairs, float* scales, float* sums) {
  constexpr int kApart = Bits == 8 ? 1 : Fields<Bits == 8 ? 4 : Bits>::kPairs;  // from a pair's first input to its second
  for (int64_t m = 0; m < rows; ++m) {
    const float* row = x + m * w.k;
    int32_t* pair = pairs + m;
    for (int64_t g = 0; g < w.groups(); ++g) {
      int16_t rounded[kMaxGroup];
      float sum;
      scales[g * rows + m] = round_to_16_bits(row + g * w.group, w.group, rounded, &sum);
      sums[g * rows + m] = sum;
      for (int k = 0; k < w.group; k += 2 * kApart) {
        for (int i = k; i < k + kApart; ++i, pair += rows) {
          *pair = static_cast<int32_t>(static_cast<uint16_t>(rounded[i]) | static_cast<uint32_t>(rounded[i + kApart]) << 16);
        }
      }
    }
  }
}

// A task is some panels, whose weights stay in L1, and a block of rows, whose inputs stay in L2.
template <int Bits>
void linear_integer(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  const Tiles tiles(rows, kIntegerHeight);
  const int64_t groups = w.groups();
  Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, rows * (w.k * 2 + groups * 8) + 192))};
  int32_t* pairs = arena.take<int32_t>(rows * w.k / 2);
  float* scales = arena.take<float>(rows * groups);
  float* sums = arena.take<float>(rows * groups);
  parallel(pool, tiles.count, [&](int64_t t, int) {
    const int64_t row = tiles.start(t);
    integer_inputs<Bits>(w, x + row * w.k, tiles.height(t), pairs + row * w.k / 2, scales + row * groups, sums + row * groups);
  });
  const int64_t panels = w.panels(), a_task = panels_a_task(pool, w, tiles, kLanePanels);
  const int64_t columns = (panels + a_task - 1) / a_task;
  const int64_t most = kRowBlockBytes / (2 * w.k * kIntegerHeight), blocks = most > 0 ? (tiles.count + most - 1) / most : tiles.count;
  parallel(pool, blocks * columns, [&](int64_t task, int) {
    const int64_t block = task / columns, begin = task % columns * a_task;
    const int64_t end = begin + a_task < panels ? begin + a_task : panels;
    for (int64_t t = tiles.count * block / blocks; t < tiles.count * (block + 1) / blocks; ++t) {
      const int64_t row = tiles.start(t);
      const IntegerInputs inputs{pairs + row * w.k / 2, scales + row * groups, sums + row * groups};
      with_rows<kIntegerHeight>(tiles.height(t), [&](auto height) {
        for (int64_t p = begin; p < end; p += kLanePanels) {
          integer_panels<Bits, height>(w, p, inputs, bias, out + row * stride, stride);
        }
      });
    }
  });
}

struct GroupedKernels {
  void (*linear)(Pool&, const float*, int64_t, const Weight&, const float*, float*, int64_t);
  void (*embed)(const Weight&, int64_t, float, float*);
};

template <Code C>
constexpr GroupedKernels kCodeKernels{linear_code<C>, embed_code<C>};
template <Code C>
constexpr GroupedKernels kIntegerKernels{linear_integer<bits_of(C)>, embed_code<C>};

template <Code C>
const GroupedKernels& integer_kernels(const Weight& w) {
  return w.inputs.rounding == Inputs::Rounding::int16 ? kIntegerKernels<C> : kCodeKernels<C>;
}

const GroupedKernels& grouped_kernels(const Weight& w) {
  switch (w.code) {
    case Code::int2: return integer_kernels<Code::int2>(w);
    case Code::int3: return integer_kernels<Code::int3>(w);
    case Code::int5: return integer_kernels<Code::int5>(w);
    case Code::int6: return integer_kernels<Code::int6>(w);
    case Code::int8: return integer_kernels<Code::int8>(w);
    case Code::table4: return kCodeKernels<Code::table4>;
    case Code::float8: return kCodeKernels<Code::float8>;
    default: return integer_kernels<Code::int4>(w);
  }
}
