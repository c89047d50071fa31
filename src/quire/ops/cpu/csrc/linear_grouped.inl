// Products with grouped-integer weights: int16 x int16 pairs summed in int32 within a group, groups summed in float.

QUIRE_INLINE F8 load_8(const uint8_t* p, Type type) {
  return type == Type::f32 ? load(reinterpret_cast<const float*>(p)) : load(reinterpret_cast<const f16*>(p));
}

// Vector i of the ones that packed vector ``v`` holds: words (output, parity) of inputs 2i and 2i + 1.
template <int Bits, int I>
QUIRE_INLINE W16 unpacked(W16 v) {
  if constexpr (Bits == 4) {
    if constexpr (I == 0) return low_nibble(v);
    if constexpr (I == 3) return shift_right<12>(v);
    return low_nibble(shift_right<4 * I>(v));
  } else {
    return shift_right_signed<8>(I == 0 ? shift_left<8>(v) : v);
  }
}

template <int Bits, int I, int Rows, int Panels>
QUIRE_INLINE void multiply_packed(const W16 (&packed)[Panels], const int32_t* a, I8 (&acc)[Rows][Panels]) {
  if constexpr (I < 16 / Bits) {
    W16 w[Panels];
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) w[p] = unpacked<Bits, I>(packed[p]);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const W16 pair = broadcast_pair(a + I * Rows + m);
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) acc[m][p] = add_pairs(acc[m][p], pair, w[p]);
    }
    multiply_packed<Bits, I + 1, Rows, Panels>(packed, a, acc);
  }
}

QUIRE_INLINE void store_lanes(float* out, F8 x, int64_t count) {
  if (count >= 8) {
    store(out, x);
  } else {
    float lanes[8];
    store(lanes, x);
    for (int64_t i = 0; i < count; ++i) out[i] = lanes[i];
  }
}

QUIRE_INLINE F8 load_lanes(const float* in, int64_t count) {
  if (count >= 8) return load(in);
  float lanes[8] = {};
  for (int64_t i = 0; i < count; ++i) lanes[i] = in[i];
  return load(lanes);
}

// Few rows: weights go from memory to registers, unpacked on the way.
template <int Bits, int Rows, int Panels>
void grouped_direct(const Weight& w, int64_t panel, const Quantized& x, const float* bias, float* out) {
  const uint8_t* block = w.data + panel * w.panel_bytes();
  const int64_t panel_bytes = w.panel_bytes(), block_bytes = w.block_bytes(), head = w.head_bytes();
  const int64_t scale_bytes = 8 * bytes_of(w.type), groups = w.groups();
  const int vectors = w.group * Bits / 32;
  const int32_t* a = x.pairs;
  const float* scales = x.scales;
  F8 sum[Rows][Panels];
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    for (int m = 0; m < Rows; ++m) sum[m][p] = bias ? load_lanes(bias + first, w.n - first) : zero();
  }
  for (int64_t g = 0; g < groups; ++g, block += block_bytes, scales += 2 * Rows) {
    I8 acc[Rows][Panels];
    for (int m = 0; m < Rows; ++m) {
      for (int p = 0; p < Panels; ++p) acc[m][p] = zero_int();
    }
    const uint8_t* data = block + head;
    for (int v = 0; v < vectors; ++v, data += 32, a += 16 / Bits * Rows) {
      W16 packed[Panels];
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) {
        packed[p] = load_words(data + p * panel_bytes);
        if (v % 2 == 0) __builtin_prefetch(data + p * panel_bytes + 1024);
      }
      multiply_packed<Bits, 0, Rows, Panels>(packed, a, acc);
    }
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) {
      const F8 scale = load_8(block + p * panel_bytes, w.type);
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) sum[m][p] = fma(to_float(acc[m][p]), mul(scale, set1(scales[m])), sum[m][p]);
      if (w.has_min) {
        const F8 minimum = load_8(block + p * panel_bytes + scale_bytes, w.type);
        QUIRE_UNROLL
        for (int m = 0; m < Rows; ++m) sum[m][p] = fma(minimum, set1(scales[Rows + m]), sum[m][p]);
      }
    }
  }
  for (int p = 0; p < Panels; ++p) {
    const int64_t first = (panel + p) * 8;
    for (int m = 0; m < Rows; ++m) store_lanes(out + m * w.n + first, sum[m][p], w.n - first);
  }
}

