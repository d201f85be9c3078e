// The operations that this library adds to the OpenVINO CPU plugin, each from the file of its name.
#pragma once

#include <openvino/core/extension.hpp>

namespace shardyard {

ov::Extension::Ptr all_reduce_extension();
ov::Extension::Ptr packed_matmul_extension();
ov::Extension::Ptr packed_rows_extension();
ov::Extension::Ptr packed_experts_extension();
ov::Extension::Ptr best_token_extension();
ov::Extension::Ptr packed_layer_extension();
ov::Extension::Ptr token_decoder_extension();

}  // namespace shardyard
