// Products with grouped-integer weights, in float32 arithmetic: exact integers, one rounding a product.

QUIRE_INLINE F8 load_8(const uint8_t* p, Type type) {
  return type == Type::f32 ? load(reinterpret_cast<const float*>(p)) : load(reinterpret_cast<const f16*>(p));
}

// What nibble i of a word must be multiplied by after ``nibble<i>``.
alignas(32) constexpr float kNibbleScale[8] = {1.0f,       0x1p-4f,  0x1p-8f,  0x1p-12f,
                                               0x1p-16f,   0x1p-20f, 0x1p-24f, 1.0f};

// acc[.][p] += inputs 8 v .. 8 v + 8 of Rows rows x the vector of nibbles of each panel.
template <int I, int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_nibbles(const I8 (&packed)[Panels], const float* a, F8 (&acc)[Rows][Panels][Sums]) {
  if constexpr (I < 8) {
    F8 w[Panels];
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) w[p] = nibble<I>(packed[p]);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const F8 v = set1(a[I * Rows + m]);
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) accumulate(acc[m][p][I % Sums], w[p], v);
    }
    multiply_nibbles<I + 1, Rows, Panels, Sums>(packed, a, acc);
  }
}

template <int Rows, int Panels, int Sums>
QUIRE_INLINE void multiply_bytes(const uint8_t* data, int64_t panel_bytes, const float* a,
                                 F8 (&acc)[Rows][Panels][Sums]) {
  QUIRE_UNROLL
  for (int i = 0; i < 4; ++i) {
    F8 w[Panels];
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) w[p] = load(reinterpret_cast<const int8_t*>(data + p * panel_bytes + i * 8));
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const F8 v = set1(a[i * Rows + m]);
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) accumulate(acc[m][p][i % Sums], w[p], v);
    }
  }
}

constexpr int kDirectHeight = 5;   // 5 rows x 2 vectors of sums, 2 packed, 2 unpacked, 1 broadcast: 15 registers
constexpr int64_t kPrefetchBytes = 16 * 1024;
constexpr int64_t kDirectRows = 24;  // for more, weights are unpacked once for all tiles

// Inputs of a tile of rows as ``grouped_direct`` wants them.
struct DirectInputs {
  const float* values;  // [K][rows], for 4 bits times kNibbleScale
  const float* sums;    // [groups][rows], for weights with minimums
};

// Few rows: weights go from memory to registers, unpacked on the way.
template <int Bits, int Rows, int Panels>
void grouped_direct(const Weight& w, int64_t panel, const DirectInputs& x, const float* bias, float* out) {
  constexpr int kSums = Rows == 1 ? 4 : 1;  // several sums hide the latency of fma
  const uint8_t* block = w.data + panel * w.panel_bytes();
  const int64_t panel_bytes = w.panel_bytes(), block_bytes = w.block_bytes(), head = w.head_bytes();
  const int64_t scale_bytes = 8 * bytes_of(w.type), groups = w.groups();
  const int vectors = w.group * Bits / 32;
  // Panels are short streams, which the processor's own prefetching misses: fetch what the next call reads.
  const int64_t ahead = Panels * panel_bytes < kPrefetchBytes ? Panels * panel_bytes : 1024;
  const float* a = x.values;
  F8 sum[Rows][Panels];
  QUIRE_UNROLL
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) sum[m][p] = bias ? load_lanes(bias + first, w.n - first) : zero();
  }
  for (int64_t g = 0; g < groups; ++g, block += block_bytes) {
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
    const uint8_t* data = block + head;
    for (int v = 0; v < vectors; ++v, data += 32, a += 32 / Bits * Rows) {
      if constexpr (Bits == 4) {
        I8 packed[Panels];
        QUIRE_UNROLL
        for (int p = 0; p < Panels; ++p) packed[p] = load_ints(data + p * panel_bytes);
        multiply_nibbles<0, Rows, Panels, kSums>(packed, a, acc);
      } else {
        multiply_bytes<Rows, Panels, kSums>(data, panel_bytes, a, acc);
      }
    }
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) {
      const F8 scale = load_8(block + p * panel_bytes, w.type);
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) {
        F8 total = acc[m][p][0];
        QUIRE_UNROLL
        for (int s = 1; s < kSums; ++s) total = add(total, acc[m][p][s]);
        sum[m][p] = fma(total, scale, sum[m][p]);
      }
      if (w.has_min) {
        const F8 minimum = load_8(block + p * panel_bytes + scale_bytes, w.type);
        QUIRE_UNROLL
        for (int m = 0; m < Rows; ++m) sum[m][p] = fma(minimum, set1(x.sums[g * Rows + m]), sum[m][p]);
      }
    }
  }
  QUIRE_UNROLL
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) store_lanes(out + m * w.n + first, sum[m][p], w.n - first);
  }
}

constexpr int direct_panels(int rows) { return rows == 2 ? 4 : 2; }

template <int Bits, int Rows>
void grouped_direct_range(const Weight& w, int64_t begin, int64_t end, const DirectInputs& x, const float* bias, float* out) {
  constexpr int kPanels = direct_panels(Rows);
  int64_t panel = begin;
  for (; panel + kPanels <= end; panel += kPanels) grouped_direct<Bits, Rows, kPanels>(w, panel, x, bias, out);
  for (; panel < end; ++panel) grouped_direct<Bits, Rows, 1>(w, panel, x, bias, out);
}

