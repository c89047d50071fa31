#include <cmath>
#include <cstring>

#include "kernels.h"
#include "parallel.h"

namespace quire {
namespace {
#include "vec.h"
#include "tiles.inl"
#include "inputs.inl"
#include "linear_grouped.inl"
#include "linear_dense.inl"
#include "elementwise.inl"
#include "attention.inl"
#include "sample.inl"
#include "moe.inl"
constexpr const char* kName = "portable";
#include "table.inl"
}  // namespace

const Kernels& portable_kernels() { return kTable; }

}  // namespace quire
