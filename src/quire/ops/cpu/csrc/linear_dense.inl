// Products with dense weights in float32 arithmetic: panels of 16 outputs, 6 rows at a time.

template <int Rows>
QUIRE_INLINE void zero_tile(F8 (&acc)[Rows][2]) {
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) acc[m][0] = acc[m][1] = zero();
}

// acc += a [Rows rows, ``a_stride`` apart, count] x b [count][16, rows ``b_stride`` apart].
template <int Rows, typename T>
QUIRE_INLINE void multiply_tile(const float* a, int64_t a_stride, const T* b, int64_t b_stride, int64_t count,
                                F8 (&acc)[Rows][2]) {
  for (int64_t k = 0; k < count; ++k, b += b_stride) {
    const F8 b0 = load(b), b1 = load(b + 8);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) {
      const F8 v = set1(a[m * a_stride + k]);
      acc[m][0] = fma(v, b0, acc[m][0]);
      acc[m][1] = fma(v, b1, acc[m][1]);
    }
  }
}

// A few rows against one panel in the weight's type. Several sums over k hide the latency of fma.
template <int Rows, typename T>
void dense_direct(const Weight& w, int64_t panel, const float* x, const float* bias, float* out) {
  constexpr int kSums = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  const T* b = reinterpret_cast<const T*>(w.data) + panel * w.k * 16;
  F8 acc[kSums][Rows][2];
  for (int s = 0; s < kSums; ++s) zero_tile<Rows>(acc[s]);
  int64_t k = 0;
  for (; k + kSums <= w.k; k += kSums, b += kSums * 16) {
    QUIRE_UNROLL
    for (int s = 0; s < kSums; ++s) {
      __builtin_prefetch(reinterpret_cast<const uint8_t*>(b + s * 16) + 1024);
      multiply_tile<Rows>(x + k + s, w.k, b + s * 16, 16, 1, acc[s]);
    }
  }
  multiply_tile<Rows>(x + k, w.k, b, 16, w.k - k, acc[0]);
  for (int m = 0; m < Rows; ++m) {
    for (int p = 0; p < 2; ++p) {
      F8 sum = acc[0][m][p];
      for (int s = 1; s < kSums; ++s) sum = add(sum, acc[s][m][p]);
      const int64_t first = panel * 16 + p * 8, left = w.n - first;
      if (left <= 0) continue;
      if (bias) sum = add(sum, load_lanes(bias + first, left));
      store_lanes(out + m * w.n + first, sum, left);
    }
  }
}

// c [Rows][16] += a x b, where ``c`` rows are ``c_stride`` apart.
template <int Rows>
void dense_tile(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count, float* c,
                int64_t c_stride) {
  F8 acc[Rows][2];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    acc[m][0] = load(c + m * c_stride);
    acc[m][1] = load(c + m * c_stride + 8);
  }
  multiply_tile<Rows>(a, a_stride, b, b_stride, count, acc);
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    store(c + m * c_stride, acc[m][0]);
    store(c + m * c_stride + 8, acc[m][1]);
  }
}

void dense_tile_rows(int rows, const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t count, float* c,
                     int64_t c_stride) {
  switch (rows) {
    case 1: return dense_tile<1>(a, a_stride, b, b_stride, count, c, c_stride);
    case 2: return dense_tile<2>(a, a_stride, b, b_stride, count, c, c_stride);
    case 3: return dense_tile<3>(a, a_stride, b, b_stride, count, c, c_stride);
    case 4: return dense_tile<4>(a, a_stride, b, b_stride, count, c, c_stride);
    case 5: return dense_tile<5>(a, a_stride, b, b_stride, count, c, c_stride);
    default: return dense_tile<6>(a, a_stride, b, b_stride, count, c, c_stride);
  }
}

template <typename T>
void dense_direct_rows(int rows, const Weight& w, int64_t panel, const float* x, const float* bias, float* out) {
  switch (rows) {
    case 1: return dense_direct<1, T>(w, panel, x, bias, out);
    case 2: return dense_direct<2, T>(w, panel, x, bias, out);
    case 3: return dense_direct<3, T>(w, panel, x, bias, out);
    case 4: return dense_direct<4, T>(w, panel, x, bias, out);
    case 5: return dense_direct<5, T>(w, panel, x, bias, out);
    default: return dense_direct<6, T>(w, panel, x, bias, out);
  }
}

