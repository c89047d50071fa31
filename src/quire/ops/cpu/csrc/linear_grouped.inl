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

struct Affine {
  F8 scale, minimum;
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

constexpr bool has_bytes(Code code) { return bits_of(code) == 8; }

// Where elements that are codes look up what they stand for.
struct Table {
  F8 low, high;
};

// What element ``k`` of a run of ``kInputs`` must be multiplied by after it was read (``field``).
template <Code C>
constexpr float field_scale(int k) {
  using F = Fields<bits_of(C)>;
  if (C == Code::table4) return 1.0f;
  const int at = bits_of(C) * (k < F::kWhole ? k % F::kPerWord : k - F::kWhole);
  return at + bits_of(C) == 32 ? 1.0f : 1.0f / static_cast<float>(int64_t{1} << at);
}

template <Code C, int At>
QUIRE_INLINE F8 element(I8 word, const Table& table) {
  if constexpr (C == Code::table4) return lookup<At>(word, table.low, table.high);
  return field<bits_of(C), At>(word);
}

template <Code C>
QUIRE_INLINE F8 load_element(const uint8_t* p) {
  if constexpr (C == Code::float8) return load_float8(p);
  return load(reinterpret_cast<const int8_t*>(p));
}

// acc[.][p] += inputs ``a`` [Rows] x the elements of each panel; K chooses the sum.
template <int K, int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_input(const F8 (&w)[Panels], const float* a, F8 (&acc)[Rows][Panels][Sums]) {
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    const F8 v = set1(a[m]);
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) accumulate(acc[m][p][K % Sums], w[p], v);
  }
}

// Inputs K and on of a run of words; ``rest`` collects what lies in their highest bits.
template <Code C, int K, int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_fields(const uint8_t* data, int64_t panel_bytes, const Table& table, const float* a,
                                  I8 (&word)[Panels], I8 (&rest)[Panels], F8 (&acc)[Rows][Panels][Sums]) {
  using F = Fields<bits_of(C)>;
  if constexpr (K < F::kInputs) {
    if constexpr (K < F::kWhole && K % F::kPerWord == 0) {
      constexpr int kWord = K / F::kPerWord;
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) {
        word[p] = load_ints(data + p * panel_bytes + kWord * 32);
        if constexpr (F::kSpare > 0) rest[p] = add_highest<F::kSpare, F::kSpare * kWord>(rest[p], word[p]);
      }
    }
    constexpr int kAt = bits_of(C) * (K < F::kWhole ? K % F::kPerWord : K - F::kWhole);
    F8 w[Panels];
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) w[p] = element<C, kAt>(K < F::kWhole ? word[p] : rest[p], table);
    multiply_input<K>(w, a + K * Rows, acc);
    multiply_fields<C, K + 1>(data, panel_bytes, table, a, word, rest, acc);
  }
}

template <Code C, int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_bytes(const uint8_t* data, int64_t panel_bytes, const float* a,
                                 F8 (&acc)[Rows][Panels][Sums]) {
  QUIRE_UNROLL
  for (int i = 0; i < 4; ++i) {
    F8 w[Panels];
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) w[p] = load_element<C>(data + p * panel_bytes + i * 8);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const F8 v = set1(a[i * Rows + m]);
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) accumulate(acc[m][p][i % Sums], w[p], v);
    }
  }
}

// acc += the inputs ``a`` of one group x its elements, which begin at ``data``.
template <Code C, int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_group(const uint8_t* data, int64_t panel_bytes, int group, const Table& table, const float* a,
                                 F8 (&acc)[Rows][Panels][Sums]) {
  if constexpr (has_bytes(C)) {
    for (int k = 0; k < group; k += 4, data += 32, a += 4 * Rows) {
      multiply_bytes<C, Rows, Panels, Sums>(data, panel_bytes, a, acc);
    }
  } else {
    using F = Fields<bits_of(C)>;
    for (int k = 0; k < group; k += F::kInputs, data += F::kWords * 32, a += F::kInputs * Rows) {
      I8 word[Panels] = {}, rest[Panels] = {};
      multiply_fields<C, 0>(data, panel_bytes, table, a, word, rest, acc);
    }
  }
}

constexpr int kDirectHeight = 5;   // 5 rows x 2 vectors of sums, 2 packed, 2 unpacked, 1 broadcast: 15 registers
constexpr int64_t kPrefetchBytes = 16 * 1024;
constexpr int64_t kDirectRows = 24;  // for more, weights are unpacked once for all tiles