template <int Bits, int Rows>
void grouped_direct_range(const Weight& w, int64_t begin, int64_t end, const Quantized& x, const float* bias, float* out) {
  int64_t panel = begin;
  if constexpr (Rows >= 2) {
    for (; panel + 2 <= end; panel += 2) grouped_direct<Bits, Rows, 2>(w, panel, x, bias, out);
  }
  for (; panel < end; ++panel) grouped_direct<Bits, Rows, 1>(w, panel, x, bias, out);
}

template <int Bits>
void grouped_direct_rows(int rows, const Weight& w, int64_t begin, int64_t end, const Quantized& x, const float* bias,
                         float* out) {
  static_assert(kTileRows == 6);
  switch (rows) {
    case 1: return grouped_direct_range<Bits, 1>(w, begin, end, x, bias, out);
    case 2: return grouped_direct_range<Bits, 2>(w, begin, end, x, bias, out);
    case 3: return grouped_direct_range<Bits, 3>(w, begin, end, x, bias, out);
    case 4: return grouped_direct_range<Bits, 4>(w, begin, end, x, bias, out);
    case 5: return grouped_direct_range<Bits, 5>(w, begin, end, x, bias, out);
    default: return grouped_direct_range<Bits, 6>(w, begin, end, x, bias, out);
  }
}

// Many rows: a block of the weights of two panels is unpacked once, into L1, and used for all tiles of rows.
struct Unpacked {
  int16_t* words;   // [K / 2][Panels][16]
  float* scales;    // [groups][Panels][8]
  float* minimums;  // the same, or null
  int64_t groups;
  int group;
};

template <int Bits, int I>
QUIRE_INLINE void store_unpacked(W16 packed, int16_t* out, int64_t stride) {
  if constexpr (I < 16 / Bits) {
    store_words(out + I * stride, unpacked<Bits, I>(packed));
    store_unpacked<Bits, I + 1>(packed, out, stride);
  }
}

template <int Bits>
void unpack_panel(const Weight& w, int64_t panel, int64_t first_group, const Unpacked& out, int p, int panels) {
  const uint8_t* block = w.data + panel * w.panel_bytes() + first_group * w.block_bytes();
  int16_t* words = out.words + p * 16;
  const int64_t stride = panels * 16;
  for (int64_t g = 0; g < out.groups; ++g, block += w.block_bytes()) {
    store(out.scales + (g * panels + p) * 8, load_8(block, w.type));
    if (w.has_min) store(out.minimums + (g * panels + p) * 8, load_8(block + 8 * bytes_of(w.type), w.type));
    const uint8_t* data = block + w.head_bytes();
    for (int v = 0; v < w.group * Bits / 32; ++v, data += 32, words += 16 / Bits * stride) {
      store_unpacked<Bits, 0>(load_words(data), words, stride);
    }
  }
}

