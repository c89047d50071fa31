// Products with grouped integers, in integer arithmetic: inputs are rounded to 8 bits, with a scale for each group, as
// llama.cpp does for blocks of 32 or 256, or are so by the checkpoint's own rule, with a scale for each row. A group's sum is
// exact. One instruction multiplies and adds quads of bytes (Dot: AVX-VNNI, AVX-512 VNNI), or three do. A row's result does
// not depend on the other rows.

// Entries of a table that are integers of 8 bits.
bool is_of_bytes(const float (&table)[16]) {
  for (float entry : table) {
    if (entry != nearbyintf(entry) || fabsf(entry) > 127.0f) return false;
  }
  return true;
}

#ifdef QUIRE_AVX2

// Inputs of a tile of rows.
struct IntegerInputs {
  const int32_t* quads;   // [K / 4][rows], four inputs a word
  const int32_t* starts;  // [groups][rows]: what a zero for all, and the kernel's own, makes of the sum of the inputs
  const float* scales;    // [groups][rows]
  const float* sums;      // [groups][rows]
};

// What is multiplied at once: one panel or, in one register of AVX-512, a pair of them.
#ifdef QUIRE_AVX512
typedef Wide Lanes;
typedef WideInts Ints;
typedef WideAffine LaneAffine;
constexpr int kLanePanels = 2;
constexpr int kIntegerHeight = 16;
QUIRE_INLINE Ints load_words(const uint8_t* data, int64_t apart) { return load_ints(data, data + apart); }
QUIRE_INLINE Ints load_quads(const uint8_t* data, int64_t apart) { return load_byte_quads(data, data + apart); }
QUIRE_INLINE Lanes lanes(float x) { return wide(x); }
QUIRE_INLINE Ints int_lanes(int32_t x) { return wide_ints(x); }
QUIRE_INLINE Lanes load_some(const float* p, int64_t count) { return load_wide_lanes(p, count); }
QUIRE_INLINE LaneAffine lane_affine(const Weight& w, const uint8_t* block, const uint8_t* super, int64_t apart) {
  return affine(w, block, super, apart);
}
#else
typedef F8 Lanes;
typedef I8 Ints;
typedef Affine LaneAffine;
constexpr int kLanePanels = 1;
constexpr int kIntegerHeight = 8;
QUIRE_INLINE Ints load_words(const uint8_t* data, int64_t) { return load_ints(data); }
QUIRE_INLINE Ints load_quads(const uint8_t* data, int64_t) { return load_byte_quads(data); }
QUIRE_INLINE Lanes lanes(float x) { return set1(x); }
QUIRE_INLINE Ints int_lanes(int32_t x) { return ints(x); }
QUIRE_INLINE Lanes load_some(const float* p, int64_t count) { return load_lanes(p, count); }
QUIRE_INLINE LaneAffine lane_affine(const Weight& w, const uint8_t* block, const uint8_t* super, int64_t) {
  return affine(w, block, super);
}
#endif

template <bool Dot, int Rows>
QUIRE_INLINE void multiply_quads(Ints first, Ints second, const int32_t* a, Ints (&acc)[Rows]) {
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) accumulate_quads<Dot>(acc[m], first, a + m, second, a + Rows + m);
}

// Quad ``Q`` of a run of words; ``rest``: what lies in their halves' highest bits.
template <int Bits, int Q>
QUIRE_INLINE Ints quad(const Ints (&words)[Fields<Bits>::kWords], Ints rest) {
  using F = Fields<Bits>;
  constexpr int kLow = F::quad_pair(Q, false), kHigh = F::quad_pair(Q, true);
  if constexpr (F::kByBytes) {
    return bytes<Bits, F::at(kLow)>(words[F::word(kLow)]);
  } else {
    return two_bytes<Bits, F::at(kLow), F::at(kHigh)>(F::whole(kLow) ? words[F::word(kLow)] : rest,
                                                      F::whole(kHigh) ? words[F::word(kHigh)] : rest);
  }
}

