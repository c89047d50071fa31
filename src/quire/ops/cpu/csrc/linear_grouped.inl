// Products with grouped weights, in float32 arithmetic: elements are exact, one rounding a product.

QUIRE_INLINE F8 load_8(const uint8_t* p, Type type) {
  switch (type) {
    case Type::f32: return load(reinterpret_cast<const float*>(p));
    case Type::f16: return load(reinterpret_cast<const f16*>(p));
    case Type::bf16: return load(reinterpret_cast<const bf16*>(p));
    case Type::i8: return load(reinterpret_cast<const int8_t*>(p));
    case Type::u8: return load(p);
    case Type::e8m0: return load_e8m0(p);
  }
  return zero();
}

// Panels are multiplied in pairs: 16 outputs. What was said of a panel's ``data`` holds ``apart`` bytes on for its partner.
// An odd panel at the end is its own partner.
struct PanelPair {
  const uint8_t* data;
  int64_t apart;

  PanelPair(const Weight& w, int64_t panel)
      : data(w.data + panel * w.panel_bytes()), apart(panel + 1 < w.panels() ? w.panel_bytes() : 0) {}
};

struct Affine {
  F8 scale, minimum;
};
struct WideAffine {
  Wide scale, minimum;
};

// What the elements of a block stand for: ``scale * element + minimum``.
QUIRE_INLINE Affine affine(const Weight& w, const uint8_t* block, const uint8_t* super) {
  Affine a{load_8(block, w.type), zero()};
  const uint8_t* second = block + 8 * bytes_of(w.type);
  if (w.second == Second::minimum) a.minimum = load_8(second, w.type);
  if (w.super) {
    a.scale = mul(a.scale, load_8(super, Type::f16));
    if (w.second == Second::minimum) a.minimum = mul(a.minimum, load_8(super + 16, Type::f16));
  }
  if (w.second == Second::zero) a.minimum = mul(sub(zero(), a.scale), load_8(second, w.zero_type));
  if (w.zero != 0.0f) a.minimum = mul(a.scale, set1(-w.zero));
  return a;
}

QUIRE_INLINE WideAffine affine(const Weight& w, const uint8_t* block, const uint8_t* super, int64_t apart) {
  const Affine low = affine(w, block, super), high = affine(w, block + apart, super + apart);
  return {pair(low.scale, high.scale), pair(low.minimum, high.minimum)};
}

constexpr bool has_bytes(Code code) { return bits_of(code) == 8; }

// What element ``k`` of a run of ``kInputs`` must be multiplied by after it was read (``field``).
template <Code C>
constexpr float field_scale(int k) {
  using F = Fields<bits_of(C)>;
  if (C == Code::table4) return 1.0f;
  return F::at(k) + bits_of(C) == 32 ? 1.0f : 1.0f / static_cast<float>(int64_t{1} << F::at(k));
}

template <Code C, int At>
QUIRE_INLINE Wide element(WideInts word, Table table) {
  if constexpr (C == Code::table4) return lookup<At>(word, table);
  return field<bits_of(C), At>(word);
}

template <Code C>
QUIRE_INLINE Wide load_element(const uint8_t* p, int64_t apart) {
  if constexpr (C == Code::float8) return pair(load_float8(p), load_float8(p + apart));
  return load_pair(reinterpret_cast<const int8_t*>(p), reinterpret_cast<const int8_t*>(p + apart));
}

// acc[.][p] += inputs ``a`` [Rows] x the elements of each pair of panels; K chooses the sum.
template <int K, int Rows, int Pairs, int Sums>
QUIRE_INLINE void multiply_input(const Wide (&w)[Pairs], const float* a, Wide (&acc)[Rows][Pairs][Sums]) {
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    QUIRE_UNROLL
    for (int p = 0; p < Pairs; ++p) accumulate(acc[m][p][K % Sums], a + m, w[p]);
  }
}

