// Packed matrices by number: attributes of operations, that are neither copied nor looked at in every step.
#pragma once

#include <cstdint>

#include "packed_matrix.hpp"

namespace shardyard {

const PackedMatrix& known_matrix(std::int64_t number);

}  // namespace shardyard
