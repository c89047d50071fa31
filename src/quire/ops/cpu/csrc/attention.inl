// Attention over pages, with a running softmax. A tile is a few queries of one sequence with all the query heads that
// share a key/value head; decode and prefill differ only in the tile's size. Tiles whose context is long are split.

constexpr int64_t kLane = 16;              // tokens multiplied at once
constexpr int64_t kMinSplit = 64;          // tokens
constexpr int64_t kMaxBlock = 128;         // tokens whose scores are held at once, few rows
constexpr int64_t kPrefillBlock = 64;      // the same, many rows
constexpr int64_t kFewRows = 12;
constexpr int64_t kItemsAThread = 8;

struct Item {
  int64_t sequence, head;
  int64_t first_query, queries;   // token rows
  int64_t first_position;         // of the first query
  int64_t kv_begin, kv_end;
  float* partial;                 // [rows][2 + D]: maximum, sum, unnormalised output; null: the tile is not split
  bool leads;                     // the tile's first: it counts the sinks
};

struct AttentionContext {
  const AttentionArgs& args;
  const PageTensors& pages;
  const Step& step;
  int64_t share;        // query heads of a key/value head
  int64_t tile_tokens;  // queries in a tile

  AttentionContext(const AttentionArgs& a, const PageTensors& p, const Step& s) : args(a), pages(p), step(s) {
    share = a.heads / p.kv_heads;
    const int64_t rows = p.head_dim <= 128 ? 96 : 48;
    tile_tokens = share < rows ? rows / share : 1;
  }
  int64_t partial_floats() const { return 2 + pages.head_dim; }
};

// The keys or values of kLane positions, and which of them count.
template <typename T>
struct Chunk {
  const T* k;
  const T* v;
  int64_t begin, end;
};

// Fetches a chunk's values and the next chunk's keys while this one's are multiplied: the processor does not foresee the
// jumps from page to page.
template <typename T>
QUIRE_INLINE void fetch_ahead(const Chunk<T>* chunk, bool last, int64_t d, int64_t page_size) {
  QUIRE_UNROLL
  for (int64_t i = d; i < d + 8; ++i) {
    if (!last) __builtin_prefetch(chunk[1].k + i * page_size);
    __builtin_prefetch(chunk->v + i * kLane, 0, 2);
  }
}

// Scores of a chunk: ``q`` [D][Rows].
template <int Rows, typename T>
QUIRE_ALONE void score_tile(const float* q, const Chunk<T>* chunk, bool fetch, bool last, int64_t dim, int64_t page_size, float* scores,
                int64_t stride) {
  Wide acc[Rows];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) acc[m] = wide(0.0f);
  const T* k = chunk->k;
  for (int64_t d = 0; d < dim; d += 8, k += 8 * page_size) {
    if (fetch) fetch_ahead(chunk, last, d, page_size);
    multiply_tile<Rows>(q + d * Rows, Rows, 1, k, page_size, 8, acc);
  }
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) store(scores + m * stride, acc[m]);
}

#ifdef QUIRE_AVX512
constexpr int kScoreRows = 12;
constexpr int value_wides(int rows) { return rows <= 3 ? 8 : 4; }
#else
constexpr int kScoreRows = 6;
constexpr int value_wides(int rows) { return rows <= 3 ? 2 : 1; }
#endif

constexpr int kValueRows = 6;

// out [Rows][lanes of Count V of D] = out * decay + probabilities x values
template <typename V, int Rows, int Count, typename T>
QUIRE_ALONE void value_tile(const float* probabilities, int64_t stride, const Chunk<T>* chunks, int64_t count, int64_t dim,
                const float* decay, float* out) {
  constexpr int kLanes = sizeof(V) / 4;
  V acc[Rows][Count];
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    QUIRE_UNROLL
    for (int h = 0; h < Count; ++h) {
      acc[m][h] = V{};
      accumulate(acc[m][h], decay + m, load_as<V>(out + m * dim + h * kLanes));
    }
  }
  for (int64_t c = 0; c < count; ++c) {
    const float* p = probabilities + c * kLane;
    const T* v = chunks[c].v + chunks[c].begin * dim;
    for (int64_t t = chunks[c].begin; t < chunks[c].end; ++t, v += dim) {
      V value[Count];
      QUIRE_UNROLL
      for (int h = 0; h < Count; ++h) value[h] = load_as<V>(v + h * kLanes);
      QUIRE_UNROLL
      for (int m = 0; m < Rows; ++m) {
        QUIRE_UNROLL
        for (int h = 0; h < Count; ++h) accumulate(acc[m][h], p + m * stride + t, value[h]);
      }
    }
  }
  QUIRE_UNROLL
  for (int m = 0; m < Rows; ++m) {
    QUIRE_UNROLL
    for (int h = 0; h < Count; ++h) store(out + m * dim + h * kLanes, acc[m][h]);
  }
}

