// Activations in 16 bits, for products with grouped weights: x = scale * q with one scale per row and group.

constexpr int kTileRows = 6;

// Rows are cut into tiles of at most kTileRows, as even as can be.
struct Tiles {
  int64_t rows, count;

  explicit Tiles(int64_t all_rows) : rows(all_rows), count((all_rows + kTileRows - 1) / kTileRows) {}
  int64_t start(int64_t tile) const { return tile * (rows / count) + (tile < rows % count ? tile : rows % count); }
  int height(int64_t tile) const { return static_cast<int>(start(tile + 1) - start(tile)); }
};

// Where a tile of ``height`` rows from ``row`` on lies: pairs [K / 2][height] (two int16 of consecutive inputs), and
// [K / group][2][height]: scales, then sums of the group's inputs.
struct Quantized {
  int32_t* pairs;
  float* scales;
  int64_t k;
  int group;

  static int64_t pair_count(int64_t rows, int64_t k) { return rows * k / 2; }
  static int64_t scale_count(int64_t rows, int64_t k, int group) { return rows * (k / group) * 2; }
  int32_t* pairs_of(int64_t row) const { return pairs + row * (k / 2); }
  float* scales_of(int64_t row) const { return scales + row * (k / group) * 2; }
};

QUIRE_INLINE void quantize_group(const float* x, int group, int32_t* pairs, int64_t pair_stride, float* scale, float* sum) {
  F8 top = zero(), total = zero(), broken = zero();
  for (int k = 0; k < group; k += 8) {
    const F8 v = load(x + k);
    top = vmax(top, vabs(v));
    total = add(total, v);
    broken = fma(v, zero(), broken);  // NaN once a value is not finite
  }
  const float highest = max_lanes(top);
  const bool tiny = !(highest > 1e-30f);
  *scale = (tiny ? 0.0f : highest * (1.0f / 32767.0f)) + sum_lanes(broken);
  *sum = sum_lanes(total);
  const F8 inverse = set1(tiny ? 0.0f : 32767.0f / highest);
  for (int k = 0; k < group; k += 16) {
    const W16 words = round_to_words(mul(load(x + k), inverse), mul(load(x + k + 8), inverse));
    if (pair_stride == 1) {
      store_words(pairs + k / 2, words);
    } else {
      int32_t lanes[8];
      store_words(lanes, words);
      for (int i = 0; i < 8; ++i) pairs[(k / 2 + i) * pair_stride] = lanes[i];
    }
  }
}

void quantize_tile(const float* x, int64_t row, int height, const Quantized& out) {
  int32_t* pairs = out.pairs_of(row);
  float* scales = out.scales_of(row);
  for (int m = 0; m < height; ++m) {
    const float* source = x + (row + m) * out.k;
    for (int64_t g = 0; g < out.k / out.group; ++g) {
      quantize_group(source + g * out.group, out.group, pairs + g * (out.group / 2) * height + m, height,
                     scales + g * 2 * height + m, scales + (g * 2 + 1) * height + m);
    }
  }
}