// sums [Rows][Panels * 8] += tile of x times the unpacked block.
template <int Rows, int Panels, bool Min>
void grouped_tile(const Unpacked& w, const int32_t* a, const float* scales, float* sums) {
  const int16_t* words = w.words;
  const float* scale = w.scales;
  const float* minimum = w.minimums;
  for (int64_t g = 0; g < w.groups; ++g, scales += 2 * Rows, scale += Panels * 8) {
    I8 acc[Rows][Panels];
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      QUIRE_UNROLL
      for (int p = 0; p < Panels; ++p) acc[m][p] = zero_int();
    }
    for (int chunk = 0; chunk < w.group / 16; ++chunk, words += 8 * Panels * 16, a += 8 * Rows) {
      QUIRE_UNROLL
      for (int i = 0; i < 8; ++i) {
        W16 v[Panels];
        QUIRE_UNROLL
        for (int p = 0; p < Panels; ++p) v[p] = load_words(words + (i * Panels + p) * 16);
        QUIRE_UNROLL
        for (int m = 0; m < Rows; ++m) {
          const W16 pair = broadcast_pair(a + i * Rows + m);
          QUIRE_UNROLL
          for (int p = 0; p < Panels; ++p) acc[m][p] = add_pairs(acc[m][p], pair, v[p]);
        }
      }
    }
    QUIRE_UNROLL
    for (int p = 0; p < Panels; ++p) {
      const F8 factor = load(scale + p * 8);
      const F8 offset = Min ? load(minimum + p * 8) : zero();
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) {
        float* sum = sums + (m * Panels + p) * 8;
        F8 s = fma(to_float(acc[m][p]), mul(factor, set1(scales[m])), load(sum));
        if constexpr (Min) s = fma(offset, set1(scales[Rows + m]), s);
        store(sum, s);
      }
    }
    if constexpr (Min) minimum += Panels * 8;
    __asm__ volatile("" ::: "memory");  // sums stay in memory: held over the loop they would cost spills
  }
}

using GroupedTile = void (*)(const Unpacked&, const int32_t*, const float*, float*);

template <int Panels, bool Min>
GroupedTile grouped_tile_of(int rows) {
  constexpr GroupedTile kTiles[kTileRows] = {grouped_tile<1, Panels, Min>, grouped_tile<2, Panels, Min>,
                                             grouped_tile<3, Panels, Min>, grouped_tile<4, Panels, Min>,
                                             grouped_tile<5, Panels, Min>, grouped_tile<6, Panels, Min>};
  return kTiles[rows - 1];
}

// Bump allocator over a thread's scratch; every piece is aligned to 64 bytes.
struct Arena {
  uint8_t* next;

  template <typename T>
  T* take(int64_t count) {
    T* p = reinterpret_cast<T*>(next);
    next += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return p;
  }
};

constexpr int64_t kUnpackedInputs = 640;  // inputs unpacked at a time: 2 panels x 640 x 8 x int16 = 20 KiB

template <int Bits, int Panels>
void grouped_columns(Pool& pool, int thread, const Weight& w, int64_t panel, const Quantized& x, const Tiles& tiles,
                     const float* bias, float* out) {
  constexpr int kWidth = Panels * 8;
  const int64_t steps = (w.k + kUnpackedInputs - 1) / kUnpackedInputs;
  const int64_t groups_a_step = (w.groups() + steps - 1) / steps;
  const int64_t floats = tiles.rows * kWidth + 2 * groups_a_step * kWidth;
  Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, floats * 4 + groups_a_step * w.group * kWidth * 2 + 256))};
  float* sums = arena.take<float>(tiles.rows * kWidth);
  Unpacked block{arena.take<int16_t>(groups_a_step * w.group * kWidth), arena.take<float>(groups_a_step * kWidth),
                 w.has_min ? arena.take<float>(groups_a_step * kWidth) : nullptr, 0, w.group};
  const int64_t first = panel * 8, width = w.n - first < kWidth ? w.n - first : kWidth;
  for (int64_t i = 0; i < kWidth; ++i) sums[i] = bias && i < width ? bias[first + i] : 0.0f;
  for (int64_t m = 1; m < tiles.rows; ++m) memcpy(sums + m * kWidth, sums, kWidth * 4);

  for (int64_t g = 0; g < w.groups(); g += groups_a_step) {
    block.groups = w.groups() - g < groups_a_step ? w.groups() - g : groups_a_step;
    for (int p = 0; p < Panels; ++p) unpack_panel<Bits>(w, panel + p, g, block, p, Panels);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t row = tiles.start(t);
      const int height = tiles.height(t);
      const auto multiply = w.has_min ? grouped_tile_of<Panels, true>(height) : grouped_tile_of<Panels, false>(height);
      multiply(block, x.pairs_of(row) + g * (w.group / 2) * height, x.scales_of(row) + g * 2 * height, sums + row * kWidth);
    }
  }
  for (int64_t m = 0; m < tiles.rows; ++m) memcpy(out + m * w.n + first, sums + m * kWidth, width * 4);
}