// From dimension ``d`` on, as many as are a multiple of what ``Count`` V hold; returns the next.
template <typename V, int Rows, int Count, typename T>
int64_t value_tiles(const float* probabilities, int64_t stride, Chunk<T>* chunks, int64_t count, int64_t dim,
                    const float* decay, float* out, int64_t d) {
  constexpr int64_t kStep = Count * sizeof(V) / 4;
  for (; d + kStep <= dim; d += kStep) {
    value_tile<V, Rows, Count>(probabilities, stride, chunks, count, dim, decay, out + d);
    for (int64_t c = 0; c < count; ++c) chunks[c].v += kStep;
  }
  return d;
}

template <int Rows, typename T>
void value_rows(const float* probabilities, int64_t stride, const Chunk<T>* chunks, int64_t count, int64_t dim,
                const float* decay, float* out) {
  Chunk<T> moved[kMaxBlock / kLane];
  for (int64_t c = 0; c < count; ++c) moved[c] = chunks[c];
  constexpr int kMost = value_wides(Rows);
  int64_t d = 0;
  if constexpr (kMost > 4) d = value_tiles<Wide, Rows, kMost>(probabilities, stride, moved, count, dim, decay, out, d);
  if constexpr (kMost > 1) {
    d = value_tiles<Wide, Rows, kMost < 4 ? kMost : 4>(probabilities, stride, moved, count, dim, decay, out, d);
  }
  d = value_tiles<Wide, Rows, 1>(probabilities, stride, moved, count, dim, decay, out, d);
  value_tiles<F8, Rows, 1>(probabilities, stride, moved, count, dim, decay, out, d);
}

struct RowState {
  float* maximum;
  float* sum;
  float* decay;  // what the block at hand multiplies earlier output by
};

