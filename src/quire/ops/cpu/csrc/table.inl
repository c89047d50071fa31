// All kernels of an instruction set, and their tables: without and with the processor's products of bytes.
#include "vec.h"
#include "wide.h"
#include "tiles.inl"
#include "inputs.inl"
#include "linear_grouped.inl"
#include "linear_integer.inl"
#include "linear_dense.inl"
#include "elementwise.inl"
#include "attention.inl"
#include "sample.inl"
#include "moe.inl"

template <bool Dot>
constexpr Kernels table(const char* name) {
  return {name, linear<Dot>, embed, rms_norm, gate_up_act, store_kv, attention, sample,
          route, grouped_linear<Dot>, combine, layer_norm, norm_columns, add_rows, activate, softcap};
}
