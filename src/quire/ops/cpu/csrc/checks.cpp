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

}  // namespace quire