// scores [begin, end) += slope * (index - position)
QUIRE_INLINE void add_slope(float* scores, int64_t begin, int64_t end, float slope, int64_t position) {
  constexpr float kLanes[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const F8 lanes = load(kLanes);
  for (int64_t i = begin / 8 * 8; i < end; i += 8) {
    const F8 distance = add(lanes, set1(static_cast<float>(i - position)));
    store(scores + i, fma(set1(slope), distance, load(scores + i)));
  }
}

// Scores [begin, end) of a row count; the others, to ``width``, become probability 0. ``position``: the query's, counted
// from the block's first token.
void soften_row(float* scores, int64_t begin, int64_t end, int64_t width, float softcap, float slope, int64_t position,
                const RowState& state, int64_t row) {
  if (begin >= end) {
    memset(scores, 0, width * 4);
    state.decay[row] = 1.0f;
    return;
  }
  for (int64_t i = 0; i < begin; ++i) scores[i] = -INFINITY;
  for (int64_t i = end; i < width; ++i) scores[i] = -INFINITY;
  F8 top = set1(-INFINITY);
  if (softcap > 0.0f) {
    const F8 cap = set1(softcap), inverse = set1(1.0f / softcap);
    for (int64_t i = begin / 8 * 8; i < end; i += 8) {
      const F8 s = load(scores + i);
      const F8 capped = mul(cap, vtanh(mul(s, inverse)));
      store(scores + i, select(equal(s, set1(-INFINITY)), s, capped));
    }
  }
  if (slope != 0.0f) add_slope(scores, begin, end, slope, position);
  for (int64_t i = 0; i < width; i += 8) top = vmax(top, load(scores + i));
  const float before = state.maximum[row], in_block = max_lanes(top);
  const float now = in_block > before ? in_block : before;
  const F8 shift = set1(now);
  F8 total = zero();
  for (int64_t i = 0; i < width; i += 8) {
    const F8 p = vexp(sub(load(scores + i), shift));
    total = add(total, p);
    store(scores + i, p);
  }
  const float decay = before == now ? 1.0f : max_lanes(vexp(set1(before - now)));
  state.decay[row] = decay;
  state.sum[row] = state.sum[row] * decay + sum_lanes(total);
  state.maximum[row] = now;
}

// Shorthands of the sizes an item works with.
struct ItemBuffers {
  float *q, *out, *scores;  // q: [D][rows] of each tile
  RowState state;
  int64_t rows, block;

  ItemBuffers(Pool& pool, int thread, int64_t item_rows, int64_t dim) : rows(item_rows) {
    block = rows <= kFewRows ? kMaxBlock : kPrefillBlock;
    Arena arena{static_cast<uint8_t*>(pool.scratch(thread, 1, rows * (2 * dim + block + 3) * 4 + 6 * 64))};
    q = arena.take<float>(rows * dim);
    out = arena.take<float>(rows * dim);
    scores = arena.take<float>(rows * block);
    state = {arena.take<float>(rows), arena.take<float>(rows), arena.take<float>(rows)};
    for (int64_t i = 0; i < rows * dim; ++i) out[i] = 0.0f;
    for (int64_t i = 0; i < rows; ++i) {
      state.maximum[i] = -INFINITY;
      state.sum[i] = 0.0f;
    }
  }
};

template <typename T>
void attend_block(const AttentionContext& c, const Item& item, const ItemBuffers& b, int64_t start) {
  const int64_t dim = c.pages.head_dim, size = c.pages.page_size;
  const int64_t stop = start + b.block < item.kv_end ? start + b.block : item.kv_end;
  const int32_t* table = c.step.block_table + item.sequence * c.step.table_stride;
  Chunk<T> chunks[kMaxBlock / kLane];
  int64_t count = 0;
  for (int64_t t = start; t < stop; t += kLane, ++count) {
    const int64_t base = (static_cast<int64_t>(table[t / size]) * c.pages.kv_heads + item.head) * dim * size;
    const int64_t begin = t < item.kv_begin ? item.kv_begin - t : 0, end = stop - t < kLane ? stop - t : kLane;
    chunks[count] = {static_cast<const T*>(c.pages.k) + base + t % size,
                     static_cast<const T*>(c.pages.v) + base + t % size * dim, begin, end};
  }
  const Tiles score_tiles(b.rows, kScoreRows), value_tiles(b.rows, kValueRows);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t t = 0; t < score_tiles.count; ++t) {
      const int64_t row = score_tiles.start(t);
      float* scores = b.scores + row * b.block + i * kLane;
      with_rows<kScoreRows>(score_tiles.height(t), [&](auto height) {
        score_tile<height>(b.q + row * dim, chunks + i, t == 0, i + 1 == count, dim, size, scores, b.block);
      });
    }
  }
  for (int64_t row = 0; row < b.rows; ++row) {
    const int64_t position = item.first_position + row / c.share;
    int64_t begin = item.kv_begin, end = position + 1 < stop ? position + 1 : stop;
    if (c.args.window > 0 && position - c.args.window + 1 > begin) begin = position - c.args.window + 1;
    begin = begin > start ? begin - start : 0;
    const float slope = c.args.slopes ? c.args.slopes[item.head * c.share + row % c.share] : 0.0f;
    soften_row(b.scores + row * b.block, begin, end - start, count * kLane, c.args.softcap, slope, position - start, b.state,
               row);
  }
  for (int64_t t = 0; t < value_tiles.count; ++t) {
    const int64_t row = value_tiles.start(t);
    with_rows<kValueRows>(value_tiles.height(t), [&](auto height) {
      value_rows<height>(b.scores + row * b.block, b.block, chunks, count, dim, b.state.decay + row, b.out + row * dim);
    });
  }
}

float* output_row(const AttentionContext& c, const Item& item, int64_t row) {
  const int64_t token = item.first_query + row / c.share, head = item.head * c.share + row % c.share;
  return c.args.out + (token * c.args.heads + head) * c.pages.head_dim;
}

void attend_item(Pool& pool, int thread, const AttentionContext& c, const Item& item) {
  const int64_t dim = c.pages.head_dim;
  const ItemBuffers b(pool, thread, item.queries * c.share, dim);
  const Tiles tiles(b.rows, kScoreRows);
  for (int64_t t = 0; t < tiles.count; ++t) {
    const int64_t first = tiles.start(t), height = tiles.height(t);
    for (int64_t row = first; row < first + height; ++row) {
      const int64_t token = item.first_query + row / c.share, head = item.head * c.share + row % c.share;
      const float* source = c.args.q + token * c.args.q_stride + head * dim;
      float* target = b.q + first * dim + row - first;
      for (int64_t d = 0; d < dim; ++d) target[d * height] = source[d] * c.args.scale;
      if (!c.args.sinks || !item.leads) continue;
      b.state.maximum[row] = c.args.sinks[head];
      b.state.sum[row] = 1.0f;
    }
  }
  for (int64_t start = item.kv_begin / kLane * kLane; start < item.kv_end; start += b.block) {
    switch (c.pages.type) {
      case Type::f32: attend_block<float>(c, item, b, start); break;
      case Type::f16: attend_block<f16>(c, item, b, start); break;
      default: attend_block<bf16>(c, item, b, start); break;
    }
  }
  for (int64_t row = 0; row < b.rows; ++row) {
    const float* source = b.out + row * dim;
    float* target = item.partial ? item.partial + row * c.partial_floats() : output_row(c, item, row);
    F8 factor = set1(1.0f);
    if (item.partial) {
      *target++ = b.state.maximum[row];
      *target++ = b.state.sum[row];
    } else {
      factor = set1(1.0f / b.state.sum[row]);
    }
    for (int64_t d = 0; d < dim; d += 8) store(target + d, mul(load(source + d), factor));
  }
}

