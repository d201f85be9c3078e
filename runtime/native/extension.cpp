#include "extension.hpp"

using namespace shardyard;

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({all_reduce_extension(), packed_matmul_extension(),
                                                            packed_rows_extension(), packed_experts_extension(),
                                                            best_token_extension(), packed_layer_extension(),
                                                            token_decoder_extension()}));