// As the products take it.
template <Code C, int Q>
QUIRE_INLINE Ints unsigned_quad(const Ints (&words)[Fields<bits_of(C)>::kWords], Ints rest, Ints table) {
  const Ints codes = quad<bits_of(C), Q>(words, rest);
  return C == Code::table4 ? byte_entries(table, codes) : codes;
}

template <Code C, bool Dot, int Q, int Rows>
QUIRE_INLINE void multiply_run(const Ints (&words)[Fields<bits_of(C)>::kWords], Ints rest, Ints table, const int32_t* a,
                               Ints (&acc)[Rows]) {
  if constexpr (Q < Fields<bits_of(C)>::kInputs / 4) {
    multiply_quads<Dot>(unsigned_quad<C, Q>(words, rest, table), unsigned_quad<C, Q + 1>(words, rest, table), a + Q * Rows, acc);
    multiply_run<C, Dot, Q + 2>(words, rest, table, a, acc);
  }
}

template <int Bits, int W>
QUIRE_INLINE void load_run(const uint8_t* data, int64_t apart, Ints (&words)[Fields<Bits>::kWords], Ints& rest) {
  using F = Fields<Bits>;
  if constexpr (W < F::kWords) {
    words[W] = load_words(data + W * 32, apart);
    if constexpr (F::kSpare > 0) rest = add_highest<F::kSpare, F::kSpare * W>(rest, words[W]);
    load_run<Bits, W + 1>(data, apart, words, rest);
  }
}

// acc += the inputs of one group x its elements, which begin at ``data``.
template <Code C, bool Dot, int Rows>
QUIRE_INLINE void multiply_integers(const uint8_t* data, int64_t apart, int group, Ints table, const int32_t* a,
                                    Ints (&acc)[Rows]) {
  if constexpr (has_bytes(C)) {
    for (int k = 0; k < group; k += 8, data += 64, a += 2 * Rows) {
      multiply_quads<Dot>(load_quads(data, apart), load_quads(data + 32, apart), a, acc);
    }
  } else {
    using F = Fields<bits_of(C)>;
    for (int k = 0; k < group; k += F::kInputs, data += F::kWords * 32, a += F::kInputs / 4 * Rows) {
      Ints words[F::kWords], rest{};
      load_run<bits_of(C), 0>(data, apart, words, rest);
      multiply_run<C, Dot, 0>(words, rest, table, a, acc);
    }
  }
}

// What elements with a sign are taken more by, so that they are bytes without one.
template <Code C>
constexpr int32_t kShift = C == Code::int8 || C == Code::table4 ? 128 : 0;

QUIRE_INLINE Ints byte_table(const float (&entries)[16]) {
  uint8_t bytes[32];
  for (int i = 0; i < 32; ++i) bytes[i] = static_cast<uint8_t>(entries[i % 16] + kShift<Code::table4>);
  return load_words(bytes, 0);
}

// The outputs of ``kLanePanels`` panels.
template <Code C, bool Dot, int Rows>
QUIRE_ALONE void integer_panels(const Weight& w, int64_t panel, const IntegerInputs& x, const float* bias, float* out,
                                int64_t stride) {
  const PanelPair first(w, panel);
  const uint8_t* block = first.data;
  const uint8_t* super = block;
  const int64_t apart = first.apart, block_bytes = w.block_bytes(), head = w.head_bytes(), groups = w.groups();
  const int64_t column = panel * 8, left = w.n - column;
  const bool offset = w.second != Second::none;
  const int32_t *a = x.quads, *starts = x.starts;
  const float *scales = x.scales, *sums = x.sums;
  const Ints table = C == Code::table4 ? byte_table(w.table) : Ints{};
  Lanes sum[Rows];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) sum[m] = bias ? load_some(bias + column, left) : lanes(0.0f);
  for (int64_t g = 0; g < groups; ++g, block += block_bytes, a += w.group / 4 * Rows) {
    if (w.super && g % w.super == 0) {
      super = block;
      block += w.super_bytes();
    }
    for (int64_t i = 0; i < block_bytes; i += 64) {
      QUIRE_UNROLL
      for (int p = 0; p < kLanePanels; ++p) prefetch_ahead(block + p * apart + i);
    }
    Ints acc[Rows];
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) acc[m] = int_lanes(starts[g * Rows + m]);
    multiply_integers<C, Dot>(block + head, apart, w.group, table, a, acc);
    const LaneAffine to = lane_affine(w, block, super, apart);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      sum[m] = fma(to_float(acc[m]), mul(to.scale, lanes(scales[g * Rows + m])), sum[m]);
      if (offset) sum[m] = fma(to.minimum, lanes(sums[g * Rows + m]), sum[m]);
    }
  }
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) store_lanes(out + m * stride + column, sum[m], left);
}

