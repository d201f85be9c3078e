// A loop on the threads of the caller's arena.
#pragma once

#include <algorithm>
#include <cstddef>

#include <tbb/blocked_range.h>
#include <tbb/parallel_for.h>
#include <tbb/task_arena.h>

namespace shardyard {

// Calls f(first, last) for parts of [0, count) of `grain` or fewer each, on all threads of the arena.
template <typename Function>
void in_parts(std::size_t count, std::size_t grain, const Function& function) {
    const std::size_t parts = (count + grain - 1) / grain;
    const auto part = [&](std::size_t index) { function(index * grain, std::min(count, (index + 1) * grain)); };
    if (parts == 1 || tbb::this_task_arena::max_concurrency() == 1) {
        for (std::size_t index = 0; index < parts; ++index) part(index);
        return;
    }
    tbb::parallel_for(
        tbb::blocked_range<std::size_t>(0, parts, 1),
        [&](const tbb::blocked_range<std::size_t>& range) { part(range.begin()); }, tbb::simple_partitioner());
}

}  // namespace shardyard
