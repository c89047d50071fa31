// Packed weights: the order in which the kernels read them.
#pragma once

#include <cstddef>
#include <cstdint>

namespace quire {

enum class Type : int { f32 = 0, f16 = 1, bf16 = 2, i8 = 3, u8 = 4, e8m0 = 5 };  // e8m0: x stands for 2^(x - 127)

inline int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::f16 || type == Type::bf16 ? 2 : 1; }

// What an element of a weight is: a float, an unsigned integer of 2 to 6 bits, a signed one of 8, one of 4 bits that points
// into a table, or an e4m3 float (here 2^-8 of its value: scales make up for it).
enum class Code : int { dense = 0, int2 = 2, int3 = 3, int4 = 4, int5 = 5, int6 = 6, int8 = 8, table4 = 14, float8 = 18 };

constexpr int bits_of(Code code) { return static_cast<int>(code) % 10; }

// Elements of less than 8 bits fill 32-bit words: ``kInputs`` of them ``kWords`` words. The first half of the inputs lies in
// the words' lower 16 bits, the other half in the upper: lowest bits first, as many in each word as fit as a whole; the last
// of them (where bits are no power of 2) in the halves' highest bits. So a word yields pairs of 16-bit integers, and one
// or two of them a quad of bytes.
template <int Bits>
struct Fields {
  static constexpr int kInputs = Bits == 4 ? 8 : Bits % 2 ? 32 : 16;
  static constexpr int kPairs = kInputs / 2;
  static constexpr int kWords = kInputs * Bits / 32;
  static constexpr int kPerWord = 16 / Bits;
  static constexpr int kSpare = 16 - kPerWord * Bits;
  static constexpr int kWhole = kPerWord * kWords;  // pairs that lie in one word

  // Of input ``i``: its pair, the pair's word (if it is whole) and the lowest bit in it, or among the highest bits.
  static constexpr int pair(int i) { return i % kPairs; }
  static constexpr int word(int i) { return pair(i) / kPerWord; }
  static constexpr bool whole(int i) { return pair(i) < kWhole; }
  static constexpr int at(int i) {
    return i / kPairs * 16 + Bits * (whole(i) ? pair(i) % kPerWord : pair(i) - kWhole);
  }

  // Where whole bytes of a word can be taken at once, its quads are these; else two pairs that follow each other are one.
  static constexpr bool kByBytes = 8 % Bits == 0;
  static constexpr int kPerByte = 8 / Bits;
  static constexpr int quad_pair(int q, bool odd) {
    return kByBytes ? q / kPerByte * kPerWord + odd * kPerByte + q % kPerByte : 2 * q + odd;
  }
  static constexpr int quad_input(int q, int byte) { return quad_pair(q, byte % 2) + byte / 2 * kPairs; }
};

enum class Second : int { none, minimum, zero };

// What becomes of the inputs before they are multiplied, as part of the layer.
struct Inputs {
  const int32_t* order;  // input k of the weight is input order[k] of the layer; null: in order
  enum class Rounding : int { none, int8, fp8, by_group } rounding;  // by_group: to 8 bits, where that is faster
  float scale;     // 0: from each row's own values
  float zero;      // the integer that stands for 0, if ``scale`` is given
  int64_t group;   // inputs that share a scale; 0: all of a row
  bool symmetric;  // else a row's own zero is found along with its scale

  bool exact() const { return rounding == Rounding::none || rounding == Rounding::by_group; }
  bool plain() const { return !order && exact(); }
};

constexpr int kMaxGroup = 256;

// Dense: panels of 16 outputs, [ceil(N / 16)][K][16], in the weight's own type; outputs beyond N are 0.
//
// Grouped: ``w = scale * (element - zero) + minimum``, scale and so on for each ``group`` of inputs. Panels of 8 outputs,
// [ceil(N / 8)][K / group] blocks of: 8 scales, 8 minimums or zeros (if any), then the elements: of 8 bits [group][8 outputs],
// of less [group / kInputs][kWords][8 outputs] words (``Fields``). With super-blocks, before every ``super`` blocks 8 float16
// which their scales, and 8 which their minimums, are multiplied by.
struct Weight {
  const uint8_t* data;
  int64_t n;
  int64_t k;
  Code code;
  int group;
  Type type;  // of dense weights, or of scales and minimums
  Second second;
  Type zero_type;  // of ``Second::zero``
  int super;       // 0: no super-blocks
  float zero;      // one for all
  float table[16];
  Inputs inputs;

  bool dense() const { return code == Code::dense; }
  bool has_offset() const { return second != Second::none || zero != 0.0f; }
  int64_t panel_width() const { return dense() ? 16 : 8; }
  int64_t panels() const { return (n + panel_width() - 1) / panel_width(); }
  int64_t groups() const { return k / group; }
  int64_t second_bytes() const { return second == Second::none ? 0 : second == Second::zero ? 8 : 8 * bytes_of(type); }
  int64_t head_bytes() const { return 8 * bytes_of(type) + second_bytes(); }
  int64_t super_bytes() const { return super == 0 ? 0 : second == Second::minimum ? 32 : 16; }
  int64_t block_bytes() const { return head_bytes() + int64_t{group} * bits_of(code); }
  int64_t panel_bytes() const {
    if (dense()) return k * 16 * bytes_of(type);
    return groups() * block_bytes() + (super ? groups() / super * super_bytes() : 0);
  }
  int64_t block_at(int64_t g) const { return g * block_bytes() + (super ? (g / super + 1) * super_bytes() : 0); }
  int64_t super_at(int64_t g) const { return super ? g / super * (super_bytes() + super * block_bytes()) : 0; }
  int64_t bytes() const { return panels() * panel_bytes(); }
};

class Pool;

// Row-major and contiguous; what a weight lacks is null. ``second``: minimums or zeros.
struct PackSource {
  const uint8_t* elements;
  const uint8_t* scale;
  const uint8_t* second;
  const uint8_t* super_scale;
  const uint8_t* super_second;
};

// ``weight.data`` receives.
void pack_dense(Pool& pool, const Weight& weight, const void* source);
void pack_grouped(Pool& pool, const Weight& weight, const PackSource& source);

}  // namespace quire
