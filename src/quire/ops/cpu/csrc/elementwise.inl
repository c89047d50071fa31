// Norms, activations, and the pass that prepares queries, keys and values.

constexpr int64_t kElementsATask = 8192;

template <typename Body>
void parallel_rows(Pool& pool, int64_t rows, int64_t width, Body&& body) {
  const int64_t a_task = width < kElementsATask ? kElementsATask / width : 1;
  parallel(pool, (rows + a_task - 1) / a_task, [&](int64_t task, int) {
    const int64_t end = (task + 1) * a_task < rows ? (task + 1) * a_task : rows;
    for (int64_t row = task * a_task; row < end; ++row) body(row);
  });
}

// x * weight / sqrt(mean(x^2) + eps); ``out`` may be ``x``.
void normalize(const float* x, const float* weight, float eps, int64_t width, float* out) {
  F8 squares[2] = {zero(), zero()};
  int64_t i = 0;
  for (; i + 16 <= width; i += 16) {
    const F8 a = load(x + i), b = load(x + i + 8);
    squares[0] = fma(a, a, squares[0]);
    squares[1] = fma(b, b, squares[1]);
  }
  for (; i < width; i += 8) {
    const F8 a = load_lanes(x + i, width - i);
    squares[0] = fma(a, a, squares[0]);
  }
  const float mean = sum_lanes(add(squares[0], squares[1])) / static_cast<float>(width);
  const F8 factor = set1(1.0f / sqrtf(mean + eps));
  for (i = 0; i + 8 <= width; i += 8) store(out + i, mul(mul(load(x + i), factor), load(weight + i)));
  if (i < width) {
    const F8 tail = mul(mul(load_lanes(x + i, width - i), factor), load_lanes(weight + i, width - i));
    store_lanes(out + i, tail, width - i);
  }
}

// (x - mean(x)) * weight / sqrt(variance(x) + eps) + bias; ``bias`` may be null, ``out`` may be ``x``.
void center(const float* x, const float* weight, const float* bias, float eps, int64_t width, float* out) {
  F8 sums = zero();
  for (int64_t i = 0; i < width; i += 8) {
    sums = add(sums, i + 8 <= width ? load(x + i) : load_lanes(x + i, width - i));
  }
  const float mean = sum_lanes(sums) / static_cast<float>(width);
  F8 squares = zero();
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) {
    const F8 apart = sub(load(x + i), set1(mean));
    squares = fma(apart, apart, squares);
  }
  float rest = 0.0f;
  for (; i < width; ++i) rest += (x[i] - mean) * (x[i] - mean);
  const float factor = 1.0f / sqrtf((sum_lanes(squares) + rest) / static_cast<float>(width) + eps);
  for (i = 0; i + 8 <= width; i += 8) {
    const F8 scaled = mul(mul(sub(load(x + i), set1(mean)), set1(factor)), load(weight + i));
    store(out + i, bias ? add(scaled, load(bias + i)) : scaled);
  }
  for (; i < width; ++i) out[i] = (x[i] - mean) * factor * weight[i] + (bias ? bias[i] : 0.0f);
}

// x or, with a residual, residual += x.
const float* with_residual(const float* x, float* residual, int64_t width) {
  if (!residual) return x;
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) store(residual + i, add(load(residual + i), load(x + i)));
  for (; i < width; ++i) residual[i] += x[i];
  return residual;
}

void rms_norm(Pool& pool, const float* x, const float* weight, float eps, float* residual, int64_t rows, int64_t width,
              float* out) {
  parallel_rows(pool, rows, width, [&](int64_t row) {
    const float* source = with_residual(x + row * width, residual ? residual + row * width : nullptr, width);
    normalize(source, weight, eps, width, out + row * width);
  });
}

void layer_norm(Pool& pool, const float* x, const float* weight, const float* bias, float eps, float* residual,
                int64_t rows, int64_t width, float* out) {
  parallel_rows(pool, rows, width, [&](int64_t row) {
    const float* source = with_residual(x + row * width, residual ? residual + row * width : nullptr, width);
    center(source, weight, bias, eps, width, out + row * width);
  });
}