// Inputs of a tile of rows as ``grouped_direct`` wants them.
struct DirectInputs {
  const float* values;  // [K][rows], for elements of less than 8 bits times ``field_scale``
  const float* sums;    // [groups][rows], for weights with an offset
};

// Few rows: weights go from memory to registers, unpacked on the way.
template <Code C, int Rows, int Panels>
void grouped_direct(const Weight& w, int64_t panel, const DirectInputs& x, const float* bias, float* out, int64_t stride) {
  constexpr int kSums = Rows == 1 ? 4 : 1;  // several sums hide the latency of fma
  const uint8_t* block = w.data + panel * w.panel_bytes();
  const uint8_t* super = block;
  const int64_t panel_bytes = w.panel_bytes(), block_bytes = w.block_bytes(), head = w.head_bytes(), groups = w.groups();
  // Panels are short streams, which the processor's own prefetching misses: fetch what the next call reads.
  const int64_t ahead = Panels * panel_bytes < kPrefetchBytes ? Panels * panel_bytes : 1024;
  const Table table{load(w.table), load(w.table + 8)};
  const bool offset = w.has_offset();
  const float* a = x.values;
  F8 sum[Rows][Panels];
  QUIRE_UNROLL
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) sum[m][p] = bias ? load_lanes(bias + first, w.n - first) : zero();
  }
  for (int64_t g = 0; g < groups; ++g, block += block_bytes, a += w.group * Rows) {
    if (w.super && g % w.super == 0) {
      super = block;
      block += w.super_bytes();
    }
    F8 acc[Rows][Panels][kSums];
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) {
        QUIRE_UNROLL
        for (int s = 0; s < kSums; ++s) acc[m][p][s] = zero();
      }
    }
    for (int64_t i = 0; i < block_bytes; i += 64) {
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) __builtin_prefetch(block + p * panel_bytes + ahead + i);
    }
    multiply_group<C, Rows, Panels, kSums>(block + head, panel_bytes, w.group, table, a, acc);
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) {
      const Affine to = affine(w, block + p * panel_bytes, super + p * panel_bytes);
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) {
        F8 total = acc[m][p][0];
        QUIRE_UNROLL
        for (int s = 1; s < kSums; ++s) total = add(total, acc[m][p][s]);
        sum[m][p] = fma(total, to.scale, sum[m][p]);
        if (offset) sum[m][p] = fma(to.minimum, set1(x.sums[g * Rows + m]), sum[m][p]);
      }
    }
  }
  QUIRE_UNROLL
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) store_lanes(out + m * stride + first, sum[m][p], w.n - first);
  }
}

constexpr int direct_panels(int rows) { return rows == 2 ? 4 : 2; }

template <Code C, int Rows>
void grouped_direct_range(const Weight& w, int64_t begin, int64_t end, const DirectInputs& x, const float* bias, float* out,
                          int64_t stride) {
  constexpr int kPanels = direct_panels(Rows);
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) grouped_direct<C, Rows, kPanels>(w, panel, x, bias, out, stride);
  for (; panel < end; ++panel) grouped_direct<C, Rows, 1>(w, panel, x, bias, out, stride);
}

template <Code C>
void grouped_direct_rows(int rows, const Weight& w, int64_t begin, int64_t end, const DirectInputs& x, const float* bias,
                         float* out, int64_t stride) {
  static_assert(kDirectHeight == 5);
  switch (rows) {
    case 1: return grouped_direct_range<C, 1>(w, begin, end, x, bias, out, stride);
    case 2: return grouped_direct_range<C, 2>(w, begin, end, x, bias, out, stride);
    case 3: return grouped_direct_range<C, 3>(w, begin, end, x, bias, out, stride);
    case 4: return grouped_direct_range<C, 4>(w, begin, end, x, bias, out, stride);
    default: return grouped_direct_range<C, 5>(w, begin, end, x, bias, out, stride);
  }
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
  const int64_t panels = w.panels(), together = direct_panels(tiles.height(0));
  const int64_t a_task = ((kDirectTaskBytes + w.panel_bytes() - 1) / w.panel_bytes() + together - 1) / together * together;
  parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
    const int64_t begin = task * a_task, end = begin + a_task < panels ? begin + a_task : panels;
    for (int64_t t = 0; t < tiles.count; ++t) {  // the task's weights stay in L1
      const int64_t row = tiles.start(t);
      const DirectInputs inputs{values + row * w.k, sums + row * groups};
      grouped_direct_rows<C>(tiles.height(t), w, begin, end, inputs, bias, out + row * stride, stride);
    }
  });
}

