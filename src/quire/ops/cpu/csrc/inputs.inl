// Inputs as a weight wants them: in the order of its own inputs, rounded as its checkpoint was made for.

// The nearest e4m3 floats, ties to even, of numbers within its range (448).
QUIRE_INLINE F8 round_float8(F8 x) {
  // Adding and taking away 3/2 * 2^20 times the power of 2 below |x| leaves 3 bits after the first; below 2^-6 steps
  // are 2^-9 throughout.
  float lanes[8];
  store(lanes, x);
  for (float& v : lanes) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    const uint32_t exponent = (bits >> 23 & 255) < 121 ? 121 : bits >> 23 & 255;
    const uint32_t magic_bits = (exponent + 20) << 23 | 1u << 22;
    float magic;
    memcpy(&magic, &magic_bits, 4);
    v = (v + magic) - magic;
  }
  return load(lanes);
}

// x [count] in units of ``scale``, rounded to integers (or floats) of 8 bits, and back.
void round_group(const Inputs& how, float scale, float zero_point, int64_t count, float* x) {
  const F8 unit = set1(scale), shift = set1(zero_point);
  const bool integers = how.rounding == Inputs::Rounding::int8;
  const F8 low = set1(integers ? -128.0f : -448.0f), high = set1(integers ? 127.0f : 448.0f);
  for (int64_t i = 0; i < count; i += 8) {
    const F8 v = load_lanes(x + i, count - i);
    const F8 q = vmax(low, vmin(high, integers ? round_even(add(div(v, unit), shift)) : div(v, unit)));
    const F8 rounded = integers ? sub(q, shift) : round_float8(q);
    const F8 known = select(unequal(v, v), v, mul(rounded, unit));  // what is no number stays none
    store_lanes(x + i, known, count - i);
  }
}

// Scale and zero from the values themselves: returns the scale. Rows with infinities are left as they are, with 0 for a
// scale: they are lost anyway.
float round_by_values(const Inputs& how, int64_t count, float* x) {
  float low = 0.0f, high = 0.0f;
  for (int64_t i = 0; i < count; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
  }
  const float size = -low > high ? -low : high;
  if (!(size > 0.0f) || size > 3e38f) return 0.0f;
  const bool shifted = how.rounding == Inputs::Rounding::int8 && !how.symmetric;
  const float scale = shifted ? (high - low) / 255.0f : size / (how.rounding == Inputs::Rounding::fp8 ? 448.0f : 127.5f);
  const float zero_point = shifted ? nearbyintf(fminf(-128.0f - low / scale, 127.0f)) : 0.0f;
  round_group(how, scale, zero_point, count, x);
  return scale;
}

// ``units``: what the values of each row are integers of 8 bits times of; null: it is not one number, or they are not.
struct Wanted {
  const float *x, *units;
};

Wanted as_wanted(Pool& pool, const float* x, int64_t rows, const Weight& w) {
  const Inputs& how = w.inputs;
  if (how.plain()) return {x, nullptr};
  const int64_t group = how.group ? how.group : w.k;
  const bool integers = how.rounding == Inputs::Rounding::int8 && how.symmetric && how.zero == 0.0f && group == w.k;
  float* out = static_cast<float*>(pool.scratch(0, 3, rows * (w.k + 1) * 4));
  float* units = integers ? out + rows * w.k : nullptr;
  parallel(pool, rows, [&](int64_t m, int) {
    float* row = out + m * w.k;
    const float* source = x + m * w.k;
    if (how.order) {
      for (int64_t k = 0; k < w.k; ++k) row[k] = source[how.order[k]];
    } else {
      memcpy(row, source, w.k * 4);
    }
    if (how.exact()) return;
    for (int64_t k = 0; k < w.k; k += group) {
      const int64_t count = w.k - k < group ? w.k - k : group;
      float scale = how.scale;
      if (scale > 0.0f) {
        round_group(how, scale, how.zero, count, row + k);
      } else {
        scale = round_by_values(how, count, row + k);
      }
      if (units) units[m] = scale;
    }
  });
  return {out, units};
}
