#include "extension.hpp"

OPENVINO_CREATE_EXTENSIONS(std::vector<ov::Extension::Ptr>({shardyard::all_reduce_extension()}));