template <Code C, int K>
QUIRE_INLINE void unpack_fields(const uint8_t* data, const Table& table, const Affine& to, I8 word, I8 rest, float* out) {
  using F = Fields<bits_of(C)>;
  if constexpr (K < F::kInputs) {
    if constexpr (K < F::kWhole && K % F::kPerWord == 0) {
      constexpr int kWord = K / F::kPerWord;
      word = load_ints(data + kWord * 32);
      if constexpr (F::kSpare > 0) rest = add_highest<F::kSpare, F::kSpare * kWord>(rest, word);
    }
    constexpr int kAt = bits_of(C) * (K < F::kWhole ? K % F::kPerWord : K - F::kWhole);
    const F8 scale = mul(to.scale, set1(field_scale<C>(K)));
    store(out + K * 16, fma(element<C, kAt>(K < F::kWhole ? word : rest, table), scale, to.minimum));
    unpack_fields<C, K + 1>(data, table, to, word, rest, out);
  }
}

// Inputs k .. k + count of one panel as floats: 8 outputs at the start of each 16 of ``out``.
template <Code C>
void unpack_panel(const Weight& w, int64_t panel, int64_t k, int64_t count, float* out) {
  const uint8_t* base = w.data + panel * w.panel_bytes();
  const Table table{load(w.table), load(w.table + 8)};
  for (int64_t g = k / w.group; g < (k + count) / w.group; ++g) {
    const uint8_t* block = base + w.block_at(g);
    const Affine to = affine(w, block, base + w.super_at(g));
    const uint8_t* data = block + w.head_bytes();
    if constexpr (has_bytes(C)) {
      for (int i = 0; i < w.group; ++i, data += 8, out += 16) store(out, fma(load_element<C>(data), to.scale, to.minimum));
    } else {
      using F = Fields<bits_of(C)>;
      for (int i = 0; i < w.group; i += F::kInputs, data += F::kWords * 32, out += F::kInputs * 16) {
        unpack_fields<C, 0>(data, table, to, I8{}, I8{}, out);
      }
    }
  }
}

template <Code C>
void linear_code(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  if (rows <= kDirectRows) return linear_direct<C>(pool, x, rows, w, bias, out, stride);
  linear_tiled(pool, x, rows, w, bias, out, stride, w.group, [&](int64_t first) {
    return [&w, panel = first / 8](int64_t k, int64_t count, float* block) {
      unpack_panel<C>(w, panel, k, count, block);
      if (panel + 1 < w.panels()) return unpack_panel<C>(w, panel + 1, k, count, block + 8);
      for (int64_t i = 0; i < count; ++i) store(block + i * 16 + 8, zero());
    };
  });
}

// One row of a panel: its elements unpacked, 8 rows at a time, of which one is kept.
template <Code C>
void embed_code(const Weight& w, int64_t row, float multiplier, float* out) {
  alignas(32) float block[kMaxGroup * 16];
  for (int64_t k = 0; k < w.k; k += w.group) {
    unpack_panel<C>(w, row / 8, k, w.group, block);
    for (int i = 0; i < w.group; ++i) out[k + i] = block[i * 16 + row % 8] * multiplier;
  }
}

struct GroupedKernels {
  void (*linear)(Pool&, const float*, int64_t, const Weight&, const float*, float*, int64_t);
  void (*embed)(const Weight&, int64_t, float, float*);
};

template <Code C>
constexpr GroupedKernels kCodeKernels{linear_code<C>, embed_code<C>};

const GroupedKernels& grouped_kernels(Code code) {
  switch (code) {
    case Code::int2: return kCodeKernels<Code::int2>;
    case Code::int3: return kCodeKernels<Code::int3>;
    case Code::int5: return kCodeKernels<Code::int5>;
    case Code::int6: return kCodeKernels<Code::int6>;
    case Code::int8: return kCodeKernels<Code::int8>;
    case Code::table4: return kCodeKernels<Code::table4>;
    case Code::float8: return kCodeKernels<Code::float8>;
    default: return kCodeKernels<Code::int4>;
  }
}