// Rounds ``count`` inputs of a row to 8 bits; returns their scale, and the sum of what they are then: an offset of the
// weights must see the same inputs. ``unit``: the scale, if they are integers times that already. What is no number makes
// the scale none.
float round_to_8_bits(const float* x, int64_t count, const float* unit, uint8_t* out, int32_t* sum) {
  uint32_t most = 0;  // of the sizes' bits, among which NaN is the highest
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    memcpy(&bits, x + i, 4);
    bits &= 0x7FFFFFFF;
    most = bits > most ? bits : most;
  }
  float largest;
  memcpy(&largest, &most, 4);
  const bool usable = largest > 1e-30f && largest < INFINITY;
  const float inverse = !usable ? 0.0f : unit ? 1.0f / *unit : 127.0f / largest;
  int32_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    const float magic = 12582912.0f;  // 1.5 * 2^23: the sum's lowest bits are the nearest integer
    const float shifted = x[i] * inverse + magic;
    int32_t bits;
    memcpy(&bits, &shifted, 4);
    out[i] = static_cast<uint8_t>(bits);
    total += static_cast<int8_t>(out[i]);
  }
  *sum = total;
  return usable && unit ? *unit : largest / 127.0f;
}

// The inputs of quad ``q`` of a group.
template <int Bits>
QUIRE_INLINE int32_t input_quad(const uint8_t* rounded, int q) {
  uint32_t word = 0;
  QUIRE_UNROLL
  for (int byte = 0; byte < 4; ++byte) {
    int i = 4 * q + byte;
    if constexpr (Bits < 8) {
      constexpr int kQuads = Fields<Bits>::kInputs / 4;
      i = q / kQuads * 4 * kQuads + Fields<Bits>::quad_input(q % kQuads, byte);
    }
    word |= static_cast<uint32_t>(rounded[i]) << 8 * byte;
  }
  return static_cast<int32_t>(word);
}

// Scratch for the inputs of all rows, of which a tile's lie together.
struct IntegerScratch {
  int32_t *quads, *starts;
  float *scales, *sums;

  IntegerScratch(Pool& pool, const Weight& w, int64_t rows) {
    const int64_t groups = rows * w.groups();
    Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, rows * w.k + groups * 12 + 256))};
    quads = arena.take<int32_t>(rows * w.k / 4);
    starts = arena.take<int32_t>(groups);
    scales = arena.take<float>(groups);
    sums = arena.take<float>(groups);
  }

  IntegerInputs of(const Weight& w, int64_t row) const {
    const int64_t groups = row * w.groups();
    return {quads + row * w.k / 4, starts + groups, scales + groups, sums + groups};
  }

  // Fills in the tile of ``rows`` rows, from ``first`` on.
  template <Code C>
  void fill(const Weight& w, const Wanted& inputs, int64_t first, int64_t rows) const {
    const int32_t zero = (w.second == Second::none ? static_cast<int32_t>(w.zero) : 0) + kShift<C>;
    for (int64_t m = 0; m < rows; ++m) {
      int32_t* quad = quads + first * w.k / 4 + m;
      for (int64_t g = 0; g < w.groups(); ++g) {
        uint8_t rounded[kMaxGroup];
        int32_t sum;
        const int64_t at = first * w.groups() + g * rows + m;
        const float* x = inputs.x + (first + m) * w.k + g * w.group;
        const float scale = round_to_8_bits(x, w.group, inputs.units ? inputs.units + first + m : nullptr, rounded, &sum);
        scales[at] = scale;
        sums[at] = static_cast<float>(sum) * scale;
        starts[at] = -zero * sum;
        for (int q = 0; q < w.group / 4; ++q, quad += rows) *quad = input_quad<bits_of(C)>(rounded, q);
      }
    }
  }
};