constexpr int64_t kRowBlockBytes = 384 * 1024;  // of quantised inputs: they stay in L2 while the weights stream by
constexpr int64_t kMinRowBlock = 48;
constexpr int64_t kDirectTaskBytes = 12 * 1024;  // of weights: large enough to hide the hand-out of tasks

template <int Bits>
void linear_grouped_bits(Pool& pool, const Weight& w, const Quantized& x, int64_t rows, const float* bias, float* out) {
  const int64_t panels = w.panels();
  if (rows <= kTileRows) {
    int64_t a_task = (kDirectTaskBytes + w.panel_bytes() - 1) / w.panel_bytes();
    a_task = (a_task + 1) / 2 * 2;
    parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
      const int64_t begin = task * a_task, end = begin + a_task < panels ? begin + a_task : panels;
      grouped_direct_rows<Bits>(static_cast<int>(rows), w, begin, end, x, bias, out);
    });
    return;
  }
  const Tiles tiles(rows);
  parallel(pool, (panels + 1) / 2, [&](int64_t task, int thread) {
    if (task * 2 + 1 < panels) {
      grouped_columns<Bits, 2>(pool, thread, w, task * 2, x, tiles, bias, out);
    } else {
      grouped_columns<Bits, 1>(pool, thread, w, task * 2, x, tiles, bias, out);
    }
  });
}

void linear_grouped(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  int64_t block = kRowBlockBytes / (2 * w.k);
  block = (block > kMinRowBlock ? block : kMinRowBlock) / kTileRows * kTileRows;
  const int64_t blocks = (rows + block - 1) / block;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t begin = rows * b / blocks, count = rows * (b + 1) / blocks - begin;
    const int64_t pairs = Quantized::pair_count(count, w.k), scales = Quantized::scale_count(count, w.k, w.group);
    Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, pairs * 4 + scales * 4 + 128))};
    const Quantized quantized{arena.take<int32_t>(pairs), arena.take<float>(scales), w.k, w.group};
    const Tiles tiles(count);
    const float* source = x + begin * w.k;
    const auto quantize = [&](int64_t t, int) { quantize_tile(source, tiles.start(t), tiles.height(t), quantized); };
    if (tiles.count <= 2) {
      for (int64_t t = 0; t < tiles.count; ++t) quantize(t, 0);
    } else {
      parallel(pool, tiles.count, quantize);
    }
    (w.bits == 4 ? linear_grouped_bits<4> : linear_grouped_bits<8>)(pool, w, quantized, count, bias, out + begin * w.n);
  }
}

void embed_grouped_row(const Weight& w, int64_t row, float multiplier, float* out) {
  const uint8_t* block = w.data + row / 8 * w.panel_bytes();
  const int64_t lane = row % 8, size = bytes_of(w.type);
  for (int64_t g = 0; g < w.groups(); ++g, block += w.block_bytes(), out += w.group) {
    float heads[16];
    store(heads, load_8(block, w.type));
    store(heads + 8, w.has_min ? load_8(block + 8 * size, w.type) : zero());
    const float scale = heads[lane] * multiplier, minimum = heads[8 + lane] * multiplier;
    const uint8_t* data = block + w.head_bytes() + lane * 4;
    for (int k = 0; k < w.group; ++k) {
      float q;
      if (w.bits == 4) {
        const uint8_t byte = data[k / 8 * 32 + k % 2 * 2 + k % 8 / 4];
        q = static_cast<float>(k % 4 / 2 ? byte >> 4 : byte & 15);
      } else {
        q = static_cast<float>(static_cast<int8_t>(data[k / 4 * 32 + k % 2 * 2 + k % 4 / 2]));
      }
      out[k] = scale * q + minimum;
    }
  }
}
