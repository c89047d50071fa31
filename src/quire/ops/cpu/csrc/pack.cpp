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

void store_word(uint8_t* p, uint64_t word) {
  const uint16_t narrow = static_cast<uint16_t>(word);
  std::memcpy(p, &narrow, 2);
}

// Bytes 0, 2, 4, 6 of ``x``, each a nibble, side by side in 16 bits.
uint64_t even_nibbles(uint64_t x) {
  x &= 0x000F000F000F000Full;
  return x | x >> 12 | x >> 24 | x >> 36;
}

void pack_nibbles(const uint8_t* q, int group, int lane, uint8_t* out) {
  for (int k = 0; k < group; k += 8, out += 32) {
    const uint64_t x = load_8_bytes(q + k);
    store_word(out + 4 * lane, even_nibbles(x));
    store_word(out + 4 * lane + 2, even_nibbles(x >> 8));
  }
}

void pack_bytes(const uint8_t* q, int group, int lane, uint8_t* out) {
  for (int k = 0; k < group; k += 4, out += 32) {
    uint8_t* word = out + 4 * lane;
    word[0] = q[k];
    word[1] = q[k + 2];
    word[2] = q[k + 1];
    word[3] = q[k + 3];
  }
}

void pack_grouped_panel(const Weight& w, int64_t panel, const uint8_t* q, const uint8_t* scale, const uint8_t* minimum) {
  uint8_t* out = const_cast<uint8_t*>(w.data) + panel * w.panel_bytes();
  const int64_t size = bytes_of(w.type), groups = w.groups();
  for (int64_t g = 0; g < groups; ++g, out += w.block_bytes()) {
    for (int lane = 0; lane < 8; ++lane) {
      const int64_t row = panel * 8 + lane;
      if (row >= w.n) continue;  // the buffer comes zeroed where a panel is partial
      const int64_t at = (row * groups + g) * size;
      std::memcpy(out + lane * size, scale + at, size);
      if (w.has_min) std::memcpy(out + (8 + lane) * size, minimum + at, size);
      const uint8_t* source = q + row * w.k + g * w.group;
      (w.bits == 4 ? pack_nibbles : pack_bytes)(source, w.group, lane, out + w.head_bytes());
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

void pack_grouped(Pool& pool, const Weight& w, const uint8_t* q, const void* scale, const void* minimum) {
  parallel(pool, w.panels(), [&](int64_t panel, int) {
    if (panel * 8 + 8 > w.n) std::memset(const_cast<uint8_t*>(w.data) + panel * w.panel_bytes(), 0, w.panel_bytes());
    pack_grouped_panel(w, panel, q, static_cast<const uint8_t*>(scale), static_cast<const uint8_t*>(minimum));
  });
}

}  // namespace quire