// A task is some panels, whose weights stay in L1, and a block of rows, whose inputs stay in L2.
template <Code C, bool Dot>
void linear_integer(Pool& pool, const Wanted& x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  const Tiles tiles(rows, kIntegerHeight);
  const IntegerScratch scratch(pool, w, rows);
  parallel(pool, tiles.count, [&](int64_t t, int) {
    const int64_t row = tiles.start(t);
    scratch.fill<C>(w, x, row, tiles.height(t));
  });
  const int64_t panels = w.panels(), a_task = panels_a_task(pool, w, tiles, kLanePanels);
  const int64_t columns = (panels + a_task - 1) / a_task;
  const int64_t most = kRowBlockBytes / (w.k * kIntegerHeight), blocks = most > 0 ? (tiles.count + most - 1) / most : tiles.count;
  parallel(pool, blocks * columns, [&](int64_t task, int) {
    const int64_t block = task / columns, begin = task % columns * a_task;
    const int64_t end = begin + a_task < panels ? begin + a_task : panels;
    for (int64_t t = tiles.count * block / blocks; t < tiles.count * (block + 1) / blocks; ++t) {
      const int64_t row = tiles.start(t);
      const IntegerInputs inputs = scratch.of(w, row);
      with_rows<kIntegerHeight>(tiles.height(t), [&](auto height) {
        for (int64_t p = begin; p < end; p += kLanePanels) {
          integer_panels<C, Dot, height>(w, p, inputs, bias, out + row * stride, stride);
        }
      });
    }
  });
}

// Without Dot, whole bytes would take as many instructions as floats.
template <Code C, bool Dot>
constexpr bool kIntegersGain = C != Code::float8 && (Dot || kShift<C> == 0);

#else
template <Code C, bool Dot>
void linear_integer(Pool& pool, const Wanted& x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride);
template <Code C, bool Dot>
constexpr bool kIntegersGain = false;
#endif

// ``call`` with a weight's code as a constant.
template <typename Call>
void with_code(Code code, Call&& call) {
  switch (code) {
    case Code::int2: return call(std::integral_constant<Code, Code::int2>());
    case Code::int3: return call(std::integral_constant<Code, Code::int3>());
    case Code::int5: return call(std::integral_constant<Code, Code::int5>());
    case Code::int6: return call(std::integral_constant<Code, Code::int6>());
    case Code::int8: return call(std::integral_constant<Code, Code::int8>());
    case Code::table4: return call(std::integral_constant<Code, Code::table4>());
    case Code::float8: return call(std::integral_constant<Code, Code::float8>());
    default: return call(std::integral_constant<Code, Code::int4>());
  }
}

template <bool Dot>
void linear_grouped(Pool& pool, const Wanted& x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  with_code(w.code, [&](auto code) {
    if constexpr (kIntegersGain<code, Dot>) {
      const bool wanted = w.inputs.rounding == Inputs::Rounding::by_group || x.units;
      if (wanted && (code != Code::table4 || is_of_bytes(w.table))) {
        return linear_integer<code, Dot>(pool, x, rows, w, bias, out, stride);
      }
    }
    linear_code<code>(pool, x.x, rows, w, bias, out, stride);
  });
}