// Inputs K and on of a run of words; ``rest`` collects what lies in their highest bits.
template <Code C, int K, int Rows, int Pairs, int Sums>
QUIRE_INLINE void multiply_fields(const uint8_t* data, int64_t apart, Table table, const float* a, WideInts (&word)[Pairs],
                                  WideInts (&rest)[Pairs], Wide (&acc)[Rows][Pairs][Sums]) {
  using F = Fields<bits_of(C)>;
  if constexpr (K < F::kInputs) {
    if constexpr (F::whole(K) && F::pair(K) % F::kPerWord == 0) {
      QUIRE_UNROLL
      for (int p = 0; p < Pairs; ++p) {
        const uint8_t* at = data + 2 * p * apart + F::word(K) * 32;
        word[p] = load_ints(at, at + apart);
        if constexpr (F::kSpare > 0 && K < F::kPairs) {
          rest[p] = add_highest<F::kSpare, F::kSpare * F::word(K)>(rest[p], word[p]);
        }
      }
    }
    Wide w[Pairs];
    QUIRE_UNROLL
    for (int p = 0; p < Pairs; ++p) w[p] = element<C, F::at(K)>(F::whole(K) ? word[p] : rest[p], table);
    multiply_input<K>(w, a + K * Rows, acc);
    multiply_fields<C, K + 1>(data, apart, table, a, word, rest, acc);
  }
}

template <Code C, int Rows, int Pairs, int Sums>
QUIRE_INLINE void multiply_bytes(const uint8_t* data, int64_t apart, const float* a, Wide (&acc)[Rows][Pairs][Sums]) {
  QUIRE_UNROLL
  for (int i = 0; i < 4; ++i) {
    Wide w[Pairs];
    QUIRE_UNROLL
    for (int p = 0; p < Pairs; ++p) w[p] = load_element<C>(data + 2 * p * apart + i * 8, apart);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      QUIRE_UNROLL
      for (int p = 0; p < Pairs; ++p) accumulate(acc[m][p][i % Sums], a + i * Rows + m, w[p]);
    }
  }
}

// acc += the inputs ``a`` of one group x its elements, which begin at ``data``.
template <Code C, int Rows, int Pairs, int Sums>
QUIRE_INLINE void multiply_group(const uint8_t* data, int64_t apart, int group, Table table, const float* a,
                                 Wide (&acc)[Rows][Pairs][Sums]) {
  if constexpr (has_bytes(C)) {
    for (int k = 0; k < group; k += 4, data += 32, a += 4 * Rows) {
      multiply_bytes<C, Rows, Pairs, Sums>(data, apart, a, acc);
    }
  } else {
    using F = Fields<bits_of(C)>;
    for (int k = 0; k < group; k += F::kInputs, data += F::kWords * 32, a += F::kInputs * Rows) {
      WideInts word[Pairs] = {}, rest[Pairs] = {};
      multiply_fields<C, 0>(data, apart, table, a, word, rest, acc);
    }
  }
}

#ifdef QUIRE_AVX512
constexpr int kDirectHeight = 8;
constexpr int64_t kDirectRows = 24;  // for more, weights are unpacked once for all tiles
constexpr int direct_pairs(int rows) { return rows <= 2 ? 2 : 1; }
constexpr int direct_sums(int rows) { return rows == 1 ? 4 : rows <= 6 ? 2 : 1; }  // several hide the latency of fma
#else
constexpr int64_t kDirectRows = 11;
constexpr int kDirectHeight = 5;   // 5 rows x 2 vectors of sums, 2 packed, 2 unpacked, 1 broadcast: 15 registers
constexpr int direct_pairs(int rows) { return rows == 2 ? 2 : 1; }
constexpr int direct_sums(int rows) { return rows == 1 ? 4 : 1; }
#endif

// Inputs of a tile of rows as ``grouped_direct`` wants them.
struct DirectInputs {
  const float* values;  // [K][rows], for elements of less than 8 bits times ``field_scale``
  const float* sums;    // [groups][rows], for weights with an offset
};

