// The attention of a single token: rotation, what the cache gets of it, and what it sees there.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cache_block.hpp"

namespace shardyard {

// One layer's step. The token is number `past` of its sequence and sees from `oldest` on.
struct TokenStep {
    const float *qkv, *cos, *sin;
    std::uint8_t *keys, *values;
    const std::int32_t* blocks;
    std::size_t heads, kv_heads, size, turned, past, oldest;
    float scale;

    std::size_t group() const { return heads / kv_heads; }
    std::size_t first_block() const { return oldest / kBlockTokens; }
    std::size_t end_block() const { return past / kBlockTokens + 1; }

    KeyBlock key_block(std::size_t head, std::size_t block) const {
        return {keys + (blocks[block] * kv_heads + head) * KeyBlock::size(size), size};
    }
    ValueBlock value_block(std::size_t head, std::size_t block) const {
        return {values + (blocks[block] * kv_heads + head) * ValueBlock::size(size), size};
    }
};

// y [heads · size] = the attention of the step's token, whose key and value the caches get. On the caller's arena.
void attend_token(const TokenStep& step, float* y);

}  // namespace shardyard