// Joins the ``splits`` items, one after the other, that attended to parts of one tile's context.
void merge_tile(const AttentionContext& c, const Item* items, int64_t splits) {
  const int64_t dim = c.pages.head_dim;
  for (int64_t row = 0; row < items->queries * c.share; ++row) {
    const int64_t at = row * c.partial_floats();
    float top = -INFINITY, total = 0.0f;
    for (int64_t i = 0; i < splits; ++i) top = items[i].partial[at] > top ? items[i].partial[at] : top;
    float* target = output_row(c, *items, row);
    for (int64_t d = 0; d < dim; d += 8) store(target + d, zero());
    for (int64_t i = 0; i < splits; ++i) {
      const float* partial = items[i].partial + at;
      const float weight = partial[1] == 0.0f ? 0.0f : expf(partial[0] - top);  // a window may leave a part empty
      total += weight * partial[1];
      for (int64_t d = 0; d < dim; d += 8) store(target + d, fma(set1(weight), load(partial + 2 + d), load(target + d)));
    }
    const F8 factor = set1(1.0f / total);
    for (int64_t d = 0; d < dim; d += 8) store(target + d, mul(load(target + d), factor));
  }
}

// Calls ``visit`` with each tile, as an item that is not split.
template <typename Visit>
void each_tile(const AttentionContext& c, Visit&& visit) {
  for (int64_t s = 0; s < c.step.sequences; ++s) {
    const int64_t first = c.step.query_start[s], count = c.step.query_start[s + 1] - first;
    const int64_t before = c.step.context_len[s] - count;
    for (int64_t i = 0; i < count; i += c.tile_tokens) {
      const int64_t queries = count - i < c.tile_tokens ? count - i : c.tile_tokens, position = before + i;
      int64_t begin = c.args.window > 0 ? position - c.args.window + 1 : 0;
      begin = begin > 0 ? begin : 0;
      for (int64_t g = 0; g < c.pages.kv_heads; ++g) {
        visit(Item{s, g, first + i, queries, position, begin, position + queries, nullptr, true});
      }
    }
  }
}

void attention(Pool& pool, const AttentionArgs& args, const PageTensors& pages, const Step& step) {
  const AttentionContext c(args, pages, step);
  int64_t work = 0;
  each_tile(c, [&](const Item& tile) { work += tile.queries * (tile.kv_end - tile.kv_begin); });
  const int64_t most = pool.threads() > 1 ? work / (pool.threads() * kItemsAThread) + 1 : work + 1;
  const auto splits_of = [&](const Item& tile) {
    const int64_t tokens = tile.kv_end - tile.kv_begin;
    const int64_t wanted = (tokens * tile.queries + most - 1) / most, allowed = tokens / kMinSplit;
    const int64_t splits = wanted < allowed ? wanted : allowed;
    return splits > 1 ? splits : 1;
  };
  int64_t items = 0, floats = 0;
  each_tile(c, [&](const Item& tile) {
    const int64_t splits = splits_of(tile);
    items += splits;
    if (splits > 1) floats += splits * tile.queries * c.share * c.partial_floats();
  });
  Arena arena{static_cast<uint8_t*>(pool.scratch(0, 0, items * static_cast<int64_t>(sizeof(Item)) + floats * 4 + 128))};
  Item* list = arena.take<Item>(items);
  float* partial = arena.take<float>(floats);
  int64_t filled = 0;
  each_tile(c, [&](const Item& tile) {
    const int64_t splits = splits_of(tile), tokens = tile.kv_end - tile.kv_begin;
    for (int64_t i = 0; i < splits; ++i) {
      Item& item = list[filled++] = tile;
      item.kv_begin = tile.kv_begin + tokens * i / splits;
      item.kv_end = tile.kv_begin + tokens * (i + 1) / splits;
      item.leads = i == 0;
      if (splits == 1) continue;
      item.partial = partial;
      partial += tile.queries * c.share * c.partial_floats();
    }
  });
  parallel(pool, items, [&](int64_t i, int thread) { attend_item(pool, thread, c, list[i]); });
  int64_t at = 0;
  each_tile(c, [&](const Item& tile) {
    const int64_t splits = splits_of(tile);
    if (splits > 1) merge_tile(c, list + at, splits);
    at += splits;
  });
}