// Few rows: weights go from memory to registers, unpacked on the way.
template <Code C, int Rows, int Pairs>
void grouped_direct(const Weight& w, int64_t panel, const DirectInputs& x, const float* bias, float* out, int64_t stride) {
  constexpr int kSums = direct_sums(Rows);
  const PanelPair first(w, panel);
  const uint8_t* block = first.data;
  const uint8_t* super = block;
  const int64_t apart = first.apart, block_bytes = w.block_bytes(), head = w.head_bytes(), groups = w.groups();
  const Table table = load_table(w.table);
  const bool offset = w.has_offset();
  const float* a = x.values;
  Wide sum[Rows][Pairs];
  QUIRE_UNROLL
  for (int p = 0; p < Pairs; ++p) {
    const int64_t column = (panel + 2 * p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) sum[m][p] = bias ? load_wide_lanes(bias + column, w.n - column) : wide(0.0f);
  }
  for (int64_t g = 0; g < groups; ++g, block += block_bytes, a += w.group * Rows) {
    if (w.super && g % w.super == 0) {
      super = block;
      block += w.super_bytes();
    }
    Wide acc[Rows][Pairs][kSums];
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      QUIRE_UNROLL
      for (int p = 0; p < Pairs; ++p) {
        QUIRE_UNROLL
        for (int s = 0; s < kSums; ++s) acc[m][p][s] = wide(0.0f);
      }
    }
    for (int64_t i = 0; i < block_bytes; i += 64) {
      QUIRE_UNROLL
      for (int p = 0; p < 2 * Pairs; ++p) prefetch_ahead(block + p * apart + i);
    }
    multiply_group<C, Rows, Pairs, kSums>(block + head, apart, w.group, table, a, acc);
    QUIRE_UNROLL
    for (int p = 0; p < Pairs; ++p) {
      const WideAffine to = affine(w, block + 2 * p * apart, super + 2 * p * apart, apart);
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) {
        Wide total = acc[m][p][0];
        QUIRE_UNROLL
        for (int s = 1; s < kSums; ++s) total = add(total, acc[m][p][s]);
        sum[m][p] = fma(total, to.scale, sum[m][p]);
        if (offset) accumulate(sum[m][p], x.sums + g * Rows + m, to.minimum);
      }
    }
  }
  QUIRE_UNROLL
  for (int p = 0; p < Pairs; ++p) {
    const int64_t column = (panel + 2 * p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) store_lanes(out + m * stride + column, sum[m][p], w.n - column);
  }
}

// Panels from ``begin``, an even one, to ``end``.
template <Code C, int Rows>
void grouped_direct_range(const Weight& w, int64_t begin, int64_t end, const DirectInputs& x, const float* bias, float* out,
                          int64_t stride) {
  constexpr int kPairs = direct_pairs(Rows);
  int64_t panel = begin;
  for (; panel + 2 * kPairs <= end; panel += 2 * kPairs) grouped_direct<C, Rows, kPairs>(w, panel, x, bias, out, stride);
  for (; panel < end; panel += 2) grouped_direct<C, Rows, 1>(w, panel, x, bias, out, stride);
}

// Fills the inputs of a tile of ``rows`` rows from ``x`` on.
template <Code C>
void direct_inputs(const Weight& w, const float* x, int64_t rows, float* values, float* sums) {
  constexpr int kRun = has_bytes(C) ? 8 : Fields<bits_of(C)>::kInputs;
  for (int64_t m = 0; m < rows; ++m) {
    const float* row = x + m * w.k;
    for (int64_t k = 0; k < w.k; k += kRun) {
      QUIRE_UNROLL
      for (int i = 0; i < kRun; ++i) {
        values[(k + i) * rows + m] = has_bytes(C) ? row[k + i] : row[k + i] * field_scale<C>(i);
      }
    }
    if (!w.has_offset()) continue;
    for (int64_t g = 0; g < w.groups(); ++g) {
      F8 total = zero();
      for (int k = 0; k < w.group; k += 8) total = add(total, load(row + g * w.group + k));
      sums[g * rows + m] = sum_lanes(total);
    }
  }
}