template <int Bits>
void grouped_direct_rows(int rows, const Weight& w, int64_t begin, int64_t end, const DirectInputs& x, const float* bias,
                         float* out) {
  static_assert(kDirectHeight == 5);
  switch (rows) {
    case 1: return grouped_direct_range<Bits, 1>(w, begin, end, x, bias, out);
    case 2: return grouped_direct_range<Bits, 2>(w, begin, end, x, bias, out);
    case 3: return grouped_direct_range<Bits, 3>(w, begin, end, x, bias, out);
    case 4: return grouped_direct_range<Bits, 4>(w, begin, end, x, bias, out);
    default: return grouped_direct_range<Bits, 5>(w, begin, end, x, bias, out);
  }
}

// Fills the inputs of a tile of ``rows`` rows from ``x`` on.
void direct_inputs(const Weight& w, const float* x, int64_t rows, float* values, float* sums) {
  for (int64_t m = 0; m < rows; ++m) {
    const float* row = x + m * w.k;
    for (int64_t k = 0; k < w.k; k += 8) {
      for (int i = 0; i < 8; ++i) values[(k + i) * rows + m] = w.bits == 4 ? row[k + i] * kNibbleScale[i] : row[k + i];
    }
    if (!w.has_min) continue;
    for (int64_t g = 0; g < w.groups(); ++g) {
      F8 total = zero();
      for (int k = 0; k < w.group; k += 8) total = add(total, load(row + g * w.group + k));
      sums[g * rows + m] = sum_lanes(total);
    }
  }
}

template <int Bits>
void linear_direct(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  const Tiles tiles(rows, kDirectHeight);
  const int64_t groups = w.has_min ? w.groups() : 0;
  Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, rows * (w.k + groups) * 4 + 128))};
  float* values = arena.take<float>(rows * w.k);
  float* sums = arena.take<float>(rows * groups);
  parallel(pool, tiles.count, [&](int64_t t, int) {
    const int64_t row = tiles.start(t);
    direct_inputs(w, x + row * w.k, tiles.height(t), values + row * w.k, sums + row * groups);
  });
  const int64_t panels = w.panels(), together = direct_panels(tiles.height(0));
  const int64_t a_task = ((kDirectTaskBytes + w.panel_bytes() - 1) / w.panel_bytes() + together - 1) / together * together;
  parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
    const int64_t begin = task * a_task, end = begin + a_task < panels ? begin + a_task : panels;
    for (int64_t t = 0; t < tiles.count; ++t) {  // the task's weights stay in L1
      const int64_t row = tiles.start(t);
      const DirectInputs inputs{values + row * w.k, sums + row * groups};
      grouped_direct_rows<Bits>(tiles.height(t), w, begin, end, inputs, bias, out + row * w.n);
    }
  });
}

template <int I>
QUIRE_INLINE void unpack_nibbles(I8 packed, const F8 (&scales)[8], F8 minimum, float* out) {
  if constexpr (I < 8) {
    store(out + I * 16, fma(nibble<I>(packed), scales[I], minimum));
    unpack_nibbles<I + 1>(packed, scales, minimum, out);
  }
}

// Inputs k .. k + count of one panel as floats: 8 outputs at the start of each 16 of ``out``.
template <int Bits>
void unpack_panel(const Weight& w, int64_t panel, int64_t k, int64_t count, float* out) {
  const uint8_t* block = w.data + panel * w.panel_bytes() + k / w.group * w.block_bytes();
  for (int64_t g = 0; g < count / w.group; ++g, block += w.block_bytes()) {
    const F8 scale = load_8(block, w.type);
    const F8 minimum = w.has_min ? load_8(block + 8 * bytes_of(w.type), w.type) : zero();
    const uint8_t* data = block + w.head_bytes();
    if constexpr (Bits == 4) {
      F8 scales[8];
      QUIRE_UNROLL
      for (int i = 0; i < 8; ++i) scales[i] = mul(scale, set1(kNibbleScale[i]));
      for (int i = 0; i < w.group; i += 8, data += 32, out += 128) unpack_nibbles<0>(load_ints(data), scales, minimum, out);
    } else {
      for (int i = 0; i < w.group; ++i, data += 8, out += 16) {
        store(out, fma(load(reinterpret_cast<const int8_t*>(data)), scale, minimum));
      }
    }
  }
}

template <int Bits>
void linear_grouped_bits(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  if (rows <= kDirectRows) return linear_direct<Bits>(pool, x, rows, w, bias, out);
  linear_tiled(pool, x, rows, w, bias, out, w.group, [&](int64_t first) {
    return [&w, panel = first / 8](int64_t k, int64_t count, float* block) {
      unpack_panel<Bits>(w, panel, k, count, block);
      if (panel + 1 < w.panels()) return unpack_panel<Bits>(w, panel + 1, k, count, block + 8);
      for (int64_t i = 0; i < count; ++i) store(block + i * 16 + 8, zero());
    };
  });
}

void linear_grouped(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  (w.bits == 4 ? linear_grouped_bits<4> : linear_grouped_bits<8>)(pool, x, rows, w, bias, out);
}

void embed_grouped_row(const Weight& w, int64_t row, float multiplier, float* out) {
  const uint8_t* block = w.data + row / 8 * w.panel_bytes();
  const int64_t lane = row % 8, size = bytes_of(w.type);
  for (int64_t g = 0; g < w.groups(); ++g, block += w.block_bytes(), out += w.group) {
    float heads[16];
    store(heads, load_8(block, w.type));
    store(heads + 8, w.has_min ? load_8(block + 8 * size, w.type) : zero());
    const float scale = heads[lane] * multiplier, minimum = heads[8 + lane] * multiplier;
    const uint8_t* data = block + w.head_bytes();
    for (int k = 0; k < w.group; ++k) {
      const int q = w.bits == 4 ? data[k / 8 * 32 + lane * 4 + k % 8 / 2] >> (k % 2 * 4) & 15
                                : static_cast<int8_t>(data[k * 8 + lane]);
      out[k] = scale * static_cast<float>(q) + minimum;
    }
  }
}