void norm_columns(Pool& pool, float* x, int64_t rows, int64_t stride, int64_t parts, int64_t width, const float* weight,
                  const float* bias, float eps, bool centered) {
  parallel_rows(pool, rows, parts * width, [&](int64_t row) {
    for (int64_t part = 0; part < parts; ++part) {
      float* at = x + row * stride + part * width;
      const float *own = weight + part * width, *added = bias ? bias + part * width : nullptr;
      if (centered) {
        center(at, own, added, eps, width, at);
      } else {
        normalize(at, own, eps, width, at);
      }
    }
  });
}

void add_rows(Pool& pool, const float* x, const float* table, const int32_t* index, int64_t rows, int64_t width,
              float* out) {
  parallel_rows(pool, rows, width, [&](int64_t row) {
    const float *a = x + row * width, *b = table + (index ? index[row] : row) * width;
    float* sum = out + row * width;
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) store(sum + i, add(load(a + i), load(b + i)));
    for (; i < width; ++i) sum[i] = a[i] + b[i];
  });
}

template <Activation A>
QUIRE_INLINE F8 activate(F8 x) {
  if constexpr (A == Activation::silu) return div(x, add(set1(1.0f), vexp(sub(zero(), x))));
  if constexpr (A == Activation::gelu) return mul(mul(set1(0.5f), x), erf_plus_1(mul(x, set1(0.70710678118654752f))));
  if constexpr (A == Activation::gelu_tanh) {
    const F8 cube = mul(mul(x, x), x);
    const F8 inner = mul(set1(0.79788456080286536f), fma(set1(0.044715f), cube, x));
    return mul(mul(set1(0.5f), x), add(set1(1.0f), vtanh(inner)));
  }
  const F8 positive = vmax(zero(), x);
  if constexpr (A == Activation::relu2) return mul(positive, positive);
  return positive;
}

template <Activation A>
QUIRE_INLINE F8 gated(F8 gate, F8 up) {
  if constexpr (A == Activation::swiglu_oss) {  // the values come second: NaN passes
    const F8 limit = set1(7.0f);
    gate = vmin(limit, gate);
    up = vmax(sub(zero(), limit), vmin(limit, up));
    const F8 sigmoid_inverse = add(set1(1.0f), vexp(mul(set1(-1.702f), gate)));
    return mul(div(gate, sigmoid_inverse), add(up, set1(1.0f)));
  } else {
    return mul(activate<A>(gate), up);
  }
}

template <Activation A>
void gate_up_row(const float* gate, const float* up, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) store(out + i, gated<A>(load(gate + i), load(up + i)));
  if (i < width) {
    store_lanes(out + i, gated<A>(load_lanes(gate + i, width - i), load_lanes(up + i, width - i)), width - i);
  }
}

void gate_up_act(Pool& pool, const float* x, int64_t rows, int64_t width, Activation activation, float* out) {
  using Row = void (*)(const float*, const float*, int64_t, float*);
  constexpr Row kRows[] = {gate_up_row<Activation::silu>, gate_up_row<Activation::gelu>,
                           gate_up_row<Activation::gelu_tanh>, gate_up_row<Activation::relu>,
                           gate_up_row<Activation::relu2>, gate_up_row<Activation::swiglu_oss>};
  const Row run = kRows[static_cast<int>(activation)];
  parallel_rows(pool, rows, 2 * width,
                [&](int64_t row) { run(x + row * 2 * width, x + (row * 2 + 1) * width, width, out + row * width); });
}

template <Activation A>
void activate_row(const float* x, int64_t width, float* out) {
  int64_t i = 0;
  for (; i + 8 <= width; i += 8) store(out + i, activate<A>(load(x + i)));
  if (i < width) store_lanes(out + i, activate<A>(load_lanes(x + i, width - i)), width - i);
}

