// All kernels of an instruction set, and their table; ``kName`` names it.
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

constexpr Kernels kTable = {kName, linear, embed, rms_norm, gate_up_act, store_kv, attention, sample,
                           route, grouped_linear, combine, layer_norm, norm_columns, add_rows, activate, softcap};