constexpr int64_t kDenseInputs = 320;  // inputs of a panel at a time: 320 x 16 x float = 20 KiB

template <typename T>
void dense_columns(Pool& pool, int thread, const Weight& w, int64_t panel, const float* x, const Tiles& tiles,
                   const float* bias, float* out) {
  const T* source = reinterpret_cast<const T*>(w.data) + panel * w.k * 16;
  const int64_t steps = (w.k + kDenseInputs - 1) / kDenseInputs, inputs = (w.k + steps - 1) / steps;
  Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, (tiles.rows + inputs) * 64 + 128))};
  float* sums = arena.take<float>(tiles.rows * 16);
  float* block = arena.take<float>(inputs * 16);
  const int64_t first = panel * 16, width = w.n - first < 16 ? w.n - first : 16;
  for (int64_t i = 0; i < 16; ++i) sums[i] = bias && i < width ? bias[first + i] : 0.0f;
  for (int64_t m = 1; m < tiles.rows; ++m) memcpy(sums + m * 16, sums, 64);
  for (int64_t k = 0; k < w.k; k += inputs) {
    const int64_t count = w.k - k < inputs ? w.k - k : inputs;
    for (int64_t i = 0; i < count * 16; i += 8) store(block + i, load(source + k * 16 + i));
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t row = tiles.start(t);
      dense_tile_rows(tiles.height(t), x + row * w.k + k, w.k, block, 16, count, sums + row * 16, 16);
    }
  }
  for (int64_t m = 0; m < tiles.rows; ++m) memcpy(out + m * w.n + first, sums + m * 16, width * 4);
}

template <typename T>
void linear_dense(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  const int64_t panels = w.panels();
  if (rows <= kTileRows) {
    const int64_t a_task = (kDirectTaskBytes + w.panel_bytes() - 1) / w.panel_bytes();
    parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
      const int64_t end = (task + 1) * a_task < panels ? (task + 1) * a_task : panels;
      for (int64_t p = task * a_task; p < end; ++p) dense_direct_rows<T>(static_cast<int>(rows), w, p, x, bias, out);
    });
    return;
  }
  int64_t block = kRowBlockBytes / (4 * w.k);
  block = (block > kMinRowBlock ? block : kMinRowBlock) / kTileRows * kTileRows;
  const int64_t blocks = (rows + block - 1) / block;
  parallel(pool, blocks * panels, [&](int64_t task, int thread) {
    const int64_t b = task / panels, begin = rows * b / blocks;
    const Tiles tiles(rows * (b + 1) / blocks - begin);
    dense_columns<T>(pool, thread, w, task % panels, x + begin * w.k, tiles, bias, out + begin * w.n);
  });
}

template <typename T>
void embed_dense_row(const Weight& w, int64_t row, float multiplier, float* out) {
  const T* source = reinterpret_cast<const T*>(w.data) + row / 16 * w.k * 16 + row % 16 / 8 * 8;
  for (int64_t k = 0; k < w.k; ++k) {
    float lanes[8];
    store(lanes, load(source + k * 16));
    out[k] = lanes[row % 8] * multiplier;
  }
}

void linear(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out) {
  if (rows <= 0) return;
  if (!w.dense()) return linear_grouped(pool, x, rows, w, bias, out);
  switch (w.type) {
    case Type::f32: return linear_dense<float>(pool, x, rows, w, bias, out);
    case Type::f16: return linear_dense<f16>(pool, x, rows, w, bias, out);
    case Type::bf16: return linear_dense<bf16>(pool, x, rows, w, bias, out);
  }
}

void embed(Pool& pool, const Weight& w, const int64_t* ids, int64_t count, float multiplier, float* out) {
  constexpr int64_t kRowsATask = 8;
  parallel(pool, (count + kRowsATask - 1) / kRowsATask, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRowsATask < count ? (task + 1) * kRowsATask : count;
    for (int64_t i = task * kRowsATask; i < end; ++i) {
      float* row = out + i * w.k;
      if (!w.dense()) {
        embed_grouped_row(w, ids[i], multiplier, row);
      } else if (w.type == Type::f32) {
        embed_dense_row<float>(w, ids[i], multiplier, row);
      } else if (w.type == Type::f16) {
        embed_dense_row<f16>(w, ids[i], multiplier, row);
      } else {
        embed_dense_row<bf16>(w, ids[i], multiplier, row);
      }
    }
  });
}
