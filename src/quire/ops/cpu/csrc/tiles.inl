// Float32 products of a few rows with 16 outputs, and how many rows are cut into such tiles.

#ifdef QUIRE_AVX512
constexpr int kTileRows = 24;       // 24 sums and the weights: 25 registers
constexpr bool kInterleave = true;  // so many rows are too many addresses
#else
constexpr int kTileRows = 6;  // 6 rows x 2 vectors of sums, 2 of weights, 1 broadcast: 15 registers
constexpr bool kInterleave = false;
#endif

// ``call`` with a constant, ``rows``, of 1 to Highest.
template <int Highest, int Rows = 1, typename Call>
QUIRE_INLINE void with_rows(int rows, Call&& call) {
  if constexpr (Rows == Highest) {
    call(std::integral_constant<int, Rows>());
  } else if (rows == Rows) {
    call(std::integral_constant<int, Rows>());
  } else {
    with_rows<Highest, Rows + 1>(rows, call);
  }
}

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

QUIRE_INLINE void store_lanes(float* out, Wide x, int64_t count) {
  if (count >= 16) return store(out, x);
  if (count > 0) store_lanes(out, low_half(x), count);
  if (count > 8) store_lanes(out + 8, high_half(x), count - 8);
}

QUIRE_INLINE Wide load_wide_lanes(const float* in, int64_t count) {
  if (count >= 16) return load_wide(in);
  return pair(load_lanes(in, count), count > 8 ? load_lanes(in + 8, count - 8) : zero());
}

// x [rows, width] as [width][rows], the order in which a tile multiplies.
void interleave(const float* x, int64_t rows, int64_t width, float* out) {
  constexpr int64_t kBlock = 64;  // inputs: what is written stays in L1 until all rows have come
  for (int64_t begin = 0; begin < width; begin += kBlock) {
    const int64_t end = begin + kBlock < width ? begin + kBlock : width;
    for (int64_t m = 0; m < rows; ++m) {
      for (int64_t k = begin; k < end; ++k) out[k * rows + m] = x[m * width + k];
    }
  }
}

// Weights of few rows are streams, many of them short, which the processor's own prefetching misses: L2 gets what is read
// some microseconds later.
constexpr int64_t kAhead = 12 * 1024;
QUIRE_INLINE void prefetch_ahead(const void* p) { __builtin_prefetch(static_cast<const uint8_t*>(p) + kAhead, 0, 1); }

// acc += a x b [count][16, rows ``b_stride`` apart]. Of ``a``, inputs lie ``next`` apart and rows ``row`` apart.
template <int Rows, typename T>
QUIRE_INLINE void multiply_tile(const float* a, int64_t next, int64_t row, const T* b, int64_t b_stride, int64_t count,
                                Wide (&acc)[Rows]) {
  for (int64_t k = 0; k < count; ++k, a += next, b += b_stride) {
    const Wide w = load_wide(b);
    QUIRE_UNROLL
    for (int m = 0; m < Rows; ++m) accumulate(acc[m], a + m * row, w);
  }
}

// to [Rows][16] = from [Rows][16] + inputs x b [count][16]; rows of ``from`` and ``to`` lie their strides apart. ``a``: the
// inputs, interleaved or as they are, ``width`` to a row.
template <int Rows>
QUIRE_ALONE void dense_tile(const float* a, int64_t width, const float* b, int64_t count, const float* from,
                            int64_t from_stride, float* to, int64_t to_stride) {
  Wide acc[Rows];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) acc[m] = load_wide(from + m * from_stride);
  multiply_tile<Rows>(a, kInterleave ? Rows : 1, kInterleave ? 1 : width, b, 16, count, acc);
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) store(to + m * to_stride, acc[m]);
}

// All tiles' rows of x [rows, width], interleaved; in the pool's scratch.
const float* interleaved(Pool& pool, const float* x, int64_t width, const Tiles& tiles) {
  float* values = static_cast<float*>(pool.scratch(0, 0, tiles.rows * width * 4));
  parallel(pool, tiles.count, [&](int64_t t, int) {
    const int64_t at = tiles.start(t) * width;
    interleave(x + at, tiles.height(t), width, values + at);
  });
  return values;
}

