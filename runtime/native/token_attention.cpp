// Tasks take some of a key/value head's blocks each. They are put together by their largest scores and sums of
// exponentials. Source: Milakov & Gimelshein 2018 (arXiv:1805.02867).

#include "token_attention.hpp"

#include <algorithm>
#include <limits>
#include <vector>

#include "exponential.hpp"
#include "in_parts.hpp"
#include "lanes.hpp"

using namespace shardyard;

namespace {

// Blocks of a task.
constexpr std::size_t kTaskBlocks = 16;
constexpr std::size_t kSums = 4;

// A head of `size` channels, of which the first `turned` are rotated: pairs (i, i + turned / 2).
void rotate(const float* x, const float* cos, const float* sin, std::size_t turned, std::size_t size, float* y) {
    const std::size_t half = turned / 2;
    for (std::size_t i = 0; i < half; ++i) {
        y[i] = x[i] * cos[i] - x[i + half] * sin[i];
        y[i + half] = x[i + half] * cos[i + half] + x[i] * sin[i + half];
    }
    std::copy(x + turned, x + size, y + turned);
}

// What a task makes: of each head of the group a weighted sum of values, the largest score, and the sum of the weights.
struct Part {
    float *mixed, *peak, *total;
};

// A task's memory, of one thread.
struct Room {
    std::vector<float> queries, scaled, scores, wide, key;

    void make(std::size_t group, std::size_t size, std::size_t tokens) {
        queries.resize(group * size), scaled.resize(size), scores.resize(group * tokens);
        wide.resize(kBlockTokens * size), key.resize(size);
    }
};

// wide = (bytes - zero) · scale. A plain loop: of this one the compiler makes the best vector code.
void widen(const std::uint8_t* __restrict bytes, std::size_t count, float zero, float scale, float* __restrict wide) {
    for (std::size_t i = 0; i < count; ++i) wide[i] = (static_cast<float>(bytes[i]) - zero) * scale;
}

// The scores of a block's tokens [first, last) in each head of the group; `scores` are `stride` apart.
void score_block(const TokenStep& step, const KeyBlock& keys, std::size_t first, std::size_t last, Room& room,
                 float* scores, std::size_t stride) {
    const std::size_t size = step.size, count = last - first;
    float *scaled = room.scaled.data(), *wide = room.wide.data();
    widen(keys.bytes + first * size, count * size, 0.f, 1.f, wide);
    for (std::size_t h = 0; h < step.group(); ++h) {
        const float* query = room.queries.data() + h * size;
        Lanes zero{};
        for (std::size_t c = 0; c < size; c += kLanes) {
            const Lanes q = load_lanes(query + c) * load_lanes(keys.scales + c) * step.scale;
            store_lanes(q, scaled + c);
            zero += q * load_lanes(keys.zeros + c);
        }
        const float less = sum_of(zero);
        for (std::size_t t = 0; t < count; ++t) {
            Lanes sum{};
            for (std::size_t c = 0; c < size; c += kLanes) {
                sum += load_lanes(scaled + c) * load_lanes(wide + t * size + c);
            }
            scores[h * stride + t] = sum_of(sum) - less;
        }
    }
}

// Adds a block's values, weighed, to each head's sum.
void mix_block(const TokenStep& step, const ValueBlock& values, std::size_t first, std::size_t last, Room& room,
               const float* weights, std::size_t stride, float* mixed) {
    const std::size_t size = step.size, count = last - first;
    float* wide = room.wide.data();
    for (std::size_t t = 0; t < count; ++t) {
        widen(values.bytes(first + t), size, values.zero(first + t), values.scale(first + t), wide + t * size);
    }
    for (std::size_t h = 0; h < step.group(); ++h) {
        for (std::size_t c = 0; c < size; c += kLanes) {
            // Several sums, as each must wait for itself.
            Lanes sums[kSums]{load_lanes(mixed + h * size + c)};
            const float *weight = weights + h * stride, *from = wide + c;
            std::size_t t = 0;
            for (; t + kSums <= count; t += kSums) {
                for (std::size_t s = 0; s < kSums; ++s) sums[s] += weight[t + s] * load_lanes(from + (t + s) * size);
            }
            for (; t < count; ++t) sums[0] += weight[t] * load_lanes(from + t * size);
            store_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]), mixed + h * size + c);
        }
    }
}

