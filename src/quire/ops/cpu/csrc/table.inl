constexpr Kernels kTable = {kName, linear, embed, rms_norm, gate_up_act, store_kv, attention, sample,
                           route, grouped_linear, combine, layer_norm, norm_columns, add_rows, activate, softcap};