constexpr int64_t kBlockInputs = 320;            // inputs unpacked at a time: 320 x 16 x float = 20 KiB, which stays in L1
constexpr int64_t kRowBlockBytes = 384 * 1024;   // of inputs: they stay in L2 while the weights stream by
constexpr int64_t kMinRowBlock = 48;
constexpr int64_t kDirectTaskBytes = 12 * 1024;  // of weights: large enough to hide the hand-out of tasks
constexpr int64_t kStreamTasks = 8;               // of a thread, where weights are read once: long ones, which read ahead well

// Panels in a task, a multiple of ``together``. The weights of several tiles stay in L1.
int64_t panels_a_task(const Pool& pool, const Weight& w, const Tiles& tiles, int64_t together) {
  const int64_t stream = tiles.count > 1 ? 0 : w.bytes() / (pool.threads() * kStreamTasks);
  const int64_t bytes = stream > kDirectTaskBytes ? stream : kDirectTaskBytes;
  return ((bytes + w.panel_bytes() - 1) / w.panel_bytes() + together - 1) / together * together;
}

// A block of tiles, begin to end, against 16 outputs from ``first`` on. ``unpack(k, count, block)`` writes floats
// [count][16] of those outputs.
template <typename Unpack>
void tiled_columns(Pool& pool, int thread, const Weight& w, int64_t first, int64_t step, const Tiles& tiles, int64_t begin,
                   int64_t end, const float* values, const float* bias, float* out, int64_t stride, Unpack&& unpack) {
  const int64_t row = tiles.start(begin), rows = tiles.start(end) - row;
  Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, (rows + step) * 64 + 128))};
  float* sums = arena.take<float>(rows * 16);
  float* block = arena.take<float>(step * 16);
  const int64_t width = w.n - first < 16 ? w.n - first : 16;
  alignas(64) float initial[16] = {};
  for (int64_t i = 0; bias && i < width; ++i) initial[i] = bias[first + i];
  const int64_t span = 16 / w.panel_width() * w.panel_bytes();  // of 16 outputs' weights
  const uint8_t* next = w.data + (first / 16 + pool.threads()) * span;
  for (int64_t k = 0; k < w.k; k += step) {
    const int64_t count = w.k - k < step ? w.k - k : step;
    const bool last = k + count == w.k && width == 16;
    // Panels are short streams, which the processor's own prefetching misses: fetch what the thread's next task reads.
    for (int64_t i = span * k / w.k; i < span * (k + count) / w.k; i += 64) __builtin_prefetch(next + i);
    unpack(k, count, block);
    for (int64_t t = begin; t < end; ++t) {
      const float* a = values + tiles.start(t) * w.k + (kInterleave ? k * tiles.height(t) : k);
      float* sum = sums + (tiles.start(t) - row) * 16;
      const float* from = k ? sum : initial;
      float* to = last ? out + tiles.start(t) * stride + first : sum;
      with_rows<kTileRows>(tiles.height(t), [&](auto height) {
        dense_tile<height>(a, w.k, block, count, from, k ? 16 : 0, to, last ? stride : 16);
      });
    }
  }
  if (width == 16) return;
  for (int64_t m = 0; m < rows; ++m) memcpy(out + (row + m) * stride + first, sums + m * 16, width * 4);
}

// Many rows: 16 outputs of the weights at a time are unpacked once for a block of rows. ``unpacker(first)`` gives the
// ``unpack`` of the outputs from ``first`` on; ``granule``: inputs that can only be unpacked together.
template <typename Unpacker>
void linear_tiled(Pool& pool, const float* x, int64_t rows, const Weight& w, const float* bias, float* out, int64_t stride,
                  int64_t granule, Unpacker&& unpacker) {
  const int64_t steps = (w.k + kBlockInputs - 1) / kBlockInputs;
  const int64_t step = ((w.k + steps - 1) / steps + granule - 1) / granule * granule;
  const Tiles tiles(rows, kTileRows);
  const float* values = kInterleave ? interleaved(pool, x, w.k, tiles) : x;
  int64_t block = kRowBlockBytes / (4 * w.k);
  block = (block > kMinRowBlock ? block : kMinRowBlock) / kTileRows;
  const int64_t blocks = (tiles.count + block - 1) / block, columns = (w.n + 15) / 16;
  parallel(pool, blocks * columns, [&](int64_t task, int thread) {
    const int64_t b = task / columns, first = task % columns * 16;
    tiled_columns(pool, thread, w, first, step, tiles, tiles.count * b / blocks, tiles.count * (b + 1) / blocks, values,
                  bias, out, stride, unpacker(first));
  });
}
