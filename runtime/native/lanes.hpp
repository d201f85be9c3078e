// 16 numbers at a time, in whatever registers the CPU has.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace shardyard {

constexpr std::size_t kLanes = 16;
typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef std::int32_t Places __attribute__((vector_size(kLanes * sizeof(std::int32_t))));

inline Lanes load_lanes(const float* from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof(lanes));
    return lanes;
}

inline void store_lanes(const Lanes& lanes, float* to) { std::memcpy(to, &lanes, sizeof(lanes)); }

inline float sum_of(Lanes lanes) {
    lanes += __builtin_shuffle(lanes, Places{8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7});
    lanes += __builtin_shuffle(lanes, Places{4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11});
    lanes += __builtin_shuffle(lanes, Places{2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13});
    return lanes[0] + lanes[1];
}

}  // namespace shardyard
