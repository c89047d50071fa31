// Checks of what indexes memory: a wrong id must end in an exception, not in another request's pages.
#pragma once

#include "kernels.h"

namespace quire {

// Each returns null, or a sentence that says what is wrong.
const char* check_ids(const Weight& weight, const int64_t* ids, int64_t count);
const char* check_store(const StoreArgs& args, const PageTensors& pages, const Step& step);
const char* check_attention(const AttentionArgs& args, const PageTensors& pages, const Step& step);
const char* check_route(const RouteArgs& args);
const char* check_grouped(const GroupedArgs& args);
const char* check_combine(const CombineArgs& args);

}  // namespace quire
