#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"

namespace quire {
namespace {
#include "table.inl"
constexpr Kernels kTable = table<false>("portable");
}  // namespace

const Kernels& portable_kernels() { return kTable; }

}  // namespace quire
