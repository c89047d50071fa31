// Packed weights: the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

enum class Type : int { f32 = 0, f16 = 1, bf16 = 2 };

inline int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

// Dense: panels of 16 outputs, [ceil(N / 16)][K][16], in the weight's own type; outputs beyond N are 0.
//
// Grouped: panels of 8 outputs, [ceil(N / 8)][K / group] blocks of: 8 scales, 8 minimums (if any), then the integers. In
// 4 bits: [group / 8][8 outputs] words of 32 bits whose nibble i is input i of the 8. In 8 bits: [group][8 outputs] bytes.
struct Weight {
  const uint8_t* data;
  int64_t n;
  int64_t k;
  int bits;  // 0: dense
  int group;
  Type type;  // of dense weights, or of scales and minimums
  bool has_min;

  bool dense() const { return bits == 0; }
  int64_t panel_width() const { return dense() ? 16 : 8; }
  int64_t panels() const { return (n + panel_width() - 1) / panel_width(); }
  int64_t groups() const { return k / group; }
  int64_t head_bytes() const { return 8 * bytes_of(type) * (has_min ? 2 : 1); }
  int64_t block_bytes() const { return head_bytes() + int64_t{8} * group * bits / 8; }
  int64_t panel_bytes() const { return dense() ? k * 16 * bytes_of(type) : groups() * block_bytes(); }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

class Pool;

// ``weight.data`` receives; sources are row-major and contiguous.
void pack_dense(Pool& pool, const Weight& weight, const void* source);
void pack_grouped(Pool& pool, const Weight& weight, const uint8_t* q, const void* scale, const void* minimum);

}  // namespace quire
