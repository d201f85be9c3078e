// All of a decoder layer that is not attention.
#pragma once

#include <cstddef>

#include "gating.hpp"
#include "group.hpp"
#include "packed_matrix.hpp"
#include "packed_product.hpp"

namespace shardyard {

// What is the same in all layers. `group` adds over the ranks, if there are any.
struct LayerForm {
    Activation activation;
    Level level;
    Group* group;
    float epsilon;
};

// A layer's weights behind its attention, and the next layer's up to its own, where there is one.
struct LayerParts {
    const PackedMatrix &dense, &up, &gate, &proj;
    const float* norm;
    const PackedMatrix* next_qkv;
    const float* next_norm;
};

// x [tokens, hidden], what attention made of it y [tokens, heads · head_size] → total, x after the layer:
// x1 = x + D · y, then x1 + P · (act(G · n) · (U · n)) with n = norm(x1), sums over the group. `total` may be x.
// `qkv` becomes the next layer's Q · norm(total), where there is one. On the caller's arena.
void run_layer(const LayerForm& form, const LayerParts& parts, const float* x, const float* y, std::size_t tokens,
               float* total, float* qkv);

}  // namespace shardyard
