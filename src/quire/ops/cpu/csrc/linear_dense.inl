// Products with dense weights in float32 arithmetic: panels of 16 outputs.

// The interleaved inputs ``a`` of a few rows against one panel in the weight's type. Several sums over k hide the latency
// of fma.
template <int Rows, typename T>
void dense_direct(const Weight& w, int64_t panel, const float* a, const float* bias, float* out, int64_t stride) {
  constexpr int kSums = Rows == 1 ? 4 : Rows == 2 ? 2 : 1;
  const T* b = reinterpret_cast<const T*>(w.data) + panel * w.k * 16;
  Wide acc[kSums][Rows];
  QUIRE_UNROLL
  for (int s = 0; s < kSums; ++s) {
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) acc[s][m] = wide(0.0f);
  }
  int64_t k = 0;
  for (; k + kSums <= w.k; k += kSums, a += kSums * Rows, b += kSums * 16) {
    QUIRE_UNROLL
    for (int s = 0; s < kSums; ++s) {
      prefetch_ahead(b + s * 16);
      multiply_tile<Rows>(a + s * Rows, Rows, 1, b + s * 16, 16, 1, acc[s]);
    }
  }
  multiply_tile<Rows>(a, Rows, 1, b, 16, w.k - k, acc[0]);
  const int64_t first = panel * 16, left = w.n - first;
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    Wide sum = acc[0][m];
    QUIRE_UNROLL
    for (int s = 1; s < kSums; ++s) sum = add(sum, acc[s][m]);
    if (bias) sum = add(sum, load_wide_lanes(bias + first, left));
    store_lanes(out + m * stride + first, sum, left);
  }
}

template <typename T>
void linear_dense(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  const int64_t panels = w.panels();
  if (rows <= kDirectRows) {
    const Tiles tiles(rows, kDirectHeight);
    const float* values = interleaved(pool, x, w.k, tiles);
    const int64_t a_task = panels_a_task(pool, w, tiles, 1);
    parallel(pool, (panels + a_task - 1) / a_task, [&](int64_t task, int) {
      const int64_t end = (task + 1) * a_task < panels ? (task + 1) * a_task : panels;
      for (int64_t t = 0; t < tiles.count; ++t) {  // the task's weights stay in L1
        const int64_t row = tiles.start(t);
        with_rows<kDirectHeight>(tiles.height(t), [&](auto height) {
          for (int64_t p = task * a_task; p < end; ++p) {
            dense_direct<height, T>(w, p, values + row * w.k, bias, out + row * stride, stride);
          }
        });
      }
    });
    return;
  }
  linear_tiled(pool, x, rows, w, bias, out, stride, 1, [&](int64_t first) {
    return [source = reinterpret_cast<const T*>(w.data) + first * w.k](int64_t k, int64_t count, float* block) {
      for (int64_t i = 0; i < count * 16; i += 16) store(block + i, load_wide(source + k * 16 + i));
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

// ``out`` rows are ``stride`` apart. ``Dot``: with the processor's products of bytes.
template <bool Dot>
void linear(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride) {
  if (rows <= 0) return;
  const Wanted inputs = as_wanted(pool, x, rows, w);
  if (!w.dense()) return linear_grouped<Dot>(pool, inputs, rows, w, bias, out, stride);
  switch (w.type) {
    case Type::f16: return linear_dense<f16>(pool, inputs.x, rows, w, bias, out, stride);
    case Type::bf16: return linear_dense<bf16>(pool, inputs.x, rows, w, bias, out, stride);
    default: return linear_dense<float>(pool, inputs.x, rows, w, bias, out, stride);
  }
}

void embed_row(const Weight& w, int64_t row, float multiplier, float* out) {
  if (!w.dense()) {
    return with_code(w.code, [&](auto code) { embed_code<code>(w, row, multiplier, out); });
  }
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
