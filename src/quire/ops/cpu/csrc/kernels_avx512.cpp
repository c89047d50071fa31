// Only this file is compiled for AVX-512; see kernels_avx2.cpp.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // gcc 12's own intrinsics (bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

namespace quire {
namespace {
#define QUIRE_AVX2
#define QUIRE_AVX512
#include "table.inl"
constexpr Kernels kTable = table<false>("avx512"), kDotTable = table<true>("avx512_vnni");
}  // namespace
}  // namespace quire

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC diagnostic pop
#pragma GCC pop_options
#endif

namespace quire {

const Kernels* avx512_kernels() {
  __builtin_cpu_init();
  const bool usable = avx2_kernels() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return usable ? &kTable : nullptr;
}

const Kernels* avx512_vnni_kernels() {
  return avx512_kernels() && __builtin_cpu_supports("avx512vnni") ? &kDotTable : nullptr;
}

}  // namespace quire

#else

namespace quire {
const Kernels* avx512_kernels() { return nullptr; }
const Kernels* avx512_vnni_kernels() { return nullptr; }
}  // namespace quire

#endif
