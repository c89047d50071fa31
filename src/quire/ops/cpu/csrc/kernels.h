// The operations, as a table of functions: one table for each instruction set.
#pragma once

#include <cstdint>

#include "pool.h"
#include "weights.h"

namespace quire {

enum class Activation : int { silu, gelu, gelu_tanh, relu, relu2, swiglu_oss };
enum class Scoring : int { softmax, sigmoid, sparsemixer };

// k [pages, kv_heads, head_dim, page_size], v [pages, kv_heads, page_size, head_dim]
struct PageTensors {
  void* k;
  void* v;
  Type type;
  int64_t pages;
  int64_t kv_heads;
  int64_t head_dim;
  int64_t page_size;
};

struct Step {
  int64_t tokens;
  int64_t sequences;
  const int32_t* positions;
  const int64_t* slots;
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  int64_t table_stride;  // elements from one sequence's row to the next
  int64_t table_width;
};

struct StoreArgs {
  float* qkv;  // [T, (H + 2G) * D]
  int64_t heads;
  const float* q_norm;
  const float* k_norm;
  float eps;
  const float* cos_sin;  // [cos_sin_rows, rotary_dim]
  int64_t cos_sin_rows;
  int64_t rotary_dim;
  bool interleaved;
};

struct AttentionArgs {
  const float* q;
  int64_t q_stride;  // elements from token to token
  float* out;        // [T, H * D]
  int64_t heads;
  float scale;
  int64_t window;  // 0: all
  float softcap;   // 0: none
  const float* sinks = nullptr;   // [H]
  const float* slopes = nullptr;  // [H]
};

struct RouteArgs {
  const float* logits;  // [T, E]
  int64_t tokens;
  int64_t experts;
  const float* bias;  // [E], or null
  int64_t top_k;
  Scoring scoring;
  bool renormalize;
  float scale;
  int64_t groups;
  int64_t top_groups;
  int64_t group_score;
  float jitter;
  int32_t* rows;     // [T * top_k]
  int32_t* offsets;  // [E + 1]
  int32_t* places;   // [T, top_k]
  float* weights;    // [T, top_k]
};

struct GroupedArgs {
  const float* x;  // [R, K], or [tokens, K] with ``rows``
  int64_t tokens;
  const int32_t* rows;  // [R], or null
  int64_t row_count;    // R
  const Weight* stack;
  int64_t count;           // of matrices
  const int32_t* offsets;  // [count + 1]
  const float* bias;       // [count, N], or null
  float* out;              // [R, N]
};

struct CombineArgs {
  const float* y;  // [R, width]
  int64_t row_count;
  int64_t width;
  int64_t tokens;
  int64_t top_k;
  const int32_t* places;  // [T, top_k]
  const float* weights;   // [T, top_k]
  const float* shared;    // [T, width], or null
  const float* gate;      // [T], or null: of shared
  float* out;             // [T, width]
};

struct SampleArgs {
  const float* logits;  // [R, V]
  int64_t rows;
  int64_t vocab;
  const float* temperature;
  const int32_t* top_k;
  const float* top_p;
  const float* min_p;
  const int64_t* seed;
  const int64_t* position;
  int64_t* out;
};

struct Kernels {
  const char* name;
  void (*linear)(Pool&, const float* x, int64_t rows, const Weight&, const float* bias, float* out, int64_t stride);
  void (*embed)(Pool&, const Weight&, const int64_t* ids, int64_t count, float multiplier, float* out);
  void (*rms_norm)(Pool&, const float* x, const float* weight, float eps, float* residual, int64_t rows, int64_t width,
                   float* out);
  void (*gate_up_act)(Pool&, const float* x, int64_t rows, int64_t width, Activation, float* out);
  void (*store)(Pool&, const StoreArgs&, const PageTensors&, const Step&);
  void (*attention)(Pool&, const AttentionArgs&, const PageTensors&, const Step&);
  void (*sample)(Pool&, const SampleArgs&);
  void (*route)(Pool&, const RouteArgs&);
  void (*grouped_linear)(Pool&, const GroupedArgs&);
  void (*combine)(Pool&, const CombineArgs&);
  void (*layer_norm)(Pool&, const float* x, const float* weight, const float* bias, float eps, float* residual,
                     int64_t rows, int64_t width, float* out);
  void (*norm_columns)(Pool&, float* x, int64_t rows, int64_t stride, int64_t parts, int64_t width, const float* weight,
                       const float* bias, float eps, bool centered);
  void (*add_rows)(Pool&, const float* x, const float* table, const int32_t* index, int64_t rows, int64_t width,
                   float* out);
  void (*activate)(Pool&, const float* x, int64_t rows, int64_t width, Activation, float* out);
  void (*softcap)(Pool&, float* x, int64_t count, float cap);
};

const Kernels& portable_kernels();
// nullptr where the processor (or the compiler) lacks the instructions.
const Kernels* avx2_kernels();         // AVX2, FMA and F16C
const Kernels* avx_vnni_kernels();     // and AVX-VNNI
const Kernels* avx512_kernels();       // AVX2 and AVX-512 F, BW, DQ and VL
const Kernels* avx512_vnni_kernels();  // and AVX-512 VNNI

}  // namespace quire
