// Sampling by inverse CDF; the definition is the reference's (reference/sampling.py).

constexpr float kGreedyBelow = 1e-5f;
constexpr int64_t kMassBlock = 64;  // tokens whose probabilities are summed together

inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ x >> 27) * 0x94D049BB133111EBull;
  return x ^ x >> 31;
}

inline double uniform(int64_t seed, int64_t position) {
  constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;
  const uint64_t key = mix(static_cast<uint64_t>(seed) + kGolden);
  return static_cast<double>(mix(key + (static_cast<uint64_t>(position) + 1) * kGolden) >> 12) * 0x1p-52;
}

// The largest of the row; NaN if it holds NaN.
float row_maximum(const float* x, int64_t count) {
  F8 top = set1(-INFINITY), broken = zero();
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const F8 v = load(x + i);
    top = vmax(top, v);
    broken = either(broken, unequal(v, v));
  }
  float best = max_lanes(top);
  bool nan = mask_bits(broken) != 0;
  for (; i < count; ++i) {
    best = x[i] > best ? x[i] : best;
    nan |= x[i] != x[i];
  }
  return nan ? NAN : best;
}

int64_t first_equal(const float* x, int64_t count, float value) {
  int64_t i = 0;
  const F8 wanted = set1(value);
  for (; i + 8 <= count; i += 8) {
    const int bits = mask_bits(equal(load(x + i), wanted));
    if (bits) return i + __builtin_ctz(static_cast<unsigned>(bits));
  }
  while (i < count && x[i] != value) ++i;
  return i;
}

// The largest t for which the values >= t are at least ``target`` in number (or in sum), by partitioning ``values``.
template <bool BySum>
float select_threshold(float* values, int64_t count, double target) {
  double above = 0.0;
  float result = 0.0f;
  while (count > 0) {
    const float a = values[0], b = values[count / 2], c = values[count - 1];
    const float pivot = a > b ? (b > c ? b : (a > c ? c : a)) : (a > c ? a : (b > c ? c : b));
    int64_t greater = 0, equals = 0, i = 0, end = count;  // [greater | equal | not seen | less]
    double greater_sum = 0.0;
    while (i < end) {
      const float v = values[i];
      if (v > pivot) {
        greater_sum += BySum ? static_cast<double>(v) : 1.0;
        values[i++] = values[greater];
        values[greater++] = v;
      } else if (v < pivot) {
        values[i] = values[--end];
        values[end] = v;
      } else {
        ++i;
        ++equals;
      }
    }
    const double equal_sum = static_cast<double>(equals) * (BySum ? static_cast<double>(pivot) : 1.0);
    result = pivot;
    if (above + greater_sum >= target) {
      count = greater;
    } else if (above + greater_sum + equal_sum >= target) {
      return pivot;
    } else {
      above += greater_sum + equal_sum;
      values += end;
      count -= end;
    }
  }
  return result;
}

constexpr int kBuckets = 1024;  // exponent and 3 bits of the mantissa of a number from 0 to 1
constexpr int64_t kFewValues = 128;

inline int bucket_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return static_cast<int>(bits >> 20);
}

// The same over values from 0 to 1 that stay as they are: a histogram leaves few to partition, in ``copy``.
template <bool BySum>
float threshold(const float* values, int64_t count, double target, float* copy) {
  if (count <= kFewValues) {
    memcpy(copy, values, count * 4);
    return select_threshold<BySum>(copy, count, target);
  }
  double mass[kBuckets] = {};
  int lowest = kBuckets - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int bucket = bucket_of(values[i]);
    mass[bucket] += BySum ? static_cast<double>(values[i]) : 1.0;
    lowest = bucket < lowest ? bucket : lowest;
  }
  double above = 0.0;
  int bucket = kBuckets - 1;
  while (bucket > lowest && above + mass[bucket] < target) above += mass[bucket--];
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    copy[found] = values[i];
    found += bucket_of(values[i]) == bucket;
  }
  return select_threshold<BySum>(copy, found, target - above);
}

// A row's unnormalised probabilities, by blocks.
struct Masses {
  float* p;            // [V], 0 where min_p filters
  double* block_sum;   // [blocks]
  float* block_max;    // [blocks]
  int64_t vocab, blocks;
};

F8 first_lanes(F8 x, int64_t count) {
  float lanes[8];
  store(lanes, x);
  for (int64_t i = count; i < 8; ++i) lanes[i] = 0.0f;
  return load(lanes);
}

void compute_masses(const float* logits, float highest, float temperature, float min_p, const Masses& m) {
  const F8 top = set1(highest), t = set1(temperature), least = set1(min_p);
  for (int64_t b = 0; b < m.blocks; ++b) {
    F8 best = zero(), sum = zero();
    const int64_t end = (b + 1) * kMassBlock;
    for (int64_t i = b * kMassBlock; i < end && i < m.vocab; i += 8) {
      const int64_t count = m.vocab - i;
      F8 p = vexp(div(sub(load_lanes(logits + i, count), top), t));
      p = select(less(p, least), zero(), p);
      if (count < 8) p = first_lanes(p, count);
      store_lanes(m.p + i, p, count);
      best = vmax(best, p);
      sum = add(sum, p);
    }
    m.block_sum[b] = static_cast<double>(sum_lanes(sum));
    m.block_max[b] = max_lanes(best);
  }
}

