// Only this file is compiled for AVX2, and its functions are reached only after cpuid was asked. All headers with inline
// functions come before the pragma, so that no AVX2 version of a shared function can be linked into the portable path.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"

#if defined(__x86_64__)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace quire {
namespace {
#define QUIRE_AVX2
#include "table.inl"
constexpr Kernels kTable = table<false>("avx2"), kDotTable = table<true>("avx_vnni");
}  // namespace
}  // namespace quire

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace quire {

const Kernels* avx2_kernels() {
  __builtin_cpu_init();
  const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return usable ? &kTable : nullptr;
}

const Kernels* avx_vnni_kernels() {
  return avx2_kernels() && __builtin_cpu_supports("avxvnni") ? &kDotTable : nullptr;
}

}  // namespace quire

#else

namespace quire {
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx_vnni_kernels() { return nullptr; }
}  // namespace quire

#endif
