// Float32 products of a few rows with 16 outputs, and how many rows are cut into such tiles.

constexpr int kTileRows = 6;  // 6 rows x 2 vectors of sums, 2 of weights, 1 broadcast: 15 registers

// Rows are cut into tiles of at most ``highest``, as even as can be.
struct Tiles {
  int64_t rows, count;

  explicit Tiles(int64_t all_rows, int highest = kTileRows) : rows(all_rows), count((all_rows + highest - 1) / highest) {}
  int64_t start(int64_t tile) const { return tile * (rows / count) + (tile < rows % count ? tile : rows % count); }
  int height(int64_t tile) const { return static_cast<int>(start(tile + 1) - start(tile)); }
};

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
      accumulate(acc[m][0], v, b0);
      accumulate(acc[m][1], v, b1);
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

constexpr int64_t kBlockInputs = 320;            // inputs unpacked at a time: 320 x 16 x float = 20 KiB, which stays in L1
constexpr int64_t kRowBlockBytes = 384 * 1024;   // of inputs: they stay in L2 while the weights stream by
constexpr int64_t kMinRowBlock = 48;
constexpr int64_t kDirectTaskBytes = 12 * 1024;  // of weights: large enough to hide the hand-out of tasks

// All rows against 16 outputs from ``first`` on. ``unpack(k, count, block)`` writes floats [count][16] of those outputs.
template <typename Unpack>
void tiled_columns(Pool& pool, int thread, const Weight& w, int64_t first, int64_t step, const Tiles& tiles, const float* x,
                   const float* bias, float* out, int64_t stride, Unpack&& unpack) {
  Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, (tiles.rows + step) * 64 + 128))};
  float* sums = arena.take<float>(tiles.rows * 16);
  float* block = arena.take<float>(step * 16);
  const int64_t width = w.n - first < 16 ? w.n - first : 16;
  for (int64_t i = 0; i < 16; ++i) sums[i] = bias && i < width ? bias[first + i] : 0.0f;
  for (int64_t m = 1; m < tiles.rows; ++m) memcpy(sums + m * 16, sums, 64);
  for (int64_t k = 0; k < w.k; k += step) {
    const int64_t count = w.k - k < step ? w.k - k : step;
    unpack(k, count, block);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t row = tiles.start(t);
      dense_tile_rows(tiles.height(t), x + row * w.k + k, w.k, block, 16, count, sums + row * 16, 16);
    }
  }
  for (int64_t m = 0; m < tiles.rows; ++m) memcpy(out + m * stride + first, sums + m * 16, width * 4);
}

// Many rows: 16 outputs of the weights at a time are unpacked once for a block of rows. ``unpacker(first)`` gives the
// ``unpack`` of the outputs from ``first`` on; ``granule``: inputs that can only be unpacked together.
template <typename Unpacker>
void linear_tiled(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride,
                  int64_t granule, Unpacker&& unpacker) {
  const int64_t steps = (w.k + kBlockInputs - 1) / kBlockInputs;
  const int64_t step = ((w.k + steps - 1) / steps + granule - 1) / granule * granule;
  int64_t block = kRowBlockBytes / (4 * w.k);
  block = (block > kMinRowBlock ? block : kMinRowBlock) / kTileRows * kTileRows;
  const int64_t blocks = (rows + block - 1) / block, columns = (w.n + 15) / 16;
  parallel(pool, blocks * columns, [&](int64_t task, int thread) {
    const int64_t b = task / columns, begin = rows * b / blocks, first = task % columns * 16;
    const Tiles tiles(rows * (b + 1) / blocks - begin);
    tiled_columns(pool, thread, w, first, step, tiles, x + begin * w.k, bias, out + begin * stride, stride,
                  unpacker(first));
  });
}
