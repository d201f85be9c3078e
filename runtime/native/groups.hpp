// Groups by number: attributes of operations.
#pragma once

#include <cstdint>

#include "group.hpp"

namespace shardyard {

Group& known_group(std::int64_t number);

}  // namespace shardyard