// Scores to weights: exponentials of the scores less the largest.
void weigh(float* scores, std::size_t count, float* peak, float* total) {
    const std::size_t whole = count / kLanes * kLanes;
    Lanes most = Lanes{} - std::numeric_limits<float>::infinity(), sums{};
    for (std::size_t i = 0; i < whole; i += kLanes) {
        const Lanes some = load_lanes(scores + i);
        most = some > most ? some : most;
    }
    for (std::size_t i = whole; i < count; ++i) most[0] = std::max(most[0], scores[i]);
    for (std::size_t i = 1; i < kLanes; ++i) most[0] = std::max(most[0], most[i]);
    const float largest = most[0];
    for (std::size_t i = 0; i < count; ++i) scores[i] = exponential(scores[i] - largest);
    for (std::size_t i = 0; i < whole; i += kLanes) sums += load_lanes(scores + i);
    *peak = largest, *total = sum_of(sums);
    for (std::size_t i = whole; i < count; ++i) *total += scores[i];
}

// The blocks [begin, end) of a key/value head. The task with the last block also writes the new key and value.
void attend(const TokenStep& step, std::size_t head, std::size_t begin, std::size_t end, const Part& part) {
    thread_local Room room;
    const std::size_t size = step.size, group = step.group(), from = std::max(begin * kBlockTokens, step.oldest);
    const std::size_t count = std::min(end * kBlockTokens, step.past + 1) - from;
    room.make(group, size, count);
    if (end == step.end_block()) {
        const std::size_t place = step.past % kBlockTokens;
        rotate(step.qkv + (step.heads + head) * size, step.cos, step.sin, step.turned, size, room.key.data());
        step.key_block(head, end - 1).append(place, room.key.data());
        step.value_block(head, end - 1).write(place, step.qkv + (step.heads + step.kv_heads + head) * size);
    }
    for (std::size_t h = 0; h < group; ++h) {
        const float* q = step.qkv + (head * group + h) * size;
        rotate(q, step.cos, step.sin, step.turned, size, &room.queries[h * size]);
    }
    const auto each_block = [&](const auto& work) {
        for (std::size_t block = begin; block < end; ++block) {
            const std::size_t zeroth = block * kBlockTokens, first = std::max(zeroth, from);
            const std::size_t last = std::min(zeroth + kBlockTokens, from + count);
            work(block, first - zeroth, last - zeroth, room.scores.data() + first - from);
        }
    };
    each_block([&](std::size_t block, std::size_t first, std::size_t last, float* scores) {
        score_block(step, step.key_block(head, block), first, last, room, scores, count);
    });
    for (std::size_t h = 0; h < group; ++h) weigh(&room.scores[h * count], count, part.peak + h, part.total + h);
    std::fill(part.mixed, part.mixed + group * size, 0.f);
    each_block([&](std::size_t block, std::size_t first, std::size_t last, const float* weights) {
        mix_block(step, step.value_block(head, block), first, last, room, weights, count, part.mixed);
    });
}

// Brings a head's parts together; they lie `mixed_stride` and `stride` apart.
void join(const Part& part, std::size_t parts, std::size_t mixed_stride, std::size_t stride, std::size_t size,
          float* y) {
    float peak = part.peak[0], total = 0;
    for (std::size_t p = 1; p < parts; ++p) peak = std::max(peak, part.peak[p * stride]);
    std::fill(y, y + size, 0.f);
    for (std::size_t p = 0; p < parts; ++p) {
        const float share = exponential(part.peak[p * stride] - peak);
        total += share * part.total[p * stride];
        for (std::size_t c = 0; c < size; ++c) y[c] += share * part.mixed[p * mixed_stride + c];
    }
    for (std::size_t c = 0; c < size; ++c) y[c] /= total;
}

}  // namespace

void shardyard::attend_token(const TokenStep& step, float* y) {
    const std::size_t first = step.first_block(), blocks = step.end_block() - first;
    const std::size_t parts = (blocks + kTaskBlocks - 1) / kTaskBlocks, rows = parts * step.heads;
    thread_local std::vector<float> memory;
    memory.resize(rows * (step.size + 2));
    float *mixed = memory.data(), *peaks = mixed + rows * step.size, *totals = peaks + rows;
    const auto part = [&](std::size_t index, std::size_t head) {
        const std::size_t row = index * step.heads + head;
        return Part{mixed + row * step.size, peaks + row, totals + row};
    };
    in_parts(parts * step.kv_heads, 1, [&](std::size_t task, std::size_t) {
        const std::size_t index = task / step.kv_heads, head = task % step.kv_heads;
        const std::size_t begin = first + index * kTaskBlocks, end = std::min(begin + kTaskBlocks, step.end_block());
        attend(step, head, begin, end, part(index, head * step.group()));
    });
    for (std::size_t h = 0; h < step.heads; ++h) {
        join(part(0, h), parts, step.heads * step.size, step.heads, step.size, y + h * step.size);
    }
}