void activate(Pool& pool, const float* x, int64_t rows, int64_t width, Activation activation, float* out) {
  using Row = void (*)(const float*, int64_t, float*);
  constexpr Row kRows[] = {activate_row<Activation::silu>, activate_row<Activation::gelu>,
                           activate_row<Activation::gelu_tanh>, activate_row<Activation::relu>,
                           activate_row<Activation::relu2>};
  const Row run = kRows[static_cast<int>(activation)];
  parallel_rows(pool, rows, width, [&](int64_t row) { run(x + row * width, width, out + row * width); });
}

void softcap(Pool& pool, float* x, int64_t count, float cap) {
  constexpr int64_t kBlock = 4096;
  parallel_rows(pool, (count + kBlock - 1) / kBlock, kBlock, [&](int64_t block) {
    float* at = x + block * kBlock;
    const int64_t width = count - block * kBlock < kBlock ? count - block * kBlock : kBlock;
    const F8 high = set1(cap), inverse = set1(1.0f / cap);
    int64_t i = 0;
    for (; i + 8 <= width; i += 8) store(at + i, mul(high, vtanh(mul(load(at + i), inverse))));
    if (i < width) store_lanes(at + i, mul(high, vtanh(mul(load_lanes(at + i, width - i), inverse))), width - i);
  });
}

void rotate_halves(float* x, const float* table, int64_t half) {
  const float *cosines = table, *sines = table + half;
  int64_t i = 0;
  for (; i + 8 <= half; i += 8) {
    const F8 a = load(x + i), b = load(x + half + i), c = load(cosines + i), s = load(sines + i);
    store(x + i, sub(mul(a, c), mul(b, s)));
    store(x + half + i, fma(b, c, mul(a, s)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cosines[i] - b * sines[i];
    x[half + i] = b * cosines[i] + a * sines[i];
  }
}

void rotate_pairs(float* x, const float* table, int64_t half) {
  const float *cosines = table, *sines = table + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = x[2 * i], b = x[2 * i + 1];
    x[2 * i] = a * cosines[i] - b * sines[i];
    x[2 * i + 1] = b * cosines[i] + a * sines[i];
  }
}

template <typename T>
void store_token(const float* k, const float* v, const PageTensors& pages, int64_t slot) {
  const int64_t dim = pages.head_dim, size = pages.page_size, at = slot % size, heads = pages.kv_heads;
  T* k_page = static_cast<T*>(pages.k) + slot / size * heads * dim * size + at;
  T* v_row = static_cast<T*>(pages.v) + (slot / size * heads * size + at) * dim;
  for (int64_t g = 0; g < heads; ++g, k_page += dim * size, v_row += size * dim) {
    for (int64_t d = 0; d < dim; d += 8) {
      T lanes[8];
      store(lanes, load(k + g * dim + d));
      for (int64_t i = 0; i < 8; ++i) k_page[(d + i) * size] = lanes[i];
      store(v_row + d, load(v + g * dim + d));
    }
  }
}

void store_kv(Pool& pool, const StoreArgs& a, const PageTensors& pages, const Step& step) {
  const int64_t dim = pages.head_dim, width = (a.heads + 2 * pages.kv_heads) * dim, half = a.rotary_dim / 2;
  const auto rotate = a.interleaved ? rotate_pairs : rotate_halves;
  parallel_rows(pool, step.tokens, 2 * width, [&](int64_t t) {
    float* q = a.qkv + t * width;
    float* k = q + a.heads * dim;
    const float* v = k + pages.kv_heads * dim;
    const float* table = a.cos_sin ? a.cos_sin + step.positions[t] * a.rotary_dim : nullptr;
    for (float* head = q; head < v; head += dim) {
      const float* norm = head < k ? a.q_norm : a.k_norm;
      if (norm) normalize(head, norm, a.eps, dim, head);
      if (table) rotate(head, table, half);
    }
    switch (pages.type) {
      case Type::f32: return store_token<float>(k, v, pages, step.slots[t]);
      case Type::f16: return store_token<f16>(k, v, pages, step.slots[t]);
      default: return store_token<bf16>(k, v, pages, step.slots[t]);
    }
  });
}
