#include "checks.h"

namespace quire {

const char* check_ids(const Weight& weight, const int64_t* ids, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= weight.n) return "A token id is outside the embedding.";
  }
  return nullptr;
}

const char* check_store(const StoreArgs& args, const PageTensors& pages, const Step& step) {
  const int64_t slots = pages.pages * pages.page_size;
  for (int64_t t = 0; t < step.tokens; ++t) {
    if (step.slots[t] < 0 || step.slots[t] >= slots) return "A slot is outside the pages.";
    if (args.cos_sin && (step.positions[t] < 0 || step.positions[t] >= args.cos_sin_rows)) {
      return "A position is outside the rotary table.";
    }
  }
  return nullptr;
}

const char* check_attention(const AttentionArgs& args, const PageTensors& pages, const Step& step) {
  for (int64_t s = 0; s < step.sequences; ++s) {
    const int64_t begin = step.query_start[s], end = step.query_start[s + 1], length = step.context_len[s];
    if (begin < 0 || end < begin || end > step.tokens) return "query_start does not fit the queries.";
    if (begin == end) continue;
    if (length < end - begin || length > step.table_width * pages.page_size) {
      return "A context length does not fit its queries or its block table.";
    }
    int64_t first = args.window > 0 ? length - (end - begin) - args.window + 1 : 0;
    first = first > 0 ? first / pages.page_size : 0;
    const int32_t* table = step.block_table + s * step.table_stride;
    for (int64_t i = first; i <= (length - 1) / pages.page_size; ++i) {
      if (table[i] < 0 || table[i] >= pages.pages) return "A block table lists a page that does not exist.";
    }
  }
  return nullptr;
}

const char* check_route(const RouteArgs& a) {
  if (a.top_k < 1 || a.top_k > a.experts) return "A token must choose from 1 to all experts.";
  if (a.groups < 1 || a.experts % a.groups || a.top_groups < 1 || a.top_groups > a.groups) {
    return "The experts do not fall into the groups.";
  }
  const int64_t size = a.experts / a.groups;
  if (a.group_score < 1 || a.group_score > size || a.top_k > a.top_groups * size) return "A group has too few experts.";
  return nullptr;
}

const char* check_grouped(const GroupedArgs& a) {
  if (a.offsets[0] != 0 || a.offsets[a.count] != a.row_count) return "The offsets do not fit the rows.";
  for (int64_t e = 0; e < a.count; ++e) {
    if (a.offsets[e + 1] < a.offsets[e]) return "The offsets do not rise.";
  }
  for (int64_t r = 0; a.rows && r < a.row_count; ++r) {
    if (a.rows[r] < 0 || a.rows[r] >= a.tokens) return "A row is outside the input.";
  }
  return nullptr;
}

const char* check_combine(const CombineArgs& a) {
  for (int64_t i = 0; i < a.tokens * a.top_k; ++i) {
    if (a.places[i] < 0 || a.places[i] >= a.row_count) return "A place is outside the rows.";
  }
  return nullptr;
}

}  // namespace quire
