#include <cmath>
#include <cstring>
#include <type_traits>

#include "kernels.h"
#include "parallel.h"

namespace quire {
namespace {
constexpr const char* kName = "portable";
#include "table.inl"
}  // namespace

const Kernels& portable_kernels() { return kTable; }

}  // namespace quire
