#include <algorithm>
#include <cstring>

#include "parallel.h"
#include "weights.h"

namespace quire {
namespace {

template <typename T>
void pack_dense_panel(const Weight& w, int64_t panel, const T* source, T* out) {
  const int64_t first = panel * 16, rows = std::min<int64_t>(16, w.n - first);
  constexpr int64_t kTile = 64;  // columns at a time, so that all 16 rows' lines stay in L1
  for (int64_t k0 = 0; k0 < w.k; k0 += kTile) {
    const int64_t k1 = std::min(w.k, k0 + kTile);
    for (int64_t r = 0; r < 16; ++r) {
      const T* row = source + (first + r) * w.k;
      for (int64_t k = k0; k < k1; ++k) out[k * 16 + r] = r < rows ? row[k] : T{0};
    }
  }
}

uint64_t load_8_bytes(const uint8_t* p) {
  uint64_t x;
  std::memcpy(&x, p, 8);
  return x;
}

// Eight bytes, each a nibble, side by side in 32 bits.
uint32_t nibbles(uint64_t x) {
  x = (x | x >> 4) & 0x00FF00FF00FF00FFull;
  x = (x | x >> 8) & 0x0000FFFF0000FFFFull;
  return static_cast<uint32_t>(x | x >> 16);
}

void pack_nibbles(const uint8_t* q, int group, int lane, uint8_t* out) {
  for (int k = 0; k < group; k += 8, out += 32) {
    const uint32_t word = nibbles(load_8_bytes(q + k));
    std::memcpy(out + 4 * lane, &word, 4);
  }
}

void pack_bytes(const uint8_t* q, int group, int lane, uint8_t* out) {
  for (int k = 0; k < group; ++k) out[8 * k + lane] = q[k];
}

template <int Bits>
void pack_fields(const uint8_t* q, int group, int lane, uint8_t* out) {
  using F = Fields<Bits>;
  constexpr uint32_t kSpareMask = (1u << F::kSpare) - 1;
  const auto pair = [&](int i) { return static_cast<uint32_t>(q[i]) | static_cast<uint32_t>(q[i + F::kPairs]) << 16; };
  for (const uint8_t* end = q + group; q < end; q += F::kInputs) {
    uint32_t rest = 0;
    for (int i = F::kWhole; i < F::kPairs; ++i) rest |= pair(i) << F::at(i);
    for (int w = 0; w < F::kWords; ++w, out += 32) {
      uint32_t word = F::kSpare ? (rest >> w * F::kSpare & kSpareMask * 0x10001u) << (16 - F::kSpare) % 16 : 0;
      for (int i = 0; i < F::kPerWord; ++i) word |= pair(w * F::kPerWord + i) << i * Bits;
      std::memcpy(out + 4 * lane, &word, 4);
    }
  }
}

void pack_elements(const Weight& w, const uint8_t* q, int lane, uint8_t* out) {
  switch (bits_of(w.code)) {
    case 2: return pack_fields<2>(q, w.group, lane, out);
    case 3: return pack_fields<3>(q, w.group, lane, out);
    case 4: return pack_nibbles(q, w.group, lane, out);
    case 5: return pack_fields<5>(q, w.group, lane, out);
    case 6: return pack_fields<6>(q, w.group, lane, out);
    default: return pack_bytes(q, w.group, lane, out);
  }
}

// ``out`` [8 lanes] of ``size`` bytes each.
void put(uint8_t* out, int lane, int64_t size, const uint8_t* source, int64_t at) {
  std::memcpy(out + lane * size, source + at * size, size);
}

void pack_grouped_panel(const Weight& w, int64_t panel, const PackSource& from) {
  uint8_t* out = const_cast<uint8_t*>(w.data) + panel * w.panel_bytes();
  const int64_t size = bytes_of(w.type), groups = w.groups();
  const int64_t second = w.second_bytes() / 8, supers = w.super ? groups / w.super : 0;
  for (int64_t g = 0; g < groups; ++g) {
    for (int lane = 0; lane < 8; ++lane) {
      const int64_t row = panel * 8 + lane;
      if (row >= w.n) continue;  // the buffer comes zeroed where a panel is partial
      uint8_t* block = out + w.block_at(g);
      put(block, lane, size, from.scale, row * groups + g);
      if (second) put(block + 8 * size, lane, second, from.second, row * groups + g);
      pack_elements(w, from.elements + row * w.k + g * w.group, lane, block + w.head_bytes());
      if (!w.super || g % w.super) continue;
      const int64_t at = row * supers + g / w.super;
      put(out + w.super_at(g), lane, 2, from.super_scale, at);
      if (w.second == Second::minimum) put(out + w.super_at(g) + 16, lane, 2, from.super_second, at);
    }
  }
}

}  // namespace

void pack_dense(Pool& pool, const Weight& w, const void* source) {
  parallel(pool, w.panels(), [&](int64_t panel, int) {
    uint8_t* out = const_cast<uint8_t*>(w.data) + panel * w.panel_bytes();
    if (w.type == Type::f32) {
      pack_dense_panel(w, panel, static_cast<const uint32_t*>(source), reinterpret_cast<uint32_t*>(out));
    } else {
      pack_dense_panel(w, panel, static_cast<const uint16_t*>(source), reinterpret_cast<uint16_t*>(out));
    }
  });
}

void pack_grouped(Pool& pool, const Weight& w, const PackSource& source) {
  parallel(pool, w.panels(), [&](int64_t panel, int) {
    if (panel * 8 + 8 > w.n) std::memset(const_cast<uint8_t*>(w.data) + panel * w.panel_bytes(), 0, w.panel_bytes());
    pack_grouped_panel(w, panel, source);
  });
}

}  // namespace quire