// First token whose cumulated mass exceeds ``u`` of the total.
int64_t draw(const Masses& m, double u) {
  double total = 0.0;
  for (int64_t b = 0; b < m.blocks; ++b) total += m.block_sum[b];
  const double target = u * total;
  double before = 0.0;
  int64_t last = 0;
  for (int64_t b = 0; b < m.blocks; ++b) {
    if (before + m.block_sum[b] <= target && b + 1 < m.blocks) {
      before += m.block_sum[b];
      continue;
    }
    const int64_t end = (b + 1) * kMassBlock < m.vocab ? (b + 1) * kMassBlock : m.vocab;
    for (int64_t i = b * kMassBlock; i < end; ++i) {
      if (m.p[i] <= 0.0f) continue;
      before += static_cast<double>(m.p[i]);
      last = i;
      if (before > target) return i;
    }
  }
  return last;
}

struct Candidates {
  float* p;
  int32_t* id;
  float* copy;
  int64_t count;
};

void collect(const Masses& m, float floor, Candidates& c) {
  c.count = 0;
  for (int64_t b = 0; b < m.blocks; ++b) {
    if (m.block_max[b] < floor || m.block_max[b] <= 0.0f) continue;
    const int64_t end = (b + 1) * kMassBlock < m.vocab ? (b + 1) * kMassBlock : m.vocab;
    for (int64_t i = b * kMassBlock; i < end; ++i) {
      c.p[c.count] = m.p[i];
      c.id[c.count] = static_cast<int32_t>(i);
      c.count += m.p[i] >= floor && m.p[i] > 0.0f;
    }
  }
}

void keep_from(Candidates& c, float floor) {
  int64_t kept = 0;
  for (int64_t i = 0; i < c.count; ++i) {
    const bool keep = c.p[i] >= floor;
    c.p[kept] = c.p[i];
    c.id[kept] = c.id[i];
    kept += keep;
  }
  c.count = kept;
}

double sum_of(const Candidates& c) {
  double total = 0.0;
  for (int64_t i = 0; i < c.count; ++i) total += static_cast<double>(c.p[i]);
  return total;
}

// A bound below which no token can survive the filters, so that few need a closer look.
float safe_floor(const Masses& m, int64_t top_k, double top_p, float* copy) {
  float floor = 0.0f;
  if (top_k > 0 && top_k <= m.blocks) {  // the k-th largest block maximum is at most the k-th largest value
    floor = threshold<false>(m.block_max, m.blocks, static_cast<double>(top_k), copy);
  }
  if (top_k <= 0 && top_p < 1.0) {  // all tokens below this together weigh less than 1 - top_p
    double total = 0.0;
    for (int64_t b = 0; b < m.blocks; ++b) total += m.block_sum[b];
    floor = static_cast<float>(0.5 * (1.0 - top_p) * total / static_cast<double>(m.vocab));
  }
  return floor;
}

int64_t draw_filtered(const Masses& m, int64_t top_k, double top_p, double u, Candidates& c) {
  collect(m, safe_floor(m, top_k, top_p, c.copy), c);
  if (top_k > 0 && top_k < c.count) {
    keep_from(c, threshold<false>(c.p, c.count, static_cast<double>(top_k), c.copy));
  }
  if (top_p < 1.0) {
    double total = 0.0;
    if (top_k > 0) {
      total = sum_of(c);
    } else {
      for (int64_t b = 0; b < m.blocks; ++b) total += m.block_sum[b];
    }
    keep_from(c, threshold<true>(c.p, c.count, top_p * total, c.copy));
  }
  const double target = u * sum_of(c);
  double before = 0.0;
  for (int64_t i = 0; i < c.count; ++i) {
    before += static_cast<double>(c.p[i]);
    if (before > target) return c.id[i];
  }
  return c.id[c.count - 1];
}

int64_t sample_row(Pool& pool, int thread, const SampleArgs& a, int64_t row) {
  const float* logits = a.logits + row * a.vocab;
  const float highest = row_maximum(logits, a.vocab);
  if (!(fabsf(highest) < INFINITY)) return -1;
  if (a.temperature[row] < kGreedyBelow) return first_equal(logits, a.vocab, highest);
  const int64_t blocks = (a.vocab + kMassBlock - 1) / kMassBlock;
  Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, a.vocab * 16 + blocks * 12 + 512))};
  const Masses m{arena.take<float>(a.vocab), arena.take<double>(blocks), arena.take<float>(blocks), a.vocab, blocks};
  compute_masses(logits, highest, a.temperature[row], a.min_p[row], m);
  const double u = uniform(a.seed[row], a.position[row]), top_p = static_cast<double>(a.top_p[row]);
  const int64_t top_k = a.top_k[row] < a.vocab ? a.top_k[row] : 0;
  if (top_k <= 0 && top_p >= 1.0) return draw(m, u);
  Candidates c{arena.take<float>(a.vocab + 1), arena.take<int32_t>(a.vocab + 1), arena.take<float>(a.vocab + 1), 0};
  return draw_filtered(m, top_k, top_p, u, c);
}

void sample(Pool& pool, const SampleArgs& a) {
  parallel(pool, a.rows, [&](int64_t row, int thread) { a.out[row] = sample_row(pool, thread, a, row); });
}
