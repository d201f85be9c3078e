// A block of 32 tokens in the key/value caches of OpenVINO 2026.4's CPU plugin, in its form of a byte for each number.
//
//   keys    a float32 scale for each channel, a float32 zero for each channel, then [32, channels] bytes
//   values  [32]: a float32 scale, a float32 zero, then [channels] bytes
//
// A number is (byte - zero) · scale. A channel's scale covers all keys of the block so far: a key beyond it changes it,
// and with it the bytes of those before.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace shardyard {

constexpr std::size_t kBlockTokens = 32;

// What turns numbers from `low` to `high` into bytes.
struct ByteRange {
    float scale, zero;

    ByteRange(float low, float high) {
        // Equal ones get a range too, narrow beside their size.
        const float least = std::max(std::max(std::fabs(low), std::fabs(high)) * 1e-6f, 1e-30f);
        scale = std::max((high - low) / 255.f, least);
        zero = -low / scale;
    }

    std::uint8_t byte(float x) const {
        const float at = x / scale + zero + .5f;
        return static_cast<std::uint8_t>(at < 0.f ? 0.f : at > 255.f ? 255.f : at);
    }
};

class KeyBlock {
public:
    KeyBlock(std::uint8_t* memory, std::size_t channels)
        : scales(reinterpret_cast<float*>(memory)), zeros(scales + channels),
          bytes(memory + 2 * sizeof(float) * channels), channels_(channels) {}

    static std::size_t size(std::size_t channels) { return (2 * sizeof(float) + kBlockTokens) * channels; }

    // Writes the key of the block's token `place`; those before it are there.
    void append(std::size_t place, const float* key) {
        for (std::size_t c = 0; c < channels_; ++c) {
            float low = key[c], high = key[c];
            if (place) {
                low = -zeros[c] * scales[c];
                high = (255.f - zeros[c]) * scales[c];
            }
            if (!place || key[c] < low || key[c] > high) widen(c, place, std::min(low, key[c]), std::max(high, key[c]));
            const float at = key[c] / scales[c] + zeros[c] + .5f;
            bytes[place * channels_ + c] = static_cast<std::uint8_t>(at < 0.f ? 0.f : at > 255.f ? 255.f : at);
        }
    }

    float *scales, *zeros;
    std::uint8_t* bytes;

private:
    void widen(std::size_t c, std::size_t place, float low, float high) {
        const ByteRange range(low, high);
        for (std::size_t token = 0; token < place; ++token) {
            std::uint8_t& byte = bytes[token * channels_ + c];
            byte = range.byte((static_cast<float>(byte) - zeros[c]) * scales[c]);
        }
        scales[c] = range.scale, zeros[c] = range.zero;
    }

    std::size_t channels_;
};

class ValueBlock {
public:
    ValueBlock(std::uint8_t* memory, std::size_t channels) : memory_(memory), channels_(channels) {}

    static std::size_t size(std::size_t channels) { return kBlockTokens * row_size(channels); }

    float scale(std::size_t place) const { return parameters(place)[0]; }
    float zero(std::size_t place) const { return parameters(place)[1]; }
    const std::uint8_t* bytes(std::size_t place) const { return row(place) + 2 * sizeof(float); }

    void write(std::size_t place, const float* value) {
        const auto [low, high] = std::minmax_element(value, value + channels_);
        const ByteRange range(*low, *high);
        float* to = reinterpret_cast<float*>(row(place));
        to[0] = range.scale, to[1] = range.zero;
        std::uint8_t* bytes = row(place) + 2 * sizeof(float);
        for (std::size_t c = 0; c < channels_; ++c) bytes[c] = range.byte(value[c]);
    }

private:
    static std::size_t row_size(std::size_t channels) { return 2 * sizeof(float) + channels; }
    std::uint8_t* row(std::size_t place) const { return memory_ + place * row_size(channels_); }
    const float* parameters(std::size_t place) const { return reinterpret_cast<const float*>(row(place)); }

    std::uint8_t* memory_;
    std::size_t channels_;
};

}  // namespace shardyard