template <Code C>
void linear_direct(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  const Tiles tiles(rows, kDirectHeight);
  const int64_t groups = w.has_offset() ? w.groups() : 0;
  Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, rows * (w.k + groups) * 4 + 128))};
  float* values = arena.take<float>(rows * w.k);
  float* sums = arena.take<float>(rows * groups);
  parallel(pool, tiles.count, [&](int64_t t, int) {
    const int64_t row = tiles.start(t);
    direct_inputs<C>(w, x + row * w.k, tiles.height(t), values + row * w.k, sums + row * groups);
  });
  const int64_t panels = w.panels(), together = 2 * direct_pairs(tiles.height(0));
  const int64_t a_task = panels_a_task(pool, w, tiles, together);
  parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
    const int64_t begin = task * a_task, end = begin + a_task < panels ? begin + a_task : panels;
    for (int64_t t = 0; t < tiles.count; ++t) {  // the task's weights stay in L1
      const int64_t row = tiles.start(t);
      const DirectInputs inputs{values + row * w.k, sums + row * groups};
      with_rows<kDirectHeight>(tiles.height(t), [&](auto height) {
        grouped_direct_range<C, height>(w, begin, end, inputs, bias, out + row * stride, stride);
      });
    }
  });
}

template <Code C, int K>
QUIRE_INLINE void unpack_fields(const uint8_t* data, int64_t apart, Table table, const WideAffine& to, WideInts word,
                                WideInts rest, float* out) {
  using F = Fields<bits_of(C)>;
  if constexpr (K < F::kInputs) {
    if constexpr (F::whole(K) && F::pair(K) % F::kPerWord == 0) {
      word = load_ints(data + F::word(K) * 32, data + F::word(K) * 32 + apart);
      if constexpr (F::kSpare > 0 && K < F::kPairs) {
        rest = add_highest<F::kSpare, F::kSpare * F::word(K)>(rest, word);
      }
    }
    const Wide scale = mul(to.scale, wide(field_scale<C>(K)));
    store(out + K * 16, fma(element<C, F::at(K)>(F::whole(K) ? word : rest, table), scale, to.minimum));
    unpack_fields<C, K + 1>(data, apart, table, to, word, rest, out);
  }
}

// Inputs k .. k + count of a pair of panels as floats [count][16].
template <Code C>
void unpack_panels(const Weight& w, int64_t panel, int64_t k, int64_t count, float* out) {
  const PanelPair from(w, panel);
  const int64_t apart = from.apart;
  const Table table = load_table(w.table);
  for (int64_t g = k / w.group; g < (k + count) / w.group; ++g) {
    const uint8_t* block = from.data + w.block_at(g);
    const WideAffine to = affine(w, block, from.data + w.super_at(g), apart);
    const uint8_t* data = block + w.head_bytes();
    if constexpr (has_bytes(C)) {
      for (int i = 0; i < w.group; ++i, data += 8, out += 16) {
        store(out, fma(load_element<C>(data, apart), to.scale, to.minimum));
      }
    } else {
      using F = Fields<bits_of(C)>;
      for (int i = 0; i < w.group; i += F::kInputs, data += F::kWords * 32, out += F::kInputs * 16) {
        unpack_fields<C, 0>(data, apart, table, to, WideInts{}, WideInts{}, out);
      }
    }
  }
}

template <Code C>
void linear_code(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  if (rows <= kDirectRows) return linear_direct<C>(pool, x, rows, w, bias, out, stride);
  linear_tiled(pool, x, rows, w, bias, out, stride, w.group, [&](int64_t first) {
    return [&w, panel = first / 8](int64_t k, int64_t count, float* block) { unpack_panels<C>(w, panel, k, count, block); };
  });
}

// One row: its panels unpacked, of which one column is kept.
template <Code C>
void embed_code(const Weight& w, int64_t row, float multiplier, float* out) {
  alignas(64) float block[kMaxGroup * 16];
  for (int64_t k = 0; k < w.k; k += w.group) {
    unpack_panels<C>(w, row / 16 * 2, k, w.group, block);
    for (int i = 0; i < w.group; ++i) out[k + i] = block[i * 16 + row % 16] * multiplier;
  }
}
