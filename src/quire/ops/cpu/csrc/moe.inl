// Routing to experts, products with the experts' weights, and their weighed sum. The rules are those of Routing (backend.py).

constexpr int64_t kTokensATask = 8;

// Index of the highest of x [begin, end) that is not taken (the first of equal ones), which it takes.
int64_t take_best(const float* x, uint8_t* taken, int64_t begin, int64_t end) {
  int64_t best = -1;
  for (int64_t i = begin; i < end; ++i) {
    if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
  }
  taken[best] = 1;
  return best;
}

// out [n] = exp(x - its maximum) / their sum
void softmax(const float* x, int64_t n, float* out) {
  float top = x[0], sum = 0.0f;
  for (int64_t i = 1; i < n; ++i) top = x[i] > top ? x[i] : top;
  for (int64_t i = 0; i < n; ++i) sum += out[i] = expf(x[i] - top);
  for (int64_t i = 0; i < n; ++i) out[i] /= sum;
}

struct RouteBuffers {
  float *scores, *ranked, *worth;
  uint8_t *taken, *kept;

  RouteBuffers(Pool& pool, int thread, const RouteArgs& a) {
    Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, (2 * a.experts + a.groups) * 5 + 5 * 64))};
    scores = arena.take<float>(a.experts);
    ranked = arena.take<float>(a.experts);
    worth = arena.take<float>(a.groups);
    taken = arena.take<uint8_t>(a.experts);
    kept = arena.take<uint8_t>(a.groups);
  }
};

// Takes all experts of the groups that don't count.
void leave_out_groups(const RouteArgs& a, const RouteBuffers& b) {
  const int64_t size = a.experts / a.groups;
  for (int64_t g = 0; g < a.groups; ++g) {
    b.worth[g] = 0.0f;
    for (int64_t i = 0; i < a.group_score; ++i) b.worth[g] += b.ranked[take_best(b.ranked, b.taken, g * size, (g + 1) * size)];
  }
  memset(b.kept, 0, a.groups);
  for (int64_t i = 0; i < a.top_groups; ++i) take_best(b.worth, b.kept, 0, a.groups);
  for (int64_t g = 0; g < a.groups; ++g) memset(b.taken + g * size, !b.kept[g], size);
}

void choose_scored(const RouteArgs& a, const float* logits, const RouteBuffers& b, int32_t* experts, float* weights) {
  if (a.scoring == Scoring::sigmoid) {
    for (int64_t e = 0; e < a.experts; ++e) b.scores[e] = 1.0f / (1.0f + expf(-logits[e]));
  } else {
    softmax(logits, a.experts, b.scores);
  }
  for (int64_t e = 0; e < a.experts; ++e) b.ranked[e] = a.bias ? b.scores[e] + a.bias[e] : b.scores[e];
  if (a.groups > 1) leave_out_groups(a, b);
  for (int64_t k = 0; k < a.top_k; ++k) {
    experts[k] = static_cast<int32_t>(take_best(b.ranked, b.taken, 0, a.experts));
    weights[k] = b.scores[experts[k]];
  }
}

void choose_sparsemixer(const RouteArgs& a, const float* logits, const RouteBuffers& b, int32_t* experts, float* weights) {
  for (int64_t k = 0; k < a.top_k; ++k) {
    float sum = 0.0f;
    for (int64_t e = 0; e < a.experts; ++e) b.scores[e] = b.taken[e] ? -INFINITY : logits[e];
    const int64_t best = take_best(logits, b.taken, 0, a.experts);
    const float top = logits[best];
    for (int64_t e = 0; e < a.experts; ++e) {
      const float size = fabsf(logits[e]);
      const bool far = (top - b.scores[e]) / (size > top ? size : top) > 2.0f * a.jitter;
      if (!far) sum += expf(b.scores[e] - top);
    }
    experts[k] = static_cast<int32_t>(best);
    weights[k] = 1.0f / sum;
  }
}

void route(Pool& pool, const RouteArgs& a) {
  const auto choose = a.scoring == Scoring::sparsemixer ? choose_sparsemixer : choose_scored;
  parallel(pool, (a.tokens + kTokensATask - 1) / kTokensATask, [&](int64_t task, int thread) {
    const RouteBuffers b(pool, thread, a);
    const int64_t end = (task + 1) * kTokensATask < a.tokens ? (task + 1) * kTokensATask : a.tokens;
    for (int64_t t = task * kTokensATask; t < end; ++t) {
      memset(b.taken, 0, a.experts);
      float* weights = a.weights + t * a.top_k;
      choose(a, a.logits + t * a.experts, b, a.places + t * a.top_k, weights);
      float sum = 1e-20f;
      for (int64_t k = 0; k < a.top_k; ++k) sum += weights[k];
      const float factor = a.renormalize ? a.scale / sum : a.scale;
      for (int64_t k = 0; k < a.top_k; ++k) weights[k] *= factor;
    }
  });
  // places holds experts until here: count them, and give each choice the next row of its expert.
  const int64_t choices = a.tokens * a.top_k;
  memset(a.offsets, 0, (a.experts + 1) * 4);
  for (int64_t i = 0; i < choices; ++i) ++a.offsets[a.places[i] + 1];
  for (int64_t e = 0; e < a.experts; ++e) a.offsets[e + 1] += a.offsets[e];
  for (int64_t i = 0; i < choices; ++i) {
    const int32_t row = a.offsets[a.places[i]]++;
    a.rows[row] = static_cast<int32_t>(i / a.top_k);
    a.places[i] = row;
  }
  for (int64_t e = a.experts; e > 0; --e) a.offsets[e] = a.offsets[e - 1];
  a.offsets[0] = 0;
}

template <bool Dot>
void grouped_linear(Pool& pool, const GroupedArgs& a) {
  const int64_t n = a.stack[0].n, k = a.stack[0].k;
  for (int64_t e = 0; e < a.count; ++e) {
    const int64_t begin = a.offsets[e], rows = a.offsets[e + 1] - begin;
    if (rows == 0) continue;
    const float* x = a.x + begin * k;
    if (a.rows) {
      float* gathered = static_cast<float*>(pool.scratch(0, 2, rows * k * 4));
      for (int64_t r = 0; r < rows; ++r) memcpy(gathered + r * k, a.x + a.rows[begin + r] * k, k * 4);
      x = gathered;
    }
    linear<Dot>(pool, x, rows, a.stack[e], a.bias ? a.bias + e * n : nullptr, a.out + begin * n, n);
  }
}

void combine(Pool& pool, const CombineArgs& a) {
  parallel_rows(pool, a.tokens, a.width * a.top_k, [&](int64_t t) {
    float* out = a.out + t * a.width;
    const auto add_row = [&](float weight, const float* row) {
      int64_t i = 0;
      for (; i + 8 <= a.width; i += 8) store(out + i, fma(set1(weight), load(row + i), load(out + i)));
      for (; i < a.width; ++i) out[i] += weight * row[i];
    };
    memset(out, 0, a.width * 4);
    for (int64_t k = t * a.top_k; k < (t + 1) * a.top_k; ++k) add_row(a.weights[k], a.y + a.places[k] * a.width);
    if (a.shared) add_row(a.gate ? 1.0f / (1.0f + expf(-a.gate[t])) : 1.0f, a.shared + t * a.width);
  });
}
