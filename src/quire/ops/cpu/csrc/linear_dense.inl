// Products with dense weights in float32 arithmetic: panels of 16 outputs, 6 rows at a time.

// A few rows against one panel in the weight's type. Several sums over k hide the latency of fma.
template <int Rows, typename T>
void dense_direct(const Weight& w, int64_t panel, const float* x, const float* bias, float* out, int64_t stride) {
  constexpr int kSums = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  const T* b = reinterpret_cast<const T*>(w.data) + panel * w.k * 16;
  F8 acc[kSums][Rows][2];
  QUIRE_UNROLL
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
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    QUIRE_UNROLL
    for (int p = 0; p < 2; ++p) {
      F8 sum = acc[0][m][p];
      QUIRE_UNROLL
      for (int s = 1; s < kSums; ++s) sum = add(sum, acc[s][m][p]);
      const int64_t first = panel * 16 + p * 8, left = w.n - first;
      if (left <= 0) continue;
      if (bias) sum = add(sum, load_lanes(bias + first, left));
      store_lanes(out + m * stride + first, sum, left);
    }
  }
}

template <typename T>
void dense_direct_rows(int rows, const Weight& w, int64_t panel, const float* x, const float* bias, float* out,
                       int64_t stride) {
  switch (rows) {
    case 1: return dense_direct<1, T>(w, panel, x, bias, out, stride);
    case 2: return dense_direct<2, T>(w, panel, x, bias, out, stride);
    case 3: return dense_direct<3, T>(w, panel, x, bias, out, stride);
    case 4: return dense_direct<4, T>(w, panel, x, bias, out, stride);
    case 5: return dense_direct<5, T>(w, panel, x, bias, out, stride);
    default: return dense_direct<6, T>(w, panel, x, bias, out, stride);
  }
}

template <typename T>
void linear_dense(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  const int64_t panels = w.panels();
  if (rows <= kTileRows) {
    const int64_t a_task = (kDirectTaskBytes + w.panel_bytes() - 1) / w.panel_bytes();
    parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
      const int64_t end = (task + 1) * a_task < panels ? (task + 1) * a_task : panels;
      for (int64_t p = task * a_task; p < end; ++p) {
        dense_direct_rows<T>(static_cast<int>(rows), w, p, x, bias, out, stride);
      }
    });
    return;
  }
  linear_tiled(pool, x, rows, w, bias, out, stride, 1, [&](int64_t first) {
    return [source = reinterpret_cast<const T*>(w.data) + first * w.k](int64_t k, int64_t count, float* block) {
      for (int64_t i = 0; i < count * 16; i += 8) store(block + i, load(source + k * 16 + i));
    };
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

// ``out`` rows are ``stride`` apart.
void linear(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  if (rows <= 0) return;
  x = as_wanted(pool, x, rows, w);
  if (!w.dense()) return grouped_kernels(w.code).linear(pool, x, rows, w, bias, out, stride);
  switch (w.type) {
    case Type::f16: return linear_dense<f16>(pool, x, rows, w, bias, out, stride);
    case Type::bf16: return linear_dense<bf16>(pool, x, rows, w, bias, out, stride);
    default: return linear_dense<float>(pool, x, rows, w, bias, out, stride);
  }
}

void embed_row(const Weight& w, int64_t row, float multiplier, float* out) {
  if (!w.dense()) return grouped_kernels(w.code).embed(w, row, multiplier, out);
  switch (w.type) {
    case Type::f16: return embed_dense_row<f16>(w, row, multiplier, out);
    case Type::bf16: return embed_dense_row<bf16>(w, row, multiplier, out);
    default: return embed_dense_row<float>(w, row, multiplier, out);
  }
}

void embed(Pool& pool, const Weight& w, const int64_t* ids, int64_t count, float multiplier, float* out) {
  constexpr int64_t kRowsATask = 8;
  parallel(pool, (count + kRowsATask - 1) / kRowsATask, [&](int64_t task, int) {
    const int64_t end = (task + 1) * kRowsATask < count ? (task + 1) * kRowsATask : count;
    for (int64_t i = task * kRowsATask; i < end; ++i) embed_row(w, ids[i], multiplier, out + i * w.k);
  });
}
